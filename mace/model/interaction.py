"""Interactions: messages from neighbors, summed, mixed and divided by the number of neighbors or a density."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mace.graphs.graph import Graph
from mace.kernels.backend import Backend, TabulatedRadial
from mace.kernels.convolution import Convolution
from mace.kernels.gather import DirectedEdges, gather_pairs, split_components, sum_slots, to_both_directions
from mace.kernels.layers import scaled
from mace.kernels.radial_table import RadialTable, tabulate
from mace.model.plan import ModelPlan
from mace.model.radial import RadialEmbedding
from mace.model.radial_network import EdgeInputs, RadialNetwork
from mace.model.roles import Group, learned

Features = dict[int, Tensor]
"""Features by degree, with atoms sorted by element, ``[atoms, 2 l + 1, channels]``."""

ATTENTION_CHANNELS = 64
"""Number of scalars of each atom on which radial weights with attention depend."""

ATTENTION_WIDTHS = (256, 256, 256)
"""Hidden layers of the radial network with attention, regardless of ``radial_mlp``, as in the original."""


@dataclass(frozen=True)
class EdgeGeometry:
    """Geometry of the edges, shared by all layers.

    Attributes:
        lengths: Distances in Angstrom, ``[pairs]``.
        basis: Radial basis, ``[pairs, num_radial_basis]``; arbitrary if it is not needed.
        envelope: Cutoff envelope to multiply radial weights by, zero from the cutoff on, ``[pairs]``; None if the basis
            has already been multiplied by it.
        harmonics: Spherical harmonics, ``[slots, (l_max + 1)^2]``.
        directed: The directed edges, for layers that distinguish an edge from its reverse; None without such layers.
    """

    lengths: Tensor
    basis: Tensor
    envelope: Tensor | None
    harmonics: Tensor
    directed: DirectedEdges | None


class Interaction(nn.Module):
    """Gathers, couples, sums and mixes the features of neighbors; there is one subclass for each kind of messages.

    Args:
        plan: The model's plan.
        layer: Index of the layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__()
        self.kind, self.r_max, self.avg_num_neighbors = plan.interactions[layer], plan.r_max, plan.avg_num_neighbors
        self.l_messages, self.n_messages = plan.l_of_messages(layer), plan.channels_of_messages(layer)
        self.l_skip = tuple(l for l in plan.l_in(layer) if l in plan.l_out(layer))
        self.convolution = Convolution(self.l_messages, plan.l_max)
        shape = (len(self.l_messages), plan.n_channels, self.n_messages)
        self.linear_up = learned(*shape, group="interactions_no_decay")
        self.radial = self.radial_network(plan, len(self.convolution.paths) * self.n_messages)

    def radial_network(self, plan: ModelPlan, n_outputs: int) -> RadialNetwork:
        """Build the network of the radial weights."""
        return RadialNetwork((plan.num_radial_basis, *plan.radial_mlp, n_outputs))

    def tabulate(self, embedding: RadialEmbedding, n_nodes: int) -> RadialTable:
        """Tabulate the radial weights, computed in float64 and stored in the precision of the current parameters.

        Raises:
            ValueError: If they depend on more than the distance.
        """
        if self.kind.is_directed:
            raise ValueError("the radial weights depend on the atoms too")
        network = deepcopy(self.radial).double().requires_grad_(False)

        def weights(lengths: Tensor) -> Tensor:
            return network(EdgeInputs(*embedding.of_length(lengths, lengths)))

        table = tabulate(weights, len(self.convolution.paths), embedding.plan.r_max, n_nodes)
        return replace(table, values=table.values.to(self.linear_up))

    def forward(
        self,
        features: Features,
        geometry: EdgeGeometry,
        graph: Graph,
        backend: Backend,
        table: RadialTable | None = None,
    ) -> tuple[Tensor, Features]:
        """Compute the atomic basis A and the skip connection.

        Args:
            features: Features by degree, ``[atoms, 2 l + 1, channels]``.
            geometry: Geometry of the edges.
            graph: The graph.
            backend: The back end that evaluates the inner loops.
            table: Table of the radial weights; None to evaluate the radial network.

        Returns:
            A, ``[atoms, (l_max + 1)^2, channels]``, and the residual by degree, ``[atoms, 2 l + 1, channels]``; the
            latter is empty for kinds without one.
        """
        messages = mapped(features, self.l_messages, self.linear_up)
        inputs = self.edge_inputs(features, geometry, graph)
        radial: Tensor | TabulatedRadial
        if table is not None:
            radial = TabulatedRadial(table, geometry.lengths)
        else:
            radial = backend.radial(*self.radial.last_product(inputs), len(self.convolution.paths))
        sums = backend.convolve(self.convolution, messages, radial, geometry.harmonics, graph, inputs.edges)
        return self.mix(sums, messages, features, inputs, graph, backend)

    def edge_inputs(self, features: Features, geometry: EdgeGeometry, graph: Graph) -> EdgeInputs:
        """Collect the inputs of the radial network of this layer."""
        return EdgeInputs(geometry.basis, geometry.envelope)

    def directed_inputs(self, senders: Tensor, receivers: Tensor, geometry: EdgeGeometry, graph: Graph) -> EdgeInputs:
        """Collect the inputs of the radial network for directed edges, including features of senders and receivers."""
        assert geometry.directed is not None
        envelope = geometry.envelope
        if envelope is None:
            # such a network does not vanish where the basis does
            envelope = (geometry.lengths < self.r_max).to(geometry.basis.dtype)
        envelope = to_both_directions(envelope)
        return EdgeInputs(geometry.basis, envelope, senders, receivers, geometry.directed, graph)

    @abstractmethod
    def mix(
        self, sums: Features, messages: Features, features: Features, inputs: EdgeInputs, graph: Graph, backend: Backend
    ) -> tuple[Tensor, Features]:
        """Compute the atomic basis from the sums, and the residual.

        Args:
            sums: Sums over neighbors by degree, ``[atoms, 2 l + 1, paths * channels of messages]``.
            messages: Features sent by each atom, by degree, ``[atoms, 2 l + 1, channels of messages]``.
            features: Input features of the layer.
            inputs: Inputs of the radial network.
            graph: The graph.
            backend: The back end that evaluates the inner loops.

        Returns:
            See `forward`.
        """


