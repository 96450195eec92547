"""Errors of predictions in every part of the data: exact sums, histograms, and points to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from mace.elements import chemical_symbol
from mace.graphs.dataset import Dataset
from mace.properties import PREDICTED, PROPERTIES
from mace.reporting.set_errors import MOST_COMPOSITIONS, OTHER, CellErrors, PropertyTally, SetErrors, chosen_values
from mace.reporting.spread import percentile
from mace.structures.collection import Names
from mace.units import MILLI

BINS = 61
MOST_SETS, MOST_TYPES = 24, 40
MOST_POINTS = 10_000
_WORST_SHARE = 0.1


@dataclass(frozen=True)
class PredictedSet:
    """A set of structures, all for one head, with the errors of its predictions.

    Attributes:
        name: Name of the set.
        role: ``train``, ``valid`` or ``test``.
        dataset: Its structures.
        errors: Of its predictions.
    """

    name: str
    role: str
    dataset: Dataset
    errors: SetErrors

    @property
    def head(self) -> str:
        """The head that all its structures are for."""
        return self.dataset[0].head


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


def summarize_predictions(sets: Sequence[PredictedSet]) -> Predictions:
    """Gather the errors of predictions for several sets.

    Args:
        sets: The sets, those to train and validate with first.
    """
    counts = Counter[str]()
    for one in sets:
        counts.update(_counted(one.dataset.structures.config_types))
    types = {name: place for place, (name, _) in enumerate(counts.most_common(MOST_TYPES))}
    several = len({one.head for one in sets}) > 1
    names = [(one.name, one.role, one.head) for one in sets[:MOST_SETS]]
    names += [(f"{OTHER} of {one.head}" if several else OTHER, one.role, one.head) for one in sets[MOST_SETS:]]
    numbers = {entry: place for place, entry in enumerate(dict.fromkeys(names))}
    numbered = [(numbers[entry], one) for entry, one in zip(names, sets, strict=True)]
    files, found = dict[str, int](), []
    for name in PREDICTED:
        if PROPERTIES[name].derived and any("stress" in one.errors.tallies for one in sets):
            continue
        present = [(number, one) for number, one in numbered if name in one.errors.tallies]
        if present:
            found.append(_of_property(name, present, types, files))
    shown = [*types] + ([OTHER] if len(counts) > len(types) else [])
    shown_sets, heads = tuple((name, role) for name, role, _ in numbers), tuple(head for *_, head in numbers)
    return Predictions(shown_sets, tuple(files), tuple(shown), tuple(found), heads)


def frequent_types(types: Names, most: int) -> Names:
    """Keep the most frequent config_types; the others together are `OTHER`."""
    if len(types.names) <= most:
        return types
    kept = [name for name, _ in Counter(_counted(types)).most_common(most)]
    place = {name: number for number, name in enumerate(kept)}
    codes = np.array([place.get(name, len(kept)) for name in types.names], dtype=np.int32)[types.codes]
    return Names((*kept, OTHER), codes)


def _counted(column: Names) -> dict[str, int]:
    """Count the structures of each name, in the order in which the names first occur."""
    counts, first = np.bincount(column.codes, minlength=len(column.names)), np.full(len(column.names), -1)
    first[column.codes[::-1]] = np.arange(len(column.codes))[::-1]
    return {column.names[place]: int(counts[place]) for place in np.argsort(first).tolist() if counts[place]}


def _of_property(
    name: str, present: Sequence[tuple[int, PredictedSet]], types: Mapping[str, int], files: dict[str, int]
) -> PropertyErrors:
    """Join the errors of a property in several sets, each with its number; files that are new get a number."""
    sets, tallies = [one for _, one in present], [one.errors.tallies[name] for _, one in present]
    parts = _parts(name, sets)
    cells: dict[tuple[int, int, int], CellErrors] = {}
    for (number, one), tally in zip(present, tallies, strict=True):
        for (kind, part), cell in tally.cells.items():
            key = number, types.get(one.errors.types[kind], len(types)), _part(one, part, parts)
            cells.setdefault(key, CellErrors()).merge(cell)
    largest = max(cell.largest for cell in cells.values())
    limit = percentile([cell.spread for cell in cells.values()], 99.0) * 1.5 or largest or MILLI
    found = tuple(
        Cell(*key, c.count, c.absolute, c.squared, c.signed, c.largest, c.spread.histogram(limit, BINS))
        for key, c in sorted(cells.items(), key=lambda entry: entry[0])
    )
    shares = list(_shares([number for number, _ in present], sets, tallies))
    for _, one, values in sorted(shares, key=lambda share: share[0]):
        column = one.dataset.structures.files
        for code in np.unique(column.codes[values["structure"]]).tolist():
            files.setdefault(column.names[code], len(files))
    points = [_points(number, one, values, types, parts, files) for number, one, values in shares]
    joined = Points(*(np.concatenate([getattr(p, field.name) for p in points]) for field in fields(Points)))
    return PropertyErrors(name, tuple(parts), limit, found, joined)


def _parts(name: str, sets: Sequence[PredictedSet]) -> dict[str, int]:
    """Number the elements of some sets, or their compositions if there are not too many."""
    if PROPERTIES[name].of_atoms:
        numbers = sorted({z for one in sets for z in one.errors.elements})
        return {chemical_symbol(z): place for place, z in enumerate(numbers)}
    found = set[tuple[int, ...]]()
    for one in sets:
        if one.errors.compositions is None:
            return {"": 0}
        found |= {one.errors.elements_of(part) for part in one.errors.compositions}
    if len(found) > MOST_COMPOSITIONS:
        return {"": 0}
    return {" ".join(map(chemical_symbol, numbers)): place for place, numbers in enumerate(sorted(found))}


def _part(one: PredictedSet, part: bytes, parts: Mapping[str, int]) -> int:
    """Return the number of a part, zero if parts are not told apart."""
    return parts.get(" ".join(map(chemical_symbol, one.errors.elements_of(part))), 0)


def _shares(
    numbers: Sequence[int], sets: Sequence[PredictedSet], tallies: Sequence[PropertyTally]
) -> Iterator[tuple[int, PredictedSet, np.ndarray]]:
    """Choose values to draw, of every number a fair share; yield those of each set."""
    members = {number: [place for place, n in enumerate(numbers) if n == number] for number in sorted(set(numbers))}
    counts = {number: sum(tallies[place].count for place in places) for number, places in members.items()}
    open_slots = MOST_POINTS
    for done, number in enumerate(sorted(members, key=lambda number: counts[number])):
        share = open_slots // (len(members) - done)
        of_number = [tallies[place] for place in members[number]]
        values, source = chosen_values(of_number, share, max(int(share * _WORST_SHARE), 1))
        open_slots -= len(values)
        for place, of_set in enumerate(members[number]):
            yield number, sets[of_set], values[source == place]


def _points(
    number: int,
    one: PredictedSet,
    values: np.ndarray,
    types: Mapping[str, int],
    parts: Mapping[str, int],
    files: Mapping[str, int],
) -> Points:
    """Say of chosen values of a set where they belong."""
    structures, column = values["structure"], one.dataset.structures.files
    type_of = np.array([types.get(name, len(types)) for name in one.errors.types], dtype=np.int64)
    unique, part_of = np.unique(values["part"], axis=0, return_inverse=True)
    part_numbers = np.array([_part(one, part.tobytes(), parts) for part in unique], dtype=np.int64)
    return Points(
        values["reference"],
        values["error"],
        np.full(len(values), number),
        type_of[values["type"]],
        part_numbers[part_of.ravel()],
        np.array([files[column.names[code]] for code in column.codes[structures].tolist()], dtype=np.int64),
        one.dataset.structures.file_index[structures],
    )
