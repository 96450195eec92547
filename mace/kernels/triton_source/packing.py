"""Packing of matrices in Triton, and setting arrays to zero, for lists as in `mace.kernels.c_source.matrices`."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from mace.kernels.triton_source.launching import LANES, DeviceKernel

PANEL = LANES
"""Columns of a panel of a packed matrix."""

_L = tl.constexpr(LANES)
_ROWS, _BLOCK, _PROGRAMS = 32, 1024, 32


@triton.jit(do_not_specialize=["n", "tiles"])
def _packing(records, n, tiles, T: tl.constexpr, ROWS: tl.constexpr):
    """Pack some rows of the panels of a matrix; see `mace.kernels.c_source.matrices`."""
    q = records + tl.program_id(0) * 7
    source, result = tl.load(q).to(tl.pointer_type(T)), tl.load(q + 1).to(tl.pointer_type(T))
    rows, columns = tl.load(q + 2).to(tl.int32), tl.load(q + 3).to(tl.int32)
    row, column, depth = tl.load(q + 4), tl.load(q + 5), tl.load(q + 6)
    chunks = tl.cdiv(rows, ROWS)
    for t in range(tl.program_id(1), chunks * tl.cdiv(columns, _L), tl.num_programs(1)):
        k = t % chunks * ROWS + tl.arange(0, ROWS)
        panel = t // chunks
        lane = tl.arange(0, _L)
        n0 = panel * _L + lane
        of_rows, of_columns = k.to(tl.int64) * row, n0.to(tl.int64) * column
        in_rows, in_columns = k < rows, n0 < columns
        if row == 1:
            across = tl.load(
                source + of_columns[:, None] + of_rows[None, :],
                mask=in_columns[:, None] & in_rows[None, :],
                other=0.0,
            )
            numbers = tl.trans(across)
        else:
            numbers = tl.load(
                source + of_rows[:, None] + of_columns[None, :],
                mask=in_rows[:, None] & in_columns[None, :],
                other=0.0,
            )
        to = result + panel * _L * depth + k.to(tl.int64)[:, None] * _L + lane[None, :]
        tl.store(to, numbers, mask=in_rows[:, None] & (lane < _L)[None, :])


@triton.jit(do_not_specialize=["n", "shares"])
def _zeros(records, n, shares, T: tl.constexpr, BLOCK: tl.constexpr):
    """Set parts of an array to zero; see `mace.kernels.c_source.matrices`."""
    q = records + tl.program_id(0) * 2
    numbers, count = tl.load(q).to(tl.pointer_type(T)), tl.load(q + 1)
    for block in range(tl.program_id(1), tl.cdiv(count, BLOCK), tl.num_programs(1)):
        at = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(numbers + at, tl.zeros([BLOCK], T), mask=at < count)


@cache
def packing_kernels(dtype: torch.dtype) -> dict[str, DeviceKernel]:
    """Return ``packing`` and ``zeros``.

    Args:
        dtype: Precision of the numbers.
    """
    number = {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]
    packing, zeros = {"T": number, "ROWS": _ROWS}, {"T": number, "BLOCK": _BLOCK}
    return {
        "packing": DeviceKernel(_packing, lambda d: (int(d[0]), _PROGRAMS), 4, packing),
        "zeros": DeviceKernel(_zeros, lambda d: (int(d[0]), _PROGRAMS), 4, zeros),
    }
