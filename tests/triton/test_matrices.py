"""Do the kernels for matrices in Triton compute what those in C do?"""

from __future__ import annotations

from collections.abc import Sequence

import matrix_products
import numpy as np
import pytest
import torch
from matrix_products import (
    DTYPES,
    SIZES,
    WAYS,
    Case,
    check_packing,
    of_b,
    random,
    run_each_group,
    run_empty_groups,
    run_list,
    run_rows,
    run_sums,
)

from mace.kernels.c_source.matrices import EACH_GROUP, FIELDS, NO_GROUPS, ROW_GROUPS, SUM_GROUPS

pytest.importorskip("triton")

from mace.kernels.triton_source import matrices
from mace.kernels.triton_source.activations import activation_kernels
from mace.kernels.triton_source.launching import LANES
from mace.kernels.triton_source.matrices import matrices_kernels, plan
from mace.kernels.triton_source.packing import PANEL
from mace.kernels.triton_source.records import PLANNED, RECORD

SMALL_SIZES = ((13, 37, 20), (7, 40, 33), (40, 9, 40))


class InTriton:
    """The kernels in Triton; see `matrix_products.Kernels`."""

    def lanes(self, dtype: torch.dtype) -> int:
        return LANES

    def panel(self, dtype: torch.dtype) -> int:
        return PANEL

    def products(self, dtype: torch.dtype, records: Sequence[np.ndarray], threads: int) -> None:
        table = torch.zeros(len(records), len(RECORD), dtype=torch.int64)
        for row, record in zip(table, records, strict=True):
            row[: len(record)] = torch.from_numpy(record)
        planned = plan(table.numpy(), np.array([len(records)]))
        table[:, -len(PLANNED) :] = torch.from_numpy(planned.columns)
        partial = torch.full((planned.partial,), float("nan"), dtype=dtype)
        matrices_kernels(dtype)["products"].run([table, partial], planned.dimensions[0].tolist())

    def packing(self, dtype: torch.dtype, records: Sequence[Sequence[int]], threads: int) -> None:
        table = torch.tensor(records)
        matrices_kernels(dtype)["packing"].run([table], [len(records), 0])


TRITON = InTriton()


