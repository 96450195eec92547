"""Readouts: from the scalars of a layer to atomic energies, and from its vectors to atomic dipoles."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mace.equivariant.activations import activation
from mace.kernels.layers import scaled
from mace.model.plan import ModelPlan
from mace.model.roles import Group, assign_to_head, learned


class LinearReadout(nn.Module):
    """A linear readout: a weighted sum of the channels.

    Args:
        n_channels: Number of channels.
        group: The optimizer's parameter group it belongs to.
    """

    def __init__(self, n_channels: int, group: Group = "readouts") -> None:
        super().__init__()
        self.weight = learned(n_channels, 1, group=group)

    def forward(self, scalars: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``."""
        (weight,) = scaled([self.weight], [self.weight.shape[0] ** -0.5])
        return (scalars @ weight).squeeze(-1)


class NonlinearReadout(nn.Module):
    """A readout with one hidden layer.

    Args:
        n_channels: Number of channels.
        n_hidden: Width of the hidden layer.
        gate: Name of the activation.
        n_heads: Number of heads with such a readout; maps from the hidden layer are normalized as if their inputs were
            the hidden layers of all heads.
    """

    def __init__(self, n_channels: int, n_hidden: int, gate: str, n_heads: int = 1) -> None:
        super().__init__()
        self.hidden = learned(n_channels, n_hidden, group="readouts")
        self.weight = learned(n_hidden, 1, group="readouts", fan_in=n_heads * n_hidden)
        self.activation, self.scale = activation(gate)
        self.n_heads = n_heads

    def forward(self, scalars: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``."""
        factors = [self.hidden.shape[0] ** -0.5, self.scale * (self.n_heads * self.weight.shape[0]) ** -0.5]
        hidden, weight = scaled([self.hidden, self.weight], factors)
        return (self.activation(scalars @ hidden) @ weight).squeeze(-1)


class BiasedReadout(nn.Module):
    """A readout with two hidden layers, with biases in the second one and in the output.

    Args:
        n_channels: Number of channels.
        n_hidden: Width of the hidden layers.
        gate: Name of the activation.
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
    """Parallel readouts, one for each head of a model.

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
            head: The head of all atoms, or the head of each atom, ``[atoms]``.
        """
        if isinstance(head, int):
            energies: Tensor = self.heads[head](scalars)
            return energies
        every = torch.stack([readout(scalars) for readout in self.heads], dim=1)
        return every.gather(1, head.unsqueeze(1)).squeeze(1)


class LinearDipoleReadout(nn.Module):
    """A linear readout of vectors: a weighted sum of their channels.

    Args:
        n_channels: Number of channels.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = learned(n_channels, 1, group="readouts")

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Evaluate, ``[atoms, 3, channels]`` to ``[atoms, 3]``; scalars are ignored."""
        return (vectors @ self.weight).squeeze(-1) * self.weight.shape[0] ** -0.5


class GatedDipoleReadout(nn.Module):
    """A readout of vectors with one hidden layer, whose vectors are each multiplied by an activated scalar, the gate.

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
    """Build a linear readout for every layer; the last of several layers gets one with a hidden layer instead.

    With ``last_readout_only``, only the last layer has a readout.
    """
    n, several = plan.n_channels, plan.n_layers > 1
    linear = [of_heads(plan, lambda: LinearReadout(n)) for _ in range(plan.n_layers - several)]
    if not several:
        return linear
    kind = BiasedReadout if plan.readout_biases else NonlinearReadout
    last = of_heads(plan, lambda: kind(n, plan.readout_channels, plan.gate, plan.n_readout_heads))
    return [last] if plan.last_readout_only else [*linear, last]


def of_heads(plan: ModelPlan, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a readout for every head; a plain one if there is only one."""
    n_heads = plan.n_readout_heads
    return ReadoutOfHeads([build() for _ in range(n_heads)]) if n_heads > 1 else build()


def dipole_readouts(plan: ModelPlan) -> list[nn.Module]:
    """Build the dipole readouts likewise; the last one is left out if its hidden layer has no vectors."""
    n, several = plan.n_channels, plan.n_layers > 1
    linear: list[nn.Module] = [LinearDipoleReadout(n) for _ in range(plan.n_layers - several)]
    gated = several and plan.readout_vectors > 0
    return [*linear, GatedDipoleReadout(n, plan.readout_vectors, plan.gate)] if gated else linear
