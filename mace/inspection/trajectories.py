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
from mace.inspection.findings import Evidence
from mace.inspection.flat import FlatFile, grouped, mixed, spread
from mace.inspection.pair_interaction import FEWEST_FITTED, MOST_ATOMS, SAMPLE, fit_pair_interaction
from mace.inspection.unit_guesses import (
    EXPLAINED_WITHIN,
    FORCE_EXPLANATIONS,
    Comparison,
    compare,
    contradiction,
    explain,
)

_LEAST_MOVE = 1.0e-4
_MOST_PAIRS = 400
_MOST_IN_GROUP = 400
_MOST_GROUPS = 500
_FEWEST_IN_GROUP = 3
_UNRELATED = 0.5
_PAIRS_FOR_UNRELATED = 20


def check_forces_against_energies(file: FlatFile, distorted: Comparison) -> Iterator[Evidence]:
    """Compare differences of energies with what the forces say.

    Args:
        file: The structures.
        distorted: The same of structures with different cells, see `mace.inspection.distortions`.
    """
    labeled = np.flatnonzero(np.isfinite(file.energies) & file.has_forces & (file.n_atoms > 1))
    measured, expected, places = _energy_differences(file, labeled)
    result = compare(measured, expected)
    if result.is_clear or distorted.is_rough:
        result = result if result.is_clear else distorted
        if result.contradicts:
            reason = explain(result.ratio, _explanations(file.n_atoms))
            yield contradiction(file, "forces", "almost equal structures", result, reason)
        return
    if result.count >= _PAIRS_FOR_UNRELATED and abs(result.correlation) < _UNRELATED:
        yield file.saw(
            "suspicious-forces",
            f"energies of {result.count} pairs of almost equal structures (such as {places[0][0]} and {places[0][1]}) "
            f"do not go with the forces at all (correlation {result.correlation:.2f})",
            key="unrelated",
            severity=float(result.count),
        )
        return
    # where nothing is almost equal: energies of comparable structures, and of a pair interaction fitted to the forces
    chosen, group = _comparable(file, labeled)
    fit = fit_pair_interaction(file, chosen.tolist())
    if fit is None:
        return
    measured, expected = (
        energies - (np.bincount(group, weights=energies) / np.maximum(np.bincount(group), 1))[group]
        for energies in (file.energies[chosen], fit[1])
    )
    result = compare(measured, expected)
    if result.is_rough and not result.is_plausible:
        reason = explain(result.ratio, _explanations(file.n_atoms[chosen]), EXPLAINED_WITHIN)
        yield file.saw(
            "suspicious-forces",
            f"energies of {len(chosen)} structures differ by {result.ratio:.3g} times what a pair interaction fitted "
            f"to their forces says (correlation {abs(result.correlation):.2f}); it looks as if "
            f"{reason or 'a sign or a unit is wrong'}",
            key="by forces",
            severity=abs(result.correlation),
        )


def _explanations(n_atoms: np.ndarray) -> dict[str, float]:
    return {**FORCE_EXPLANATIONS, "energies are per atom": 1.0 / float(np.median(n_atoms))}


def _comparable(file: FlatFile, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose structures whose energies can be compared: of the same atoms, in the same cell if there are enough.

    Returns:
        Their places, and the number of the group each belongs to, ``[chosen]`` each.
    """
    places = places[file.n_atoms[places] <= MOST_ATOMS]
    atoms = file.unordered_marks
    cells = mixed(*np.rint(file.cells * 1.0e3).astype(np.int64).reshape(-1, 9).T)
    for marks in (atoms ^ cells, atoms):
        chosen = [spread(group, SAMPLE) for group in grouped(places, marks[places], _FEWEST_IN_GROUP)]
        if sum(map(len, chosen)) >= FEWEST_FITTED:
            numbers = np.repeat(np.arange(len(chosen)), [len(group) for group in chosen])
            return np.concatenate(chosen)[:SAMPLE], numbers[:SAMPLE]
    return places[:0], places[:0]


def _energy_differences(file: FlatFile, labeled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure pairs of almost equal structures: of the same atoms in the same order, in the same cell.

    Returns:
        Differences of the energies in eV, what the forces say in eV, and the places of both structures in the file,
        the most similar pairs first: ``[pairs]``, ``[pairs]``, ``[pairs, 2]``.
    """
    cells = np.rint(file.cells * 1.0e4).astype(np.int64).reshape(-1, 9)
    marks = file.marks ^ mixed(*cells.T, *file.pbc.T.astype(np.int64))
    parts = []
    for group in grouped(labeled, marks[labeled], fewest=2)[:_MOST_GROUPS]:
        if len(group) > _MOST_IN_GROUP:
            # a stretch of neighbors, and structures from everywhere
            places = np.arange(len(group))
            group = group[np.union1d(places[: _MOST_IN_GROUP // 2], spread(places, _MOST_IN_GROUP // 2))]
        atoms = file.first[group][:, None] + np.arange(file.n_atoms[group[0]])
        positions, forces = file.positions[atoms], file.forces[atoms]
        # each structure with the next one and with the most similar one
        rows = (positions - positions.mean(axis=0)).reshape(len(group), -1)
        squares = (rows * rows).sum(axis=1)
        distances = squares[:, None] + squares[None, :] - 2.0 * rows @ rows.T
        np.fill_diagonal(distances, np.inf)
        here = np.arange(len(group))
        candidates = [np.column_stack([here[:-1], here[1:]]), np.column_stack([here, distances.argmin(axis=1)])]
        one, other = np.unique(np.sort(np.concatenate(candidates), axis=1), axis=0).T
        steps = positions[other] - positions[one]
        pbc = file.pbc[group[0]]
        if pbc.any():  # whole lattice vectors are taken away, which is right for the short steps that matter here
            vectors = file.cells[group[0]][pbc]
            steps = steps - np.rint(steps @ np.linalg.pinv(vectors)) @ vectors
        moved = np.linalg.norm(steps, axis=2).max(axis=1)
        near = (moved < FARTHEST) & (moved > _LEAST_MOVE)
        one, other, steps, moved = one[near], other[near], steps[near], moved[near]
        expected = -0.5 * ((forces[one] + forces[other]) * steps).sum(axis=(1, 2))
        energies = file.energies[group]
        changes = energies[other] - energies[one]
        parts.append((changes, expected, moved, np.column_stack([group[one], group[other]])))
    if not parts:
        return np.zeros(0), np.zeros(0), np.zeros((0, 2), dtype=np.int64)
    measured, expected, moved, pairs = (np.concatenate(part) for part in zip(*parts, strict=True))
    kept = np.argsort(moved)[:_MOST_PAIRS]
    return measured[kept], expected[kept], file.index[pairs[kept]]
