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
    power = torch.ones_like(unit_vectors[:, :1])
    degrees = [power]
    for l in range(1, l_max + 1):
        # all products of l components: few large operations, in the derivatives too, instead of many small ones
        power = (power.unsqueeze(2) * unit_vectors.unsqueeze(1)).flatten(1)
        degrees.append(power @ _table(l, unit_vectors.dtype, unit_vectors.device))
    return torch.cat(degrees, dim=1)


@cache
def _table(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the coefficients of a degree on all products of ``l`` components, ``[3^l, 2 l + 1]``."""
    table = np.zeros((3,) * l + (2 * l + 1,))
    for column, polynomial in enumerate(harmonic_polynomials(l)):
        for (x, y, z), coefficient in polynomial.items():
            table[(0,) * x + (1,) * y + (2,) * z + (column,)] = coefficient
    return torch.as_tensor(table.reshape(3**l, -1), dtype=dtype, device=device)


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
