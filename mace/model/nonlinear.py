"""The non-linear interaction: radial weights depend on both elements, and the sums pass through gates."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mace.equivariant.activations import SIGMOID_SCALE, SILU_SCALE
from mace.graphs.graph import Graph
from mace.kernels.backend import Backend
from mace.kernels.gather import gather_edges, spread_segments, sum_slots
from mace.model.interaction import EdgeGeometry, Features, Interaction, linear_maps, mapped, scaled_maps
from mace.model.plan import ModelPlan
from mace.model.radial_network import EdgeInputs, NormalizedRadialNetwork, RadialNetwork
from mace.model.roles import Group, learned

DENSITY_WIDTH = 64
"""Width of the hidden layer of the density network, as in the original."""

START_OF_ALPHA, START_OF_BETA = 20.0, 0.0
"""Initial values of ``alpha`` and ``beta``; sums are divided by ``alpha`` plus ``beta`` times the density."""

LARGEST_ELEMENT_EMBEDDING = 0.001
"""Bound on the initial values of the element embeddings that enter the radial weights."""


class NonlinearInteraction(Interaction):
    """Mixes the sums, divides them by a density, adds a map of the atom's own features and applies gates.

    Args:
        plan: The model's plan.
        layer: Which layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__(plan, layer)
        shape = (plan.n_elements, plan.n_channels)
        self.source_embedding, self.target_embedding = (
            learned(*shape, group="interactions_no_decay", element_axis=0, start=_small_uniform) for _ in range(2)
        )
        self.mixing = GatedMixing(plan, self)

    def radial_network(self, plan: ModelPlan, n_outputs: int) -> RadialNetwork:
        """See `Interaction`."""
        return NormalizedRadialNetwork((plan.num_radial_basis + 2 * plan.n_channels, *plan.radial_mlp, n_outputs))

    def edge_inputs(self, features: Features, geometry: EdgeGeometry, graph: Graph) -> EdgeInputs:
        """See `Interaction`."""
        element = graph.element.index_select(0, graph.atoms_by_element)
        scale = len(self.source_embedding) ** -0.5
        senders, receivers = (
            spread_segments(embedding * scale, element) for embedding in (self.source_embedding, self.target_embedding)
        )
        return self.directed_inputs(senders, receivers, geometry, graph)

    def mix(
        self, sums: Features, messages: Features, features: Features, inputs: EdgeInputs, graph: Graph, backend: Backend
    ) -> tuple[Tensor, Features]:
        """See `Interaction`."""
        atomic_basis = self.mixing(sums, messages, inputs, graph, backend)
        return atomic_basis, mapped(features, self.l_skip, self.mixing.residual)


def _small_uniform(values: Tensor) -> Tensor:
    return LARGEST_ELEMENT_EMBEDDING * torch.erf(values / 2**0.5)


class GatedMixing(nn.Module):
    """Computes the atomic basis from sums: scalars are activated, other features multiplied by a gate scalar each.

    Args:
        plan: The model's plan.
        interaction: The interaction that computes the sums.
    """

    def __init__(self, plan: ModelPlan, interaction: Interaction) -> None:
        super().__init__()
        group: Group = "interactions_no_decay"
        n, n_messages = plan.n_channels, interaction.n_messages
        self.l_own = tuple(l for l in interaction.l_messages if l <= plan.l_max)
        widths = [n * (plan.l_max + 1), *[n] * plan.l_max]
        self.linear_1 = linear_maps(interaction.convolution, n_messages, widths, group)
        self.linear_own = nn.ParameterList(learned(n_messages, widths[l], group=group) for l in self.l_own)
        self.linear_2 = learned(len(widths), n, n, group=group)
        self.density = NormalizedRadialNetwork((plan.num_radial_basis + 2 * n, DENSITY_WIDTH, 1))
        self.alpha = learned(group=group, start=partial(torch.full_like, fill_value=START_OF_ALPHA))
        self.beta = learned(group=group, start=partial(torch.full_like, fill_value=START_OF_BETA))
        self.residual = learned(len(interaction.l_skip), n, n, group=group)

    def forward(self, sums: Features, messages: Features, inputs: EdgeInputs, graph: Graph, backend: Backend) -> Tensor:
        """Compute the atomic basis; see `Interaction.mix`."""
        assert inputs.edges is not None and inputs.envelope is not None
        of_edge = torch.tanh(self.density.without_envelope(inputs) ** 2) * inputs.envelope.unsqueeze(1)
        divisor = sum_slots(gather_edges(of_edge, inputs.edges).squeeze(1), graph) * self.beta + self.alpha
        own = dict(zip(self.l_own, self.linear_own, strict=True))
        mixed = []
        for degree, weight in enumerate(scaled_maps(self.linear_1)):
            mixed.append((sums[degree] @ weight) / divisor.view(-1, 1, 1))
            if degree in own:
                mixed[degree] = mixed[degree] + messages[degree] @ (own[degree] * len(own[degree]) ** -0.5)
        # the gates of the other degrees are also scalars
        scalars, *gates = mixed[0].chunk(len(mixed), dim=2)
        gated = [torch.nn.functional.silu(scalars) * SILU_SCALE]
        for values, gate in zip(mixed[1:], gates, strict=True):
            gated.append(values * (torch.sigmoid(gate) * SIGMOID_SCALE))
        return backend.mix(gated, (self.linear_2 * self.linear_2.shape[-1] ** -0.5).unbind(0), graph)
