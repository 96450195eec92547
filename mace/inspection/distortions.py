r"""Do energies, forces and stress go together in crystals whose cells and atoms both differ?

Between two structures of the same atoms the energy changes by the work of the forces along the displacements within the
cell, :math:`-\tfrac12 (F_1 + F_2) \cdot u`, and by the work of the stress along the strain,
:math:`\tfrac12 (V_1 \sigma_1 + V_2 \sigma_2) : \varepsilon`. A linear fit over many pairs gives both a factor, which is
one if all is well; so it shows which of the two is wrong.
"""

from __future__ import annotations

import math

import numpy as np

from mace.inspection.flat import FlatFile, grouped, spread
from mace.inspection.unit_guesses import OVERWHELMING_PAIRS, Comparison, compare

LARGEST_STRAIN = 0.08
SMALLEST_STRAIN = 1.0e-4
FARTHEST = 0.3
"""Angstrom; pairs in which an atom moves farther are not compared."""

MOST_ATOMS = 300
"""Larger structures are left out, to be quick."""

_SAMPLE = 60
_FEWEST_STRUCTURES = 8
_MOST_GROUPS = 20
_ENOUGH_PAIRS, _MOST_PAIRS = 60, 400
_INDEPENDENT = 0.95
_ROUNDS = 3
_KEPT = 0.9

NOTHING = Comparison(math.nan, 0.0, 0)


def compare_distorted(file: FlatFile) -> tuple[Comparison, Comparison]:
    """Compare differences of energies with the work of forces and the work of stress at once.

    Returns:
        What forces and what stress say; nothing is clear if there are too few pairs or both works go in step.
    """
    usable = file.has_forces & file.has_stress & np.isfinite(file.energies) & (file.n_atoms <= MOST_ATOMS)
    groups = grouped(np.flatnonzero(usable), file.marks[usable], _FEWEST_STRUCTURES)[:_MOST_GROUPS]
    parts = [_works(file, spread(group, _SAMPLE)) for group in groups]
    if sum(len(table) for table, _ in parts) < OVERWHELMING_PAIRS:
        return NOTHING, NOTHING
    table, sizes = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    kept = min(max(len(table) // 2, _ENOUGH_PAIRS), _MOST_PAIRS)  # the error grows with the third power of the size
    measured, by_forces, by_stress = table[np.argsort(sizes)[:kept]].T
    lengths = np.linalg.norm(by_forces), np.linalg.norm(by_stress)
    if not all(lengths) or abs(by_forces @ by_stress) > _INDEPENDENT * lengths[0] * lengths[1]:
        return NOTHING, NOTHING
    # both factors are fitted, the pairs that fit worst left out
    columns, near = np.column_stack([by_forces / lengths[0], by_stress / lengths[1]]), np.arange(len(measured))
    factors = np.zeros(2)
    for _ in range(_ROUNDS):
        factors = np.linalg.lstsq(columns[near], measured[near], rcond=None)[0]
        near = np.argsort(np.abs(measured - columns @ factors))[: math.ceil(_KEPT * len(measured))]
    of_forces, of_stress = factors / lengths
    return compare(measured - of_stress * by_stress, by_forces), compare(measured - of_forces * by_forces, by_stress)


def _works(file: FlatFile, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure all pairs of a group that are near enough to each other.

    Returns:
        Difference of energies, work of the forces and work of the stress in eV, ``[pairs, 3]``, and how far apart the
        two structures are, ``[pairs]``.
    """
    one, other = np.triu_indices(len(group), 1)
    cells, energies = file.cells[group], file.energies[group]
    strain, turn = strain_between(cells[one], cells[other])
    size = np.abs(strain).max(axis=(1, 2))
    near = (size < LARGEST_STRAIN) & (size > SMALLEST_STRAIN)
    one, other, strain, turn, size = one[near], other[near], strain[near], turn[near], size[near]
    back = turn.transpose(0, 2, 1)
    atoms = file.first[group][:, None] + np.arange(file.n_atoms[group[0]])
    fractional, forces = file.positions[atoms] @ np.linalg.inv(cells), file.forces[atoms]
    steps = fractional[other] - fractional[one]
    moves = (steps - np.rint(steps)) @ (0.5 * (cells[one] + cells[other] @ back))
    moves -= moves.mean(axis=1, keepdims=True)
    farthest = np.linalg.norm(moves, axis=2).max(axis=1)
    works = file.volumes[group][:, None, None] * file.stresses[group]
    by_forces = -0.5 * ((forces[one] + forces[other] @ back) * moves).sum(axis=(1, 2))
    by_stress = 0.5 * ((works[one] + turn @ works[other] @ back) * strain).sum(axis=(1, 2))
    kept = farthest < FARTHEST
    table = np.column_stack([energies[other] - energies[one], by_forces, by_stress])
    return table[kept], (size / LARGEST_STRAIN + farthest / FARTHEST)[kept]


def strain_between(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide what makes one cell of the other into a strain and a rotation.

    Args:
        one: Cells, rows are lattice vectors, ``[pairs, 3, 3]``.
        other: The same.

    Returns:
        The logarithmic strain in the frame of `one`, and the rotation that follows it, so that
        ``other = one @ exp(strain) @ rotation``, ``[pairs, 3, 3]`` each.
    """
    change = np.linalg.solve(one, other)
    squares, axes = np.linalg.eigh(change @ change.transpose(0, 2, 1))
    back = axes.transpose(0, 2, 1)
    strain = axes * (0.5 * np.log(squares))[:, None, :] @ back
    return strain, axes * (1.0 / np.sqrt(squares))[:, None, :] @ back @ change
