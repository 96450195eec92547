r"""The symmetric contraction: an equivariant polynomial of each atom's features, with weights of its element.

.. math:: B_{i,LM,c} = \sum_\nu \sum_\eta W^{(\nu L)}_{z_i,\eta,c}\, P^{(\nu)}_{\eta,LM}(A_{i,c})

With a component :math:`A_0 = 1` in front of the others, every term has the same number of factors, the correlation
:math:`n`. Then value and gradient are one thing,

.. math:: D_{LM,k} = \frac{\partial B_{LM}}{\partial A_k} = \sum_q V_{LM,k,q}\, Q_q, \qquad
    B_{LM} = \frac1n \sum_k A_k D_{LM,k},

where :math:`Q` are the distinct products of :math:`n - 1` components and :math:`V` the weights, mapped to monomials,
for every element and channel: dense products. Inversion symmetry forbids half of the entries, so even and odd products
are treated separately.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mace.equivariant.symmetric_basis import symmetric_basis
from mace.kernels.passes import Pass, current_pass, heeding_purpose, keep_purpose

Key = tuple[int, int]
"""Degree of the result and number of factors."""


@dataclass(frozen=True)
class _Terms:
    """All terms of the products V Q for one degree and order, one for each factor of each monomial.

    Attributes:
        factor: 0 for one, otherwise a component of the atomic basis plus one, ``[terms]``.
        remaining: The other factors of the monomial in increasing order, ``[terms, correlation - 1]``.
        coefficients: ``[paths, 2 l + 1, terms]``.
    """

    factor: np.ndarray
    remaining: np.ndarray
    coefficients: np.ndarray


def _terms(l_max: int, degree: int, order: int, correlation: int) -> _Terms:
    basis = symmetric_basis(l_max, degree, order)
    monomials = np.pad(basis.monomials + 1, ((0, 0), (correlation - order, 0)))
    factor, remaining, coefficients = [], [], []
    for place in range(correlation):
        times = (monomials == monomials[:, place, None]).sum(1)
        # of equal factors, which are neighbors, only the first, counted as often as there are
        first = monomials[:, place] != monomials[:, place - 1] if place else np.ones(len(monomials), dtype=bool)
        factor.append(monomials[first, place])
        remaining.append(np.delete(monomials, place, axis=1)[first])
        coefficients.append((basis.coefficients * times / correlation)[:, :, first])
    return _Terms(np.concatenate(factor), np.concatenate(remaining), np.concatenate(coefficients, axis=2))


class SymmetricContraction(nn.Module):
    """The constants of a symmetric contraction, and its reference implementation; weights are passed in.

    Args:
        l_max: Highest degree of the atomic basis.
        l_out: Degrees of the result.
        correlation: Highest number of factors.
    """

    left_of_others: Tensor

    def __init__(self, l_max: int, l_out: tuple[int, ...], correlation: int) -> None:
        super().__init__()
        self.l_max, self.l_out, self.correlation = l_max, l_out, correlation
        orders = range(1, correlation + 1)
        self.keys = tuple(k for k in product(l_out, orders) if symmetric_basis(l_max, *k).n_paths)
        n_factors = 1 + (l_max + 1) ** 2
        is_odd = np.array([0, *[isqrt(component) % 2 for component in range(n_factors - 1)]])
        terms = {key: _terms(l_max, *key, correlation) for key in self.keys}
        left, places = np.unique(np.concatenate([t.remaining for t in terms.values()]), axis=0, return_inverse=True)
        odd_left = is_odd[left].sum(1) % 2
        by_parity = np.argsort(odd_left, kind="stable")
        place_of_term = np.split(
            np.argsort(by_parity)[places.ravel()], np.cumsum([len(t.factor) for t in terms.values()])
        )
        self.n_left = int((odd_left == 0).sum()), int(odd_left.sum())
        rows = self._tables(terms, dict(zip(self.keys, place_of_term, strict=False)), n_factors)
        factors = left[by_parity].T
        others = [np.roll(factors, -shift, axis=0).ravel() for shift in range(1, correlation - 1)]
        self._selection("left", factors.ravel(), n_factors)
        self.register_buffer("left_of_others", torch.from_numpy(np.array(others, dtype=np.int64)), persistent=False)
        self._selection("factor", rows[1], n_factors)
        self._selection("output", rows[0], sum(2 * degree + 1 for degree in l_out))

    def _tables(self, terms: Mapping[Key, _Terms], places: Mapping[Key, np.ndarray], n_factors: int) -> np.ndarray:
        """Register the maps from weights to V, by parity and degree; return output and factor of each row of D."""
        halves = np.split(np.arange(sum(self.n_left)), [self.n_left[0]])
        rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        first = 0
        for degree in self.l_out:
            blocks = []
            for key in (key for key in self.keys if key[0] == degree):
                of_key = terms[key].coefficients
                blocks.append(np.zeros((*of_key.shape[:2], n_factors, sum(self.n_left))))
                blocks[-1][:, :, terms[key].factor, places[key]] = of_key
            table = np.concatenate(blocks)
            for parity, half in enumerate(halves):
                of_half = table[..., half]
                used = of_half.any((0, 3))
                rows[parity].append(np.argwhere(used) + [first, 0])
                flat = torch.from_numpy(of_half[:, used].reshape(len(table), -1))
                self.register_buffer(f"table_{parity}_{degree}", flat, persistent=False)
            first += 2 * degree + 1
        self.n_rows = sum(map(len, rows[0])), sum(map(len, rows[1]))
        return np.concatenate([*rows[0], *rows[1]]).T

    def _selection(self, name: str, index: np.ndarray, n: int) -> None:
        """Register a selection of ``n`` rows by index, and its adjoint as a matrix."""
        sums = torch.from_numpy(np.equal.outer(np.arange(n), index) * 1.0)
        self.register_buffer(name, torch.from_numpy(index), persistent=False)
        self.register_buffer(f"{name}_sums", sums, persistent=False)

    def tables(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the nonzero blocks of the map from weights to V: paths, entries of V, and coefficients."""
        last_entry = 0
        for parity in (0, 1):
            last_path = 0
            for degree in self.l_out:
                table = self.get_buffer(f"table_{parity}_{degree}")
                first_path, last_path = last_path, last_path + table.shape[0]
                first_entry, last_entry = last_entry, last_entry + table.shape[1]
                yield slice(first_path, last_path), slice(first_entry, last_entry), table

    def forward(
        self,
        features: Tensor,
        weights: Mapping[tuple[int, int], Tensor],
        present: Tensor,
        counts: tuple[int, ...],
    ) -> dict[int, Tensor]:
        """Evaluate the polynomials.

        Args:
            features: Features with atoms sorted by element, ``[channels, (l_max + 1)^2, atoms]``.
            weights: By degree and order, ``[elements, paths, channels]``.
            present: Elements that occur, in order.
            counts: Number of atoms of each.

        Returns:
            By degree, ``[channels, 2 l + 1, atoms]``.
        """
        every = torch.cat([weights[key] for key in self.keys], dim=1)
        if len(present) < len(every):
            every = every.index_select(0, present)
        matrices = _Map.apply(every.transpose(1, 2).flatten(0, 1), self, False).unflatten(0, (len(every), -1))
        padded = functional.pad(features.transpose(0, 1), (0, 0, 0, 0, 1, 0), value=1.0)
        *results, _ = _Contract.apply(padded, matrices, self, _Blocks(self.n_rows, self.n_left, counts))
        return {degree: values.transpose(0, 1) for degree, values in zip(self.l_out, results, strict=True)}

    def products(self, padded: Tensor) -> Tensor:
        """Return Q, even products first, ``[products, channels, atoms]``."""
        if self.correlation == 1:
            return padded[:1]
        factors = self.select(padded, "left").unflatten(0, (self.correlation - 1, -1)).unbind(0)
        return prod(factors[1:], start=factors[0])

    def products_backward(self, padded: Tensor, gradient: Tensor) -> Tensor:
        """Differentiate by the components, given the gradient by Q."""
        if self.correlation == 1:
            return functional.pad(gradient, (0, 0, 0, 0, 0, len(padded) - 1))
        gradient = gradient.unsqueeze(0)
        for index in self.left_of_others.unbind(0):
            gradient = gradient * padded.index_select(0, index).unflatten(0, (self.correlation - 1, -1))
        return self.sum(gradient.expand(self.correlation - 1, -1, -1, -1).flatten(0, 1), "left")

    def select(self, values: Tensor, name: str) -> Tensor:
        """Copy rows, ``[rows, channels, atoms]``."""
        return _Select.apply(values, getattr(self, name), getattr(self, f"{name}_sums"), False)

    def sum(self, values: Tensor, name: str) -> Tensor:
        """Add rows; the adjoint of `select`."""
        return _Select.apply(values, getattr(self, name), getattr(self, f"{name}_sums"), True)


