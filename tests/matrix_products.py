"""Products of matrices that kernels must compute, with all sizes and ways to store the operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mace.kernels.c_source.matrices import BY_ROWS, FIELDS, NO_GROUPS, PACKED, PLAIN, ROW_GROUPS, SUM_GROUPS

DTYPES = (torch.float32, torch.float64)
GUARD = 7.0
"""What numbers hold that nobody may write."""
STARTS = (0, 5, 6, 20, 33)
INDEX = (3, 0, 4, 1)
"""Groups of rows, and the number of the matrix of each; matrices are 0 to 4."""


class Kernels(Protocol):
    """The kernels of a back end, as those in C."""

    def lanes(self, dtype: torch.dtype) -> int:
        """Return the number of columns in a vector."""

    def panel(self, dtype: torch.dtype) -> int:
        """Return the number of columns in a panel of a packed matrix."""

    def products(self, dtype: torch.dtype, records: Sequence[np.ndarray], threads: int) -> None:
        """Compute a list of products."""

    def packing(self, dtype: torch.dtype, records: Sequence[Sequence[int]], threads: int) -> None:
        """Pack a list of matrices."""


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Draw numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def packed(kernels: Kernels, matrices: Tensor, threads: int = 2) -> Tensor:
    """Let the kernel pack matrices, ``[count, rows, columns]``, of which it may not read more than they have."""
    count, rows, n = matrices.shape
    width = kernels.panel(matrices.dtype)
    result = torch.full((count, -(-n // width), rows, width), GUARD, dtype=matrices.dtype)
    records = []
    for place in range(count):
        source, target = matrices[place], result[place]
        records.append([source.data_ptr(), target.data_ptr(), rows, n, *source.stride(), rows])
    kernels.packing(matrices.dtype, records, threads)
    return result


@dataclass
class Case:
    """A product ``C = scale * A B``, of which every operand may be stored in several ways.

    Attributes:
        kernels: What computes it.
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

    kernels: Kernels
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
        n, lane = self.columns, self.lanes
        vectors = -(-n // lane)
        apart = 3 * lane if self.spread else lane
        width = vectors * apart if self.spread or self.whole else n
        memory = torch.full((*shape, width + (0 if self.whole else 2)), GUARD, dtype=self.dtype)
        place = torch.tensor([c // lane * apart + c % lane for c in range(n)])
        return memory, place, {"c": memory, "c_vector": apart}  # type: ignore[dict-item]  # its address

    def run(self, threads: int, *records: np.ndarray) -> None:
        """Compute products."""
        self.kernels.products(self.dtype, records, threads)

    @property
    def lanes(self) -> int:
        """Number of columns in a vector."""
        return self.kernels.lanes(self.dtype)


def of_b(case: Case, b: Tensor) -> dict[str, Any]:
    """Return where ``B`` lies, ``[segments or matrices, depth, columns]``, after it was stored as wanted."""
    count, depth, n = b.shape
    if case.storage == PACKED:
        stored = packed(case.kernels, b)
        return {"b": stored, "b_group": stored[0].numel()}
    if case.storage == BY_ROWS:
        stored = b.transpose(1, 2).contiguous()
        return {"b": stored, "b_depth": depth, "b_group": depth * n, "b_segment": depth * n}
    lane = case.lanes
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
    lane = case.lanes
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


def run_sums(case: Case, n_in: int, starts: Sequence[int] = STARTS, spare: int = 0, threads: int = 1) -> Tensor:
    """Check a sum over atoms and components, as in gradients by weights: over all atoms, or those of each group.

    Args:
        case: Its segments are the components, its columns those of the second operand.
        n_in: Columns of the first operand.
        starts: Where the groups of atoms begin.
        spare: Rows of zeros behind all atoms.
        threads: Threads to use.
    """
    atoms, inner, dtype = starts[-1], case.segments, case.dtype
    a, b = random(atoms, inner, n_in, dtype=dtype), random(atoms, inner, case.columns, dtype=dtype, seed=1)
    x, y = (torch.cat([part, part.new_zeros(spare, *part.shape[1:])]) for part in (a, b))
    grouped = case.grouping == SUM_GROUPS
    memory, place, of_c = case.result(5 if grouped else 1, n_in)
    first, index = torch.tensor(starts), torch.tensor(INDEX)
    record = case.words(
        rows=n_in,
        depth=atoms + spare,
        a=x,
        a_outer=1,
        a_depth=inner * n_in,
        a_segment=n_in,
        b=y,
        b_depth=inner * case.columns,
        b_vector=case.lanes,
        b_segment=case.columns,
        c_outer=memory.shape[-1],
        c_group=memory[0].numel(),
        c_by_index=1,
        groups=len(INDEX),
        group_starts=first,
        group_index=index,
        **of_c,
    )
    expected = torch.zeros(len(memory), n_in, case.columns, dtype=dtype)
    owner = index.repeat_interleave(first.diff()) if grouped else torch.zeros(atoms, dtype=torch.int64)
    expected.index_add_(0, owner, case.scale * torch.einsum("rmk,rmn->rkn", a, b))
    case.run(threads, record)
    written = index if grouped else slice(None)
    expect(memory[written], place, expected[written], case)
    return memory


def run_each_group(case: Case, by_index: bool) -> None:
    """Check a product with one ``A`` for all groups and the ``B`` and ``C`` of each, as weights of terms have it."""
    dtype = case.dtype
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


def run_empty_groups(case: Case) -> None:
    """Check that groups without rows are left out: in a padded graph, nobody has written their operands."""
    dtype = case.dtype
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


def run_list(kernels: Kernels, sizes: Sequence[tuple[int, int, int]], threads: Sequence[int]) -> None:
    """Check that all products of a list are computed, whatever their sizes."""
    expected, records, memories, cases = [], [], [], []
    for rows, n, depth in sizes:
        case = Case(kernels, columns=n)
        a, b = random(rows, depth, dtype=case.dtype), random(1, depth, n, dtype=case.dtype, seed=1)
        memory, place, of_c = case.result(rows)
        of_a = {"a": a, "a_outer": depth, "a_depth": 1}
        records.append(case.words(rows=rows, depth=depth, c_outer=memory.shape[-1], **of_a, **of_b(case, b), **of_c))
        expected.append(case.scale * (a @ b[0]))
        memories.append((memory, place))
        cases.append(case)
    for n_threads in threads:
        for memory, _ in memories:
            memory.fill_(GUARD)
        cases[0].run(n_threads, *records)
        for (memory, place), wanted, case in zip(memories, expected, cases, strict=True):
            expect(memory, place, wanted, case)


def check_packing(kernels: Kernels, dtype: torch.dtype, threads: int) -> None:
    """Check that matrices are packed, whichever of their numbers are next to each other."""
    width = kernels.panel(dtype)
    for rows, n in ((1, 1), (5, width), (3, width + 1), (40, 2 * width - 1)):
        plain = random(2, rows, n, dtype=dtype)
        for matrices in (plain, plain.transpose(1, 2).contiguous().transpose(1, 2)):
            found = packed(kernels, matrices, threads)
            padded = torch.zeros(2, rows, found.shape[1] * width, dtype=dtype)
            padded[:, :, :n] = plain
            assert torch.equal(found, padded.view(2, rows, -1, width).transpose(1, 2))
