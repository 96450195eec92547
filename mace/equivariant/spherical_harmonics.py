r"""Real spherical harmonics of unit vectors, in component normalization.

The polar axis is y: degree one is :math:`\sqrt 3\,(x, y, z)`, so that its components are those of a vector. Within a
degree the order is :math:`m = -l \dots l`, and the squares of the ``2 l + 1`` components sum to ``2 l + 1``.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from math import comb, factorial, sqrt

import numpy as np
import torch
from torch import Tensor

Polynomial = dict[tuple[int, int, int], float]
"""Coefficients by the powers of x, y and z."""


def spherical_harmonics(unit_vectors: Tensor, l_max: int) -> Tensor:
    r"""Evaluate every real spherical harmonic up to a degree.

    Args:
        unit_vectors: Vectors of unit length, ``[edges, 3]``.
        l_max: The highest degree.

    Returns:
        ``[edges, (l_max + 1)^2]``, degrees in rising order. Derivatives are those of a homogeneous polynomial in the
        three components; only their part tangential to the sphere has a meaning.

    Source:
        Addition theorem with :math:`Y_{lm} \propto \frac{d^m P_l}{du^m}(y)\, \mathrm{Re/Im}\,(z + i x)^m`.
    """
    return _powers(unit_vectors, l_max) @ _table(l_max, unit_vectors.dtype, unit_vectors.device)


def harmonics_and_slopes(unit_vectors: Tensor, l_max: int) -> tuple[Tensor, Tensor]:
    """Evaluate the harmonics and their derivatives on the sphere.

    Args:
        unit_vectors: Vectors of unit length, ``[edges, 3]``.
        l_max: The highest degree.

    Returns:
        The harmonics, ``[edges, (l_max + 1)^2]``, and their derivatives by a vector of this direction, times its
        length, ``[edges, (l_max + 1)^2, 3]``.
    """
    powers = _powers(unit_vectors, l_max)
    table, slopes, degrees = _tables_of_slopes(l_max, unit_vectors.dtype, unit_vectors.device)
    harmonics = powers @ table
    # a homogeneous polynomial of degree l has the slope l Y along the direction, which is taken out
    of_components = (powers[:, : len(slopes)] @ slopes).unflatten(1, (-1, 3))
    along = (harmonics * degrees).unsqueeze(2)
    return harmonics, torch.addcmul(of_components, along, unit_vectors.unsqueeze(1), value=-1.0)


def _powers(unit_vectors: Tensor, l_max: int) -> Tensor:
    """Return all products of up to ``l_max`` components, ``[edges, sum over l of 3^l]``.

    These are few large operations, in the derivatives too, instead of many small ones.
    """
    powers = [torch.ones_like(unit_vectors[:, :1])]
    for _ in range(l_max):
        powers.append(
            (powers[-1].unsqueeze(2) * unit_vectors.unsqueeze(1)).flatten(1) if len(powers) > 1 else unit_vectors
        )
    return torch.cat(powers, dim=1)


@cache
def _table(l_max: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the coefficients of all degrees on all products, ``[sum over l of 3^l, (l_max + 1)^2]``."""
    blocks = [torch.from_numpy(_coefficients(l).reshape(3**l, -1)) for l in range(l_max + 1)]
    return torch.block_diag(*blocks).to(device, dtype)


@cache
def _tables_of_slopes(l_max: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return `_table`, the coefficients of the derivatives by the components, and the degree of each harmonic."""
    by_component = []
    for l in range(1, l_max + 1):
        table = _coefficients(l)
        # by one of l factors, each of which is moved to the end once
        moved = np.stack([np.moveaxis(table, factor, -1) for factor in range(l)])
        by_component.append(moved.sum(0).reshape(3 ** (l - 1), -1))
    slopes = torch.block_diag(*map(torch.from_numpy, by_component)) if by_component else torch.zeros(1, 0)
    slopes = torch.cat([slopes.new_zeros(len(slopes), 3), slopes], dim=1)
    degrees = torch.tensor([float(l) for l in range(l_max + 1) for _ in range(2 * l + 1)])
    return _table(l_max, dtype, device), slopes.to(device, dtype), degrees.to(device, dtype)


def _coefficients(l: int) -> np.ndarray:
    """Return the coefficients of a degree on all products of ``l`` components, ``[3, ..., 3, 2 l + 1]``."""
    table = np.zeros((3,) * l + (2 * l + 1,))
    for column, polynomial in enumerate(harmonic_polynomials(l)):
        for (x, y, z), coefficient in polynomial.items():
            table[(0,) * x + (1,) * y + (2,) * z + (column,)] = coefficient
    return table


def harmonic_polynomials(l: int) -> list[Polynomial]:
    """Write the harmonics of a degree as homogeneous polynomials in x, y and z."""
    harmonics = []
    for m in range(-l, l + 1):
        order = abs(m)
        norm = sqrt((2 * l + 1) * (2 if order else 1) * factorial(l - order) / factorial(l + order))
        # the real or the imaginary part of (z + i x)^order
        azimuth = {(k, order - k): float(comb(order, k) * (-1) ** (k // 2)) for k in range(int(m < 0), order + 1, 2)}
        polynomial: Polynomial = defaultdict(float)
        for (x, y, z), p in _polar(l, order, norm).items():
            for (u, w), q in azimuth.items():
                polynomial[x + u, y, z + w] += p * q
        harmonics.append({powers: factor for powers, factor in polynomial.items() if factor})
    return harmonics


def _polar(l: int, order: int, norm: float) -> Polynomial:
    r"""Write :math:`d^m P_l/du^m` at u = y, each power of y raised to degree ``l - order`` by the squared length."""
    legendre = np.polynomial.legendre.Legendre.basis(l).convert(kind=np.polynomial.Polynomial)
    coefficients = (legendre.deriv(order) if order else legendre).coef
    result: Polynomial = defaultdict(float)
    for power, coefficient in enumerate(coefficients.tolist()):
        half, odd = divmod(l - order - power, 2)
        if odd or coefficient == 0.0:
            continue
        for i in range(half + 1):
            for j in range(half - i + 1):
                ways = comb(half, i) * comb(half - i, j)
                result[2 * i, power + 2 * j, 2 * (half - i - j)] += norm * coefficient * ways
    return result
