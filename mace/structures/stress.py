r"""Stress and virials: their shapes in files, and their conversion into each other.

The stress is :math:`\sigma = +\tfrac{1}{V}\,\partial E/\partial\varepsilon`, positive under tension as in ASE; the
virials are :math:`-\partial E/\partial\varepsilon`; so virials = -V * stress.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mace.structures.configuration import Configuration

SMALLEST_VOLUME = 1.0e-6
"""Angstrom^3; a cell below it has no stress."""

_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


def full_tensor(values: np.ndarray) -> np.ndarray:
    """Return a symmetric tensor as a matrix.

    Args:
        values: ``[6]`` in the order xx, yy, zz, yz, xz, xy, or ``[9]``, or ``[3, 3]``.

    Returns:
        The same numbers, ``[3, 3]``.

    Raises:
        ValueError: If the shape is none of these.

    >>> full_tensor(np.arange(6)).tolist()
    [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    """
    values = np.asarray(values)
    if values.shape == (6,):
        return np.take(values, _VOIGT)
    if values.shape in ((9,), (3, 3)):
        return values.reshape(3, 3)
    raise ValueError(f"a tensor has the shape [6], [9] or [3, 3], not {list(values.shape)}")


def cell_volume(configuration: Configuration) -> float | None:
    """Return the volume in Angstrom^3 of a structure that repeats in all three directions, ``None`` for any other.

    A slab or a wire has no volume: the size of its cell along a direction that does not repeat is arbitrary.
    """
    if not all(configuration.pbc):
        return None
    volume = abs(float(np.linalg.det(configuration.cell)))
    return volume if volume > SMALLEST_VOLUME else None


def convert_stress_virials(configuration: Configuration) -> Configuration:
    """Derive the virials of a structure from its stress, or the stress from the virials.

    Nothing changes if both or neither are given, or if the structure has no volume (see `cell_volume`). The derived
    label inherits the weight of the original one, unless it has a weight of its own.

    Returns:
        The same object if there is nothing to derive, else a copy with both labels.
    """
    stress, virials = configuration.stress, configuration.virials
    if (stress is None) == (virials is None):
        return configuration
    volume = cell_volume(configuration)
    if volume is None:
        return configuration
    weights = dict(configuration.property_weights)
    if stress is not None:
        if "stress" in weights:
            weights.setdefault("virials", weights["stress"])
        return replace(configuration, virials=-volume * stress, property_weights=weights)
    assert virials is not None
    if "virials" in weights:
        weights.setdefault("stress", weights["virials"])
    return replace(configuration, stress=-virials / volume, property_weights=weights)


def disagree(stresses: np.ndarray, virials: np.ndarray, volumes: np.ndarray, tolerance: float = 1.0e-2) -> np.ndarray:
    """Return where labeled stress and virials differ by more than a fraction ``tolerance`` of the larger one.

    Args:
        stresses: eV/Angstrom^3, NaN where there is none, ``[structures, 3, 3]``.
        virials: eV, NaN where there are none, ``[structures, 3, 3]``.
        volumes: Angstrom^3, NaN where there is none, ``[structures]``.
        tolerance: The fraction.

    Returns:
        False where one of them is missing, ``[structures]``.
    """
    from_stress = -volumes[:, None, None] * stresses
    difference = np.abs(from_stress - virials).max(axis=(1, 2))
    size = np.maximum(np.abs(from_stress), np.abs(virials)).max(axis=(1, 2))
    different: np.ndarray = difference > tolerance * size + 1.0e-6
    return different


def is_asymmetric(tensor: np.ndarray | None, tolerance: float = 1.0e-3) -> bool:
    """Return whether a tensor differs from its transpose by more than a fraction of its largest entry."""
    if tensor is None:
        return False
    return bool(np.abs(tensor - tensor.T).max() > tolerance * np.abs(tensor).max())
