"""Are the kernels of the density on devices those of the processor?"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mace.kernels.c_backend import library
from mace.kernels.c_source.density import density_source
from mace.kernels.compiler import find_compiler
from mace.kernels.triton_source.density import density_kernels

N_ROWS, N_PAIRS, SLOTS, WIDTH = 35, 131, 9, 64
"""More than one program has of each; with one block of channels beyond the first."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")


class Numbers:
    """Neighbors and numbers to compute with.

    Args:
        dtype: Precision.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(3)
        count = torch.randint(0, SLOTS + 1, (N_ROWS,), generator=self.generator)
        count[0], count[1] = 0, SLOTS
        self.rows = count, torch.randint(0, N_PAIRS, (N_ROWS * SLOTS,), generator=self.generator)
        ends = torch.randint(0, N_ROWS, (2, N_PAIRS), generator=self.generator)
        self.pairs = ends[0], ends[1], torch.randperm(N_ROWS, generator=self.generator)
        self.inputs = self.draw(N_PAIRS) * torch.logspace(-3, 0.5, N_PAIRS, dtype=dtype)
        self.inputs[-1] = 0.0
        self.factors = self.draw(N_ROWS)
        self.features = self.draw(N_ROWS, WIDTH)

    def draw(self, *shape: int) -> Tensor:
        """Draw numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)

    def compare(
        self, name: str, arrays: Sequence[Tensor], dimensions: Sequence[int], results: Sequence[Tensor]
    ) -> None:
        """Run both kernels on the arrays, and compare what they make of results."""
        ours, theirs = [[result.clone() for result in results] for _ in range(2)]
        density_kernels(self.dtype)[name].run([*arrays, *ours], dimensions)
        every = [*arrays, *theirs]
        pointers = (ctypes.c_void_p * len(every))(*(array.data_ptr() for array in every))
        sizes = (ctypes.c_int64 * len(dimensions))(*dimensions)
        run = getattr(library(density_source, self.dtype), f"{name}_blocks")
        run(pointers, sizes, ctypes.c_int64(0), ctypes.c_int64(dimensions[-1]), ctypes.c_int64(0))
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5 if self.dtype == torch.float32 else 1e-12, atol=1e-6)
            if self.dtype == torch.float64:
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)

    def nothing(self, *shape: int) -> Tensor:
        """Return memory that holds no numbers yet."""
        return torch.full(shape, torch.nan, dtype=self.dtype)


@DTYPES
@needs_compiler
def test_rows(dtype: torch.dtype) -> None:
    n = Numbers(dtype)
    n.compare("density_value", [*n.rows, n.inputs], (SLOTS, N_ROWS), [n.nothing(N_ROWS)])
    arrays = [*n.rows, n.inputs, n.draw(N_PAIRS), n.factors]
    n.compare("density_tangent", arrays, (SLOTS, N_ROWS), [n.nothing(N_ROWS)])


@DTYPES
@needs_compiler
def test_pairs(dtype: torch.dtype) -> None:
    n = Numbers(dtype)
    arrays = [*n.pairs, n.inputs, n.factors, n.draw(N_ROWS)]
    n.compare("density_gradient", arrays, (N_PAIRS,), [n.nothing(N_PAIRS)])
    n.compare("density_adjoint", arrays, (N_PAIRS,), [n.draw(N_PAIRS)])
    n.compare("density_second", [*arrays, n.draw(N_PAIRS), n.draw(N_ROWS)], (N_PAIRS,), [n.nothing(N_PAIRS)])


@DTYPES
@needs_compiler
def test_features(dtype: torch.dtype) -> None:
    n = Numbers(dtype)
    size, whole = (WIDTH, N_ROWS), (N_ROWS, WIDTH)
    n.compare("scaled_value", [n.factors, n.features], size, [n.nothing(*whole)])
    arrays = [n.factors, n.features, n.draw(*whole)]
    n.compare("scaled_gradient", arrays, size, [n.nothing(*whole), n.nothing(N_ROWS)])
    n.compare("scaled_adjoint", arrays, size, [n.draw(*whole), n.draw(N_ROWS)])
    given = [*arrays, n.draw(*whole), n.draw(N_ROWS)]
    n.compare("scaled_second", given, size, [n.nothing(*whole), n.nothing(*whole), n.nothing(N_ROWS)])


@DTYPES
def test_derivatives_of_the_definition(dtype: torch.dtype) -> None:
    """The factor and its derivatives by autograd, with each pair in a slot of both of its atoms."""
    n = Numbers(dtype)
    first, second, row = n.pairs
    slots: list[list[int]] = [[] for _ in range(N_ROWS)]
    for pair, ends in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        for atom in ends:
            slots[int(row[atom])].append(pair)
    most = max(map(len, slots))
    count = torch.tensor([len(pairs) for pairs in slots])
    pair_of_slot = torch.tensor([pairs + [0] * (most - len(pairs)) for pairs in slots]).flatten()
    q = n.inputs.double().requires_grad_()
    density = torch.zeros(N_ROWS, dtype=torch.float64)
    density = density.index_add(0, row[first], torch.tanh(q**2)).index_add(0, row[second], torch.tanh(q**2))
    cotangent, change = n.draw(N_ROWS), n.draw(N_PAIRS)
    expected = 1 / (1 + density)
    (gradient,) = torch.autograd.grad((expected * cotangent).sum(), q, create_graph=True)
    (by_inputs,) = torch.autograd.grad((gradient * change).sum(), q)
    _, tangent = torch.func.jvp(lambda x: _factors(x, row[first], row[second]), (q.detach(),), (change.double(),))
    kernels, size = density_kernels(dtype), (N_PAIRS,)
    factors, tangents = n.nothing(N_ROWS), n.nothing(N_ROWS)
    kernels["density_value"].run([count, pair_of_slot, n.inputs, factors], (most, N_ROWS))
    arrays = [count, pair_of_slot, n.inputs, change, factors, tangents]
    kernels["density_tangent"].run(arrays, (most, N_ROWS))
    ours, of_both = n.nothing(N_PAIRS), n.nothing(N_PAIRS)
    arrays = [*n.pairs, n.inputs, factors, cotangent]
    kernels["density_gradient"].run([*arrays, ours], size)
    kernels["density_second"].run([*arrays, change, tangents, of_both], size)
    for found, wanted in ((factors, expected), (tangents, tangent), (ours, gradient), (of_both, by_inputs)):
        limit = 1e-10 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(
            found.double(), wanted.detach(), rtol=limit, atol=limit * float(wanted.detach().abs().max())
        )


def _factors(q: Tensor, first: Tensor, second: Tensor) -> Tensor:
    sums = torch.zeros(N_ROWS, dtype=q.dtype)
    return 1 / (1 + sums.index_add(0, first, torch.tanh(q**2)).index_add(0, second, torch.tanh(q**2)))
