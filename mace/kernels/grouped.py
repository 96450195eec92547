"""Products of the rows of each element with its own matrix, for all elements and degrees in one batch of products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.graphs.graph import Graph, carry
from mace.kernels.gather import sum_segments
from mace.kernels.passes import Pass, current_pass, heeding_purpose, keep_purpose

SIZES = (8, 16, 32, 64, 128, 256)
"""Possible numbers of rows of a tile."""

COST_OF_MATRIX = 64
"""Time to copy the matrix of a tile, in rows whose product takes as long."""


@dataclass(frozen=True)
class _Tiling:
    """Rows of the same matrix, cut into tiles of the same number of rows; the last tile of a matrix is filled up.

    Attributes:
        rows: Row in each place of the tiles; the first for an empty place, ``[tiles * size]``.
        empty: Which places are empty, ``[tiles, size, 1]``.
        places: Place of each row, ``[rows]``.
        matrices: Matrix of each tile, in rising order, ``[tiles]``.
    """

    rows: Tensor
    empty: Tensor
    places: Tensor
    matrices: Tensor

    def tiles(self, values: Tensor) -> Tensor:
        """Arrange ``[rows, n]`` as ``[tiles, size, n]``; what is in empty places is arbitrary."""
        return values.index_select(0, self.rows).unflatten(0, self.empty.shape[:2])


@lru_cache(maxsize=8)
def _tiling(
    components: tuple[int, ...],
    elements: tuple[int, ...],
    counts: tuple[int, ...],
    n_elements: int,
    device: torch.device,
) -> _Tiling:
    """Cut up rows ``[components of all degrees, atoms]``, for matrices ``[degrees, elements]``."""
    numbers = np.arange(sum(components) * sum(counts)).reshape(sum(components), -1)
    blocks = [
        (degree * n_elements + element, block.ravel())
        for degree, of_degree in enumerate(np.split(numbers, np.cumsum(components)[:-1]))
        for element, block in zip(elements, np.split(of_degree, np.cumsum(counts)[:-1], axis=1), strict=True)
    ]

    def cost(size: int) -> int:
        return sum(-(-len(rows) // size) for _, rows in blocks) * (size + COST_OF_MATRIX)

    size = min(SIZES, key=cost)
    filled = np.concatenate([np.pad(rows, (0, -len(rows) % size), constant_values=-1) for _, rows in blocks])
    matrices = np.concatenate([np.full(-(-len(rows) // size), matrix) for matrix, rows in blocks])
    places = np.empty(numbers.size, dtype=np.int64)
    places[filled[filled >= 0]] = np.flatnonzero(filled >= 0)
    arrays = np.maximum(filled, 0), (filled < 0).reshape(-1, size, 1), places, matrices
    return carry(_Tiling(*(torch.from_numpy(array) for array in arrays)), device, pinned=True)


def element_products(values: Tensor, matrices: Tensor, components: Sequence[int], graph: Graph) -> Tensor:
    """Multiply each row by the matrix of its degree and its atom's element.

    Args:
        values: Rows of all degrees, sorted by element, ``[components of all degrees, atoms, inputs]``.
        matrices: ``[degrees, elements, inputs, outputs]``.
        components: Number of components of each degree.
        graph: The graph.

    Returns:
        ``[components of all degrees, atoms, outputs]``.
    """
    present, counts = graph.elements_present, graph.element_counts
    tiling = _tiling(tuple(components), present, counts, matrices.shape[1], values.device)
    products: Tensor = _Grouped.apply(
        2, tiling, values.flatten(0, 1), matrices.flatten(0, 1), None, matrices.shape[:2].numel()
    )
    return products.unflatten(0, values.shape[:2])


class _Grouped(torch.autograd.Function):
    """Inputs, matrices or outputs from the two others, as the derivatives by them of the sum of all three's products.

    Each is bilinear in the others, and its derivatives are the other two.
    """

    @staticmethod
    def forward(
        ctx: Any, result: int, tiling: _Tiling, inputs: Any, matrices: Any, outputs: Any, n_matrices: int
    ) -> Tensor:
        keep_purpose(ctx)
        ctx.result, ctx.tiling, ctx.n_matrices = result, tiling, n_matrices
        ctx.save_for_backward(inputs, matrices, outputs)
        if result == 1:
            x, y = tiling.tiles(inputs), tiling.tiles(outputs).masked_fill_(tiling.empty, 0.0)
            return sum_segments(torch.bmm(x.mT, y), tiling.matrices, n_matrices)
        chosen = matrices.index_select(0, tiling.matrices)
        found = torch.bmm(tiling.tiles(inputs), chosen) if result == 2 else torch.bmm(tiling.tiles(outputs), chosen.mT)
        return found.flatten(0, 1).index_select(0, tiling.places)

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        every = list(ctx.saved_tensors)
        every[ctx.result] = gradient
        needed = list(ctx.needs_input_grad[2:5])
        needed[1] &= current_pass() is not Pass.GEOMETRY
        n = len(every[1])
        gradients = [
            _Grouped.apply(i, ctx.tiling, *(None if j == i else x for j, x in enumerate(every)), n)
            if needed[i]
            else None
            for i in range(3)
        ]
        return None, None, *gradients, None