class _Map(torch.autograd.Function):
    """The map from weights, ``[rows, paths]``, to V, ``[rows, entries]``, or its adjoint."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, contraction: SymmetricContraction, adjoint: bool) -> Tensor:
        ctx.contraction, ctx.adjoint = contraction, adjoint
        tables = list(contraction.tables())
        result = values.new_empty(len(values), (tables[-1][0] if adjoint else tables[-1][1]).stop)
        for place, (paths, entries, table) in enumerate(tables):
            if not adjoint:
                torch.mm(values[:, paths], table, out=result[:, entries])
            elif 2 * place < len(tables):
                torch.mm(values[:, entries], table.t(), out=result[:, paths])
            else:
                result[:, paths].addmm_(values[:, entries], table.t())
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Map.apply(gradient, ctx.contraction, not ctx.adjoint), None, None


class _Select(torch.autograd.Function):
    """A selection of rows, or its adjoint, each the derivative of the other."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, sums: Tensor, adjoint: bool) -> Tensor:
        ctx.others = index, sums, adjoint
        return (sums @ values.flatten(1)).unflatten(1, values.shape[1:]) if adjoint else values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        index, sums, adjoint = ctx.others
        return _Select.apply(gradient, index, sums, not adjoint), None, None, None


@dataclass(frozen=True)
class _Blocks:
    """How V, Q and D are split by parity and element.

    Attributes:
        n_rows: Number of rows of D, even ones, then odd ones.
        n_left: Number of products, likewise.
        counts: Number of atoms of each element.
    """

    n_rows: tuple[int, int]
    n_left: tuple[int, int]
    counts: tuple[int, ...]

    def of_parity(self, operand: int, values: Tensor) -> Sequence[Tensor]:
        """Split V, ``[elements, channels, ...]``, Q or D, ``[..., channels, atoms]``."""
        if operand == 0:
            return values.split([a * b for a, b in zip(self.n_rows, self.n_left, strict=True)], dim=2)
        return values.split(self.n_left if operand == 1 else self.n_rows)

    def of_elements(self, operand: int, values: Tensor, parity: int) -> Sequence[Tensor]:
        """Split the values of one parity, into ``[channels, ..., ...]`` for each element."""
        if operand == 0:
            return values.unflatten(2, (self.n_rows[parity], self.n_left[parity])).unbind(0)
        return values.transpose(0, 1).split(self.counts, dim=2)