class LinearInteraction(Interaction):
    """An interaction that mixes the summed messages linearly and has a skip connection with one matrix per element.

    Args:
        plan: The model's plan.
        layer: Index of the layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__(plan, layer)
        n, elements = plan.n_channels, plan.n_elements
        self.linear = linear_maps(self.convolution, self.n_messages, [n] * (plan.l_max + 1), "interactions_decay")
        if not self.kind.residual:
            self.l_skip = tuple(range(plan.l_max + 1))
        shape = (len(self.l_skip), elements, n, n)
        self.skip = learned(*shape, group="interactions_no_decay", fan_in=n * elements, element_axis=1)
        if self.kind.normalization == "density":
            self.density = learned(plan.num_radial_basis, 1, group="interactions_no_decay")

    def mix(
        self, sums: Features, messages: Features, features: Features, inputs: EdgeInputs, graph: Graph, backend: Backend
    ) -> tuple[Tensor, Features]:
        """See `Interaction`; without a residual, the matrices of the elements act on the messages instead."""
        divisor, counted = None, self.avg_num_neighbors
        if self.kind.normalization == "density":
            density = torch.tanh((inputs.basis @ (self.density * self.density.shape[0] ** -0.5)) ** 2)
            if inputs.envelope is not None:
                density = density * inputs.envelope.unsqueeze(1)
            divisor, counted = sum_slots(gather_pairs(density, graph).squeeze(1), graph) + 1.0, 1.0
        weights = scaled_maps(self.linear, counted)
        skip = self.skip * (self.skip.shape[-1] * self.skip.shape[1]) ** -0.5
        if not self.kind.residual:
            return backend.mix(list(sums.values()), weights, graph, skip, divisor), {}
        atomic_basis = backend.mix(list(sums.values()), weights, graph, None, divisor)
        residual = backend.multiply_by_element([features[l] for l in self.l_skip], skip, graph)
        return atomic_basis, dict(zip(self.l_skip, residual, strict=True))


class AttentionInteraction(Interaction):
    """An interaction whose radial weights also depend on the scalars of both atoms; all elements share a skip matrix.

    Args:
        plan: The model's plan.
        layer: Index of the layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__(plan, layer)
        n = plan.n_channels
        self.linear = linear_maps(self.convolution, self.n_messages, [n] * (plan.l_max + 1), "interactions_decay")
        self.linear_down = learned(n, ATTENTION_CHANNELS, group="interactions_no_decay")
        self.skip_linear = learned(len(self.l_skip), n, n, group="interactions_decay")

    def radial_network(self, plan: ModelPlan, n_outputs: int) -> RadialNetwork:
        """See `Interaction`."""
        return RadialNetwork((plan.num_radial_basis + 2 * ATTENTION_CHANNELS, *ATTENTION_WIDTHS, n_outputs))

    def edge_inputs(self, features: Features, geometry: EdgeGeometry, graph: Graph) -> EdgeInputs:
        """See `Interaction`."""
        scalars = features[0].squeeze(1)
        of_atoms = scalars @ (self.linear_down * scalars.shape[1] ** -0.5)
        return self.directed_inputs(of_atoms, of_atoms, geometry, graph)

    def mix(
        self, sums: Features, messages: Features, features: Features, inputs: EdgeInputs, graph: Graph, backend: Backend
    ) -> tuple[Tensor, Features]:
        """See `Interaction`."""
        atomic_basis = backend.mix(list(sums.values()), scaled_maps(self.linear, self.avg_num_neighbors), graph)
        return atomic_basis, mapped(features, self.l_skip, self.skip_linear)


