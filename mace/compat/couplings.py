"""Coupling coefficients stored in a file of mace-torch against ours: weights belong to the basis they were found in."""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement

import numpy as np

from mace.equivariant.symmetric_basis import symmetric_basis


class CouplingError(Exception):
    """The polynomials of a file are not those of this program."""


@cache
def _monomials(n_components: int, order: int) -> dict[tuple[int, ...], int]:
    """Number the monomials of an order, each given by its sorted factors."""
    return {m: i for i, m in enumerate(combinations_with_replacement(range(n_components), order))}


def polynomials(coupling: np.ndarray, l_out: int, order: int) -> np.ndarray:
    """Collect equal monomials of stored coefficients.

    Args:
        coupling: ``[2 l + 1, components, ..., components, paths]``, without the first axis for scalars.
        l_out: Degree of the result.
        order: Number of factors.

    Returns:
        ``[paths, 2 l + 1, monomials]``, monomials in the order of ``combinations_with_replacement``.

    Raises:
        CouplingError: If the shape is another.
    """
    n_components = coupling.shape[-2]
    if coupling.size != (2 * l_out + 1) * n_components**order * coupling.shape[-1]:
        raise CouplingError(f"coupling coefficients of degree {l_out} and order {order} have another shape")
    place = _monomials(n_components, order)
    products = np.sort(np.indices((n_components,) * order).reshape(order, -1), axis=0)
    monomial = np.array([place[tuple(column)] for column in products.T.tolist()])
    flat = coupling.reshape(2 * l_out + 1, -1, coupling.shape[-1]).astype(np.float64)
    result = np.zeros((2 * l_out + 1, len(place), coupling.shape[-1]))
    for row, values in zip(result, flat, strict=True):
        np.add.at(row, monomial, values)
    return result.transpose(2, 0, 1)


def our_polynomials(l_max: int, l_out: int, order: int) -> np.ndarray:
    """Return our coefficients on all monomials, ``[paths, 2 l + 1, monomials]``."""
    basis = symmetric_basis(l_max, l_out, order)
    place = _monomials((l_max + 1) ** 2, order)
    result = np.zeros((basis.n_paths, 2 * l_out + 1, len(place)))
    result[:, :, [place[tuple(m)] for m in basis.monomials.tolist()]] = basis.coefficients
    return result


def map_to_ours(coupling: np.ndarray, weights: np.ndarray, l_max: int, l_out: int, order: int) -> np.ndarray:
    """Carry weights of a stored basis of polynomials over to our basis, so that the sum stays the same polynomial.

    For the bases written by all usual models this changes nothing. The reduced coupling coefficients are another,
    smaller basis of the same polynomials.

    Args:
        coupling: The stored coefficients, see `polynomials`.
        weights: ``[elements, stored paths, channels]``.
        l_max: Highest degree of the atomic basis.
        l_out: Degree of the result.
        order: Number of factors.

    Returns:
        ``[elements, our paths, channels]``.

    Raises:
        CouplingError: If the stored polynomials are no sums of ours.
    """
    if coupling.shape[-2] != (l_max + 1) ** 2 or weights.ndim != 3 or weights.shape[1] != coupling.shape[-1]:
        raise CouplingError(f"coupling coefficients of degree {l_out} and order {order} do not fit their weights")
    theirs = polynomials(coupling, l_out, order)
    ours = our_polynomials(l_max, l_out, order)
    tolerance = (1e-5 if coupling.dtype == np.float32 else 1e-9) * max(1.0, float(np.abs(ours).max()))
    if theirs.shape == ours.shape and np.abs(theirs - ours).max() < tolerance:
        return weights
    a, b = ours.reshape(len(ours), -1).T, theirs.reshape(len(theirs), -1).T
    transform = np.linalg.lstsq(a, b, rcond=1e-12)[0]  # [our paths, stored paths]
    if np.abs(a @ transform - b).max() > tolerance:
        raise CouplingError(f"polynomials of degree {l_out} and order {order} are not those of this program")
    return np.einsum("ok,ekc->eoc", transform, weights.astype(np.float64)).astype(weights.dtype)
