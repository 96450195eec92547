"""Arrays laid out in blocks of channels, as kernels in C and kernels in Triton want them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw normal random numbers, the same in every precision up to rounding."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def padded(values: Tensor, lanes: int) -> Tensor:
    """Pad the last dimension with zeros to a multiple of the number of lanes."""
    return torch.nn.functional.pad(values, (0, -values.shape[-1] % lanes))


def blocked(values: Tensor, lanes: int) -> Tensor:
    """Arrange ``[rows, items, channels]`` as ``[rows, blocks, items, lanes]``."""
    return padded(values, lanes).unflatten(2, (-1, lanes)).transpose(1, 2).contiguous()


def unblocked(values: Tensor, n_channels: int) -> Tensor:
    """Undo `blocked`."""
    return values.transpose(1, 2).flatten(2)[..., :n_channels]


def with_rows(values: Tensor, n_rows: int, fill: float = 0.0) -> Tensor:
    """Append rows up to a capacity."""
    return torch.cat([values, values.new_full((n_rows - len(values), *values.shape[1:]), fill)])


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest deviation of any array relative to its largest number; infinity where it is no number."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        if one.numel():
            one, other = one.detach().double(), other.detach().double()
            largest = float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))
            worst = max(worst, largest if math.isfinite(largest) else math.inf)
    return worst
