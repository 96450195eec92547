"""Labels that stand for missing ones: exactly the same in different structures, which no calculation gives.

Zero is the usual one. It may be right where symmetry forbids anything else, and any value may be right in structures
that differ by a rotation only; both are decided from distances and directions to neighbors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from mace.inspection.findings import Evidence
from mace.inspection.flat import FlatFile, grouped, mixed, spread
from mace.properties import PROPERTIES

CUTOFF = 5.0
"""Angstrom."""

SAMPLE = 100
"""Structures with the same label whose geometry is looked at."""

FEWEST_ZEROS = 2
"""Different structures with a label of zero that are one too many."""

FEWEST_EQUAL = 5
"""The same for any other number: energies with few digits may be equal by chance."""

LEAST_SHARE = 0.2
"""Share of the labeled structures that must have the same number, other than zero."""

_SYMMETRIC = 1.0e-3
_SAME_GEOMETRY = 1.0e-5


def check_placeholders(file: FlatFile, labeled: Collection[str]) -> Iterator[Evidence]:
    """Find labels that are exactly the same in different structures; charges are given and may well be.

    Args:
        file: The structures.
        labeled: Labels that are in the file; converted ones are left out.
    """
    for name in PROPERTIES:
        if name == "charges" or name not in labeled:
            continue
        usable = np.flatnonzero((file.n_atoms > 1) & file.flat.has_weight(name))
        marks, values = _contents(file, name)
        zeros = usable[values[usable] == 0.0]
        others = usable[values[usable] != 0.0]
        fewest = max(FEWEST_EQUAL, int(LEAST_SHARE * len(usable)))
        groups = [*grouped(others, marks[others], fewest), *([zeros] if len(zeros) else [])]
        for places in sorted(groups, key=lambda group: int(group[0])):
            mark, value = int(marks[places[0]]), float(values[places[0]])
            doubtful = places
            if value == 0.0 and PROPERTIES[name].parity < 0:  # a vector may be zero by symmetry
                sample = spread(places, SAMPLE)
                is_lopsided = [_is_lopsided(file, place, PROPERTIES[name].of_atoms) for place in sample.tolist()]
                doubtful = places if all(is_lopsided) else sample[is_lopsided]
            different = _count_different(file, doubtful)
            if different < (1 if value == 0.0 else fewest):  # other parts of the file may have more zeros
                continue
            kind = "zero-energies" if name == "energy" and value == 0.0 else "placeholder-labels"
            number = "the same" if np.isnan(value) else f"{value:.10g}" if value else "zero"
            text = f"have labels '{name}' that are exactly {number}"
            seen = file.saw(kind, text, doubtful, key=f"{name} {mark:x}", is_of_part=value != 0.0)
            yield replace(seen, different=different, fewest=FEWEST_ZEROS if value == 0.0 else fewest)


def _contents(file: FlatFile, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Describe the labels of a property.

    Returns:
        Marks that are equal where labels are, ``[structures]``, uint64, and the number that a label consists of, NaN if
        it has several, ``[structures]``.
    """
    of_atoms = PROPERTIES[name].of_atoms
    values = file.flat.labels(name).astype(np.float64) + 0.0  # makes zero of minus zero
    rows = values.reshape(len(values), -1)
    marks = mixed(*rows.T, *([file.ranks] if of_atoms else []))
    first = rows[file.first if of_atoms else slice(None), 0]
    same = (rows == (first[file.structure_of_atom] if of_atoms else first)[:, None]).all(axis=1)
    if of_atoms:
        marks, same = file.sums(marks), np.logical_and.reduceat(same, file.first)
    return np.where(same, mixed(first), marks), np.where(same, first, np.nan)


def _is_lopsided(file: FlatFile, place: int, of_atoms: bool) -> bool:
    """Return whether the surroundings of an atom, or a molecule, are asymmetric enough to allow a force or a dipole."""
    if of_atoms:
        ends, weights, directions = _neighbors(file, place)
        sums = [np.bincount(ends, component) for component in (weights[:, None] * directions).T]
        return bool((np.linalg.norm(sums, axis=0) > _SYMMETRIC * np.bincount(ends, weights)).any())
    if file.pbc[place].any():
        return False
    positions, numbers = file.positions[file.atoms_of(place)], file.numbers[file.atoms_of(place)]
    from_middle = positions - positions.mean(axis=0)
    size = np.linalg.norm(from_middle, axis=1)
    moments = [from_middle[numbers == number].mean(axis=0) for number in np.unique(numbers)]
    moments.append((numbers * size**2) @ from_middle / (numbers @ size**2))
    return bool((np.linalg.norm(moments, axis=1) > _SYMMETRIC * size.max()).any())


def _neighbors(file: FlatFile, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every atom of every pair: the atom, what the other one weighs for it, and in which direction it is."""
    numbers = file.numbers[file.atoms_of(place)]
    sender, receiver, vectors = file.pairs(place, CUTOFF)
    lengths = np.linalg.norm(vectors, axis=1)
    directions = vectors / np.maximum(lengths, 1e-12)[:, None]
    weights = np.exp(-lengths) * (1.0 - lengths / CUTOFF) ** 2
    ends, others = np.concatenate([sender, receiver]), np.concatenate([receiver, sender])
    return ends, np.tile(weights, 2) * numbers[others], np.concatenate([directions, -directions])


def _count_different(file: FlatFile, places: np.ndarray) -> int:
    """Count structures that are no rotated, shifted or reordered copies of each other, at most `SAMPLE`."""
    sums = []
    for place in spread(places, SAMPLE).tolist():
        ends, weights, _ = _neighbors(file, place)
        numbers = file.numbers[file.atoms_of(place)]
        sums.append(float(weights @ numbers[ends] + numbers.sum()))
    gaps = np.diff(np.sort(sums))
    return int((gaps > _SAME_GEOMETRY * max(sums, default=0.0)).sum()) + bool(sums)