class _Products(torch.autograd.Function):
    """One of V, Q and D from the two others, as the derivatives by them of the sum of ``D V Q`` over all indices.

    Each is bilinear in the others, and its derivatives are the other two.
    """

    @staticmethod
    def forward(ctx: Any, result: int, blocks: _Blocks, *operands: Tensor | None) -> Tensor:
        keep_purpose(ctx)
        ctx.result, ctx.blocks = result, blocks
        ctx.save_for_backward(*operands)
        first, second = (i for i in range(3) if i != result)
        found = []
        split = [() if values is None else blocks.of_parity(i, values) for i, values in enumerate(operands)]
        for parity in (0, 1):
            if not blocks.n_rows[parity]:
                continue
            pairs = zip(*(blocks.of_elements(i, split[i][parity], parity) for i in (first, second)), strict=True)
            if result == 0:
                found.append(torch.stack([d @ q.mT for q, d in pairs]).flatten(2))
            elif result == 1:
                found.append(torch.cat([(v.mT @ d).transpose(0, 1) for v, d in pairs], dim=2))
            else:
                found.append(torch.cat([(v @ q).transpose(0, 1) for v, q in pairs], dim=2))
        return torch.cat(found, dim=2 if result == 0 else 0)

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        every = list(ctx.saved_tensors)
        every[ctx.result] = gradient
        needed = [ctx.needs_input_grad[2 + i] for i in range(3)]
        needed[0] &= current_pass() is not Pass.GEOMETRY
        gradients = [
            _Products.apply(i, ctx.blocks, *(None if j == i else x for j, x in enumerate(every))) if needed[i] else None
            for i in range(3)
        ]
        return None, None, *gradients


class _Contract(torch.autograd.Function):
    """The polynomials by degree, and D; its derivative consists of functions known to autograd."""

    @staticmethod
    def forward(
        ctx: Any, padded: Tensor, matrices: Tensor, contraction: SymmetricContraction, blocks: _Blocks
    ) -> tuple[Tensor, ...]:
        gradient = _Products.apply(2, blocks, matrices, contraction.products(padded), None)
        values = contraction.sum(contraction.select(padded, "factor") * gradient, "output")
        keep_purpose(ctx)
        ctx.contraction, ctx.blocks = contraction, blocks
        ctx.save_for_backward(padded, matrices, gradient)
        ctx.set_materialize_grads(False)
        return *values.split([2 * degree + 1 for degree in contraction.l_out]), gradient

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        contraction, (padded, matrices, gradient) = ctx.contraction, ctx.saved_tensors
        of_gradient, of_padded, of_matrices = cotangents[-1], None, None
        of_matrices_too = ctx.needs_input_grad[1] and current_pass() is not Pass.GEOMETRY
        rows = of_gradient
        if any(cotangent is not None for cotangent in cotangents[:-1]):
            sizes = [2 * degree + 1 for degree in contraction.l_out]
            of_degrees = [
                padded.new_zeros(size, *padded.shape[1:]) if c is None else c
                for c, size in zip(cotangents, sizes, strict=False)
            ]
            chosen = contraction.select(torch.cat(of_degrees), "output")
            of_padded = contraction.sum(chosen * gradient, "factor") * contraction.correlation
            if of_matrices_too:
                rows = contraction.select(padded, "factor") * chosen
                rows = rows if of_gradient is None else rows.add_(of_gradient)
        left = contraction.products(padded) if of_matrices_too else None
        if of_matrices_too and rows is not None:
            of_matrices = _Products.apply(0, ctx.blocks, None, left, rows)
        if of_gradient is not None:
            of_left = _Products.apply(1, ctx.blocks, matrices, None, of_gradient)
            through = contraction.products_backward(padded, of_left)
            of_padded = through if of_padded is None else of_padded + through
        return of_padded, of_matrices, None, None
