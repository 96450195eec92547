"""Errors of predictions in every part of the data: exact sums, histograms, and points to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from mace.elements import chemical_symbol
from mace.properties import PREDICTED, PROPERTIES
from mace.structures.configuration import Configuration
from mace.units import MILLI

BINS = 61
MOST_SETS, MOST_TYPES, MOST_COMPOSITIONS = 24, 40, 60
MOST_POINTS = 10_000
_WORST_SHARE = 0.1
OTHER = "all others"

EnergiesOfHeads = Mapping[str, Mapping[int, float]]
"""E0 in eV by head and atomic number."""


@dataclass(frozen=True)
class Compared:
    """Labels and predictions of one property, row by row.

    Attributes:
        reference: ``[rows, ...]``; total energies in eV, eV/Angstrom, eV/Angstrom^3, e*Angstrom.
        prediction: Of the same shape.
        structure: Place of each row's structure in its set, ``[rows]``.
        atom: Place of each row's atom in its structure; None for properties of structures.
    """

    reference: np.ndarray
    prediction: np.ndarray
    structure: np.ndarray
    atom: np.ndarray | None = None


@dataclass(frozen=True)
class PredictedSet:
    """A set of structures, all for one head, with its predictions.

    Attributes:
        name: Name of the set.
        role: ``train``, ``valid`` or ``test``.
        configurations: Its structures.
        compared: What is labeled and predicted, by property.
    """

    name: str
    role: str
    configurations: Sequence[Configuration]
    compared: Mapping[str, Compared]

    @property
    def head(self) -> str:
        """The head that all its structures are for."""
        return self.configurations[0].head


@dataclass(frozen=True)
class Cell:
    """Errors of the values of one set, config_type and element (or, for properties of structures, composition).

    Attributes:
        set: Number of the set.
        type: Number of the config_type.
        part: Number of the element or composition.
        count: Values.
        absolute: Sum of absolute errors.
        squared: Sum of squared errors.
        signed: Sum of errors.
        largest: Largest absolute error.
        histogram: Values in each bin, ``[BINS]``.
    """

    set: int
    type: int
    part: int
    count: int
    absolute: float
    squared: float
    signed: float
    largest: float
    histogram: np.ndarray


@dataclass(frozen=True)
class Points:
    """Values to draw: all, or the worst and a random choice of the others.

    Attributes:
        reference: ``[points]``.
        error: Prediction minus reference, ``[points]``.
        set: ``[points]``, and so the others.
        type: Number of the config_type.
        part: Number of the element or composition.
        file: Number of the file of its structure.
        index: Place of its structure in that file.
    """

    reference: np.ndarray
    error: np.ndarray
    set: np.ndarray
    type: np.ndarray
    part: np.ndarray
    file: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class PropertyErrors:
    """Errors of one property in all sets.

    Attributes:
        name: Of the property.
        parts: Names of elements, or symbols of each composition joined by blanks.
        limit: Histograms go from ``-limit`` to ``limit``; their outermost bins hold all beyond.
        cells: Exact sums.
        points: Values to draw.
    """

    name: str
    parts: tuple[str, ...]
    limit: float
    cells: tuple[Cell, ...]
    points: Points


@dataclass(frozen=True)
class Predictions:
    """Errors in all sets.

    Attributes:
        sets: Name and role of each; beyond `MOST_SETS` those of one role and head are one.
        files: Names of the files.
        types: Names of the config_types, the frequent ones first; beyond `MOST_TYPES` the rest is one.
        properties: Errors by property.
        heads: The head of each set.
    """

    sets: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    types: tuple[str, ...]
    properties: tuple[PropertyErrors, ...]
    heads: tuple[str, ...] = ()


def summarize_predictions(sets: Sequence[PredictedSet], reference_energies: EnergiesOfHeads) -> Predictions:
    """Add up the errors of predictions.

    Args:
        sets: The sets, those to train and validate with first.
        reference_energies: E0 in eV by head and atomic number, subtracted from energies.
    """
    counts = Counter(c.config_type for one in sets for c in one.configurations)
    types = {name: place for place, (name, _) in enumerate(counts.most_common(MOST_TYPES))}
    names_of_files = dict.fromkeys(c.file for one in sets for c in one.configurations)
    files = {name: place for place, name in enumerate(names_of_files)}
    several = len({one.head for one in sets}) > 1
    names = [(one.name, one.role, one.head) for one in sets[:MOST_SETS]]
    names += [(f"{OTHER} of {one.head}" if several else OTHER, one.role, one.head) for one in sets[MOST_SETS:]]
    numbers = {entry: place for place, entry in enumerate(dict.fromkeys(names))}
    number_of = [numbers[entry] for entry in names]
    found = []
    for name in PREDICTED:
        if PROPERTIES[name].derived and any("stress" in one.compared for one in sets):
            continue
        if any(name in one.compared for one in sets):
            found.append(_of_property(name, sets, number_of, types, files, reference_energies))
    shown = [*types] + ([OTHER] if len(counts) > len(types) else [])
    shown_sets, heads = tuple((name, role) for name, role, _ in numbers), tuple(head for *_, head in numbers)
    return Predictions(shown_sets, tuple(files), tuple(shown), tuple(found), heads)


def per_atom_values(name: str, one: PredictedSet, reference_energies: EnergiesOfHeads) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and errors as they are shown: energies without E0s, per atom where the error tables are.

    Returns:
        Labels and prediction minus label, ``[rows, ...]``.
    """
    compared = one.compared[name]
    reference, error = compared.reference, compared.prediction - compared.reference
    if not PROPERTIES[name].extensive:
        return reference, error
    configurations = [one.configurations[place] for place in compared.structure.tolist()]
    if name == "energy":
        own = reference_energies[one.head]
        reference = reference - [sum(own[z] for z in c.atomic_numbers.tolist()) for c in configurations]
    atoms = np.array([c.n_atoms for c in configurations]).reshape(-1, *[1] * (reference.ndim - 1))
    return reference / atoms, error / atoms


