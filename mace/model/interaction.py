"""One interaction: messages from the neighbors, summed, mixed and divided by the number of neighbors."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mace.graphs.graph import Graph
from mace.kernels.convolution import convolution_paths, convolve, coupling_matrix
from mace.kernels.emit import lanes
from mace.kernels.gather import DirectedEdges, gather_pairs, join_components, to_both_directions
from mace.kernels.native import blocked_table, convolve_native, convolve_tabulated, pad_channels, unpad_channels
from mace.kernels.radial_table import RadialTable, tabulate
from mace.model.nonlinear import GatedMixing, transposed_product
from mace.model.plan import ModelPlan
from mace.model.radial import RadialEmbedding
from mace.model.radial_network import EdgeInputs, NormalizedRadialNetwork, RadialNetwork

ATTENTION_CHANNELS = 64
"""Scalars of either atom that radial weights with attention depend on."""

ATTENTION_WIDTHS = (256, 256, 256)
"""Hidden layers of the radial network with attention, whatever ``radial_mlp`` says, as in the original."""


@dataclass(frozen=True)
class EdgeGeometry:
    """What all layers need to know of the edges.

    Attributes:
        lengths: Angstrom, ``[pairs]``.
        basis: Radial basis, ``[pairs, num_radial_basis]``; anything where it is not needed.
        envelope: What radial weights are multiplied by, zero from the cutoff on, ``[pairs]``; None where the basis has
            been.
        harmonics: ``[slots, (l_max + 1)^2]``.
        directed: The directed edges, for layers that tell an edge from its reverse; None without such layers.
    """

    lengths: Tensor
    basis: Tensor
    envelope: Tensor | None
    harmonics: Tensor
    directed: DirectedEdges | None


def radial_network(plan: ModelPlan, layer: int, n_paths: int) -> RadialNetwork:
    """Build the network of a layer's radial weights."""
    n_outputs = n_paths * plan.channels_of_messages(layer)
    messages = plan.interactions[layer].messages
    if messages == "attention":
        n_inputs = plan.num_radial_basis + 2 * ATTENTION_CHANNELS
        return RadialNetwork((n_inputs, *ATTENTION_WIDTHS, n_outputs))
    if messages == "nonlinear":
        n_inputs = plan.num_radial_basis + 2 * plan.n_channels
        return NormalizedRadialNetwork((n_inputs, *plan.radial_mlp, n_outputs))
    return RadialNetwork((plan.num_radial_basis, *plan.radial_mlp, n_outputs))


