r"""Real coupling coefficients between irreducible representations of rotations.

The basis is that of `mace.equivariant.spherical_harmonics`; the sign of every coefficient is the one pretrained MACE
weights assume: the real basis of degree :math:`l` is the complex one times :math:`(-i)^l`, the coefficients are those
of Condon and Shortley carried to the real basis, scaled to unit Frobenius norm, with the sign of a few turned.
"""

from __future__ import annotations

from functools import cache
from math import factorial, sqrt

import numpy as np

_TURNED = frozenset(
    {(1, l, l) for l in range(2, 9)} | {(3, 4, 6), (3, 5, 7), (3, 6, 8), (4, 4, 5), (4, 5, 6), (4, 6, 7), (4, 7, 8)}
)
"""Degrees, in rising order, whose coefficients e3nn 0.4.4 stores with the other sign.

Found by comparing every triple with smallest degree up to 4 and largest up to 8, which is all that ``l_max <= 4`` and
correlation up to 4 reach. The sign is a convention, but pretrained weights know only this one.
"""


def _clebsch_gordan(j1: int, m1: int, j2: int, m2: int, j3: int, m3: int) -> float:
    r"""Return :math:`\langle j_1 m_1 j_2 m_2 | j_3 m_3 \rangle` by Racah's formula, with exact integers under the root.

    Source:
        Racah, Phys. Rev. 62, 438 (1942), eq. 16.
    """
    if m1 + m2 != m3:
        return 0.0
    f = factorial
    under_root_numerator = (
        (2 * j3 + 1)
        * f(j3 + j1 - j2) * f(j3 - j1 + j2) * f(j1 + j2 - j3)
        * f(j3 + m3) * f(j3 - m3) * f(j1 - m1) * f(j1 + m1) * f(j2 - m2) * f(j2 + m2)
    )  # fmt: skip
    total = 0.0
    for k in range(max(0, j2 - j3 - m1, j1 - j3 + m2), min(j1 + j2 - j3, j1 - m1, j2 + m2) + 1):
        denominator = (
            f(k) * f(j1 + j2 - j3 - k) * f(j1 - m1 - k) * f(j2 + m2 - k) * f(j3 - j2 + m1 + k) * f(j3 - j1 - m2 + k)
        )
        total += (-1) ** k / denominator
    return total * sqrt(under_root_numerator / f(j1 + j2 + j3 + 1))


def _real_to_complex(l: int) -> np.ndarray:
    """Return the unitary matrix from the real to the complex basis of degree ``l``, ``[2l+1, 2l+1]``."""
    matrix = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    matrix[l, l] = 1.0
    for m in range(1, l + 1):
        sign = (-1) ** m
        matrix[l - m, l + m] = 1 / sqrt(2)
        matrix[l - m, l - m] = -1j / sqrt(2)
        matrix[l + m, l + m] = sign / sqrt(2)
        matrix[l + m, l - m] = 1j * sign / sqrt(2)
    return (-1j) ** l * matrix


@cache
def coupling_coefficients(l1: int, l2: int, l3: int) -> np.ndarray:
    r"""Return the invariant tensor that couples three degrees.

    Args:
        l1: First degree.
        l2: Second degree.
        l3: Third degree, with :math:`|l_1 - l_2| \le l_3 \le l_1 + l_2`.

    Returns:
        Real coefficients of unit Frobenius norm, ``[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]``; do not write into it.

    Raises:
        ValueError: If the three degrees violate the triangle inequality.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1}, {l2} and {l3} do not couple")
    tensor = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1), dtype=complex)
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            tensor[l1 + m1, l2 + m2, l3 + m1 + m2] = _clebsch_gordan(l1, m1, l2, m2, l3, m1 + m2)
    q1, q2, q3 = _real_to_complex(l1), _real_to_complex(l2), _real_to_complex(l3)
    real = np.einsum("ij,kl,nm,ikn->jlm", q1, q2, q3.conj(), tensor).real
    real /= np.linalg.norm(real)
    real[np.abs(real) < 1e-14] = 0.0
    if tuple(sorted((l1, l2, l3))) in _TURNED:
        real = -real
    real.setflags(write=False)
    return real
