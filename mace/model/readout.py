"""Readouts: from the scalars of a layer to an energy per atom, from its vectors to a dipole per atom."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mace.model.activations import activation


class LinearReadout(nn.Module):
    """A weighted sum of the channels.

    Args:
        n_channels: Number of channels.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_channels, 1))

    def forward(self, scalars: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``."""
        return (scalars @ self.weight).squeeze(-1) * self.weight.shape[0] ** -0.5


class NonlinearReadout(nn.Module):
    """One hidden layer.

    Args:
        n_channels: Number of channels.
        n_hidden: Width of the hidden layer.
        gate: Name of its activation.
    """

    def __init__(self, n_channels: int, n_hidden: int, gate: str) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.empty(n_channels, n_hidden))
        self.weight = nn.Parameter(torch.empty(n_hidden, 1))
        self.activation, self.scale = activation(gate)

    def forward(self, scalars: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``."""
        hidden = self.activation(scalars @ self.hidden * self.hidden.shape[0] ** -0.5)
        return (hidden @ self.weight).squeeze(-1) * (self.scale * self.weight.shape[0] ** -0.5)


class BiasedReadout(nn.Module):
    """Two hidden layers, the second one and the result with biases.

    Args:
        n_channels: Number of channels.
        n_hidden: Width of the hidden layers.
        gate: Name of their activation.
    """

    def __init__(self, n_channels: int, n_hidden: int, gate: str) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.empty(n_channels, n_hidden))
        self.middle = nn.Parameter(torch.empty(n_hidden, n_hidden))
        self.middle_bias = nn.Parameter(torch.empty(n_hidden))
        self.weight = nn.Parameter(torch.empty(n_hidden, 1))
        self.bias = nn.Parameter(torch.empty(1))
        self.activation, self.scale = activation(gate)

    def forward(self, scalars: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` to ``[atoms]``."""
        hidden = self.activation(scalars @ self.hidden * self.hidden.shape[0] ** -0.5) * self.scale
        hidden = self.activation(hidden @ self.middle * self.middle.shape[0] ** -0.5 + self.middle_bias) * self.scale
        return (hidden @ self.weight * self.weight.shape[0] ** -0.5 + self.bias).squeeze(-1)


class LinearDipoleReadout(nn.Module):
    """A weighted sum of the channels of the vectors.

    Args:
        n_channels: Number of channels.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_channels, 1))

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
        self.gates = nn.Parameter(torch.empty(n_channels, n_hidden))
        self.hidden = nn.Parameter(torch.empty(n_channels, n_hidden))
        self.weight = nn.Parameter(torch.empty(n_hidden, 1))
        self.activation, self.scale = activation(gate)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Evaluate, ``[atoms, channels]`` and ``[atoms, 3, channels]`` to ``[atoms, 3]``."""
        n, n_hidden = self.hidden.shape
        gates = self.activation(scalars @ self.gates * n**-0.5)
        gated = (vectors @ self.hidden) * gates.unsqueeze(1)
        return (gated @ self.weight).squeeze(-1) * (self.scale * (n * n_hidden) ** -0.5)
