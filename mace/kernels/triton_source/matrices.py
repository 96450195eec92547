r"""Products of matrices in Triton, for lists of records as in `mace.kernels.c_source.matrices`.

A list is computed by one launch: its programs are the tiles of all its products. How many tiles a product has follows
from the sizes in its record, so `plan` counts them on the host, for all lists of a model at once; where groups divide
the rows there may be more programs than tiles, and those left over do nothing.

A sum over rows of arrays, as in the gradient by a weight, has thousands of terms and a small result. It is cut into
parts, each the work of a program; a second launch adds the parts up in order. Sums whose terms lie next to each other
are never cut, so what is computed for a row does not depend on how many rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

from mace.kernels.c_source.matrices import BY_ROWS, EACH_GROUP, FIELDS, NO_GROUPS, PACKED, ROW_GROUPS, SUM_GROUPS
from mace.kernels.triton_source.activations import slope
from mace.kernels.triton_source.launching import LANES, DeviceKernel, KernelSequence
from mace.kernels.triton_source.packing import packing_kernels
from mace.kernels.triton_source.records import ADJOINT, RECORD, TANGENT, VALUE

SMALL, LARGE = 32, 64
"""Rows and columns of a tile."""

FEW_TILES = 264
"""Large tiles below which a list is computed in small ones: two for each multiprocessor of the largest devices."""

PARTS = 512
"""Programs for which a long sum is cut."""

SHORTEST_PART = 256
"""Least number of terms in a part."""

SUM_SIZE = 256
"""Numbers that a program of the second launch adds up."""

_HAS_DOTS_OF_DOUBLES = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 5)

_L = tl.constexpr(LANES)
_WIDTH = tl.constexpr(len(RECORD))
_ACTIVATED = tl.constexpr(8)
_VALUE, _TANGENT, _ADJOINT = tl.constexpr(VALUE), tl.constexpr(TANGENT), tl.constexpr(ADJOINT)
_SUM_SIZE = tl.constexpr(SUM_SIZE)
_PACKED, _BY_ROWS = tl.constexpr(PACKED), tl.constexpr(BY_ROWS)
_ROW_GROUPS, _SUM_GROUPS, _EACH_GROUP = tl.constexpr(ROW_GROUPS), tl.constexpr(SUM_GROUPS), tl.constexpr(EACH_GROUP)
# fmt: off
(
    _ROWS, _INNER, _COLUMNS, _DEPTH, _SEGMENTS,
    _A, _A_OUTER, _A_INNER, _A_DEPTH, _A_SEGMENT,
    _B, _B_STORAGE, _B_DEPTH, _B_VECTOR, _B_SEGMENT, _B_GROUP, _B_BY_INDEX,
    _C, _C_OUTER, _C_INNER, _C_VECTOR, _C_GROUP, _C_BY_INDEX, _C_WHOLE,
    _ADD, _SCALE,
    _GROUPING, _GROUPS, _GROUP_STARTS, _GROUP_INDEX,
    _ACTIVATION, _Z, _SIGMOID, _FIRST, _SECOND, _GIVEN,
    _FIRST_TILE, _FIRST_SUM, _PART, _PARTIAL,
) = (tl.constexpr(place) for place in range(len(RECORD)))
# fmt: on


@dataclass(frozen=True)
class Plan:
    """What the records of lists of products have in the end, and how they are launched.

    Attributes:
        columns: Numbers of `PLANNED` for every record, ``[records, len(PLANNED)]``.
        dimensions: Dimensions of the launch of every list, ``[lists, 4]``: records, tiles, pieces of work of the second
            launch, size of tiles.
        partial: Numbers that the partial results of the largest list take.
    """

    columns: np.ndarray
    dimensions: np.ndarray
    partial: int


def plan(records: np.ndarray, lists: np.ndarray) -> Plan:
    """Divide lists of products into tiles.

    Args:
        records: The records of all lists, one list after the other, ``[records, len(FIELDS)]`` or more columns.
        lists: Number of records of each list.
    """
    of = {name: records[:, place] for place, name in enumerate(FIELDS)}
    owner = np.repeat(np.arange(len(lists)), lists)
    grouping, groups = of["grouping"], np.where(of["grouping"] == NO_GROUPS, 1, of["groups"])
    part, parts = _parts(of, groups)

    def tiles(size: np.ndarray | int) -> np.ndarray:
        along_rows = -(-of["rows"] // size)
        # a group has at most one tile more than its share of all
        along_rows = np.where(grouping == ROW_GROUPS, of["rows"] // size + groups, along_rows)
        copies = np.where(grouping == EACH_GROUP, groups, parts)
        return np.asarray(along_rows * -(-of["columns"] // size) * copies)

    large = np.bincount(owner, tiles(LARGE), len(lists)) >= FEW_TILES
    sizes = np.where(large, LARGE, SMALL)
    numbers = of["rows"] * np.where(of["c_whole"] != 0, -(-of["columns"] // LANES) * LANES, of["columns"])
    is_cut = part < of["depth"]
    sums = np.where(is_cut, np.where(grouping == SUM_GROUPS, groups, 1) * -(-numbers // SUM_SIZE), 0)
    # a group is cut where it is longer than a part, and then has less than two parts for each full one
    places = np.where(grouping == SUM_GROUPS, 2 * of["depth"] // part, parts)
    partial = np.where(is_cut, numbers * places, 0)
    counts = np.stack([tiles(sizes[owner]), sums, partial], 1)
    ends = np.cumsum(counts, 0)
    totals = np.zeros((len(lists), 3), np.int64)
    np.add.at(totals, owner, counts)
    first = ends - counts - (np.cumsum(totals, 0) - totals)[owner]
    columns = np.column_stack([first[:, :2], part, first[:, 2]])
    dimensions = np.column_stack([lists, totals[:, :2], sizes])
    return Plan(columns, dimensions, int(totals[:, 2].max(initial=0)))


def _parts(of: dict[str, np.ndarray], groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many terms the parts of each sum have, and how many parts there may be."""
    depth = of["depth"]
    tiles = -(-of["rows"] // LARGE) * -(-of["columns"] // LARGE)
    most = -(-depth * of["segments"] // SHORTEST_PART)
    wanted = np.clip(np.minimum(PARTS // np.maximum(tiles, 1), most), 1, None)
    part = -(-depth // wanted)
    part += -part % 32
    is_sum = (of["a_depth"] != 1) & ((of["grouping"] == NO_GROUPS) | (of["grouping"] == SUM_GROUPS))
    part = np.where(is_sum, part, np.maximum(depth, 1))
    part = np.maximum(part, 1)
    parts = np.where(of["grouping"] == SUM_GROUPS, depth // part + groups, np.maximum(-(-depth // part), 1))
    return part, parts


@triton.jit
def _record_of(records, n, place: tl.constexpr, t):
    """Return the record to which a piece of work belongs, and the number of the piece within it."""
    found = 0
    for start in range(0, n, 32):
        x = start + tl.arange(0, 32)
        first = tl.load(records + x * _WIDTH + place, mask=x < n, other=1 << 62)
        found += tl.sum((first <= t).to(tl.int32), 0)
    q = records + (found - 1) * _WIDTH
    return q, (t - tl.load(q + place)).to(tl.int32)


@triton.jit
def _group_of(starts, groups, times, size, t):
    """Return the group to which a tile of rows or part of a sum belongs, and its number within the group.

    Group g has the numbers from ``starts[g] * times // size + g`` on, which are enough for its own.
    """
    g = 0
    for start in range(0, groups, 32):
        x = start + tl.arange(0, 32)
        at = tl.load(starts + x, mask=x < groups, other=1 << 31) * times // size + x
        g += tl.sum((at <= t).to(tl.int32), 0)
    g -= 1
    begin = tl.load(starts + g)
    number = (t - (begin * times // size + g)).to(tl.int32)
    return g, begin.to(tl.int32), (tl.load(starts + g + 1) - begin).to(tl.int32), number


@triton.jit
def _sum(
    a,
    a_rows,
    a_depth,
    a_segment,
    b,
    b_columns,
    b_depth,
    b_segment,
    begin,
    end,
    segments,
    in_rows,
    in_columns,
    SIZE: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    ROWS_NEXT: tl.constexpr,
    TERMS_NEXT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the sums of a tile.

    Within a tile, numbers are less than 2^31 apart, and so are those of a few terms.

    Args:
        a: Address of the first number of the first row.
        a_rows: How far the rows are from there.
        b: Address of the first number of the first column.
        b_columns: How far the columns are from there.
        begin: First term in each segment.
        end: The one after the last.
        ROWS_NEXT: Whether rows of ``A`` are rather next to each other than terms.
        TERMS_NEXT: Whether terms of ``B`` are next to each other and columns not.
    """
    total = tl.zeros([SIZE, SIZE], T)
    k = tl.arange(0, BK)
    a_terms, b_terms = k * a_depth.to(tl.int32), k * b_depth.to(tl.int32)
    steps = tl.cdiv(end - begin, BK)
    for step in range(0, steps * segments):
        s = step // steps
        k0 = begin + (step - s * steps) * BK
        here = k < end - k0
        a0, b0 = a + (s * a_segment + k0 * a_depth), b + (s * b_segment + k0 * b_depth)
        if ROWS_NEXT:
            x = tl.trans(
                tl.load(a0 + (a_terms[:, None] + a_rows[None, :]), mask=here[:, None] & in_rows[None, :], other=0.0)
            )
        else:
            x = tl.load(a0 + (a_rows[:, None] + a_terms[None, :]), mask=in_rows[:, None] & here[None, :], other=0.0)
        if TERMS_NEXT:
            y = tl.trans(
                tl.load(
                    b0 + (b_columns[:, None] + b_terms[None, :]), mask=in_columns[:, None] & here[None, :], other=0.0
                )
            )
        else:
            y = tl.load(
                b0 + (b_terms[:, None] + b_columns[None, :]), mask=here[:, None] & in_columns[None, :], other=0.0
            )
        if PRECISION == "sum":
            total += tl.sum(x[:, :, None] * y[None, :, :], 1)
        else:
            total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=T)
    return total


@triton.jit
def _write(to, number, mask, add):
    """Write numbers, or add them to what is there."""
    if add:
        number += tl.load(to, mask=mask, other=0.0)
    tl.store(to, number, mask=mask)


@triton.jit
def _work_of(q, t, SIZE: tl.constexpr):
    """Return which part of a product a program computes.

    Returns:
        The group, its first row or term, its rows and its terms; the number of the tile along the rows, and of the part
        of the sum.
    """
    rows, inner, depth = tl.load(q + _ROWS).to(tl.int32), tl.load(q + _INNER), tl.load(q + _DEPTH).to(tl.int32)
    grouping, groups = tl.load(q + _GROUPING), tl.load(q + _GROUPS).to(tl.int32)
    starts = tl.load(q + _GROUP_STARTS).to(tl.pointer_type(tl.int64))
    g, number, begin = 0, 0, rows * 0
    if grouping == _ROW_GROUPS:
        g, begin, rows, t = _group_of(starts, groups, inner, SIZE, t)
        rows *= inner.to(tl.int32)
    else:
        n_tiles = tl.cdiv(rows, SIZE)
        number, t = t // n_tiles, t % n_tiles
        if grouping == _SUM_GROUPS:
            g, begin, depth, number = _group_of(starts, groups, 1, tl.load(q + _PART), number)
        if grouping == _EACH_GROUP:
            g, number = number, 0
            if tl.load(q + _GROUP_STARTS) != 0:
                if tl.load(starts + g) == tl.load(starts + g + 1):
                    rows *= 0  # nobody needs the products of a group without rows
    return g, begin, rows, depth, t, number


@triton.jit
def _of_group(q, g, by_index: tl.constexpr, distance: tl.constexpr):
    """Return how far the matrix of a group is from the first."""
    shift = tl.load(q + distance)
    if tl.load(q + _GROUPING) != 0:
        index = g.to(tl.int64)
        if tl.load(q + by_index) != 0:
            index = tl.load(tl.load(q + _GROUP_INDEX).to(tl.pointer_type(tl.int64)) + g)
        shift *= index
    else:
        shift *= 0
    return shift


@triton.jit
def _width(q):
    """Return how many columns of the result are written."""
    columns = tl.load(q + _COLUMNS).to(tl.int32)
    return tl.where(tl.load(q + _C_WHOLE) != 0, tl.cdiv(columns, _L) * _L, columns)


@triton.jit
def _scale(q, T: tl.constexpr):
    """Return the factor of a product."""
    return tl.load(q + _SCALE).to(tl.float64, bitcast=True).to(T)


@triton.jit
def _sums_of_tile(q, g, begin, r, j, rows, depth, first, SIZE: tl.constexpr, T: tl.constexpr, BK: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """Return the sums of a tile, from one term on, as many as a part has; see `_products`."""
    inner, columns = tl.load(q + _INNER).to(tl.int32), tl.load(q + _COLUMNS).to(tl.int32)
    a_outer, a_inner = tl.load(q + _A_OUTER), tl.load(q + _A_INNER)
    a_depth, b_depth, b_vector = tl.load(q + _A_DEPTH), tl.load(q + _B_DEPTH), tl.load(q + _B_VECTOR)
    a_segment, b_segment = tl.load(q + _A_SEGMENT), tl.load(q + _B_SEGMENT)
    storage, segments = tl.load(q + _B_STORAGE), tl.load(q + _SEGMENTS).to(tl.int32)
    a = tl.load(q + _A).to(tl.pointer_type(T)) + _of_rows(q, begin, a_outer) + r // inner * a_outer
    b = tl.load(q + _B).to(tl.pointer_type(T)) + _of_group(q, g, _B_BY_INDEX, _B_GROUP)
    end = tl.minimum(first + tl.load(q + _PART).to(tl.int32), depth)
    rs, js = r + tl.arange(0, SIZE), j + tl.arange(0, SIZE)
    a_rows = (rs // inner - r // inner) * a_outer.to(tl.int32) + rs % inner * a_inner.to(tl.int32)
    in_rows, in_columns = rs < rows, js < columns
    if storage == _PACKED:
        b_depth, b_vector = b_depth * 0 + _L, depth.to(tl.int64) * _L
    if tl.load(q + _GROUPING) == _SUM_GROUPS:
        a += begin.to(tl.int64) * a_depth
        b += begin.to(tl.int64) * b_depth
    if storage == _BY_ROWS:
        b += j * b_depth
        b_columns = tl.arange(0, SIZE) * b_depth.to(tl.int32)
        total = _sum(a, a_rows, a_depth, a_segment, b, b_columns, b_depth * 0 + 1, b_segment, first, end, segments,
                     in_rows, in_columns, SIZE, T, BK, False, True, PRECISION)  # fmt: skip
    else:
        b += j // _L * b_vector
        b_columns = tl.arange(0, SIZE) // _L * b_vector.to(tl.int32) + tl.arange(0, SIZE) % _L
        if a_depth == 1:
            total = _sum(a, a_rows, a_depth, a_segment, b, b_columns, b_depth, b_segment, first, end, segments,
                         in_rows, in_columns, SIZE, T, BK, False, False, PRECISION)  # fmt: skip
        else:
            total = _sum(a, a_rows, a_depth, a_segment, b, b_columns, b_depth, b_segment, first, end, segments,
                         in_rows, in_columns, SIZE, T, BK, True, False, PRECISION)  # fmt: skip
    return total


@triton.jit
def _of_rows(q, begin, distance):
    """Return how far the first row of a group is from the first row of all."""
    return tl.where(tl.load(q + _GROUPING) == _ROW_GROUPS, begin.to(tl.int64) * distance, 0)


@triton.jit
def _place(q, field: tl.constexpr, shift, T: tl.constexpr):
    """Return the address of what lies in another array where the first result of a tile lies in its own."""
    return tl.load(q + field).to(tl.pointer_type(T)) + shift


@triton.jit
def _results(q, r, rs, SIZE: tl.constexpr):
    """Return how far the results of rows are from the first one of the tile, whose row is ``r``."""
    inner = tl.load(q + _INNER).to(tl.int32)
    of_rows = (rs // inner - r // inner) * tl.load(q + _C_OUTER).to(tl.int32)
    of_rows += (rs % inner - r % inner) * tl.load(q + _C_INNER).to(tl.int32)
    columns = tl.arange(0, SIZE)
    return of_rows[:, None] + (columns // _L * tl.load(q + _C_VECTOR).to(tl.int32) + columns % _L)[None, :]


@triton.jit
def _activate(q, shift, r, rows, in_columns, SIZE: tl.constexpr, T: tl.constexpr):
    """Write what follows from a tile of results by an activation; see `ACTIVATION`.

    The results are read again, some rows at a time, as registers do not hold all that is needed for a whole tile.
    """
    tl.debug_barrier()
    kind = tl.load(q + _ACTIVATION)
    first, sigmoid = _place(q, _FIRST, shift, T), _place(q, _SIGMOID, shift, T)
    for begin in range(0, SIZE, _ACTIVATED):
        rs = r + begin + tl.arange(0, _ACTIVATED)
        at, mask = _results(q, r, rs, SIZE), (rs < rows)[:, None] & in_columns[None, :]
        x = tl.load(_place(q, _C, shift, T) + at, mask=mask, other=0.0)
        if kind == _VALUE:
            s = 1.0 / (1.0 + tl.exp(-x))
            tl.store(sigmoid + at, s, mask=mask)
            tl.store(first + at, x * s, mask=mask)
        else:
            z = tl.load(_place(q, _Z, shift, T) + at, mask=mask, other=0.0)
            s = tl.load(sigmoid + at, mask=mask, other=0.0)
            if kind == _TANGENT:
                change = x * s * (1.0 - s) * (2.0 + z * (1.0 - 2.0 * s))
                change *= tl.load(_place(q, _GIVEN, shift, T) + at, mask=mask, other=0.0)
                tl.store(_place(q, _SECOND, shift, T) + at, change, mask=mask)
            _write(first + at, x * slope(z, s), mask, kind == _ADJOINT)


@triton.jit(do_not_specialize=["n", "tiles", "sums"])
def _products(
    records,
    partial,
    n,
    tiles,
    sums,
    SIZE: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute a tile of a product, or a part of its sums.

    Pointers: a list of products; partial results. Dimensions: see `Plan`.
    """
    q, t = _record_of(records, n, _FIRST_TILE, tl.program_id(0))
    n_tiles = tl.cdiv(tl.load(q + _COLUMNS).to(tl.int32), SIZE)
    j = t % n_tiles * SIZE
    g, begin, rows, depth, t, number = _work_of(q, t // n_tiles, SIZE)
    part, r = tl.load(q + _PART).to(tl.int32), t * SIZE
    first = number * part
    if (r < rows) & ((number == 0) | (first < depth)):
        total = _sums_of_tile(q, g, begin, r, j, rows, depth, first, SIZE, T, BK, PRECISION)
        width, rs, js = _width(q), r + tl.arange(0, SIZE), j + tl.arange(0, SIZE)
        mask = (rs < rows)[:, None] & (js < width)[None, :]
        if depth > part:
            place = tl.load(q + _PARTIAL) + ((2 * begin // part + number).to(tl.int64) * rows + r) * width + j
            of_rows = tl.arange(0, SIZE) * width
            tl.store(partial + place + (of_rows[:, None] + tl.arange(0, SIZE)[None, :]), total, mask=mask)
        else:
            inner, c_outer = tl.load(q + _INNER).to(tl.int32), tl.load(q + _C_OUTER)
            shift = _of_group(q, g, _C_BY_INDEX, _C_GROUP) + _of_rows(q, begin, c_outer)
            shift += r // inner * c_outer + r % inner * tl.load(q + _C_INNER) + j // _L * tl.load(q + _C_VECTOR)
            to = _place(q, _C, shift, T) + _results(q, r, rs, SIZE)
            _write(to, _scale(q, T) * total, mask, tl.load(q + _ADD) != 0)
            if tl.load(q + _ACTIVATION) != 0:
                _activate(q, shift, r, rows, js < width, SIZE, T)


@triton.jit(do_not_specialize=["n", "tiles", "sums"])
def _sums(records, partial, n, tiles, sums, SIZE: tl.constexpr, T: tl.constexpr):
    """Add up the parts of a product, in order; pointers and dimensions are those of `_products`."""
    q, t = _record_of(records, n, _FIRST_SUM, tl.program_id(0))
    width, part = _width(q), tl.load(q + _PART)
    size = tl.load(q + _ROWS) * width
    pieces = tl.cdiv(size, _SUM_SIZE).to(tl.int32)
    g, begin, depth = t // pieces, part * 0, tl.load(q + _DEPTH)
    if tl.load(q + _GROUPING) == _SUM_GROUPS:
        starts = tl.load(q + _GROUP_STARTS).to(tl.pointer_type(tl.int64)) + g
        begin = tl.load(starts)
        depth = tl.load(starts + 1) - begin
    if depth > part:
        x = t % pieces * _SUM_SIZE + tl.arange(0, _SUM_SIZE)
        total = tl.zeros([_SUM_SIZE], T)
        at = partial + tl.load(q + _PARTIAL) + 2 * begin // part * size + x
        for _ in range(0, tl.cdiv(depth, part).to(tl.int32)):
            total += tl.load(at, mask=x < size, other=0.0)
            at += size
        c = tl.load(q + _C).to(tl.pointer_type(T)) + _of_group(q, g, _C_BY_INDEX, _C_GROUP)
        r, j, inner = x // width, x % width, tl.load(q + _INNER).to(tl.int32)
        of_rows = c + r // inner * tl.load(q + _C_OUTER) + r % inner * tl.load(q + _C_INNER)
        _write(
            of_rows + j // _L * tl.load(q + _C_VECTOR) + j % _L, _scale(q, T) * total, x < size, tl.load(q + _ADD) != 0
        )


@cache
def matrices_kernels(dtype: torch.dtype, tf32: bool = False) -> dict[str, DeviceKernel | KernelSequence]:
    """Return the kernels by their names.

    Args:
        dtype: Precision of the numbers.
        tf32: Whether the products of float32 are computed with numbers of 11 bits, by tensor cores.
    """
    number = {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]
    sums = DeviceKernel(_sums, lambda d: (int(d[2]),), options={"T": number})
    # more terms at a time do not fit into the registers, except where tensor cores multiply
    terms, precision = (32, "tf32") if tf32 and dtype == torch.float32 else (16, "ieee")
    if dtype == torch.float64 and not _HAS_DOTS_OF_DOUBLES:
        terms, precision = 2, "sum"
    options = {"T": number, "BK": terms, "PRECISION": precision}
    warps = 4 if dtype == torch.float32 else 8
    products = DeviceKernel(_products, lambda d: (int(d[1]),), warps, options)
    return {"products": KernelSequence((products, sums)), **packing_kernels(dtype)}
