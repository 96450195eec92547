r"""A pair interaction fitted to forces, and the stress and energy it would have.

The force between two atoms is a sum of smooth functions of their distance, one set per pair of elements, fitted by
linear least squares to the labeled forces. Many-body energies are not pair energies, but the stress without its trace,
and differences of energies, follow well enough to show a wrong sign, unit or order of components.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from mace.inspection.flat import FlatFile

CUTOFF = 5.5
"""Angstrom."""

SAMPLE = 60
"""Structures that are fitted."""

MOST_ATOMS = 300
"""Larger structures are left out, to be quick."""

FEWEST_FITTED = 8
"""Structures below which nothing is concluded."""

LEAST_EXPLAINED = 0.6
"""Share of the squared forces; a worse fit says nothing."""

_FUNCTIONS = 10
_SMALL = 1.0e-6


def fit_pair_interaction(file: FlatFile, structures: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Fit a pair interaction to the forces of some structures and say what stresses and energies it gives them.

    Args:
        file: The structures.
        structures: Those to fit, which have forces.

    Returns:
        Stresses, +dE/dstrain/V in eV/Angstrom^3, NaN without a volume, ``[structures, 3, 3]``, and energies in eV, zero
        for atoms far apart, ``[structures]``; None if there are too few structures or no forces, or these do not follow
        a pair interaction.
    """
    if len(structures) < FEWEST_FITTED:
        return None
    species = np.unique(np.concatenate([file.numbers[file.atoms_of(s)] for s in structures]))
    of_forces, of_stress, of_energy = zip(*(_design(file, s, species) for s in structures), strict=True)
    matrix = np.concatenate(of_forces)
    forces = np.concatenate([file.forces[file.atoms_of(s)].ravel() for s in structures])
    total = float(forces @ forces)
    if total < _SMALL or not matrix.any():
        return None
    normal = matrix.T @ matrix
    normal += 1.0e-6 * np.trace(normal) / len(normal) * np.eye(len(normal))
    coefficients = np.linalg.solve(normal, matrix.T @ forces)
    residual = forces - matrix @ coefficients
    if 1.0 - float(residual @ residual) / total < LEAST_EXPLAINED:
        return None
    stresses = np.array([(columns @ coefficients).reshape(3, 3) for columns in of_stress])
    return stresses, np.array([columns @ coefficients for columns in of_energy])


def _design(file: FlatFile, structure: int, species: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what each function adds to forces ``[atoms * 3, functions]``, stress ``[9, functions]`` and energy."""
    kinds = np.searchsorted(species, file.numbers[file.atoms_of(structure)])
    sender, receiver, vectors = file.pairs(structure, CUTOFF)
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / np.maximum(lengths, _SMALL)[:, None]
    n_atoms, n_pairs = len(kinds), len(species) * (len(species) + 1) // 2
    low, high = np.minimum(kinds[sender], kinds[receiver]), np.maximum(kinds[sender], kinds[receiver])
    pair_kind = high * (high + 1) // 2 + low
    values = _radial_functions(lengths)
    forces = np.zeros((n_atoms, 3, n_pairs * _FUNCTIONS))
    stress, energy = np.zeros((9, n_pairs * _FUNCTIONS)), np.zeros(n_pairs * _FUNCTIONS)
    grid, table = _integrals()
    integrals = np.stack([np.interp(lengths, grid, column) for column in table.T], axis=1)
    for kind in np.unique(pair_kind):
        here = pair_kind == kind
        columns = slice(kind * _FUNCTIONS, (kind + 1) * _FUNCTIONS)
        pushed = units[here][:, :, None] * values[here][:, None, :]  # on the receiver, away from the sender
        np.add.at(forces[:, :, columns], receiver[here], pushed)
        np.add.at(forces[:, :, columns], sender[here], -pushed)
        outer = np.einsum("pa,pbk->abk", vectors[here], pushed)
        stress[:, columns] = -outer.reshape(9, -1) / file.volumes[structure]
        energy[columns] = integrals[here].sum(axis=0)
    return forces.reshape(n_atoms * 3, -1), stress, energy


def _radial_functions(lengths: np.ndarray) -> np.ndarray:
    """Gaussians that go smoothly to zero at the cutoff, ``[pairs, functions]``."""
    centers = np.linspace(0.8, CUTOFF, _FUNCTIONS)
    width = centers[1] - centers[0]
    envelope = np.clip(1.0 - lengths / CUTOFF, 0.0, None) ** 2
    return np.exp(-(((lengths[:, None] - centers) / width) ** 2)) * envelope[:, None]


@functools.cache
def _integrals() -> tuple[np.ndarray, np.ndarray]:
    """Tabulate energies whose negative derivatives are the functions: integrals from a distance to the cutoff."""
    grid = np.linspace(0.0, CUTOFF, 2001)
    values = _radial_functions(grid)
    steps = 0.5 * (values[1:] + values[:-1]) * (grid[1] - grid[0])
    below = np.concatenate([np.zeros((1, _FUNCTIONS)), np.cumsum(steps, axis=0)])
    return grid, below[-1] - below
