"""Readouts: from the scalars of a layer to an energy per atom, from its vectors to a dipole per atom."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mace.model.activations import activation
from mace.model.plan import ModelPlan
from mace.model.roles import Group, assign_to_head, learned


class LinearReadout(nn.Module):
    """A weighted sum of the channels.

    Args:
        n_channels: Number of channels.
        group: Of the optimizer's groups, the one it belongs to.
    """

    def __init__(self, n_channels: int, group: Group = "readouts") -> None:
        super().__init__()
        self.weight = learned(n_channels, 1, group=group)

    def forward(self, scalars: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``."""
        return (scalars @ self.weight).squeeze(-1) * self.weight.shape[0] ** -0.5


class NonlinearReadout(nn.Module):
    """One hidden layer.

    Args:
        n_channels: Number of channels.
        n_hidden: Width of the hidden layer.
        gate: Name of its activation.
        n_heads: How many such readouts there are side by side; a map from the hidden layer is divided as if it saw
            those of all.
    """

    def __init__(self, n_channels: int, n_hidden: int, gate: str, n_heads: int = 1) -> None:
        super().__init__()
        self.hidden = learned(n_channels, n_hidden, group="readouts")
        self.weight = learned(n_hidden, 1, group="readouts", fan_in=n_heads * n_hidden)
        self.activation, self.scale = activation(gate)
        self.n_heads = n_heads

    def forward(self, scalars: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``."""
        hidden = self.activation(scalars @ self.hidden * self.hidden.shape[0] ** -0.5)
        return (hidden @ self.weight).squeeze(-1) * (self.scale * (self.n_heads * self.weight.shape[0]) ** -0.5)


class BiasedReadout(nn.Module):
    """Two hidden layers, the second one and the result with biases.

    Args:
        n_channels: Number of channels.
        n_hidden: Width of the hidden layers.
        gate: Name of their activation.
        n_heads: As in `NonlinearReadout`.
    """

    def __init__(self, n_channels: int, n_hidden: int, gate: str, n_heads: int = 1) -> None:
        super().__init__()
        group: Group = "readouts"
        self.hidden = learned(n_channels, n_hidden, group=group)
        self.middle = learned(n_hidden, n_hidden, group=group, fan_in=n_heads * n_hidden)
        self.middle_bias = learned(n_hidden, group=group, start=torch.zeros_like)
        self.weight = learned(n_hidden, 1, group=group, fan_in=n_heads * n_hidden)
        self.bias = learned(1, group=group, start=torch.zeros_like)
        self.activation, self.scale = activation(gate)
        self.n_heads = n_heads

    def forward(self, scalars: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``."""
        hidden = self.activation(scalars @ self.hidden * self.hidden.shape[0] ** -0.5) * self.scale
        factor = (self.n_heads * self.weight.shape[0]) ** -0.5
        hidden = self.activation(hidden @ self.middle * factor + self.middle_bias) * self.scale
        return (hidden @ self.weight * factor + self.bias).squeeze(-1)


class ReadoutOfHeads(nn.Module):
    """Readouts side by side, one for each head of a model.

    Args:
        heads: One readout per head.
    """

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        for number, readout in enumerate(self.heads):
            assign_to_head(readout, number)

    def forward(self, scalars: Tensor, head: int | Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``.

        Args:
            scalars: The scalars of a layer.
            head: The head of all atoms, or that of each, ``[atoms]``.
        """
        if isinstance(head, int):
            energies: Tensor = self.heads[head](scalars)
            return energies
        every = torch.stack([readout(scalars) for readout in self.heads], dim=1)
        return every.gather(1, head.unsqueeze(1)).squeeze(1)


class LinearDipoleReadout(nn.Module):
    """A weighted sum of the channels of the vectors.

    Args:
        n_channels: Number of channels.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = learned(n_channels, 1, group="readouts")

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Evaluate, ``[atoms, 3, channels]`` to ``[atoms, 3]``; the scalars are not looked at."""
        return (vectors @ self.weight).squeeze(-1) * self.weight.shape[0] ** -0.5


class GatedDipoleReadout(nn.Module):
    """One hidden layer of vectors, each multiplied by an activated scalar, its gate.

    Args:
        n_channels: Number of channels.
        n_hidden: Width of the hidden layer.
        gate: Name of the activation.
    """

    def __init__(self, n_channels: int, n_hidden: int, gate: str) -> None:
        super().__init__()
        self.gates = learned(n_channels, n_hidden, group="readouts")
        self.hidden = learned(n_channels, n_hidden, group="readouts")
        self.weight = learned(n_hidden, 1, group="readouts")
        self.activation, self.scale = activation(gate)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` and ``[atoms, 3, channels]`` to ``[atoms, 3]``."""
        n, n_hidden = self.hidden.shape
        gates = self.activation(scalars @ self.gates * n**-0.5)
        gated = (vectors @ self.hidden) * gates.unsqueeze(1)
        return (gated @ self.weight).squeeze(-1) * (self.scale * (n * n_hidden) ** -0.5)


def energy_readouts(plan: ModelPlan) -> list[nn.Module]:
    """Build a linear readout for every layer but the last of several, which has a hidden layer.

    The other layers may go without.
    """
    n, several = plan.n_channels, plan.n_layers > 1
    linear = [of_heads(plan, lambda: LinearReadout(n)) for _ in range(plan.n_layers - several)]
    if not several:
        return linear
    kind = BiasedReadout if plan.readout_biases else NonlinearReadout
    last = of_heads(plan, lambda: kind(n, plan.readout_channels, plan.gate, plan.n_readout_heads))
    return [last] if plan.last_readout_only else [*linear, last]


def of_heads(plan: ModelPlan, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a readout for every head."""
    n_heads = plan.n_readout_heads
    return ReadoutOfHeads([build() for _ in range(n_heads)]) if n_heads > 1 else build()


def dipole_readouts(plan: ModelPlan) -> list[nn.Module]:
    """Build the same for dipoles; a hidden layer without vectors reads nothing and is left out."""
    n, several = plan.n_channels, plan.n_layers > 1
    linear: list[nn.Module] = [LinearDipoleReadout(n) for _ in range(plan.n_layers - several)]
    gated = several and plan.readout_vectors > 0
    return [*linear, GatedDipoleReadout(n, plan.readout_vectors, plan.gate)] if gated else linear
