r"""A pair interaction fitted to forces, and the stress and energy it would have.

The force between two atoms is a sum of smooth functions of their distance, one set per pair of elements, fitted by
linear least squares to the labeled forces. Many-body energies are not pair energies, but the stress without its trace,
and differences of energies, follow well enough to show a wrong sign, unit or order of components.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mace.graphs.pairs import find_pairs
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


@dataclass(frozen=True)
class PairFit:
    """What a fitted pair interaction says of structures.

    Attributes:
        stresses: +dE/dstrain/V in eV/Angstrom^3, NaN without a volume, ``[structures, 3, 3]``.
        energies: eV, zero for atoms far apart, ``[structures]``.
        explained: Share of the squared forces the fit explains, at most one.
    """

    stresses: np.ndarray
    energies: np.ndarray
    explained: float


@dataclass(frozen=True)
class _Design:
    """What each basis function adds to forces ``[atoms * 3, functions]``, stress ``[9, functions]`` and energy."""

    forces: np.ndarray
    stress: np.ndarray
    energy: np.ndarray


def fit_pair_interaction(file: FlatFile, structures: Sequence[int]) -> PairFit | None:
    """Fit a pair interaction to the forces of some structures and say what stresses and energies it gives them.

    Args:
        file: The structures.
        structures: Those to fit, which have forces.

    Returns:
        The fit, or None if there are no pairs or no forces.
    """
    species = np.unique(np.concatenate([file.numbers[file.atoms_of(s)] for s in structures]))
    designs = [_design(file, s, species) for s in structures]
    matrix = np.concatenate([design.forces for design in designs])
    forces = np.concatenate([file.forces[file.atoms_of(s)].ravel() for s in structures])
    total = float(forces @ forces)
    if total < _SMALL or not matrix.any():
        return None
    normal = matrix.T @ matrix
    normal += 1.0e-6 * np.trace(normal) / len(normal) * np.eye(len(normal))
    coefficients = np.linalg.solve(normal, matrix.T @ forces)
    residual = forces - matrix @ coefficients
    stresses = np.array([(design.stress @ coefficients).reshape(3, 3) for design in designs])
    energies = np.array([design.energy @ coefficients for design in designs])
    return PairFit(stresses, energies, 1.0 - float(residual @ residual) / total)


def _design(file: FlatFile, structure: int, species: np.ndarray) -> _Design:
    atoms = file.atoms_of(structure)
    positions, cell = file.positions[atoms], file.cells[structure]
    kinds = np.searchsorted(species, file.numbers[atoms])
    repeats = [bool(repeat) for repeat in file.pbc[structure]]
    where = file.configurations[structure].where()
    sender, receiver, shift = find_pairs(positions, cell, (repeats[0], repeats[1], repeats[2]), CUTOFF, where)
    vectors = positions[receiver] - positions[sender] + shift @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / np.maximum(lengths, _SMALL)[:, None]
    n_atoms, n_pairs = len(positions), len(species) * (len(species) + 1) // 2
    low, high = np.minimum(kinds[sender], kinds[receiver]), np.maximum(kinds[sender], kinds[receiver])
    pair_kind = high * (high + 1) // 2 + low
    values = _radial_functions(lengths)
    forces = np.zeros((n_atoms, 3, n_pairs * _FUNCTIONS))
    stress, energy = np.zeros((9, n_pairs * _FUNCTIONS)), np.zeros(n_pairs * _FUNCTIONS)
    integrals = _integrals(lengths)
    for kind in np.unique(pair_kind):
        here = pair_kind == kind
        columns = slice(kind * _FUNCTIONS, (kind + 1) * _FUNCTIONS)
        pushed = units[here][:, :, None] * values[here][:, None, :]  # on the receiver, away from the sender
        np.add.at(forces[:, :, columns], receiver[here], pushed)
        np.add.at(forces[:, :, columns], sender[here], -pushed)
        outer = np.einsum("pa,pbk->abk", vectors[here], pushed)
        stress[:, columns] = -outer.reshape(9, -1) / file.volumes[structure]
        energy[columns] = integrals[here].sum(axis=0)
    return _Design(forces.reshape(n_atoms * 3, -1), stress, energy)


def _radial_functions(lengths: np.ndarray) -> np.ndarray:
    """Gaussians that go smoothly to zero at the cutoff, ``[pairs, functions]``."""
    centers = np.linspace(0.8, CUTOFF, _FUNCTIONS)
    width = centers[1] - centers[0]
    envelope = np.clip(1.0 - lengths / CUTOFF, 0.0, None) ** 2
    return np.exp(-(((lengths[:, None] - centers) / width) ** 2)) * envelope[:, None]


def _integrals(lengths: np.ndarray) -> np.ndarray:
    """Energies whose negative derivatives are the functions: integrals from a distance to the cutoff."""
    grid, table = _table_of_integrals()
    return np.stack([np.interp(lengths, grid, column) for column in table.T], axis=1)


@functools.cache
def _table_of_integrals() -> tuple[np.ndarray, np.ndarray]:
    grid = np.linspace(0.0, CUTOFF, 2001)
    values = _radial_functions(grid)
    steps = 0.5 * (values[1:] + values[:-1]) * (grid[1] - grid[0])
    below = np.concatenate([np.zeros((1, _FUNCTIONS)), np.cumsum(steps, axis=0)])
    return grid, below[-1] - below
