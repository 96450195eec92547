r"""Radial weights read from a table: for fixed parameters, they are functions of the length alone.

The table holds value, first and second derivative at equidistant lengths; in between, they are interpolated by the
quintic polynomial that matches all three at both ends, so that forces are continuous. Its error is
:math:`f^{(6)} h^6 / 46080`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mace.kernels.slopes import constants

HERMITE = (
    (1.0, 0.0, 0.0, -10.0, 15.0, -6.0),
    (0.0, 1.0, 0.0, -6.0, 8.0, -3.0),
    (0.0, 0.0, 0.5, -1.5, 1.5, -0.5),
    (0.0, 0.0, 0.0, 10.0, -15.0, 6.0),
    (0.0, 0.0, 0.0, -4.0, 7.0, -3.0),
    (0.0, 0.0, 0.0, 0.5, -1.0, 0.5),
)
"""Coefficients, by increasing power, of polynomials on [0, 1] with unit value, slope or curvature at 0, then at 1."""

SHORTEST = 0.01
"""First length of tables in Angstrom, as a radial basis is 0/0 at zero; shorter lengths are extrapolated."""


@dataclass(frozen=True)
class RadialTable:
    """A table of the radial weights of all paths and channels of a layer.

    Attributes:
        values: Value, slope times step and curvature times step squared at each node, ``[nodes, 3, paths, channels]``.
        r_max: Length of the last node in Angstrom; all weights are zero from there on.
    """

    values: Tensor
    r_max: float

    @property
    def step(self) -> float:
        """Distance between nodes in Angstrom."""
        return (self.r_max - SHORTEST) / (len(self.values) - 1)

    def coefficients(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the intervals and interpolation coefficients of some lengths.

        Args:
            lengths: Lengths in Angstrom, ``[pairs]``.

        Returns:
            The interval of each, int64, ``[pairs]``, and six factors for the rows of its two nodes that give the value,
            followed by six that give the derivative by the length, ``[pairs, 12]``.
        """
        place = (lengths - SHORTEST) / self.step
        interval = place.floor().clamp(0, len(self.values) - 2)
        t = (place - interval).unsqueeze(1)
        exponents = torch.arange(6, dtype=t.dtype, device=t.device)
        powers = t**exponents
        slopes = torch.cat([torch.zeros_like(t), exponents[1:] * powers[:, :-1] / self.step], dim=1)
        hermite = constants([number for row in HERMITE for number in row], t).view(6, 6).t()
        within = (lengths < self.r_max).unsqueeze(1)
        return interval.long(), torch.cat([powers @ hermite, slopes @ hermite], dim=1) * within

    def evaluate(self, lengths: Tensor) -> Tensor:
        """Interpolate, ``[pairs]`` to ``[pairs, paths, channels]``; the reference for the compiled kernels."""
        return _Evaluate.apply(lengths, self)


class _Evaluate(torch.autograd.Function):
    """Interpolation whose derivative by the lengths is that of the interpolating polynomial."""

    @staticmethod
    def forward(ctx: Any, lengths: Tensor, table: RadialTable) -> Tensor:
        interval, factors = table.coefficients(lengths)
        ctx.save_for_backward(interval, factors)
        ctx.table = table
        return _combined(table, interval, factors[:, :6])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        interval, factors = ctx.saved_tensors
        slopes = _combined(ctx.table, interval, factors[:, 6:])
        return (slopes * gradient).sum((1, 2)), None


def _combined(table: RadialTable, interval: Tensor, factors: Tensor) -> Tensor:
    """Combine the rows of both nodes of every interval, ``[pairs, paths, channels]``."""
    rows = torch.cat([table.values[interval], table.values[interval + 1]], dim=1)
    return torch.einsum("pk,pkac->pac", factors, rows)


def tabulate(function: Callable[[Tensor], Tensor], n_paths: int, r_max: float, n_nodes: int) -> RadialTable:
    """Tabulate a function of the length.

    Args:
        function: Maps lengths in Angstrom, float64, ``[nodes]``, to weights ``[nodes, paths * channels]``; each row may
            depend on its own length only.
        n_paths: Number of paths.
        r_max: Cutoff in Angstrom.
        n_nodes: Number of nodes, at least two.

    Returns:
        The table, float64.
    """
    nodes = torch.linspace(SHORTEST, r_max, n_nodes, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        value = function(nodes)
        slope = _slope(value, nodes)
        curvature = _slope(slope, nodes)
    step = (r_max - SHORTEST) / (n_nodes - 1)
    rows = torch.stack([value, slope * step, curvature * step**2], dim=1)
    return RadialTable(rows.unflatten(2, (n_paths, -1)).detach(), r_max)


def _slope(values: Tensor, lengths: Tensor) -> Tensor:
    """Differentiate all columns by the length of their row, ``[nodes, columns]``.

    A gradient is linear in its cotangent, and its derivative by the cotangent gives the slopes.
    """
    cotangent = torch.zeros_like(values, requires_grad=True)
    (gradient,) = torch.autograd.grad(values, lengths, cotangent, create_graph=True)
    return torch.autograd.grad(gradient, cotangent, torch.ones_like(lengths), create_graph=True)[0]
