"""Spherical harmonics by the theorems that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.equivariant.spherical_harmonics import spherical_harmonics

L_MAX = 8


def random_directions(n: int, seed: int = 0) -> Tensor:
    vectors = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vectors / vectors.norm(dim=1, keepdim=True)


def degree(values: Tensor, l: int) -> Tensor:
    return values[:, l * l : (l + 1) ** 2]


def sphere_quadrature(order: int) -> tuple[Tensor, Tensor]:
    """Points and weights that integrate polynomials up to ``2 order - 1`` over the sphere; the weights sum to one."""
    heights, weights = np.polynomial.legendre.leggauss(order)
    angles = np.arange(2 * order) * np.pi / order
    y, phi = (a.ravel() for a in np.meshgrid(heights, angles, indexing="ij"))
    ring = np.sqrt(1.0 - y * y)
    points = np.stack([ring * np.sin(phi), y, ring * np.cos(phi)], axis=1)
    return torch.as_tensor(points), torch.as_tensor(np.repeat(weights / 2.0, 2 * order) / (2 * order))


def test_shape() -> None:
    for l_max in range(5):
        assert spherical_harmonics(random_directions(7), l_max).shape == (7, (l_max + 1) ** 2)
        assert spherical_harmonics(random_directions(0), l_max).shape == (0, (l_max + 1) ** 2)


def test_degree_one_is_the_vector() -> None:
    directions = random_directions(5)
    harmonics = spherical_harmonics(directions, 1)
    torch.testing.assert_close(degree(harmonics, 0), torch.ones(5, 1, dtype=torch.float64))
    torch.testing.assert_close(degree(harmonics, 1), 3**0.5 * directions)


def test_degree_two_written_out() -> None:
    x, y, z = random_directions(5).unbind(1)
    expected = torch.stack(
        [
            15**0.5 * x * z,
            15**0.5 * x * y,
            5**0.5 * (1.5 * y * y - 0.5),
            15**0.5 * y * z,
            15**0.5 / 2 * (z * z - x * x),
        ],
        dim=1,
    )
    torch.testing.assert_close(degree(spherical_harmonics(torch.stack([x, y, z], 1), 2), 2), expected)


def test_orthonormality() -> None:
    points, weights = sphere_quadrature(L_MAX + 1)
    harmonics = spherical_harmonics(points, L_MAX)
    overlap = torch.einsum("p,pi,pj->ij", weights, harmonics, harmonics)
    torch.testing.assert_close(overlap, torch.eye((L_MAX + 1) ** 2, dtype=torch.float64), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("l", range(L_MAX + 1))
def test_addition_theorem(l: int) -> None:
    one, two = random_directions(20, 1), random_directions(20, 2)
    products = (degree(spherical_harmonics(one, L_MAX), l) * degree(spherical_harmonics(two, L_MAX), l)).sum(1)
    legendre = np.polynomial.legendre.Legendre.basis(l)((one * two).sum(1).numpy())
    np.testing.assert_allclose(products.numpy(), (2 * l + 1) * legendre, atol=1e-11)


@pytest.mark.parametrize("l", range(5))
def test_inversion(l: int) -> None:
    directions = random_directions(4)
    ours, opposite = (degree(spherical_harmonics(d, 4), l) for d in (directions, -directions))
    torch.testing.assert_close(opposite, (-1.0) ** l * ours)


def test_poles_and_axes() -> None:
    """Where an azimuth has no meaning only m = 0 is left, and no derivative is infinite."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).double().requires_grad_()
    harmonics = spherical_harmonics(axes, 4)
    (gradient,) = torch.autograd.grad(harmonics.sum(), axes)
    assert torch.isfinite(harmonics).all() and torch.isfinite(gradient).all()
    for l in range(5):
        at_pole = degree(harmonics, l)[1]
        assert at_pole[l].item() == pytest.approx((2 * l + 1) ** 0.5)
        assert at_pole.abs().sum().item() == pytest.approx((2 * l + 1) ** 0.5)


def test_derivatives() -> None:
    """First and second derivative by finite differences, through the normalization of the vector."""
    vectors = torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()

    def through(v: Tensor) -> Tensor:
        return spherical_harmonics(v / v.norm(dim=1, keepdim=True), 4)

    assert torch.autograd.gradcheck(through, (vectors,))
    assert torch.autograd.gradgradcheck(through, (vectors,))


def test_harmonics_solve_their_equation() -> None:
    """The Laplacian of the function extended from the sphere as a constant along rays is -l (l + 1) times it."""
    direction = random_directions(1, 5)[0]

    def through(v: Tensor) -> Tensor:
        return spherical_harmonics((v / v.norm()).unsqueeze(0), 4)[0]

    values = through(direction)
    for index in range(25):
        l = int(index**0.5)
        hessian = torch.autograd.functional.hessian(lambda v, i=index: through(v)[i], direction)
        assert hessian.trace().item() == pytest.approx(-l * (l + 1) * values[index].item(), abs=1e-10)


def test_single_precision() -> None:
    directions = random_directions(6)
    rough = spherical_harmonics(directions.float(), 4)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), spherical_harmonics(directions, 4), rtol=1e-5, atol=1e-5)