def linear_maps(convolution: Convolution, n_inputs: int, widths: Sequence[int], group: Group) -> nn.ParameterList:
    """Create linear maps of the sums of a convolution, by degree, each ``[paths, channels of messages, outputs]``."""
    counts = [sum(path.l3 == degree for path in convolution.paths) for degree in range(len(widths))]
    return nn.ParameterList(
        learned(count, n_inputs, width, group=group, fan_in=count * n_inputs)
        for count, width in zip(counts, widths, strict=True)
    )


def scaled_maps(maps: nn.ParameterList, divisor: float = 1.0) -> list[Tensor]:
    """Return `linear_maps` as matrices, scaled to preserve the variance of their inputs and divided by a divisor."""
    # a degree that no path leads to has no inputs, and its output is zero
    factors = [max(weight.shape[0] * weight.shape[1], 1) ** -0.5 / divisor for weight in maps]
    return [matrix.flatten(0, 1) for matrix in scaled(list(maps), factors)]


def mapped(features: Mapping[int, Tensor], degrees: Sequence[int], weights: Tensor) -> Features:
    """Map the channels of the given degrees, each by its own matrix in ``[degrees, inputs, outputs]``."""
    matrices = split_components(weights * weights.shape[1] ** -0.5, [1] * len(weights), dim=0)
    return {degree: _times(features[degree], m.squeeze(0)) for degree, m in zip(degrees, matrices, strict=True)}


def _times(values: Tensor, matrix: Tensor) -> Tensor:
    """Multiply ``[atoms, 2 l + 1, inputs]`` by a matrix without a copy, whichever dimension comes first in memory."""
    return values @ matrix if values.is_contiguous() else (values.transpose(0, 1) @ matrix).transpose(0, 1)