@pytest.mark.parametrize("way", WAYS)
def test_products_of_rows(way: str) -> None:
    dtype, size = DTYPES[len(way) % 2], SMALL_SIZES[len(way) % 3]
    rows, n, depth = size
    run_rows(Case(TRITON, rows=rows, columns=n, depth=depth, dtype=dtype, **WAYS[way]))
    run_rows(Case(TRITON, rows=2, columns=3, depth=0, dtype=dtype, **WAYS[way]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_products_of_rows_of_all_sizes(way: str, dtype: torch.dtype) -> None:
    for rows, n, depth in SIZES:
        run_rows(Case(TRITON, rows=rows, columns=n, depth=depth, dtype=dtype, **WAYS[way]))


@pytest.mark.parametrize("grouping", [NO_GROUPS, SUM_GROUPS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_rows(dtype: torch.dtype, grouping: int) -> None:
    for inner, n_in, n_out in ((1, 1, 1), (3, 20, 37)):
        run_sums(Case(TRITON, columns=n_out, segments=inner, add=True, dtype=dtype, grouping=grouping), n_in)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("grouping", [NO_GROUPS, SUM_GROUPS])
def test_sums_in_parts(grouping: int, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some groups have several parts, others one or no row; nothing is added to what nobody owns."""
    monkeypatch.setattr(matrices, "SHORTEST_PART", 64)
    starts = (0, 65, 66, 66, 230)
    case = Case(TRITON, columns=37, segments=3 if whole else 1, add=not whole, whole=whole, grouping=grouping)
    run_sums(case, 20, starts)


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_for_each_group(dtype: torch.dtype, by_index: bool) -> None:
    case = Case(TRITON, columns=21, grouping=EACH_GROUP, whole=not by_index, dtype=dtype, add=by_index)
    run_each_group(case, by_index)


def test_groups_without_rows_are_left_out() -> None:
    run_empty_groups(Case(TRITON, columns=21, grouping=EACH_GROUP, whole=True))


def test_lists_of_products() -> None:
    run_list(TRITON, SIZES[:5], (1,))


def test_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "FEW_TILES", 0)
    for way in ("packed, whole", "by rows, added", "groups of rows, components"):
        run_rows(Case(TRITON, rows=70, columns=70, depth=40, **WAYS[way]))
    run_sums(Case(TRITON, columns=70, add=True, grouping=SUM_GROUPS), 66)


def test_packing() -> None:
    check_packing(TRITON, torch.float32, 1)


def test_products_without_dots_of_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older releases of Triton have none."""
    monkeypatch.setattr(matrices, "_HAS_DOTS_OF_DOUBLES", False)
    matrices_kernels.cache_clear()
    try:
        run_rows(Case(TRITON, rows=13, columns=37, depth=9))
        run_sums(Case(TRITON, columns=20, add=True, grouping=SUM_GROUPS), 5)
    finally:
        matrices_kernels.cache_clear()


@pytest.mark.parametrize("grouping", [NO_GROUPS, ROW_GROUPS])
def test_more_rows_change_no_bit(grouping: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are computed alike however many there are, here those of a last group that is longer."""
    case = {"columns": 37, "depth": 16, "dtype": torch.float32, "grouping": grouping}
    few = run_rows(Case(TRITON, rows=13, **case))
    monkeypatch.setattr(matrix_products, "STARTS", (*matrix_products.STARTS[:-1], 70))
    many = run_rows(Case(TRITON, rows=70, **case))
    # numbers are drawn 16 at a time, so the first rows are the same
    assert torch.equal(many[: len(few)], few)


@pytest.mark.parametrize("grouping", [NO_GROUPS, SUM_GROUPS])
def test_sums_with_spare_rows(grouping: int) -> None:
    """Where parts of a sum begin depends on the number of rows; that of its terms which are zero does not matter."""
    for spare in (7, 600):
        run_sums(Case(TRITON, columns=9, add=True, grouping=grouping, segments=3), 5, spare=spare)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_with_an_activation(dtype: torch.dtype) -> None:
    """They write what a product and then the kernel of the activation write, also behind what is not theirs."""
    rows, n, depth, before = 35, 40, 20, 3
    a, b = random(rows, depth, dtype=dtype), random(1, depth, n, dtype=dtype, seed=1)
    z, x, given, old = (random(before + rows * 64, dtype=dtype, seed=seed) for seed in range(2, 6))
    sigmoid = z.sigmoid()
    for kind, name in enumerate(("value", "gradient", "tangent", "adjoint"), 1):
        results = []
        for together in (True, False):
            case = Case(TRITON, columns=n, dtype=dtype, add=kind == 3, whole=True)
            c, first, second, s = x.clone(), old.clone(), old.clone(), sigmoid.clone()
            of_a = {"a": a, "a_outer": depth, "a_depth": 1}
            record = case.words(rows=rows, depth=depth, c=c, c_outer=64, c_vector=LANES, **of_a, **of_b(case, b))
            record[FIELDS.index("c")] += before * c.element_size()
            arrays = [array[before:] for array in (z, s, first, second, given)]
            case.run(
                1,
                np.array(
                    [
                        *record,
                        *([kind, *(array.data_ptr() for array in arrays)] if together else []),
                    ]
                ),
            )
            if not together:
                of_z, of_s, to, to_second, g = arrays
                result = c[before:]
                here = {
                    1: [result, of_s, to],
                    2: [of_z, of_s, result, to],
                    3: [of_z, of_s, result, g, to, to_second],
                    4: [of_z, of_s, result, to],
                }
                activation_kernels(dtype)[f"silu_{name}"].run(here[kind], [rows * 64, 1])
            results.append([c, first, second, s])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6 if dtype == torch.float32 else 1e-14)
        assert not torch.equal(results[0][1], old)
