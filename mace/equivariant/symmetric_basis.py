r"""Equivariant polynomials of the atomic basis: what a symmetric contraction evaluates.

The product of ``order`` copies of the same feature vector :math:`A` (one channel, all degrees up to ``l_max``) is
coupled step by step to a target irrep. Every way of doing so (a *path*) has a learned weight. Because the copies are
the same vector the result is a polynomial, so each path is stored by its coefficients on the distinct monomials of
:math:`A`; for three copies and ``l_max = 3`` this is 816 monomials instead of 4096 products, most of them zero.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

import numpy as np

from mace.equivariant.coupling import coupling_coefficients
from mace.equivariant.irreps import Irrep, natural

UNRESTRICTED_ORDER = 3
"""Up to this order a path may pass through irreps of either parity; beyond it only natural ones, as in the original."""


@dataclass(frozen=True)
class SymmetricBasis:
    """The paths from ``order`` copies of the atomic basis to one irrep.

    Attributes:
        monomials: Component indices of every monomial with a coefficient, each in rising order, ``[monomials, order]``.
        coefficients: ``[paths, 2 l + 1, monomials]``.
    """

    monomials: np.ndarray
    coefficients: np.ndarray

    @property
    def n_paths(self) -> int:
        """Number of paths; the original numbers its weights in the same order."""
        return len(self.coefficients)


@cache
def symmetric_basis(l_max: int, l_out: int, order: int) -> SymmetricBasis:
    """Couple ``order`` copies of harmonics up to ``l_max`` to degree ``l_out`` with natural parity.

    Args:
        l_max: Highest degree of the atomic basis.
        l_out: Degree of the result.
        order: Number of factors.

    Returns:
        The paths in the order in which weights are stored, with monomials that no path uses left out.

    Source:
        Batatia et al., arXiv:2206.07697, eq. 10 and 11; path order as in mace-torch.
    """
    target = natural(l_out)
    monomials, paths = _grow_paths(l_max, order, target, steps_left=0, natural_only=order > UNRESTRICTED_ORDER)
    if not paths:
        return SymmetricBasis(np.zeros((0, order), dtype=np.int64), np.zeros((0, target.dimension, 0)))
    chosen = [coefficients for _, coefficients in paths]
    stacked = np.stack(chosen)
    stacked[np.abs(stacked) < 1e-13] = 0.0
    used = np.flatnonzero(np.any(stacked != 0.0, axis=(0, 1)))
    return SymmetricBasis(np.asarray(monomials, dtype=np.int64)[used], stacked[:, :, used])


@cache
def number_of_paths(l_max: int, l_out: int, order: int) -> int:
    """Count the paths of `symmetric_basis` without their coefficients, which take seconds and gigabytes at the most.

    >>> number_of_paths(3, 0, 3), symmetric_basis(3, 0, 3).n_paths
    (23, 23)
    """
    counts = Counter(natural(l) for l in range(l_max + 1))
    for _ in range(order - 1):
        longer: Counter[Irrep] = Counter()
        for left, count in counts.items():
            for irrep in (product for l in range(l_max + 1) for product in left.products(natural(l))):
                if irrep.is_natural or order <= UNRESTRICTED_ORDER:
                    longer[irrep] += count
        counts = longer
    return counts[natural(l_out)]


def _grow_paths(
    l_max: int, order: int, target: Irrep, steps_left: int, natural_only: bool
) -> tuple[list[tuple[int, ...]], list[tuple[Irrep, np.ndarray]]]:
    """Multiply one more copy of the basis onto every path of the order below.

    Paths are kept sorted by irrep, stably: this reproduces the numbering of the original's weights. Irreps from which
    the target is out of reach in the steps that are left are dropped at once.

    Returns:
        The monomials of this order and, path by path, the irrep reached and its coefficients ``[2l+1, monomials]``.
    """
    n_components = (l_max + 1) ** 2
    monomials = list(combinations_with_replacement(range(n_components), order))
    if order == 1:
        identity = np.eye(n_components)
        start = [(natural(l), identity[l * l : (l + 1) ** 2]) for l in range(l_max + 1)]
        return monomials, [path for path in start if _within_reach(path[0], target, steps_left, l_max)]
    left_monomials, left_paths = _grow_paths(l_max, order - 1, target, steps_left + 1, natural_only)
    place = {monomial: i for i, monomial in enumerate(monomials)}
    # product[a, c]: which monomial is left monomial a times component c
    product = np.array([[place[tuple(sorted((*m, c)))] for c in range(n_components)] for m in left_monomials])
    paths = []
    for left_irrep, left in left_paths:
        for l in range(l_max + 1):
            for irrep in left_irrep.products(natural(l)):
                if natural_only and not irrep.is_natural or not _within_reach(irrep, target, steps_left, l_max):
                    continue
                paths.append((irrep, _multiply(left_irrep, left, l, irrep, product, len(monomials))))
    paths.sort(key=lambda path: path[0])
    return monomials, paths


def _within_reach(irrep: Irrep, target: Irrep, steps_left: int, l_max: int) -> bool:
    """Tell whether multiplying ``steps_left`` more copies of the basis can lead to the target."""
    if steps_left == 0:
        return irrep == target
    return irrep.l <= target.l + steps_left * l_max


def _multiply(
    left_irrep: Irrep, left: np.ndarray, l: int, irrep: Irrep, product: np.ndarray, n_monomials: int
) -> np.ndarray:
    """Couple one path with one degree of the basis and collect equal monomials, ``[2l+1, monomials]``."""
    coupling = coupling_coefficients(irrep.l, left_irrep.l, l) * np.sqrt(irrep.dimension)
    terms = np.einsum("oac,am->omc", coupling, left)  # [out, left monomials, components of l]
    result = np.zeros((irrep.dimension, n_monomials))
    columns = product[:, l * l : (l + 1) ** 2].reshape(-1)
    for row, values in zip(result, terms.reshape(irrep.dimension, -1), strict=True):
        row += np.bincount(columns, weights=values, minlength=n_monomials)
    return result
