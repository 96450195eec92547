r"""The symmetric contraction: an equivariant polynomial of each atom's features, with weights of its element.

.. math:: B_{i,LM,c} = \sum_\nu \sum_\eta W^{(\nu L)}_{z_i,\eta,c}\, P^{(\nu)}_{\eta,LM}(A_{i,c})

A monomial of order :math:`\nu` is split into a factor of order :math:`\nu - 1` and a single component :math:`A_k`. The
distinct left factors of an atom form a vector :math:`Q`; for every element and channel, the weights, mapped to
monomials, form a matrix, and :math:`B = \sum_k A_k (W Q)_k` is a batch of dense products. Inversion symmetry forbids
half of the entries, so even and odd monomials are treated separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor, nn

from mace.equivariant.symmetric_basis import symmetric_basis


@dataclass(frozen=True)
class _LeftFactors:
    """Monomials to the left of the last factor, by order; within an order, even ones come first.

    Attributes:
        monomials: For each order from zero, sorted tuples of component indices.
        n_even: For each order, how many of them are even under inversion.
    """

    monomials: tuple[tuple[tuple[int, ...], ...], ...]
    n_even: tuple[int, ...]

    def rows(self, parity: int) -> dict[tuple[int, ...], int]:
        """Return the row of each factor of one parity, numbered through all orders."""
        chosen: list[tuple[int, ...]] = []
        for monomials, n_even in zip(self.monomials, self.n_even, strict=True):
            chosen.extend(monomials[n_even:] if parity else monomials[:n_even])
        return {monomial: row for row, monomial in enumerate(chosen)}


@dataclass(frozen=True)
class _Block:
    """Left factors of one parity times single components of the matching parity, giving degree ``l_out``."""

    l_out: int
    parity: int
    components: tuple[int, ...]


def _parity(monomial: tuple[int, ...]) -> int:
    """Return 0 for a product of components that is even under inversion, 1 for an odd one."""
    return sum(isqrt(component) for component in monomial) % 2


def _left_factors(l_max: int, l_out: tuple[int, ...], correlation: int) -> _LeftFactors:
    """Collect every left factor that any path needs."""
    needed: list[set[tuple[int, ...]]] = [set() for _ in range(correlation)]
    for order in range(correlation, 0, -1):
        for degree in l_out:
            needed[order - 1] |= {tuple(m[:-1]) for m in symmetric_basis(l_max, degree, order).monomials.tolist()}
        if order < correlation:
            needed[order - 1] |= {m[:-1] for m in needed[order]}
    monomials = tuple(tuple(sorted(n, key=lambda m: (_parity(m), m))) for n in needed)
    return _LeftFactors(monomials, tuple(sum(_parity(m) == 0 for m in n) for n in monomials))


def _blocks(l_max: int, l_out: tuple[int, ...]) -> list[_Block]:
    """Split the work by target degree and by the parity of the left factor."""
    blocks = []
    for degree in l_out:
        for parity in (0, 1):
            components = tuple(c for c in range((l_max + 1) ** 2) if (parity + isqrt(c) + degree) % 2 == 0)
            if components:
                blocks.append(_Block(degree, parity, components))
    return blocks


def _table(l_max: int, block: _Block, order: int, rows: dict[tuple[int, ...], int]) -> np.ndarray | None:
    """Return coefficients of an order's paths in a block, ``[paths, components * (2 l + 1) * factors]``, or None."""
    basis = symmetric_basis(l_max, block.l_out, order)
    place = {component: i for i, component in enumerate(block.components)}
    table = np.zeros((basis.n_paths, len(block.components), 2 * block.l_out + 1, len(rows)))
    for monomial, coefficients in zip(basis.monomials.tolist(), np.moveaxis(basis.coefficients, 2, 0), strict=True):
        row = rows.get(tuple(monomial[:-1]))
        if row is not None and monomial[-1] in place:
            table[:, place[monomial[-1]], :, row] = coefficients
    return table.reshape(basis.n_paths, -1) if table.any() else None


