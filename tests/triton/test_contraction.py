"""Are the contraction kernels of devices those of the processor, and are these the polynomial's derivatives?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mace.equivariant.symmetric_basis import symmetric_basis
from mace.kernels.c_backend import _run, library
from mace.kernels.c_source.contraction import CHUNKS_OF_ROWS, ContractionTerms, contraction_source
from mace.kernels.c_source.parts import lanes
from mace.kernels.compiler import find_compiler
from mace.kernels.symmetric_contraction import SymmetricContraction
from mace.kernels.triton_source.contraction import contraction_kernels, number_of_chunks
from mace.kernels.triton_source.launching import LANES

N_GROUPS = 5
COUNTS = {"few": (3, 0, 2, 0, 0), "chunks": (3, 0, 19, 2, 0)}
"""Rows of each element; in the second case an element has rows in three chunks, and one begins within a chunk."""
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
QUICK = [((1, (0, 1), 3), 2, "few"), ((1, (0, 1), 2), 1, "chunks")]
LARGE = [
    ((1, (0, 1), 4), 2, "few"),
    ((2, (0, 2), 3), 1, "few"),
    ((0, (0,), 1), 1, "chunks"),
    ((2, (0, 1, 2, 3), 2), 2, "chunks"),
    ((3, (0, 1), 3), 2, "chunks"),
    ((3, (0, 1, 2, 3), 2), 1, "few"),
    ((4, (0, 1), 2), 1, "chunks"),
    ((3, (0,), 4), 1, "few"),
    ((4, (0,), 3), 1, "few"),
]


@dataclass
class Problem:
    """A contraction and numbers for it.

    Attributes:
        terms: Its terms.
        blocks: Blocks of channels.
        counts: Rows of each element.
        dtype: Precision.
    """

    terms: ContractionTerms
    blocks: int
    counts: tuple[int, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(4)
        self.place = torch.arange(N_GROUPS).repeat_interleave(torch.tensor(self.counts))
        self.n_rows, self.width = len(self.place), self.blocks * LANES
        self.features = self.draw(self.n_rows, self.terms.n_components, self.width)
        self.tangent = self.draw(*self.features.shape)
        self.weights = self.draw(N_GROUPS, self.blocks, self.terms.n_terms(), LANES)
        self.cotangents = [self.draw(self.n_rows, 2 * l + 1, self.width) for l in self.terms.l_out]

    def draw(self, *shape: int) -> Tensor:
        """Draw numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)

    def results(self) -> list[Tensor]:
        """Return memory for results."""
        return [torch.full_like(values, torch.nan) for values in self.cotangents]

    def aside(self) -> Tensor:
        """Return memory for sums."""
        return torch.full((CHUNKS_OF_ROWS, *self.weights.shape[1:]), torch.nan, dtype=self.dtype)

    def relaid(self, weights: Tensor, old: int, new: int) -> Tensor:
        """Copy weights of terms from blocks of one number of lanes to another."""
        n_terms = self.terms.n_terms()
        by_term = weights.reshape(N_GROUPS, self.width // old, n_terms, old).transpose(1, 2).flatten(2)
        return by_term.unflatten(2, (self.width // new, new)).transpose(1, 2).contiguous()

    def in_triton(self, kind: str, arrays: Sequence[Tensor], adds: bool = False, clears: bool = False) -> None:
        """Run a kernel of the device."""
        sizes = (self.n_rows, self.width, self.blocks, int(adds), int(clears), N_GROUPS)
        kernel = contraction_kernels(self.terms, self.dtype)[f"contraction_{kind}"]
        kernel.run((self.place, self.features, self.weights, *self.cotangents_or_none(kind), *arrays), sizes)

    def in_c(self, kind: str, arrays: Sequence[Tensor], adds: bool = False, clears: bool = False) -> None:
        """Run the kernel in C; weights must be in its layout."""
        blocks = self.width // lanes(self.dtype)
        weights = self.relaid(self.weights, LANES, lanes(self.dtype))
        every = (self.place, self.features, weights, *self.cotangents_or_none(kind), *arrays)
        source = library(contraction_source, self.dtype, self.terms)
        sizes = (self.n_rows, self.width, blocks, int(adds), int(clears))
        _run(source, f"contraction_{kind}", every, sizes, blocks)

    def cotangents_or_none(self, kind: str) -> list[Tensor]:
        """Return the given cotangents of results, which the forward kernel does not have."""
        return [] if kind == "forward" else self.cotangents

    def agree(self, found: Tensor, expected: Tensor) -> None:
        """Compare in proportion to the largest number."""
        assert torch.isfinite(found).all()
        assert float((found - expected).abs().max()) <= TOLERANCE[self.dtype] * float(expected.abs().max() + 1e-30)


def problem_of(shape: tuple[Any, ...], blocks: int, counts: str, dtype: torch.dtype) -> Problem:
    return Problem(ContractionTerms(*shape), blocks, COUNTS[counts], dtype)


def cases(more: Sequence[tuple[Any, ...]] = LARGE) -> Any:
    """Parametrize a test by shape and precision."""
    quick = [(*case, torch.float64) for case in QUICK] + [(*QUICK[0], torch.float32)]
    large = [pytest.param(*case, dtype, marks=pytest.mark.slow) for case in more for dtype in TOLERANCE]
    return pytest.mark.parametrize(("shape", "blocks", "counts", "dtype"), [*quick, *large])


@cases()
@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")
def test_like_in_c(shape: tuple[Any, ...], blocks: int, counts: str, dtype: torch.dtype) -> None:
    problem = problem_of(shape, blocks, counts, dtype)
    ours, theirs = problem.results(), problem.results()
    problem.in_triton("forward", ours)
    problem.in_c("forward", theirs)
    for found, expected in zip(ours, theirs, strict=True):
        problem.agree(found, expected)
    for adds, clears in ((False, True), (True, False)):
        before = problem.draw(*problem.features.shape)
        found, expected = before.clone(), before.clone()
        problem.in_triton("backward_features", [found], adds)
        problem.in_c("backward_features", [expected], adds)
        problem.agree(found, expected)
        sums = problem.draw(*problem.weights.shape)
        for kind, inputs in (("backward_full", []), ("second", [problem.tangent])):
            ours, theirs = (problem.results(), problem.results()) if kind == "second" else ([], [])
            found, expected = before.clone(), before.clone()
            of_weights, in_c = sums.clone(), problem.relaid(sums, LANES, lanes(dtype))
            problem.in_triton(kind, [*inputs, *ours, found, of_weights, problem.aside()], adds, clears)
            problem.in_c(kind, [*inputs, *theirs, expected, in_c], adds, clears)
            expected_sums = problem.relaid(in_c, lanes(dtype), LANES)
            if clears:  # in C groups have rows
                expected_sums[torch.tensor(problem.counts) == 0] = 0.0
            for one, other in zip((*ours, found, of_weights), (*theirs, expected, expected_sums), strict=True):
                problem.agree(one, other)


@cases([case for case in LARGE if case[0][2] < 4])
def test_derivatives_of_the_definition(shape: tuple[Any, ...], blocks: int, counts: str, dtype: torch.dtype) -> None:
    """Value, first and second derivative by autograd, weights of paths carried onto terms as a program does."""
    problem = problem_of(shape, blocks, counts, dtype)
    terms = problem.terms
    contraction = SymmetricContraction(*shape).to(dtype)
    paths = {
        key: problem.draw(N_GROUPS, symmetric_basis(terms.l_max, *key).n_paths, problem.width).requires_grad_()
        for key in contraction.keys
    }
    carried = [
        torch.einsum("tp,gpc->gtc", torch.as_tensor(table).to(dtype), paths[key].detach())
        for key, table in terms.tables().items()
    ]
    problem.weights = torch.cat(carried, dim=1).unflatten(2, (blocks, LANES)).transpose(1, 2).contiguous()
    features = problem.features.clone().requires_grad_()
    given = [values.clone().requires_grad_() for values in problem.cotangents]
    present = tuple(g for g in range(N_GROUPS) if problem.counts[g])
    result = contraction(
        features.permute(2, 1, 0), paths, torch.tensor(present), tuple(problem.counts[g] for g in present)
    )
    values = [result[l].permute(2, 1, 0) for l in terms.l_out]
    total = sum((value * c).sum() for value, c in zip(values, given, strict=True))
    (first,) = torch.autograd.grad(total, features, create_graph=True)
    leaves = [features, *given, *paths.values()]
    second = torch.autograd.grad((first * problem.tangent).sum(), leaves, retain_graph=True, allow_unused=True)
    by_paths = torch.autograd.grad(total, list(paths.values()))

    def on_paths(of_weights: Tensor, key: tuple[int, int]) -> Tensor:
        numbers = [len(table) for table in terms.tables().values()]
        by_key = dict(zip(terms.tables(), of_weights.transpose(1, 2).flatten(2).split(numbers, dim=1), strict=True))
        return torch.einsum("tp,gtc->gpc", torch.as_tensor(terms.tables()[key]).to(dtype), by_key[key])

    found = problem.results()
    problem.in_triton("forward", found)
    for one, value in zip(found, values, strict=True):
        problem.agree(one, value.detach())
    gradient, of_weights = torch.empty_like(problem.features), torch.empty_like(problem.weights)
    problem.in_triton("backward_full", [gradient, of_weights, problem.aside()], clears=True)
    problem.agree(gradient, first.detach())
    for key, of_paths in zip(paths, by_paths, strict=True):
        problem.agree(on_paths(of_weights, key), of_paths)
    found = problem.results()
    problem.in_triton("second", [problem.tangent, *found, gradient, of_weights, problem.aside()], clears=True)
    zeros = [torch.zeros_like(leaf) if value is None else value for value, leaf in zip(second, leaves, strict=True)]
    for one, expected in zip([gradient, *found], zeros, strict=False):
        problem.agree(one, expected)
    for key, expected in zip(paths, zeros[1 + len(given) :], strict=True):
        problem.agree(on_paths(of_weights, key), expected)


def test_more_rows_change_nothing() -> None:
    """Padding at the end, in the last group, with cotangents of zero."""
    small, large = (problem_of((1, (0, 1), 3), 1, "few", torch.float32) for _ in range(2))
    n = small.n_rows
    large.place = torch.cat([small.place, torch.full((4,), N_GROUPS - 1)])
    large.n_rows = n + 4
    large.features = torch.cat([small.features, torch.ones(4, *small.features.shape[1:])])
    large.cotangents = [torch.cat([c, torch.zeros(4, *c.shape[1:])]) for c in small.cotangents]
    results = []
    for problem in (small, large):
        found, gradient, of_weights = problem.results(), torch.empty_like(problem.features), problem.weights.clone()
        problem.in_triton("forward", found)
        problem.in_triton("backward_full", [gradient, of_weights, problem.aside()], clears=True)
        results.append([values[:n] for values in (*found, gradient)] + [of_weights])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 1024, 1025, 20000, 123457])
def test_chunks(n_rows: int) -> None:
    n_chunks = number_of_chunks(n_rows)
    assert 1 <= n_chunks <= CHUNKS_OF_ROWS
