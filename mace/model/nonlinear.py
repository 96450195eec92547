"""The non-linear interaction: how sums over neighbors become the atomic basis there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mace.kernels.convolution import convolution_paths
from mace.kernels.gather import gather_edges, join_components
from mace.model.activations import SIGMOID_SCALE, SILU_SCALE
from mace.model.plan import ModelPlan
from mace.model.radial_network import EdgeInputs, NormalizedRadialNetwork

DENSITY_WIDTH = 64
"""Hidden layer of the network of the density, as in the original."""

START_OF_ALPHA, START_OF_BETA = 20.0, 0.0
"""What sums are divided by at the start of a training: ``alpha`` plus ``beta`` times the density."""


class GatedMixing(nn.Module):
    """Mix the sums, divide them, add a map of the atom's own features, and let all pass through gates.

    Scalars are activated; every other feature is multiplied by an activated scalar of its own, its gate.

    Args:
        plan: The model's plan.
        layer: Which layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__()
        n, n_messages = plan.n_channels, plan.channels_of_messages(layer)
        degrees = range(plan.l_max + 1)
        self.l_messages = plan.l_of_messages(layer)
        self.l_own = tuple(l for l in self.l_messages if l <= plan.l_max)
        paths = convolution_paths(self.l_messages, plan.l_max)
        widths = [n * (plan.l_max + 1 if l == 0 else 1) for l in degrees]
        self.linear_1 = nn.ParameterList(
            torch.empty(sum(path.l3 == l for path in paths), n_messages, widths[l]) for l in degrees
        )
        self.linear_own = nn.ParameterList(torch.empty(n_messages, widths[l]) for l in self.l_own)
        self.linear_2 = nn.Parameter(torch.empty(len(widths), n, n))
        n_inputs = plan.num_radial_basis + 2 * n
        self.density = NormalizedRadialNetwork((n_inputs, DENSITY_WIDTH, 1))
        self.alpha = nn.Parameter(torch.empty(()))
        self.beta = nn.Parameter(torch.empty(()))
        self.l_residual = tuple(l for l in plan.l_in(layer) if l in plan.l_out(layer))
        self.residual = nn.Parameter(torch.empty(len(self.l_residual), n, n))

    def forward(
        self, summed: dict[int, Tensor], messages: dict[int, Tensor], inputs: EdgeInputs, compiled: bool
    ) -> Tensor:
        """Compute the atomic basis A.

        Args:
            summed: Sums over neighbors by degree, ``[atoms, 2 l + 1, paths * channels of messages]``.
            messages: What each atom sends, by degree, ``[atoms, 2 l + 1, channels of messages]``.
            inputs: What the density depends on.
            compiled: Which layout is wanted.

        Returns:
            ``[channels, (l_max + 1)^2, atoms]`` or, for compiled kernels, ``[atoms, (l_max + 1)^2, channels]``.
        """
        divisor = self._density(inputs, len(messages[self.l_messages[0]])) * self.beta + self.alpha
        own = dict(zip(self.l_own, self.linear_own, strict=True))
        mixed = {}
        for degree, weight in enumerate(self.linear_1):
            flat = weight.flatten(0, 1)
            mixed[degree] = (summed[degree] @ (flat * max(len(flat), 1) ** -0.5)) / divisor.view(-1, 1, 1)
            if degree in own:
                mixed[degree] = mixed[degree] + messages[degree] @ (own[degree] * len(own[degree]) ** -0.5)
        scale = self.linear_2.shape[-1] ** -0.5
        weights = (self.linear_2 * scale).unbind(0)
        gated = zip(_gated(mixed), weights, strict=True)
        if compiled:
            return join_components([values @ weight for values, weight in gated])
        return join_components([transposed_product(weight, values.transpose(0, 1)) for values, weight in gated])

    def residual_of(self, features: dict[int, Tensor]) -> dict[int, Tensor]:
        """Map the input of the layer, by degree ``[atoms, 2 l + 1, channels]``."""
        scale = self.residual.shape[-1] ** -0.5
        maps = zip(self.l_residual, (self.residual * scale).unbind(0), strict=True)
        return {degree: features[degree] @ weight for degree, weight in maps}

    def _density(self, inputs: EdgeInputs, n_atoms: int) -> Tensor:
        """Sum the learned density of every row, ``[atoms]``."""
        assert inputs.edges is not None and inputs.envelope is not None
        of_edge = torch.tanh(self.density.without_envelope(inputs) ** 2) * inputs.envelope.unsqueeze(1)
        return gather_edges(of_edge, inputs.edges).view(n_atoms, -1).sum(1)

    @torch.no_grad()
    def initialize(self) -> None:
        """Set what sums are divided by to what it is at the start of a training."""
        self.alpha.fill_(START_OF_ALPHA)
        self.beta.fill_(START_OF_BETA)


def _gated(mixed: dict[int, Tensor]) -> list[Tensor]:
    """Activate the scalars and multiply the other degrees by their gates, which are scalars too."""
    n_degrees = len(mixed)
    scalars, *gates = mixed[0].chunk(n_degrees, dim=2)
    result = [torch.nn.functional.silu(scalars) * SILU_SCALE]
    for degree, gate in enumerate(gates, start=1):
        result.append(mixed[degree] * (torch.sigmoid(gate) * SIGMOID_SCALE))
    return result


def transposed_product(weight: Tensor, rows: Tensor) -> Tensor:
    """Multiply ``[a, b, inputs]`` by ``[inputs, channels]`` into ``[channels, a, b]``, the kernel's layout."""
    a, b, inputs = rows.shape
    return (weight.t() @ rows.reshape(a * b, inputs).t()).view(-1, a, b)
