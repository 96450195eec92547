r"""Do forces and energies of almost equal structures belong together?

Between two structures of the same atoms that differ little, the energy changes by
:math:`-\tfrac12 (F_1 + F_2) \cdot (x_2 - x_1)`, exactly so where the energy is quadratic. The ratio of both sides over
many pairs shows a wrong sign or unit. Pairs are neighbors in the file, as in a trajectory, and the most similar ones
anywhere in it, as in shuffled trajectories and rattled crystals. Where cells differ, `mace.inspection.distortions`
takes the stress into account. Where no structures are that similar, energies are compared with those of a pair
interaction fitted to the forces.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mace.inspection.distortions import FARTHEST
from mace.inspection.findings import Finding, found
from mace.inspection.flat import FlatFile
from mace.inspection.pair_interaction import (
    FEWEST_FITTED,
    LEAST_EXPLAINED,
    MOST_ATOMS,
    SAMPLE,
    fit_pair_interaction,
)
from mace.inspection.unit_guesses import EXPLAINED_WITHIN, FORCE_EXPLANATIONS, Comparison, compare, explain

_LEAST_MOVE = 1.0e-4
_MOST_PAIRS = 400
_MOST_IN_GROUP = 400
_MOST_GROUPS = 500
_FEWEST_IN_GROUP = 3
_UNRELATED = 0.5
_PAIRS_FOR_UNRELATED = 20


def check_forces_against_energies(file: FlatFile, distorted: Comparison) -> Iterator[Finding]:
    """Compare differences of energies with what the forces say.

    Args:
        file: The structures.
        distorted: The same of structures with different cells, see `mace.inspection.distortions`.
    """
    measured, expected, places = energy_differences(file)
    result = compare(measured, expected)
    if result.is_clear or distorted.is_rough:
        result = result if result.is_clear else distorted
        if result.contradicts:
            yield _contradiction(file, result)
        return
    if result.count >= _PAIRS_FOR_UNRELATED and abs(result.correlation) < _UNRELATED:
        yield found(
            "suspicious-forces",
            file.file,
            f"energies of {result.count} pairs of almost equal structures (such as {places[0][0]} and {places[0][1]}) "
            f"do not go with the forces at all (correlation {result.correlation:.2f})",
        )
        return
    yield from _check_against_pairs(file)


def _contradiction(file: FlatFile, result: Comparison) -> Finding:
    explanations = {**FORCE_EXPLANATIONS, "energies are per atom": 1.0 / float(np.median(file.n_atoms))}
    reason = explain(result.ratio, explanations)
    name = "contradicting-forces" if reason and result.is_overwhelming else "suspicious-forces"
    guess = f"; it looks as if {reason}" if reason else ""
    return found(
        name,
        file.file,
        f"over {result.count} pairs of almost equal structures, energies change by {result.ratio:.4g} times what the "
        f"forces say (correlation {abs(result.correlation):.3f}){guess}",
    )


def _check_against_pairs(file: FlatFile) -> Iterator[Finding]:
    """Compare energies of comparable structures with those of a pair interaction fitted to the forces."""
    places, group = _comparable(file, _labeled_places(file))
    if len(places) < FEWEST_FITTED:
        return
    fit = fit_pair_interaction(file, places.tolist())
    if fit is None or fit.explained < LEAST_EXPLAINED:
        return
    result = compare(_without_means(file.energies[places], group), _without_means(fit.energies, group))
    if not result.is_rough or result.is_plausible:
        return
    explanations = {**FORCE_EXPLANATIONS, "energies are per atom": 1.0 / float(np.median(file.n_atoms[places]))}
    reason = explain(result.ratio, explanations, EXPLAINED_WITHIN) or "a sign or a unit is wrong"
    yield found(
        "suspicious-forces",
        file.file,
        f"energies of {len(places)} structures differ by {result.ratio:.3g} times what a pair interaction fitted to "
        f"their forces says (correlation {abs(result.correlation):.2f}); it looks as if {reason}",
    )


def _comparable(file: FlatFile, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose structures whose energies can be compared: of the same atoms, in the same cell if there are enough.

    Returns:
        Their places, and the number of the group each belongs to, ``[chosen]`` each.
    """
    places = places[file.n_atoms[places] <= MOST_ATOMS]
    cells = np.rint(file.cells * 1.0e3).astype(np.int64)
    for with_cell in (True, False):
        members: dict[tuple[bytes, bytes], list[int]] = {}
        for place in places.tolist():
            atoms = file.identity_of_atoms(place, in_order=False)
            members.setdefault((atoms, cells[place].tobytes() if with_cell else b""), []).append(place)
        groups = sorted((group for group in members.values() if len(group) >= _FEWEST_IN_GROUP), key=len, reverse=True)
        spread = [np.linspace(0, len(group) - 1, min(len(group), SAMPLE)).astype(int) for group in groups]
        chosen = [np.array(group)[np.unique(kept)] for group, kept in zip(groups, spread, strict=True)]
        if chosen and sum(len(group) for group in chosen) >= FEWEST_FITTED:
            numbers = np.repeat(np.arange(len(chosen)), [len(group) for group in chosen])
            return np.concatenate(chosen)[:SAMPLE], numbers[:SAMPLE]
    return places[:0], places[:0]


