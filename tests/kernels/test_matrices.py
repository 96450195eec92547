"""Do the kernels for matrices and activations give what torch gives, for all sizes and ways to store the operands?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.kernels.c_source.matrices import (
    BY_ROWS,
    EACH_GROUP,
    FIELDS,
    NO_GROUPS,
    PACKED,
    PLAIN,
    ROW_GROUPS,
    SUM_GROUPS,
    columns,
    panel,
)
from mace.kernels.c_source.parts import lanes, launcher_source
from mace.kernels.compiler import compile_and_load, find_compiler, thread_pool
from mace.program.libraries import matrix_kernel

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")

DTYPES = (torch.float32, torch.float64)
GUARD = 7.0
"""What numbers hold that nobody may write."""
STARTS = (0, 5, 6, 20, 33)
INDEX = (3, 0, 4, 1)
"""Groups of rows, and the number of the matrix of each; matrices are 0 to 4."""


def launch(kernel: int, pointers: Sequence[int], dimensions: Sequence[int], units: int, threads: int) -> None:
    """Run one kernel."""
    run_launches([(kernel, pointers, dimensions, units)], threads)


def run_launches(launches: Sequence[tuple[int, Sequence[int], Sequence[int], int]], threads: int) -> None:
    """Run kernels one after the other."""
    held, words = [], []
    for kernel, pointers, dimensions, units in launches:
        numbers = [np.array([*part, 0], dtype=np.int64) for part in (pointers, dimensions)]
        held += numbers
        words += [kernel, *(part.ctypes.data for part in numbers), units]
    table, pool = np.array(words, dtype=np.int64), thread_pool()
    arguments = (table.ctypes.data, len(launches), threads, pool.parallel, pool.thread_number, pool.team_size)
    run = compile_and_load(launcher_source()).run_all
    run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 4]
    run(*arguments, pool.barrier)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Draw numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def packed(matrices: Tensor, threads: int = 2) -> Tensor:
    """Let the kernel pack matrices, ``[count, rows, columns]``, of which it may not read more than they have."""
    count, rows, n = matrices.shape
    width = panel(matrices.dtype)
    result = torch.full((count, -(-n // width), rows, width), GUARD, dtype=matrices.dtype)
    records = []
    for place in range(count):
        source, target = matrices[place], result[place]
        records += [source.data_ptr(), target.data_ptr(), rows, n, source.stride(0), source.stride(1), rows]
    table = np.array(records, dtype=np.int64)
    launch(matrix_kernel("packing", matrices.dtype), [table.ctypes.data], [count, threads], threads, threads)
    return result


@dataclass
class Case:
    """A product ``C = scale * A B``, of which every operand may be stored in several ways.

    Attributes:
        rows: Atoms.
        inner: Components of each.
        columns: Columns.
        depth: Terms of the sum.
        segments: Parts of the sum.
        storage: How ``B`` is stored.
        whole: Whether rows of the result are padded to whole vectors.
        spread: Whether the vectors of a row of the result are apart.
        add: Whether the result is added to what is there.
        transposed: Whether the numbers of a row of ``A`` are apart.
    """

    rows: int = 13
    inner: int = 1
    columns: int = 20
    depth: int = 7
    segments: int = 1
    storage: int = PLAIN
    whole: bool = False
    spread: bool = False
    add: bool = False
    transposed: bool = False
    grouping: int = NO_GROUPS
    dtype: torch.dtype = torch.float64
    scale: float = 0.7
    held: list[Any] = field(default_factory=list)

    def words(self, **numbers: Any) -> np.ndarray:
        """Return the record."""
        values = dict.fromkeys(FIELDS, 0) | {
            "inner": self.inner,
            "segments": self.segments,
            "columns": self.columns,
            "b_storage": self.storage,
            "add": int(self.add),
            "c_whole": int(self.whole),
            "grouping": self.grouping,
            "scale": int(np.float64(self.scale).view(np.int64)),
        }
        for name, number in numbers.items():
            assert name in values
            values[name] = number.data_ptr() if isinstance(number, Tensor) else int(number)
            self.held.append(number)
        return np.array([values[name] for name in FIELDS], dtype=np.int64)

    def result(self, *shape: int) -> tuple[Tensor, Tensor, dict[str, int]]:
        """Return memory for results ``[..., columns]``, a view of these, and where they lie."""
        n, lane = self.columns, lanes(self.dtype)
        vectors = -(-n // lane)
        apart = 3 * lane if self.spread else lane
        width = vectors * apart if self.spread or self.whole else n
        memory = torch.full((*shape, width + (0 if self.whole else 2)), GUARD, dtype=self.dtype)
        place = torch.tensor([c // lane * apart + c % lane for c in range(n)])
        return memory, place, {"c": memory, "c_vector": apart}  # type: ignore[dict-item]  # its address

    def run(self, threads: int, *records: np.ndarray) -> None:
        """Compute products."""
        table = np.concatenate(records)
        launch(matrix_kernel("products", self.dtype), [table.ctypes.data], [len(records), threads], threads, threads)


def of_b(case: Case, b: Tensor) -> dict[str, Any]:
    """Return where ``B`` lies, ``[segments or matrices, depth, columns]``, after it was stored as wanted."""
    count, depth, n = b.shape
    if case.storage == PACKED:
        stored = packed(b)
        return {"b": stored, "b_group": stored[0].numel()}
    if case.storage == BY_ROWS:
        stored = b.transpose(1, 2).contiguous()
        return {"b": stored, "b_depth": depth, "b_group": depth * n, "b_segment": depth * n}
    lane = lanes(case.dtype)
    if not case.spread:
        return {"b": b.contiguous(), "b_depth": n, "b_vector": lane, "b_group": depth * n, "b_segment": depth * n}
    vectors = -(-n // lane)
    stored = torch.full((count, vectors, depth, lane), GUARD, dtype=case.dtype)
    for place in range(n):
        stored[:, place // lane, :, place % lane] = b[:, :, place]
    size = vectors * depth * lane
    return {"b": stored, "b_depth": lane, "b_vector": depth * lane, "b_group": size, "b_segment": size}


def expect(memory: Tensor, place: Tensor, expected: Tensor, case: Case) -> None:
    """Compare results, and what lies around them."""
    flat = memory.flatten(0, -2)
    start = GUARD if case.add else 0.0
    found = flat[:, place] - start
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    tolerance = 1e-12 if case.dtype == torch.float64 else 2e-5
    assert float((found - expected.flatten(0, -2)).abs().max()) <= tolerance * max(scale, 1.0)
    rest = torch.ones(flat.shape[1], dtype=torch.bool)
    rest[place] = False
    lane = lanes(case.dtype)
    if case.whole and case.columns % lane:
        tail = int(place[-1]) - (case.columns - 1) % lane
        padding = flat[:, tail + case.columns % lane : tail + lane]
        assert (padding == start).all()
        rest[tail : tail + lane] = False
    assert (flat[:, rest] == GUARD).all()


def run_rows(case: Case, threads: int = 1) -> Tensor:
    """Check a product with a matrix for all rows, or for each group of them."""
    grouped = case.grouping == ROW_GROUPS
    rows = STARTS[-1] if grouped else case.rows
    a = random(rows, case.inner, case.segments, case.depth, dtype=case.dtype)
    b = random(5 if grouped else case.segments, case.depth, case.columns, dtype=case.dtype, seed=1)
    stored = a.permute(0, 1, 3, 2).contiguous() if case.transposed else a
    memory, place, of_c = case.result(rows, case.inner)
    starts, index = torch.tensor(STARTS), torch.tensor(INDEX)
    record = case.words(
        rows=rows * case.inner,
        depth=case.depth,
        a=stored,
        a_outer=case.inner * case.segments * case.depth,
        a_inner=case.segments * case.depth,
        a_depth=case.segments if case.transposed else 1,
        a_segment=1 if case.transposed else case.depth,
        b_by_index=1,
        c_outer=case.inner * memory.shape[-1],
        c_inner=memory.shape[-1],
        groups=len(INDEX),
        group_starts=starts,
        group_index=index,
        **of_b(case, b),
        **of_c,
    )
    case.run(threads, record)
    if grouped:
        chosen = b[index.repeat_interleave(starts.diff())]
        expected = torch.einsum("rmk,rkn->rmn", a[:, :, 0], chosen)
    else:
        expected = torch.einsum("rmsk,skn->rmn", a, b)
    expect(memory, place, case.scale * expected, case)
    return memory


WAYS: dict[str, dict[str, Any]] = {
    "packed": {"storage": PACKED},
    "plain": {"storage": PLAIN},
    "by rows": {"storage": BY_ROWS},
    "whole vectors": {"whole": True},
    "packed, whole": {"storage": PACKED, "whole": True},
    "by rows, whole": {"storage": BY_ROWS, "whole": True},
    "added": {"add": True},
    "packed, whole, added": {"storage": PACKED, "whole": True, "add": True},
    "by rows, added": {"storage": BY_ROWS, "add": True},
    "vectors apart": {"spread": True},
    "packed, vectors apart": {"spread": True, "storage": PACKED},
    "by rows, whole, apart, added": {"spread": True, "storage": BY_ROWS, "whole": True, "add": True},
    "components": {"inner": 3},
    "components, packed": {"inner": 5, "storage": PACKED},
    "components, by rows": {"inner": 3, "storage": BY_ROWS, "add": True},
    "segments": {"segments": 3},
    "segments, transposed": {"segments": 3, "transposed": True, "add": True},
    "groups of rows": {"grouping": ROW_GROUPS},
    "groups of rows, components": {"grouping": ROW_GROUPS, "inner": 3, "add": True},
    "groups of rows, by rows": {"grouping": ROW_GROUPS, "inner": 3, "storage": BY_ROWS},
    "groups of rows, whole": {"grouping": ROW_GROUPS, "inner": 5, "storage": BY_ROWS, "whole": True},
    "groups of rows, packed": {"grouping": ROW_GROUPS, "storage": PACKED, "add": True},
}
SIZES = ((1, 1, 1), (2, 3, 0), (6, 16, 5), (13, 37, 20), (7, 129, 64), (1, 8, 256), (100, 70, 257), (40, 9, 300))
"""Rows, columns and terms of the sum: tails of rows, of vectors and of panels, none at all, and many."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_products_of_rows(way: str, dtype: torch.dtype) -> None:
    for rows, n, depth in SIZES:
        run_rows(Case(rows=rows, columns=n, depth=depth, dtype=dtype, **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_threads_give_the_same_bits(way: str) -> None:
    for size in SIZES[2:5]:
        settings = dict(zip(("rows", "columns", "depth"), size, strict=True), dtype=torch.float32)
        alone = run_rows(Case(**settings, **WAYS[way]))
        for threads in (2, 3, 7, 64):
            assert torch.equal(run_rows(Case(**settings, **WAYS[way]), threads), alone)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_rows(dtype: torch.dtype, grouped: bool) -> None:
    """As gradients by weights: the sum runs over atoms and components, of all atoms or of each group."""
    for inner, n_in, n_out in ((1, 1, 1), (3, 20, 37), (1, 130, 16), (5, 7, 70)):
        case = Case(
            columns=n_out,
            segments=inner,
            add=True,
            dtype=dtype,
            grouping=SUM_GROUPS if grouped else NO_GROUPS,
        )
        atoms = STARTS[-1]
        a, b = random(atoms, inner, n_in, dtype=dtype), random(atoms, inner, n_out, dtype=dtype, seed=1)
        memory, place, of_c = case.result(5 if grouped else 1, n_in)
        starts, index = torch.tensor(STARTS), torch.tensor(INDEX)
        record = case.words(
            rows=n_in,
            depth=atoms,
            a=a,
            a_outer=1,
            a_depth=inner * n_in,
            a_segment=n_in,
            b=b,
            b_depth=inner * n_out,
            b_vector=lanes(dtype),
            b_segment=n_out,
            c_outer=memory.shape[-1],
            c_group=memory[0].numel(),
            c_by_index=1,
            groups=len(INDEX),
            group_starts=starts,
            group_index=index,
            **of_c,
        )
        expected = torch.zeros(len(memory), n_in, n_out, dtype=dtype)
        of_atoms = case.scale * torch.einsum("rmk,rmn->rkn", a, b)
        owner = index.repeat_interleave(starts.diff()) if grouped else torch.zeros(atoms, dtype=torch.int64)
        expected.index_add_(0, owner, of_atoms)
        results = []
        for threads in (1, 3):
            memory.fill_(GUARD)
            case.run(threads, record)
            expect(memory, place, expected, case)
            results.append(memory.clone())
        assert torch.equal(*results)


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_for_each_group(dtype: torch.dtype, by_index: bool) -> None:
    """As weights of terms: one ``A`` for all, with the ``B`` and ``C`` of each group, by its place or its index."""
    case = Case(columns=21, grouping=EACH_GROUP, whole=not by_index, dtype=dtype, add=by_index)
    a, b = random(9, 4, dtype=dtype), random(5, 4, case.columns, dtype=dtype, seed=1)
    memory, place, of_c = case.result(5, 9)
    index = torch.tensor(INDEX)
    record = case.words(
        rows=9,
        depth=4,
        a=a,
        a_outer=4,
        a_depth=1,
        b_by_index=int(not by_index),
        c_outer=memory.shape[-1],
        c_group=memory[0].numel(),
        c_by_index=int(by_index),
        groups=len(INDEX),
        group_index=index,
        **of_b(case, b),
        **of_c,
    )
    case.run(2, record)
    written = index if by_index else torch.arange(len(INDEX))
    read = torch.arange(len(INDEX)) if by_index else index
    expect(memory[written], place, case.scale * (a @ b[read]), case)
    (untouched,) = set(range(5)) - set(written.tolist())
    assert (memory[untouched] == GUARD).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_without_rows_are_left_out(dtype: torch.dtype) -> None:
    """In a padded graph, groups are empty whose products nobody needs, and whose operands nobody has written."""
    case = Case(columns=21, grouping=EACH_GROUP, whole=True, dtype=dtype)
    a, b = random(9, 4, dtype=dtype), random(5, 4, case.columns, dtype=dtype, seed=1)
    memory, place, of_c = case.result(len(INDEX), 9)
    starts = torch.tensor([0, *[2] * len(INDEX)])  # the first group has all rows
    record = case.words(
        rows=9, depth=4, a=a, a_outer=4, a_depth=1, b_by_index=1, c_outer=memory.shape[-1], c_group=memory[0].numel(),
        groups=len(INDEX), group_index=torch.tensor(INDEX), group_starts=starts, **of_b(case, b), **of_c,
    )  # fmt: skip
    case.run(2, record)
    expect(memory[:1], place, case.scale * (a @ b[INDEX[:1]]), case)
    assert (memory[1:] == GUARD).all()


def test_lists_of_products() -> None:
    """All of a list are computed, whatever their sizes, also where there are more shares than tiles."""
    expected, records, memories, cases = [], [], [], []
    for rows, n, depth in SIZES:
        case = Case(columns=n)
        a, b = random(rows, depth, dtype=case.dtype), random(1, depth, n, dtype=case.dtype, seed=1)
        memory, place, of_c = case.result(rows)
        records.append(
            case.words(
                rows=rows, depth=depth, a=a, a_outer=depth, a_depth=1, c_outer=memory.shape[-1], **of_b(case, b), **of_c
            )
        )
        expected.append(case.scale * (a @ b[0]))
        memories.append((memory, place))
        cases.append(case)
    for threads in (1, 5, 200):
        for memory, _ in memories:
            memory.fill_(GUARD)
        cases[0].run(threads, *records)
        for (memory, place), wanted, case in zip(memories, expected, cases, strict=True):
            expect(memory, place, wanted, case)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing(dtype: torch.dtype, threads: int) -> None:
    width = columns() * lanes(dtype)
    assert width == panel(dtype)
    for rows, n in ((1, 1), (5, width), (3, width + 1), (40, 2 * width - 1)):
        plain = random(2, rows, n, dtype=dtype)
        for matrices in (plain, plain.transpose(1, 2).contiguous().transpose(1, 2)):
            found = packed(matrices, threads)
            padded = torch.zeros(2, rows, found.shape[1] * width, dtype=dtype)
            padded[:, :, :n] = plain
            assert torch.equal(found, padded.view(2, rows, -1, width).transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_zeros(count: int, dtype: torch.dtype) -> None:
    for threads in (1, 3, 16):
        numbers = torch.full((count + 1,), GUARD, dtype=dtype)
        launch(matrix_kernel("zeros", dtype), [numbers.data_ptr()], [count, threads], threads, threads)
        assert not numbers[:-1].any() and numbers[-1] == GUARD


def silu_derivatives(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return SiLU and its first two derivatives."""
    leaf = z.double().requires_grad_(True)
    value = torch.nn.functional.silu(leaf)
    (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    return value.detach(), first.detach(), second


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu(dtype: torch.dtype, threads: int) -> None:
    extremes = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.5, -88.5, 104.0, -104.0, 800.0, -800.0, 1e4, -1e4, 3e8, -3e8])
    z = torch.cat([torch.linspace(-30.0, 30.0, 1602), extremes]).to(dtype)
    assert len(z) % lanes(dtype) == 0
    g, u = random(len(z), dtype=dtype), random(len(z), dtype=dtype, seed=1)
    value, first, second = silu_derivatives(z)

    def run(name: str, *arrays: Tensor) -> None:
        pointers = [array.data_ptr() for array in arrays]
        launch(matrix_kernel(f"silu_{name}", dtype), pointers, [len(z), threads], threads, threads)

    def close(found: Tensor, expected: Tensor) -> None:
        tolerance = 4 * torch.finfo(dtype).eps
        size = 1.0 + z.double().abs().clamp(max=30.0)  # the terms of derivatives, which cancel
        assert ((found.double() - expected).abs() <= tolerance * (size * (1.0 + g.abs()) * (1.0 + u.abs()))).all()

    a, b, s = torch.full_like(z, GUARD), torch.full_like(z, GUARD), torch.full_like(z, GUARD)
    run("value", z, s, a)
    torch.testing.assert_close(a, value.to(dtype), rtol=8 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny * 1e9)
    run("gradient", z, s, g, b)
    close(b, g * first)
    run("adjoint", z, s, u, b)
    close(b, (g + u) * first)
    run("tangent", z, s, u, g, a, b)
    close(a, u * first)
    close(b, g * u * second)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_of_what_is_no_number(dtype: torch.dtype) -> None:
    z = torch.full((2 * lanes(dtype),), float("nan"), dtype=dtype)
    z[0], z[1] = 1.0, float("inf")
    z.view(torch.uint8)[-dtype.itemsize :] = 0xFF
    found, sigmoid = torch.zeros_like(z), torch.zeros_like(z)
    pointers = [array.data_ptr() for array in (z, sigmoid, found)]
    launch(matrix_kernel("silu_value", dtype), pointers, [len(z), 1], 1, 1)
    assert torch.isfinite(found[0]) and found[1] == float("inf") and found[2:].isnan().all()


KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def test_launcher_runs_every_unit_once_and_in_order() -> None:
    """With one thread, as Python's lock keeps several from entering a kernel written in Python at once."""
    calls: list[tuple[str, int, int, int]] = []

    def kernel(name: str) -> Callable[[int, int, int, int, int], None]:
        return lambda p, d, begin, end, thread: calls.append((name, begin, end, thread))

    made = [KERNEL(kernel(name)) for name in "abc"]
    addresses = [ctypes.cast(one, ctypes.c_void_p).value or 0 for one in made]
    run_launches([(addresses[0], [], [], 5), (addresses[1], [], [], 0), (addresses[2], [], [], 1)], 1)
    assert calls == [("a", 0, 5, 0), ("c", 0, 1, 0)]


@pytest.mark.parametrize("threads", [2, 5, 16])
def test_launches_wait_for_each_other(threads: int) -> None:
    """Each of many products reads the whole result of the one before it."""
    n, steps = 48, 40
    case = Case(columns=n, scale=1.0)
    matrix = torch.linalg.qr(random(n, n, dtype=case.dtype))[0].contiguous()
    states = [random(n, n, dtype=case.dtype)] + [torch.full((n, n), GUARD, dtype=case.dtype) for _ in range(steps)]
    held, launches = [], []
    for before, after in zip(states[:-1], states[1:], strict=True):
        record = case.words(
            rows=n, depth=n, a=matrix, a_outer=n, a_depth=1, b=before, b_depth=n, b_vector=lanes(case.dtype),
            c=after, c_outer=n, c_vector=lanes(case.dtype),
        )  # fmt: skip
        held.append(record)
        launches.append((matrix_kernel("products", case.dtype), [record.ctypes.data], [1, threads], threads))
    run_launches(launches, threads)
    expected = states[0]
    for _ in range(steps):
        expected = matrix @ expected
    torch.testing.assert_close(states[-1], expected, rtol=0.0, atol=1e-12)
