r"""Real spherical harmonics of unit vectors, in component normalization.

The polar axis is y: degree one is :math:`\sqrt 3\,(x, y, z)`, so that its components are those of a vector. Within a
degree the order is :math:`m = -l \dots l`, and the squares of the ``2 l + 1`` components sum to ``2 l + 1``.
"""

from __future__ import annotations

from math import factorial, sqrt

import numpy as np
import torch
from torch import Tensor


def _polar_polynomials(l: int, m: int) -> list[float]:
    r"""Return the coefficients of :math:`d^m P_l/du^m`, a derivative of a Legendre polynomial, by rising power of u."""
    legendre = np.polynomial.legendre.Legendre.basis(l).convert(kind=np.polynomial.Polynomial)
    return [float(c) for c in legendre.deriv(m).coef] if m else [float(c) for c in legendre.coef]


def _evaluate_polynomial(coefficients: list[float], u: Tensor) -> Tensor | float:
    """Evaluate by Horner's rule; a constant stays a number so that no tensor is made for it."""
    value: Tensor | float = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = value * u
        if coefficient != 0.0:
            value = value + coefficient
    return value


def spherical_harmonics(unit_vectors: Tensor, l_max: int) -> Tensor:
    r"""Evaluate every real spherical harmonic up to a degree.

    Args:
        unit_vectors: Vectors of unit length, ``[edges, 3]``.
        l_max: The highest degree.

    Returns:
        ``[edges, (l_max + 1)^2]``, degrees in rising order. Derivatives are those of a polynomial in the three
        components; only their part tangential to the sphere has a meaning.

    Source:
        Addition theorem with :math:`Y_{lm} \propto \frac{d^m P_l}{du^m}(y)\, \mathrm{Re/Im}\,(z + i x)^m`.
    """
    x, y, z = unit_vectors.unbind(-1)
    cosines: list[Tensor | None] = [None]
    sines: list[Tensor | None] = [None]
    for _ in range(l_max):
        previous_cosine, previous_sine = cosines[-1], sines[-1]
        if previous_cosine is None or previous_sine is None:
            cosines.append(z)
            sines.append(x)
        else:
            cosines.append(previous_cosine * z - previous_sine * x)
            sines.append(previous_cosine * x + previous_sine * z)
    columns = []
    for l in range(l_max + 1):
        for m in range(-l, l + 1):
            columns.append(_harmonic(l, m, y, cosines, sines))
    return torch.stack(columns, dim=-1)


def _harmonic(l: int, m: int, y: Tensor, cosines: list[Tensor | None], sines: list[Tensor | None]) -> Tensor:
    """Return one harmonic, ``[edges]``."""
    order = abs(m)
    norm = sqrt((2 * l + 1) * (2 if order else 1) * factorial(l - order) / factorial(l + order))
    value = _evaluate_polynomial([norm * c for c in _polar_polynomials(l, order)], y)
    azimuth = (cosines if m > 0 else sines)[order]
    if azimuth is not None:
        value = value * azimuth
    return value if isinstance(value, Tensor) else torch.full_like(y, value)