def _without_means(energies: np.ndarray, group: np.ndarray) -> np.ndarray:
    counts = np.bincount(group)
    return energies - (np.bincount(group, weights=energies) / np.maximum(counts, 1))[group]


def _labeled_places(file: FlatFile) -> np.ndarray:
    """Structures of several atoms with energy and forces."""
    if not len(file):
        return np.zeros(0, dtype=np.int64)
    has_forces = np.isfinite(np.add.reduceat(file.forces.sum(axis=1), file.first))
    return np.flatnonzero(np.isfinite(file.energies) & has_forces & (file.n_atoms > 1))


def energy_differences(file: FlatFile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure pairs of almost equal structures.

    Returns:
        Differences of the energies in eV, what the forces say in eV, and the places of both structures in the file,
        the most similar pairs first: ``[pairs]``, ``[pairs]``, ``[pairs, 2]``.
    """
    groups = _groups_of_equal_atoms(file, _labeled_places(file))
    parts = [_differences_in_group(file, group) for group in groups[:_MOST_GROUPS]]
    if not parts:
        return np.zeros(0), np.zeros(0), np.zeros((0, 2), dtype=np.int64)
    measured, expected, moved, pairs = (np.concatenate(part) for part in zip(*parts, strict=True))
    kept = np.argsort(moved)[:_MOST_PAIRS]
    return measured[kept], expected[kept], file.index[pairs[kept]]


def _groups_of_equal_atoms(file: FlatFile, usable: np.ndarray) -> list[np.ndarray]:
    """Collect structures with the same atoms in the same order and the same cell, large groups first."""
    members: dict[tuple[bytes, bytes, bytes], list[int]] = {}
    cells = np.rint(file.cells * 1.0e4).astype(np.int64)
    for place in usable.tolist():
        key = (file.identity_of_atoms(place), cells[place].tobytes(), file.pbc[place].tobytes())
        members.setdefault(key, []).append(place)
    groups = [np.array(group) for group in members.values() if len(group) > 1]
    return sorted(groups, key=len, reverse=True)


def _differences_in_group(file: FlatFile, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return energy differences, what forces say, the largest move of an atom, and the pairs."""
    if len(group) > _MOST_IN_GROUP:
        # a stretch of neighbors, and structures from everywhere
        spread = np.linspace(0, len(group) - 1, _MOST_IN_GROUP // 2).astype(int)
        group = group[np.union1d(np.arange(_MOST_IN_GROUP // 2), spread)]
    atoms = file.first[group][:, None] + np.arange(file.n_atoms[group[0]])
    positions, forces = file.positions[atoms], file.forces[atoms]
    one, other = _candidate_pairs(positions)
    steps = _shortest(positions[other] - positions[one], file.cells[group[0]], file.pbc[group[0]])
    moved = np.linalg.norm(steps, axis=2).max(axis=1)
    near = (moved < FARTHEST) & (moved > _LEAST_MOVE)
    one, other, steps, moved = one[near], other[near], steps[near], moved[near]
    expected = -0.5 * ((forces[one] + forces[other]) * steps).sum(axis=(1, 2))
    energies = file.energies[group]
    return energies[other] - energies[one], expected, moved, np.column_stack([group[one], group[other]])


def _candidate_pairs(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair each structure with the next one and with the most similar one."""
    count = len(positions)
    rows = (positions - positions.mean(axis=0)).reshape(count, -1)
    squares = (rows * rows).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * rows @ rows.T
    np.fill_diagonal(distances, np.inf)
    here = np.arange(count)
    nearest = distances.argmin(axis=1)
    pairs = np.concatenate([np.column_stack([here[:-1], here[1:]]), np.column_stack([here, nearest])])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _shortest(steps: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Take away whole lattice vectors, ``[pairs, atoms, 3]``; right for the short steps that matter here."""
    if not pbc.any():
        return steps
    vectors = cell[pbc]
    return steps - np.rint(steps @ np.linalg.pinv(vectors)) @ vectors
