"""Triton kernels that add up rows which belong together, as those of the atoms of a structure, and follow each other.

A segment is cut into chunks, counted from its own beginning. They are added up by programs of their own, and their sums
in a second step where there may be more than one. So what is added to what depends on the segment alone, not on what
else is in the array.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from mace.kernels.triton_source.launching import DeviceKernel, Number

CHUNK = 1024
"""Rows of a segment that one program adds up."""
_TILE = 1024
_MOST_COLUMNS = 32
_CHUNK = tl.constexpr(CHUNK)
_SAMPLES = tl.constexpr(1024)
_OUTPUTS = tl.constexpr(128)


@triton.jit
def _first_of_segment(segments, rows, segment):
    """Return the first row that belongs to a segment or a later one.

    Of 1,024 rows at equal distances, those of earlier segments are counted; then those between the last of them and
    the next.
    """
    number = tl.arange(0, _SAMPLES)
    distance = tl.cdiv(rows, _SAMPLES)
    row = number.to(tl.int64) * distance
    earlier = (row < rows) & (tl.load(segments + row, mask=row < rows, other=0) < segment)
    start = tl.maximum(tl.sum(earlier.to(tl.int64), axis=0) - 1, 0) * distance
    first = start
    for passed in range(0, distance, _SAMPLES):
        row = start + passed + number
        inside = (passed + number < distance) & (row < rows)
        earlier = inside & (tl.load(segments + row, mask=inside, other=0) < segment)
        first += tl.sum(earlier.to(tl.int64), axis=0)
    return first


@triton.jit(do_not_specialize=["rows", "n_parts"])
def _segment_parts(
    values, segments, parts, rows, n_parts, width: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr
):
    segment, part = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * tile_columns + tl.arange(0, tile_columns)
    first = _first_of_segment(segments, rows, segment) + part * _CHUNK
    end = tl.minimum(_first_of_segment(segments, rows, segment + 1), first + _CHUNK)
    total = tl.zeros([tile_rows, tile_columns], tl.float64)
    for start in range(first, end, tile_rows):
        row = start + tl.arange(0, tile_rows)
        inside = (row < end)[:, None] & (column < width)[None, :]
        total += tl.load(values + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float64)
    place = segment.to(tl.int64) * n_parts + part
    tl.store(parts + place * width + column, tl.sum(total, axis=0), mask=column < width)


@triton.jit(do_not_specialize=["n_segments", "n_parts"])
def _segment_totals(parts, totals, n_segments, n_parts, width: tl.constexpr):
    output = tl.program_id(0).to(tl.int64) * _OUTPUTS + tl.arange(0, _OUTPUTS)
    exists = output < tl.cast(n_segments, tl.int64) * width
    first = parts + output // width * n_parts * width + output % width
    total = tl.zeros([_OUTPUTS], tl.float64)
    for part in range(n_parts):
        total += tl.load(first + tl.cast(part, tl.int64) * width, mask=exists, other=0.0).to(tl.float64)
    tl.store(totals + output, total, mask=exists)


def segment_parts(n_segments: int, width: int) -> DeviceKernel:
    """Return the kernel that adds up the chunks of each segment, in double precision.

    Pointers: rows, ``[rows, width]``; the segment of each, in rising order, ``[rows]``; then the sums, to be written,
    ``[segments, parts, width]``, zero where a segment has fewer parts.

    Dimensions: rows; parts, at least one for each begun `CHUNK` of the rows; width.
    """
    columns = min(triton.next_power_of_2(width), _MOST_COLUMNS)

    def grid(dimensions: Sequence[Number]) -> tuple[int, ...]:
        return n_segments, int(dimensions[1]), -(-width // columns)

    return DeviceKernel(_segment_parts, grid, 4, {"tile_rows": _TILE // columns, "tile_columns": columns})


def segment_totals() -> DeviceKernel:
    """Return the kernel that adds up the parts of each segment, one after the other.

    Pointers: the sums of ``segment_parts``; then the totals, to be written, ``[segments, width]``.

    Dimensions: segments, parts, width.
    """
    return DeviceKernel(_segment_totals, lambda d: (-(-int(d[0]) * int(d[2]) // _OUTPUTS.value),), 4)
