"""Labels that stand for missing ones: exactly the same in different structures, which no calculation gives.

Zero is the usual one. It may be right where symmetry forbids anything else, and any value may be right in structures
that differ by a rotation only; both are decided from distances and directions to neighbors.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from mace.inspection.findings import Finding
from mace.inspection.flat import FlatFile
from mace.properties import PROPERTIES
from mace.structures.labels import FileLabels

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


def check_placeholders(file: FlatFile, labels: FileLabels) -> Iterator[Finding]:
    """Find labels that are exactly the same in different structures; charges are given and may well be."""
    for name in PROPERTIES:
        if name == "charges" or not labels.of(name).labeled:
            continue
        groups: dict[float | bytes, list[int]] = defaultdict(list)
        for place, configuration in enumerate(file.configurations):
            if configuration.n_atoms > 1 and configuration.has_weight(name):
                label = np.asarray(getattr(configuration, name), dtype=np.float64) + 0.0  # makes zero of minus zero
                first = float(label.flat[0])
                is_one = (label == first).all()  # else a hash stands for all the numbers
                content = first if is_one else hashlib.blake2b(label.tobytes(), digest_size=16).digest()
                groups[content].append(place)
        n_labeled = sum(map(len, groups.values()))
        for value, places in groups.items():
            fewest = FEWEST_ZEROS if value == 0.0 else max(FEWEST_EQUAL, int(LEAST_SHARE * n_labeled))
            if len(places) < fewest:
                continue
            doubtful = places
            if value == 0.0 and PROPERTIES[name].parity < 0:  # a vector may be zero by symmetry
                sample = _spread(places)
                lopsided = [place for place in sample if _is_lopsided(file, place, PROPERTIES[name].of_atoms)]
                doubtful = lopsided if len(lopsided) < len(sample) else places
            if _count_different(file, doubtful) < fewest:
                continue
            kind = "zero-energies" if name == "energy" and value == 0.0 else "placeholder-labels"
            number = "the same" if isinstance(value, bytes) else f"{value:.10g}" if value else "zero"
            text = f"have labels '{name}' that are exactly {number}"
            yield file.found(kind, text, np.array(doubtful))


def _spread(places: Sequence[int]) -> list[int]:
    """Choose some structures from all over the file."""
    chosen = np.unique(np.linspace(0, max(len(places) - 1, 0), SAMPLE).round().astype(int))
    return [places[place] for place in chosen.tolist()] if places else []


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


def _count_different(file: FlatFile, places: Sequence[int]) -> int:
    """Count structures that are no rotated, shifted or reordered copies of each other, at most `SAMPLE`."""
    sums = []
    for place in _spread(places):
        ends, weights, _ = _neighbors(file, place)
        numbers = file.numbers[file.atoms_of(place)]
        sums.append(float(weights @ numbers[ends] + numbers.sum()))
    gaps = np.diff(np.sort(sums))
    return int((gaps > _SAME_GEOMETRY * max(sums, default=0.0)).sum()) + bool(sums)