class SymmetricContraction(nn.Module):
    """The constants of a symmetric contraction, and its reference implementation; weights are passed in.

    Args:
        l_max: Highest degree of the atomic basis.
        l_out: Degrees of the result.
        correlation: Highest number of factors.
    """

    single: Tensor

    def __init__(self, l_max: int, l_out: tuple[int, ...], correlation: int) -> None:
        super().__init__()
        self.l_max, self.l_out, self.correlation = l_max, l_out, correlation
        self._left = _left_factors(l_max, l_out, correlation)
        for order in range(2, correlation):
            below = {monomial: i for i, monomial in enumerate(self._left.monomials[order - 1])}
            self._constant(f"prefix_{order}", [below[m[:-1]] for m in self._left.monomials[order]])
            self._constant(f"last_{order}", [m[-1] for m in self._left.monomials[order]])
        self._constant("single", [m[0] for m in self._left.monomials[1]] if correlation > 1 else [])
        self._blocks = _blocks(l_max, l_out)
        for b, block in enumerate(self._blocks):
            self._constant(f"components_{b}", block.components)
            for order in range(1, correlation + 1):
                table = _table(l_max, block, order, self._left.rows(block.parity))
                if table is not None:
                    self.register_buffer(f"table_{b}_{order}", torch.as_tensor(table), persistent=False)

    def _constant(self, name: str, indices: Sequence[int]) -> None:
        self.register_buffer(name, torch.tensor(list(indices), dtype=torch.int64), persistent=False)

    def forward(
        self,
        features: Tensor,
        weights: Mapping[tuple[int, int], Tensor],
        elements_present: tuple[int, ...],
        element_counts: tuple[int, ...],
    ) -> dict[int, Tensor]:
        """Evaluate the polynomials.

        Args:
            features: Features with atoms sorted by element, ``[channels, (l_max + 1)^2, atoms]``.
            weights: By degree and order, ``[elements, paths, channels]``.
            elements_present: Elements that occur, in order.
            element_counts: Number of atoms of each.

        Returns:
            By degree, ``[channels, 2 l + 1, atoms]``.
        """
        n_channels, _, n_atoms = features.shape
        present = torch.tensor(elements_present, device=features.device)
        left = [factor.split(element_counts, dim=2) for factor in self._left_factors_of(features)]
        result: dict[int, Tensor] = {}
        for b, block in enumerate(self._blocks):
            matrices = self._matrices(b, block, weights, present)
            if matrices is None:
                continue
            products = [m @ q for m, q in zip(matrices.unbind(0), left[block.parity], strict=True)]
            product = torch.cat(products, dim=2) if len(products) > 1 else products[0]
            product = product.view(n_channels, len(block.components), 2 * block.l_out + 1, n_atoms)
            selected = features.index_select(1, getattr(self, f"components_{b}"))
            value = (selected.unsqueeze(2) * product).sum(1)
            result[block.l_out] = result[block.l_out] + value if block.l_out in result else value
        return result

    def _left_factors_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the even and the odd left factors, each ``[channels, factors, atoms]``."""
        by_order = [torch.ones_like(features[:, :1])]
        if self.correlation > 1:
            by_order.append(features.index_select(1, self.single))
        for order in range(2, self.correlation):
            prefix, last = getattr(self, f"prefix_{order}"), getattr(self, f"last_{order}")
            by_order.append(by_order[-1].index_select(1, prefix) * features.index_select(1, last))
        split = [
            factors.split((n_even, factors.shape[1] - n_even), dim=1)
            for factors, n_even in zip(by_order, self._left.n_even, strict=True)
        ]
        return torch.cat([even for even, _ in split], dim=1), torch.cat([odd for _, odd in split], dim=1)

    def _matrices(
        self, b: int, block: _Block, weights: Mapping[tuple[int, int], Tensor], present: Tensor
    ) -> Tensor | None:
        """Map weights to monomials, ``[elements present, channels, components * (2 l + 1), factors]``."""
        total: Tensor | None = None
        for order in range(1, self.correlation + 1):
            table = getattr(self, f"table_{b}_{order}", None)
            if table is None:
                continue
            part = weights[block.l_out, order].index_select(0, present).transpose(1, 2) @ table
            total = part if total is None else total + part
        if total is None:
            return None
        return total.view(*total.shape[:2], len(block.components) * (2 * block.l_out + 1), -1)