def _of_property(
    name: str,
    sets: Sequence[PredictedSet],
    number_of: Sequence[int],
    types: Mapping[str, int],
    files: Mapping[str, int],
    reference_energies: EnergiesOfHeads,
) -> PropertyErrors:
    present = [(place, one) for place, one in enumerate(sets) if name in one.compared]
    if present[0][1].compared[name].atom is not None:
        numbers = {z for _, one in present for c in one.configurations for z in c.atomic_numbers.tolist()}
        parts = [chemical_symbol(z) for z in sorted(numbers)]
    else:
        parts = list(dict.fromkeys(_composition(c) for _, one in present for c in one.configurations))
        parts = parts if len(parts) <= MOST_COMPOSITIONS else [""]
    order = {part: place for place, part in enumerate(parts)}
    values = []
    for place, one in present:
        compared, (reference, error) = one.compared[name], per_atom_values(name, one, reference_energies)
        structures = np.array(
            [
                (
                    types.get(c.config_type, len(types)),
                    files[c.file],
                    c.index,
                    order.get(_composition(c), 0) if compared.atom is None else 0,
                )
                for c in one.configurations
            ]
        )
        type_of, file_of, index_of, part_of = structures[compared.structure].T
        if compared.atom is not None:
            first = np.cumsum([0, *(c.n_atoms for c in one.configurations)])
            numbers_of = np.concatenate([c.atomic_numbers for c in one.configurations])
            unique, inverse = np.unique(numbers_of[first[compared.structure] + compared.atom], return_inverse=True)
            part_of = np.array([order[chemical_symbol(z)] for z in unique.tolist()])[inverse]
        rows = [np.repeat(row, reference[:1].size) for row in (type_of, part_of, file_of, index_of)]
        set_of = np.full(reference.size, number_of[place])
        values.append(Points(reference.ravel(), error.ravel(), set_of, *rows))
    joined = Points(*(np.concatenate([getattr(v, field.name) for v in values]) for field in fields(Points)))
    absolute = np.abs(joined.error)
    limit = float(np.percentile(absolute, 99.0)) * 1.5 or float(absolute.max()) or MILLI
    return PropertyErrors(name, tuple(parts), limit, tuple(_cells(joined, limit)), _thin(joined))


def _composition(configuration: Configuration) -> str:
    return " ".join(chemical_symbol(z) for z in np.unique(configuration.atomic_numbers).tolist())


def _cells(values: Points, limit: float) -> list[Cell]:
    """Add up errors by set, type and part."""
    n_types, n_parts = int(values.type.max()) + 1, int(values.part.max()) + 1
    keys = (values.set * n_types + values.type) * n_parts + values.part
    unique, cell = np.unique(keys, return_inverse=True)
    absolute = np.abs(values.error)
    largest = np.zeros(len(unique))
    np.maximum.at(largest, cell, absolute)
    bins = np.clip(((values.error + limit) / (2.0 * limit) * BINS).astype(np.int64), 0, BINS - 1)
    histograms = np.bincount(cell * BINS + bins, minlength=len(unique) * BINS).reshape(-1, BINS)
    counts = np.bincount(cell)
    sums, squares = np.bincount(cell, absolute), np.bincount(cell, np.square(values.error))
    signed = np.bincount(cell, values.error)
    return [
        Cell(
            int(key) // (n_types * n_parts),
            int(key) // n_parts % n_types,
            int(key) % n_parts,
            int(counts[place]),
            float(sums[place]),
            float(squares[place]),
            float(signed[place]),
            float(largest[place]),
            histograms[place],
        )
        for place, key in enumerate(unique)
    ]


def _thin(values: Points) -> Points:
    """Choose values to draw, of every set a fair share."""
    chosen, sets = [], np.unique(values.set)
    open_slots = MOST_POINTS
    by_size = sorted(sets.tolist(), key=lambda place: int((values.set == place).sum()))
    for done, place in enumerate(by_size):
        members = np.flatnonzero(values.set == place)
        share = open_slots // (len(by_size) - done)
        if len(members) > share:
            # the worst, and a reproducible random choice of the others
            worst = max(int(share * _WORST_SHARE), 1)
            by_error = np.argpartition(np.abs(values.error[members]), len(members) - worst)
            others = np.random.default_rng(0).choice(by_error[:-worst], share - worst, replace=False)
            members = members[np.concatenate([others, by_error[-worst:]])]
        chosen.append(members)
        open_slots -= len(members)
    order = np.concatenate(chosen)
    return Points(*(getattr(values, field.name)[order] for field in fields(Points)))
