"""Coupling coefficients: orthogonal, and invariant under the rotations that the harmonics define."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from mace.equivariant.coupling import coupling_coefficients
from mace.equivariant.spherical_harmonics import spherical_harmonics
from mace.equivariant.symmetric_basis import symmetric_basis

TRIPLES = [(a, b, c) for a, b, c in product(range(5), repeat=3) if abs(a - b) <= c <= a + b]


@cache
def random_rotation() -> np.ndarray:
    matrix, triangle = np.linalg.qr(np.random.default_rng(6).normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(triangle))
    return matrix * np.linalg.det(matrix)


@cache
def rotation_of_degree(l: int) -> np.ndarray:
    """Fit the matrix by which the harmonics of a degree turn, ``[2l+1, 2l+1]``."""
    points = np.random.default_rng(7).normal(size=(200, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    before = spherical_harmonics(torch.as_tensor(points), l)[:, l * l :].numpy()
    after = spherical_harmonics(torch.as_tensor(points @ random_rotation().T), l)[:, l * l :].numpy()
    matrix, residual, rank, _ = np.linalg.lstsq(before, after, rcond=None)
    assert rank == 2 * l + 1 and residual.max() < 1e-20
    return matrix.T


@pytest.mark.parametrize("l", range(9))
def test_harmonics_of_a_degree_turn_among_themselves(l: int) -> None:
    matrix = rotation_of_degree(l)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2 * l + 1), atol=1e-12)


@pytest.mark.parametrize("triple", TRIPLES, ids=str)
def test_coefficients_do_not_change_under_rotation(triple: tuple[int, int, int]) -> None:
    coefficients = coupling_coefficients(*triple)
    turned = np.einsum("abc,ia,jb,kc->ijk", coefficients, *[rotation_of_degree(l) for l in triple])
    np.testing.assert_allclose(turned, coefficients, atol=1e-12)


@pytest.mark.parametrize("triple", TRIPLES, ids=str)
def test_coefficients_are_orthogonal(triple: tuple[int, int, int]) -> None:
    """Any two indices contracted with a copy leave the identity over the dimension of the third."""
    c = coupling_coefficients(*triple)
    for equation, l in (("abi,abj->ij", triple[2]), ("aib,ajb->ij", triple[1]), ("iab,jab->ij", triple[0])):
        np.testing.assert_allclose(np.einsum(equation, c, c), np.eye(2 * l + 1) / (2 * l + 1), atol=1e-13)


@pytest.mark.parametrize(("l1", "l2"), list(product(range(4), repeat=2)))
def test_coefficients_of_two_degrees_are_complete(l1: int, l2: int) -> None:
    """Together they turn the product of two degrees into a direct sum, without loss."""
    blocks = [
        coupling_coefficients(l1, l2, l3).reshape(-1, 2 * l3 + 1) * np.sqrt(2 * l3 + 1)
        for l3 in range(abs(l1 - l2), l1 + l2 + 1)
    ]
    matrix = np.concatenate(blocks, axis=1)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-13)


@pytest.mark.parametrize("triple", TRIPLES, ids=str)
def test_permuted_degrees_have_permuted_coefficients_up_to_a_sign(triple: tuple[int, int, int]) -> None:
    c = coupling_coefficients(*triple)
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        permuted = coupling_coefficients(*[triple[i] for i in order])
        sign = np.sign((permuted * c.transpose(order)).sum())
        np.testing.assert_allclose(permuted, sign * c.transpose(order), atol=1e-13)


def test_scalars_and_vectors_couple_as_dot_and_cross_products() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3))
    dot = np.einsum("abc,a,b->c", coupling_coefficients(1, 1, 0), a, b)
    cross = np.einsum("abc,a,b->c", coupling_coefficients(1, 1, 1), a, b)
    np.testing.assert_allclose(np.abs(dot), np.abs(a @ b) / np.sqrt(3.0), atol=1e-14)
    np.testing.assert_allclose(np.abs(cross), np.abs(np.cross(a, b)) / np.sqrt(6.0), atol=1e-14)


def test_degrees_that_do_not_couple_are_refused() -> None:
    with pytest.raises(ValueError, match="degrees 1, 1 and 3 do not couple"):
        coupling_coefficients(1, 1, 3)


def test_coefficients_cannot_be_overwritten() -> None:
    with pytest.raises(ValueError, match="read-only"):
        coupling_coefficients(1, 1, 2)[0, 0, 0] = 1.0


@pytest.mark.parametrize(
    ("l_max", "l_out", "order"), [(2, 0, 2), (2, 1, 3), (3, 2, 2), (1, 1, 4), (3, 1, 3), (2, 2, 4)]
)
def test_symmetric_polynomials_turn_with_their_argument(l_max: int, l_out: int, order: int) -> None:
    basis = symmetric_basis(l_max, l_out, order)
    vector = np.random.default_rng(1).normal(size=(l_max + 1) ** 2)
    turned = np.concatenate([rotation_of_degree(l) @ vector[l * l : (l + 1) ** 2] for l in range(l_max + 1)])
    before, after = (basis.coefficients @ np.prod(v[basis.monomials], axis=1) for v in (vector, turned))
    np.testing.assert_allclose(after, before @ rotation_of_degree(l_out).T, atol=1e-11)


@pytest.mark.parametrize(("l_max", "l_out", "order"), [(2, 0, 2), (2, 1, 3), (1, 1, 4)])
def test_symmetric_polynomials_have_the_parity_of_their_degree(l_max: int, l_out: int, order: int) -> None:
    basis = symmetric_basis(l_max, l_out, order)
    degrees = np.sqrt(basis.monomials).astype(int).sum(axis=1)
    assert (degrees % 2 == l_out % 2).all()


def test_monomials_are_sorted_distinct_and_used() -> None:
    basis = symmetric_basis(3, 1, 3)
    assert (np.diff(basis.monomials, axis=1) >= 0).all()
    assert len(np.unique(basis.monomials, axis=0)) == len(basis.monomials)
    assert np.any(basis.coefficients != 0.0, axis=(0, 1)).all()