class Interaction(nn.Module):
    """Gather, couple, sum and mix the features of the neighbors.

    Args:
        plan: The model's plan.
        layer: Which layer, from zero.
    """

    coupling: Tensor

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__()
        self.kind = plan.interactions[layer]
        self.compiled = False
        self._table: RadialTable | None = None
        self._blocked_table: Tensor | None = None
        self.l_in, self.l_out, self.l_max = plan.l_in(layer), plan.l_out(layer), plan.l_max
        self.l_messages, self.n_messages = plan.l_of_messages(layer), plan.channels_of_messages(layer)
        self.avg_num_neighbors, self.r_max = plan.avg_num_neighbors, plan.r_max
        n, elements = plan.n_channels, plan.n_elements
        self.paths = convolution_paths(self.l_messages, plan.l_max)
        coupling = torch.as_tensor(coupling_matrix(self.paths, plan.l_max))
        self.register_buffer("coupling", coupling, persistent=False)
        self.linear_up = nn.Parameter(torch.empty(len(self.l_messages), n, self.n_messages))
        self.radial = radial_network(plan, layer, len(self.paths))
        self.l_skip = tuple(l for l in self.l_in if l in self.l_out)
        if self.kind.messages == "nonlinear":
            self.source_embedding = nn.Parameter(torch.empty(elements, n))
            self.target_embedding = nn.Parameter(torch.empty(elements, n))
            self.mixing = GatedMixing(plan, layer)
            return
        counts = [sum(path.l3 == l for path in self.paths) for l in range(plan.l_max + 1)]
        self.linear = nn.ParameterList(torch.empty(count, self.n_messages, n) for count in counts)
        if self.kind.messages == "attention":
            self.linear_down = nn.Parameter(torch.empty(n, ATTENTION_CHANNELS))
            self.skip_linear = nn.Parameter(torch.empty(len(self.l_skip), n, n))
            return
        if not self.kind.residual:
            self.l_skip = tuple(range(plan.l_max + 1))
        self.skip = nn.Parameter(torch.empty(len(self.l_skip), elements, n, n))
        if self.kind.normalization == "density":
            self.density = nn.Parameter(torch.empty(plan.num_radial_basis, 1))

    def tabulate(self, embedding: RadialEmbedding, n_nodes: int) -> RadialTable:
        """Tabulate the radial weights, computed in float64 from the present parameters, in their precision.

        Raises:
            ValueError: If they depend on more than the length.
        """
        if self.kind.is_directed:
            raise ValueError("the radial weights depend on the atoms too")
        network = deepcopy(self.radial).double().requires_grad_(False)

        def weights(lengths: Tensor) -> Tensor:
            return network(EdgeInputs(*embedding.of_length(lengths, lengths)))

        table = tabulate(weights, len(self.paths), embedding.plan.r_max, n_nodes)
        return replace(table, values=table.values.to(self.linear_up))

    def use_table(self, table: RadialTable | None) -> None:
        """Read the radial weights from a table instead of evaluating the network; None for the network again.

        Args:
            table: In the precision and on the device of the weights.
        """
        self._table = table
        self._blocked_table = blocked_table(table) if table is not None and self.compiled else None

    def take_table(self) -> RadialTable | None:
        """Return the table that was read and evaluate the network from now on."""
        table = self._table
        self.use_table(None)
        return table

    @property
    def needs_basis(self) -> bool:
        """Whether the radial basis is needed; a table goes without, unless a density is learned from it."""
        return self._table is None or self.kind.normalization == "density"

    def forward(
        self, features: dict[int, Tensor], geometry: EdgeGeometry, graph: Graph
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Compute the atomic basis A and the skip connection.

        Args:
            features: Rows by degree, ``[atoms, 2 l + 1, channels]``.
            geometry: The edges.
            graph: The graph.

        Returns:
            A, ``[channels, (l_max + 1)^2, atoms]`` or, for the compiled kernels, ``[atoms, (l_max + 1)^2, channels]``;
            and by degree the residual, ``[atoms, 2 l + 1, channels]``; empty for a kind without one.
        """
        scale = self.linear_up.shape[1] ** -0.5
        mixed = {
            degree: features[degree] @ (weight * scale)
            for degree, weight in zip(self.l_messages, self.linear_up.unbind(0), strict=True)
        }
        inputs = self._inputs(features, geometry, graph)
        convolve = self._convolve_compiled if self.compiled else self._convolve
        summed = convolve(mixed, inputs, geometry, graph)
        if self.kind.messages == "nonlinear":
            atomic_basis = self.mixing(summed, mixed, inputs, self.compiled)
            return atomic_basis, self.mixing.residual_of(features)
        return self._linear_mixing(summed, features, inputs, graph)

    def _inputs(self, features: dict[int, Tensor], geometry: EdgeGeometry, graph: Graph) -> EdgeInputs:
        """Collect what the radial weights of this layer depend on."""
        if not self.kind.is_directed:
            return EdgeInputs(geometry.basis, geometry.envelope, graph=graph)
        assert geometry.directed is not None
        if self.kind.messages == "attention":
            scalars = features[0].squeeze(1)
            senders = receivers = scalars @ (self.linear_down * scalars.shape[1] ** -0.5)
        else:
            element = graph.element.index_select(0, graph.atoms_by_element)
            scale = len(self.source_embedding) ** -0.5
            senders, receivers = (
                (embedding * scale).index_select(0, element)
                for embedding in (self.source_embedding, self.target_embedding)
            )
        envelope = geometry.envelope
        if envelope is None:
            # such a network is not zero where the basis is
            envelope = (geometry.lengths < self.r_max).to(geometry.basis.dtype)
        envelope = to_both_directions(envelope)
        return EdgeInputs(geometry.basis, envelope, senders, receivers, geometry.directed, graph)

    def _convolve(
        self, features: dict[int, Tensor], inputs: EdgeInputs, geometry: EdgeGeometry, graph: Graph
    ) -> dict[int, Tensor]:
        """Sum over neighbors, by degree ``[atoms, 2 l + 1, paths * channels]``."""
        if self._table is not None:
            radial = self._table.evaluate(geometry.lengths)
        else:
            radial = self.radial(inputs).view(-1, len(self.paths), self.n_messages)
        summed = convolve(features, radial, geometry.harmonics, self.coupling, self.paths, graph, inputs.edges)
        return {degree: torch.cat(paths, dim=2) for degree, paths in summed.items()}

    def _convolve_compiled(
        self, features: dict[int, Tensor], inputs: EdgeInputs, geometry: EdgeGeometry, graph: Graph
    ) -> dict[int, Tensor]:
        """Do the same with the compiled kernels."""
        padded = {degree: pad_channels(values) for degree, values in features.items()}
        coupling, paths, harmonics = self.coupling, self.paths, geometry.harmonics
        if self._table is not None and self._blocked_table is not None:
            summed = convolve_tabulated(
                padded, geometry.lengths, self._table, self._blocked_table, harmonics, coupling, paths, graph
            )
        else:
            radial = self.radial.blocks(inputs, len(paths), lanes(harmonics.dtype))
            summed = convolve_native(padded, radial, harmonics, coupling, paths, graph, inputs.edges)
        return {degree: unpad_channels(values, self.n_messages).flatten(2) for degree, values in summed.items()}

    def _linear_mixing(
        self, summed: dict[int, Tensor], features: dict[int, Tensor], inputs: EdgeInputs, graph: Graph
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Mix the sums linearly and divide them; compute the residual."""
        divisor = self._divisor(inputs, graph)
        if self.kind.messages == "attention":
            atomic_basis = join_components([self._mix(summed[l], l, None, divisor, graph) for l in summed])
            scale = self.skip_linear.shape[1] ** -0.5
            maps = zip(self.l_skip, (self.skip_linear * scale).unbind(0), strict=True)
            return atomic_basis, {degree: features[degree] @ weight for degree, weight in maps}
        skips = self.skip.unbind(0)
        residual = self.kind.residual
        atomic_basis = join_components(
            [self._mix(summed[l], l, None if residual else skips[l], divisor, graph) for l in summed]
        )
        return atomic_basis, self._residual(features, skips, graph) if residual else {}

    def _divisor(self, inputs: EdgeInputs, graph: Graph) -> Tensor | None:
        """Return one plus the learned density of every row, ``[atoms]``; None when counting."""
        if self.kind.normalization == "count":
            return None
        density = torch.tanh((inputs.basis @ (self.density * self.density.shape[0] ** -0.5)) ** 2)
        if inputs.envelope is not None:
            density = density * inputs.envelope.unsqueeze(1)
        of_atom = gather_pairs(density, graph).view(graph.n_atoms, graph.max_neighbors).sum(1)
        return of_atom + 1.0

    def _mix(self, summed: Tensor, degree: int, skip: Tensor | None, divisor: Tensor | None, graph: Graph) -> Tensor:
        """Mix the channels of all paths of a degree, ``[channels, 2 l + 1, atoms]``; reversed for compiled kernels."""
        weight = self.linear[degree]
        count, n_in, n = weight.shape
        # no path leads here, as from scalars alone to a degree beyond the harmonics: no inputs, and nothing comes out
        scale = max(count * n_in, 1) ** -0.5 / (self.avg_num_neighbors if divisor is None else 1.0)
        weight = weight.reshape(count * n_in, n) * scale
        pieces: tuple[Tensor, ...] = (summed,)
        weights = [weight]
        if skip is not None:  # one matrix of each element, not a view into the parameter, whose derivative fills zeros
            chosen = (skip * (n * self.skip.shape[1]) ** -0.5).unbind(0)
            pieces = summed.split(graph.element_counts)
            weights = [weight @ chosen[element] for element in graph.elements_present]
        if self.compiled:
            mixed = _joined([piece @ w for piece, w in zip(pieces, weights, strict=True)], dim=0)
            return mixed if divisor is None else mixed / divisor.view(-1, 1, 1)
        products = [transposed_product(w, piece.transpose(0, 1)) for piece, w in zip(pieces, weights, strict=True)]
        mixed = _joined(products, dim=2)
        return mixed if divisor is None else mixed / divisor

    def _residual(self, features: dict[int, Tensor], skips: tuple[Tensor, ...], graph: Graph) -> dict[int, Tensor]:
        """Map the input with the matrix of each atom's element."""
        scale = (self.skip.shape[-1] * self.skip.shape[1]) ** -0.5
        result = {}
        for degree, skip in zip(self.l_skip, skips, strict=True):
            pieces, weights = features[degree].split(graph.element_counts), (skip * scale).unbind(0)
            result[degree] = torch.cat([p @ weights[e] for e, p in zip(graph.elements_present, pieces, strict=True)])
        return result


def _joined(pieces: list[Tensor], dim: int) -> Tensor:
    """Concatenate, without a copy if there is but one piece."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)
