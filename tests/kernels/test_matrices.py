"""Do the kernels for matrices and activations give what torch gives, for all sizes and ways to store the operands?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from matrix_products import (
    DTYPES,
    GUARD,
    SIZES,
    WAYS,
    Case,
    check_packing,
    random,
    run_each_group,
    run_empty_groups,
    run_list,
    run_rows,
    run_sums,
)
from torch import Tensor

from mace.kernels.c_source.matrices import EACH_GROUP, NO_GROUPS, SUM_GROUPS, columns, matrices_source, panel
from mace.kernels.c_source.parts import lanes, launcher_source
from mace.kernels.compiled import Kernel
from mace.kernels.compiler import compile_and_load, find_compiler, thread_pool
from mace.program.processor import address

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")


def matrix_kernel(name: str, dtype: torch.dtype) -> int:
    """Return the address of a kernel."""
    return address(Kernel(name, matrices_source, dtype))


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


class InC:
    """The kernels in C; see `matrix_products.Kernels`."""

    def lanes(self, dtype: torch.dtype) -> int:
        return lanes(dtype)

    def panel(self, dtype: torch.dtype) -> int:
        return panel(dtype)

    def products(self, dtype: torch.dtype, records: Sequence[np.ndarray], threads: int) -> None:
        table = np.concatenate(records)
        launch(matrix_kernel("products", dtype), [table.ctypes.data], [len(records), threads], threads, threads)

    def packing(self, dtype: torch.dtype, records: Sequence[Sequence[int]], threads: int) -> None:
        table = np.array(records, dtype=np.int64)
        launch(matrix_kernel("packing", dtype), [table.ctypes.data], [len(records), threads], threads, threads)


C = InC()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_products_of_rows(way: str, dtype: torch.dtype) -> None:
    for rows, n, depth in SIZES:
        run_rows(Case(C, rows=rows, columns=n, depth=depth, dtype=dtype, **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_threads_give_the_same_bits(way: str) -> None:
    for size in SIZES[2:5]:
        settings = dict(zip(("rows", "columns", "depth"), size, strict=True), dtype=torch.float32)
        alone = run_rows(Case(C, **settings, **WAYS[way]))
        for threads in (2, 3, 7, 64):
            assert torch.equal(run_rows(Case(C, **settings, **WAYS[way]), threads), alone)


@pytest.mark.parametrize("grouping", [NO_GROUPS, SUM_GROUPS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_rows(dtype: torch.dtype, grouping: int) -> None:
    for inner, n_in, n_out in ((1, 1, 1), (3, 20, 37), (1, 130, 16), (5, 7, 70)):
        case = Case(C, columns=n_out, segments=inner, add=True, dtype=dtype, grouping=grouping)
        assert torch.equal(*(run_sums(case, n_in, threads=threads) for threads in (1, 3)))


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_for_each_group(dtype: torch.dtype, by_index: bool) -> None:
    run_each_group(Case(C, columns=21, grouping=EACH_GROUP, whole=not by_index, dtype=dtype, add=by_index), by_index)


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_without_rows_are_left_out(dtype: torch.dtype) -> None:
    run_empty_groups(Case(C, columns=21, grouping=EACH_GROUP, whole=True, dtype=dtype))


def test_lists_of_products() -> None:
    """All of a list are computed, also where there are more shares than tiles."""
    run_list(C, SIZES, (1, 5, 200))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing(dtype: torch.dtype, threads: int) -> None:
    assert columns() * lanes(dtype) == panel(dtype)
    check_packing(C, dtype, threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_zeros(count: int, dtype: torch.dtype) -> None:
    for threads in (1, 3, 16):
        numbers = torch.full((count + 1,), GUARD, dtype=dtype)
        other = torch.full((3,), GUARD, dtype=dtype)
        records = np.array([numbers.data_ptr(), count, other.data_ptr(), 2], dtype=np.int64)
        launch(matrix_kernel("zeros", dtype), [records.ctypes.data], [2, threads], threads, threads)
        assert not numbers[:-1].any() and numbers[-1] == GUARD
        assert not other[:-1].any() and other[-1] == GUARD


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
    case = Case(C, columns=n, scale=1.0)
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
