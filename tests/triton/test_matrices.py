"""Do the kernels for matrices in Triton compute what those in C do?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from matrix_products import (
    DTYPES,
    SIZES,
    WAYS,
    Case,
    check_packing,
    run_each_group,
    run_empty_groups,
    run_list,
    run_rows,
    run_sums,
)

from mace.kernels.c_source.matrices import EACH_GROUP, NO_GROUPS, SUM_GROUPS

pytest.importorskip("triton")

from mace.kernels.triton_source import matrices
from mace.kernels.triton_source.launching import LANES
from mace.kernels.triton_source.matrices import PANEL, matrices_kernels, plan

SMALL_SIZES = ((2, 3, 0), (13, 37, 20), (40, 9, 70))


class InTriton:
    """The kernels in Triton; see `matrix_products.Kernels`."""

    def lanes(self, dtype: torch.dtype) -> int:
        return LANES

    def panel(self, dtype: torch.dtype) -> int:
        return PANEL

    def products(self, dtype: torch.dtype, records: Sequence[np.ndarray], threads: int) -> None:
        planned = plan(np.stack(records), np.array([len(records)]))
        table = torch.from_numpy(np.concatenate([np.stack(records), planned.columns], 1))
        partial = torch.full((planned.partial,), float("nan"), dtype=dtype)
        matrices_kernels(dtype)["products"].run([table, partial], planned.dimensions[0].tolist())

    def packing(self, dtype: torch.dtype, records: Sequence[Sequence[int]], threads: int) -> None:
        table = torch.tensor(records)
        matrices_kernels(dtype)["packing"].run([table], [len(records), 0])


TRITON = InTriton()


@pytest.mark.parametrize("way", WAYS)
def test_products_of_rows(way: str) -> None:
    for dtype, (rows, n, depth) in zip((*DTYPES, torch.float64), SMALL_SIZES, strict=True):
        run_rows(Case(TRITON, rows=rows, columns=n, depth=depth, dtype=dtype, **WAYS[way]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_products_of_rows_of_all_sizes(way: str, dtype: torch.dtype) -> None:
    for rows, n, depth in SIZES:
        run_rows(Case(TRITON, rows=rows, columns=n, depth=depth, dtype=dtype, **WAYS[way]))


@pytest.mark.parametrize("grouping", [NO_GROUPS, SUM_GROUPS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_rows(dtype: torch.dtype, grouping: int) -> None:
    for inner, n_in, n_out in ((1, 1, 1), (3, 20, 37), (5, 7, 70)):
        run_sums(Case(TRITON, columns=n_out, segments=inner, add=True, dtype=dtype, grouping=grouping), n_in)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("grouping", [NO_GROUPS, SUM_GROUPS])
def test_sums_in_parts(grouping: int, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some groups have several parts, others one or no row; nothing is added to what nobody owns."""
    monkeypatch.setattr(matrices, "SHORTEST_PART", 64)
    starts = (0, 65, 66, 66, 230)
    for inner, add in ((1, True), (3, False)):
        case = Case(TRITON, columns=37, segments=inner, add=add, whole=whole, grouping=grouping)
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing(dtype: torch.dtype) -> None:
    check_packing(TRITON, dtype, 1)
