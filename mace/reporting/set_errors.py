"""Errors of the predictions for a set, added up batch by batch in memory that does not grow with the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mace.graphs.dataset import Batch
from mace.properties import PROPERTIES
from mace.reporting.metrics import ErrorAccumulator
from mace.reporting.spread import Spread

MOST_VALUES, WORST_VALUES = 20_000, 1_000
"""Values of a property that are kept to be drawn, and of these the ones with the largest errors."""

MOST_WORST = 20
"""Structures with the largest errors of a property that are remembered."""

MOST_ATOMS = 20_000
"""Atoms of all structures that can be looked at; of what is beyond, only numbers are shown."""

MOST_COMPOSITIONS = 60
"""Compositions by which errors of structures are divided; where there are more, these are not divided."""

_AT_ONCE = 1 << 17
"""Values that wait until they are added up together."""

_DIGITS, _EXACT = 5, 1 << 17
"""Resolution of the spread of errors, and how many errors of a property are kept before they are counted."""

_ELEMENT_BYTES = 16

OTHER = "all others"
"""What is said of all that is not told apart."""

VALUE = np.dtype(
    [
        ("reference", "f8"),
        ("whole", "f8"),
        ("error", "f8"),
        ("structure", "i8"),
        ("row", "i8"),
        ("type", "i4"),
        ("part", "u1", _ELEMENT_BYTES),
        ("lot", "u8"),
    ]
)
"""A value with its label, of extensive properties per atom; energies without E0s, and with them in ``whole``.

``row`` is its place in what its structure has of the property; ``part`` the element, or those of the structure, one bit
for each of the table; ``lot`` a number by chance, of which the lowest ones are drawn.
"""


@dataclass(frozen=True)
class Compared:
    """Labels and predictions of one property, row by row.

    Attributes:
        reference: ``[rows, ...]``; total energies in eV, eV/Angstrom, eV/Angstrom^3, e*Angstrom.
        prediction: Of the same shape.
        structure: Index of each row's structure in its data set, ``[rows]``; rows of a structure stand together.
        atom: Place of each row's atom in its structure; None for properties of structures.
    """

    reference: np.ndarray
    prediction: np.ndarray
    structure: np.ndarray
    atom: np.ndarray | None = None


@dataclass
class CellErrors:
    """Errors of the values of one config_type and part.

    Attributes:
        count: Values.
        absolute: Sum of absolute errors.
        squared: Sum of squared errors.
        signed: Sum of errors.
        largest: Largest absolute error.
        spread: The errors.
    """

    count: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    signed: float = 0.0
    largest: float = 0.0
    spread: Spread = field(default_factory=lambda: Spread(_DIGITS))

    def merge(self, other: CellErrors) -> None:
        """Add those of another one."""
        self.count += other.count
        self.absolute += other.absolute
        self.squared += other.squared
        self.signed += other.signed
        self.largest = max(self.largest, other.largest)
        self.spread.merge(other.spread)


class PropertyTally:
    """Errors of a property in a set.

    Attributes:
        cells: Exact sums by number of the config_type and part, see `VALUE`.
        values: Values to draw, see `chosen_values`.
        limits: Lowest and highest label or prediction, of energies without E0s; and with these.
    """

    def __init__(self) -> None:
        self.cells: dict[tuple[int, bytes], CellErrors] = {}
        self.values = np.zeros(0, dtype=VALUE)
        self.limits = np.tile([np.inf, -np.inf], (2, 1))
        self._highest_lot, self._smallest_error = np.uint64(2**64 - 1), -1.0

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(cell.count for cell in self.cells.values())

    def add(
        self,
        values: Mapping[str, np.ndarray],
        structure: np.ndarray,
        row: np.ndarray,
        types: np.ndarray,
        part: np.ndarray,
        parts: np.ndarray,
    ) -> None:
        """Add values with the config_type and part that each belongs to.

        Args:
            values: ``reference``, ``whole`` and ``error``, ``[values]``.
            structure: ``[values]``, and so the others.
            row: Place of the value among those of its structure.
            types: Number of the config_type.
            part: Place of its part among `parts`.
            parts: ``[parts, bytes]``.
        """
        error = values["error"]
        size = np.nan_to_num(np.abs(error), nan=np.inf)
        n_parts = len(parts)
        unique, cell_of, counts = np.unique(types * n_parts + part, return_inverse=True, return_counts=True)
        cell_of = cell_of.ravel()
        sums = [np.bincount(cell_of, each) for each in (np.abs(error), np.square(error), error)]
        grouped = np.split(error[np.argsort(cell_of, kind="stable")], np.cumsum(counts)[:-1])
        for place, key in enumerate(unique.tolist()):
            cell = self.cells.setdefault((key // n_parts, parts[key % n_parts].tobytes()), CellErrors())
            absolute, squared, signed = (float(each[place]) for each in sums)
            largest = float(np.abs(grouped[place]).max())
            cell.merge(CellErrors(int(counts[place]), absolute, squared, signed, largest))
            cell.spread.add(grouped[place])
        for limits, name in zip(self.limits, ("reference", "whole"), strict=True):
            both = (values[name], values[name] + error)
            limits[:] = min(limits[0], *(v.min() for v in both)), max(limits[1], *(v.max() for v in both))
        lot = _lots(structure, row)
        chosen = np.flatnonzero((lot <= self._highest_lot) | (size > self._smallest_error))
        new = np.zeros(len(chosen), dtype=VALUE)
        columns = {**values, "structure": structure, "row": row, "type": types, "part": parts[part], "lot": lot}
        for name, column in columns.items():
            new[name] = column[chosen]
        self._keep(new)

    def merge(self, other: PropertyTally) -> None:
        """Add the values of another one, for example of another process."""
        for key, cell in other.cells.items():
            self.cells.setdefault(key, CellErrors()).merge(cell)
        lowest, highest = np.stack([self.limits, other.limits]).transpose(2, 0, 1)
        self.limits = np.stack([lowest.min(0), highest.max(0)], axis=1)
        self._keep(other.values)

    def without_parts(self) -> None:
        """Add up the errors of all parts."""
        cells, self.cells = self.cells, {}
        for (kind, _), cell in cells.items():
            self.cells.setdefault((kind, bytes(_ELEMENT_BYTES)), CellErrors()).merge(cell)

    def _keep(self, values: np.ndarray) -> None:
        """Keep values to draw, and count the errors of all if there are many."""
        values = np.concatenate([self.values, values])
        if len(values) > MOST_VALUES + WORST_VALUES:
            sizes = np.nan_to_num(np.abs(values["error"]), nan=np.inf)
            low, worst = np.argpartition(values["lot"], MOST_VALUES)[:MOST_VALUES], _largest(sizes, WORST_VALUES)
            self._highest_lot, self._smallest_error = values["lot"][low].max(), sizes[worst].min()
            values = values[np.union1d(low, worst)]
        self.values = values
        if sum(cell.spread.n_kept for cell in self.cells.values()) > _EXACT:
            for cell in self.cells.values():
                cell.spread.settle()


@dataclass(frozen=True)
class StructureErrors:
    """Errors of a structure.

    Attributes:
        errors: By property, in the units of labels: the error of the energy per atom; the length of the largest error
            of a force; of others the root mean square.
        force_errors: Error of the force on each atom, ``[atoms, 3]``, NaN where there is no label; None without labels.
    """

    errors: dict[str, float]
    force_errors: np.ndarray | None


@dataclass(frozen=True)
class _Chunk:
    """Some structures with their compared values.

    Attributes:
        structures: Their indices, ``[structures]``.
        types: Numbers of their config_types.
        head: Their heads in the model.
        n_atoms: Their atoms.
        element: Place of each atom's element in the model's table, ``[atoms]``.
        rows: By property.
    """

    structures: np.ndarray
    types: np.ndarray
    head: np.ndarray
    n_atoms: np.ndarray
    element: np.ndarray
    rows: dict[str, Compared]

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self.element) + sum(row.reference.size for row in self.rows.values())

    @classmethod
    def joined(cls, chunks: Sequence[_Chunk]) -> _Chunk:
        """Put chunks one after the other."""
        rows = {}
        for name in dict.fromkeys(name for chunk in chunks for name in chunk.rows):
            parts = [chunk.rows[name] for chunk in chunks if name in chunk.rows]
            atoms = [part.atom for part in parts if part.atom is not None]
            rows[name] = Compared(
                reference=np.concatenate([part.reference for part in parts]),
                prediction=np.concatenate([part.prediction for part in parts]),
                structure=np.concatenate([part.structure for part in parts]),
                atom=np.concatenate(atoms) if atoms else None,
            )
        columns = ("structures", "types", "head", "n_atoms", "element")
        joined = {name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in columns}
        return cls(**joined, rows=rows)


class SetErrors:
    """Errors of the predictions for a set of structures.

    Args:
        types: Names of the config_types, of which batches have the numbers.
        atomic_numbers: Of the elements of the model.
        energies: E0 in eV by head and element, ``[heads, elements]``.

    Attributes:
        types: As given.
        tallies: Errors by property.
        by_type: Errors by number of the config_type.
        compositions: Elements of the structures as in `VALUE`; None if there are more than `MOST_COMPOSITIONS`.
        worst: By property the structures with the largest errors, the largest first: its size, and index of the
            structure.
        of_structures: The errors of those.
    """

    def __init__(self, types: Sequence[str], atomic_numbers: Sequence[int], energies: np.ndarray) -> None:
        self.types, self._atomic_numbers, self._energies = tuple(types), tuple(atomic_numbers), energies
        self.tallies: dict[str, PropertyTally] = {}
        self.by_type: dict[int, ErrorAccumulator] = {}
        self.compositions: set[bytes] | None = set()
        self._seen = np.zeros(len(atomic_numbers), dtype=bool)
        self.worst: dict[str, list[tuple[float, int]]] = {}
        self.of_structures: dict[int, StructureErrors] = {}
        self._waiting = list[_Chunk]()
        self._waiting_size = 0

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur."""
        return [number for number, seen in zip(self._atomic_numbers, self._seen, strict=True) if seen]

    def elements_of(self, part: bytes) -> tuple[int, ...]:
        """Return the atomic numbers that a part stands for, see `VALUE`."""
        places = np.flatnonzero(np.unpackbits(np.frombuffer(part, dtype=np.uint8)))
        return tuple(sorted(self._atomic_numbers[place] for place in places.tolist()))

    def add(self, batch: Batch, types: np.ndarray, rows: Mapping[str, Compared]) -> None:
        """Add the predictions for a batch.

        Args:
            batch: The structures, on the CPU; what is padding is left out.
            types: Number of the config_type of each, ``[structures]``.
            rows: What is labeled and predicted, by property.
        """
        count = len(batch.structures)
        n_atoms = batch.targets.atoms_per_structure.numpy()[:count]
        heads, elements = batch.graph.head.numpy()[:count], batch.graph.element.numpy()[: n_atoms.sum()]
        chunk = _Chunk(batch.structures, types, heads, n_atoms, elements, dict(rows))
        self._waiting.append(chunk)
        self._waiting_size += chunk.size
        if self._waiting_size > _AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Add up what waits; before this, results lack it."""
        if not self._waiting:
            return
        chunk = _Chunk.joined(self._waiting)
        self._waiting, self._waiting_size = [], 0
        n_structures, n_elements = len(chunk.structures), len(self._seen)
        present = np.zeros((n_structures, 8 * _ELEMENT_BYTES), dtype=bool)
        present[np.repeat(np.arange(n_structures), chunk.n_atoms), chunk.element] = True
        self._seen |= present[:, :n_elements].any(0)
        compositions, composition_of = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
        self._see({row.tobytes() for row in compositions})
        elements = np.packbits(np.eye(n_elements, 8 * _ELEMENT_BYTES, dtype=bool), axis=1)
        sorter = np.argsort(chunk.structures)
        first_atom = np.cumsum(chunk.n_atoms) - chunk.n_atoms
        scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, compared in chunk.rows.items():
            if not compared.reference.size:
                continue
            place = sorter[np.searchsorted(chunk.structures, compared.structure, sorter=sorter)]
            values = self._values(name, compared, place, chunk)
            if compared.atom is not None:
                part, parts = chunk.element[first_atom[place] + compared.atom], elements
            else:
                part, parts = composition_of.ravel()[place], compositions * (self.compositions is not None)
            each = max(values["error"][:1].size, 1)
            first_row = np.zeros_like(place) if compared.atom is None else compared.atom * each
            self.tallies.setdefault(name, PropertyTally()).add(
                {key: value.ravel() for key, value in values.items()},
                np.repeat(compared.structure, each),
                (first_row[:, None] + np.arange(each)).ravel(),
                np.repeat(chunk.types[place], each),
                np.repeat(part, each),
                parts,
            )
            self._add_by_type(name, compared, chunk.types[place], chunk.n_atoms[place])
            scores[name] = _scores(name, values["error"], place)
        self._rank(chunk, scores)

    def merge(self, other: SetErrors) -> None:
        """Add the errors of other structures of the same set, which another process has predicted."""
        self.settle()
        other.settle()
        for name, tally in other.tallies.items():
            self.tallies.setdefault(name, PropertyTally()).merge(tally)
        for kind, accumulator in other.by_type.items():
            self.by_type.setdefault(kind, ErrorAccumulator(percentiles=False)).merge(accumulator)
        self._seen |= other._seen
        self._see(other.compositions)
        for name, entries in other.worst.items():
            self.worst[name] = sorted(self.worst.get(name, []) + entries, reverse=True)[:MOST_WORST]
        self._forget(self.of_structures | other.of_structures)

    def errors_by_type(self) -> dict[str, dict[str, float]]:
        """Return the errors of every config_type that occurs, without percentiles."""
        return {self.types[kind]: self.by_type[kind].result() for kind in sorted(self.by_type, key=self._order)}

    def _order(self, kind: int) -> tuple[bool, str]:
        return self.types[kind] == OTHER, self.types[kind]

    def _values(self, name: str, compared: Compared, place: np.ndarray, chunk: _Chunk) -> dict[str, np.ndarray]:
        """Return labels and errors of a property, of extensive ones per atom; ``whole`` is with E0s."""
        reference, error = compared.reference, compared.prediction - compared.reference
        if not PROPERTIES[name].extensive:
            return {"reference": reference, "whole": reference, "error": error}
        atoms = chunk.n_atoms[place].reshape(-1, *[1] * (reference.ndim - 1))
        found = {"reference": reference / atoms, "whole": reference / atoms, "error": error / atoms}
        if name == "energy":
            structure_of_atom = np.repeat(np.arange(len(chunk.n_atoms)), chunk.n_atoms)
            of_atoms = self._energies[chunk.head[structure_of_atom], chunk.element]
            isolated = np.bincount(structure_of_atom, of_atoms, minlength=len(chunk.n_atoms))
            found["reference"] = (reference - isolated[place]) / atoms
        return found

    def _see(self, compositions: set[bytes] | None) -> None:
        """Note compositions; if there are too many, errors of structures are no longer divided by them."""
        if self.compositions is None:
            return
        self.compositions = None if compositions is None else self.compositions | compositions
        if self.compositions is None or len(self.compositions) > MOST_COMPOSITIONS:
            self.compositions = None
            for name, tally in self.tallies.items():
                if not PROPERTIES[name].of_atoms:
                    tally.without_parts()

    def _add_by_type(self, name: str, compared: Compared, types: np.ndarray, n_atoms: np.ndarray) -> None:
        for kind in np.unique(types).tolist():
            own = types == kind
            accumulator = self.by_type.setdefault(kind, ErrorAccumulator(percentiles=False))
            accumulator.add(name, compared.reference[own], compared.prediction[own], n_atoms[own])

    def _rank(self, chunk: _Chunk, scores: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Remember the structures with the largest errors."""
        for name, (places, numbers) in scores.items():
            if PROPERTIES[name].derived:
                continue
            sizes = np.nan_to_num(np.abs(numbers), nan=np.inf)
            if len(sizes) > MOST_WORST:  # those as large as the last one to be remembered all come into question
                chosen = sizes >= np.partition(sizes, -MOST_WORST)[-MOST_WORST]
                places, sizes = places[chosen], sizes[chosen]
            new = zip(sizes.tolist(), chunk.structures[places].tolist(), strict=True)
            self.worst[name] = sorted([*self.worst.get(name, []), *new], reverse=True)[:MOST_WORST]
        remembered = {structure for entries in self.worst.values() for _, structure in entries}
        new_places = np.flatnonzero(np.isin(chunk.structures, list(remembered))).tolist()
        found = {name: dict(zip(*map(np.ndarray.tolist, pair), strict=True)) for name, pair in scores.items()}
        for place in new_places:
            errors = {name: numbers[place] for name, numbers in found.items() if place in numbers}
            structure = int(chunk.structures[place])
            forces = _force_errors(chunk.rows.get("forces"), structure, int(chunk.n_atoms[place]))
            self.of_structures[structure] = StructureErrors(errors, forces)
        self._forget(self.of_structures)

    def _forget(self, of_structures: Mapping[int, StructureErrors]) -> None:
        remembered = {structure for entries in self.worst.values() for _, structure in entries}
        self.of_structures = {structure: of_structures[structure] for structure in sorted(remembered)}


def chosen_values(tallies: Sequence[PropertyTally], most: int, n_worst: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose values to draw: all, or the worst and a reproducible random choice of the others.

    Args:
        tallies: Errors of one property in one or several sets.
        most: How many values, up to `MOST_VALUES`.
        n_worst: How many of these have the largest errors, up to `WORST_VALUES`.

    Returns:
        Values of the kind `VALUE`, and for each the place of its set; by set and structure if they are all there are,
        else the worst ones last.
    """
    values = np.concatenate([t.values[np.lexsort((t.values["row"], t.values["structure"]))] for t in tallies])
    of_set = np.repeat(np.arange(len(tallies)), [len(tally.values) for tally in tallies])
    if sum(tally.count for tally in tallies) <= most:
        return values, of_set
    worst = _largest(np.nan_to_num(np.abs(values["error"]), nan=np.inf), n_worst)
    others = np.delete(np.arange(len(values)), worst)
    drawn = others[np.argsort(values["lot"][others], kind="stable")[: most - n_worst]]
    chosen = np.concatenate([drawn, worst])
    return values[chosen], of_set[chosen]


def _largest(sizes: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the largest numbers."""
    return np.argpartition(sizes, len(sizes) - count)[len(sizes) - count :]


def _lots(structure: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Draw a number for each value that depends on its place alone: a mixture of its bits (SplitMix64), uint64."""
    mixed = (structure.astype(np.uint64) << np.uint64(24)) + row.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _scores(name: str, error: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each structure one number, see `StructureErrors`; return places of structures and the numbers."""
    if name == "energy":
        return place, error
    if not PROPERTIES[name].of_atoms:
        return place, np.sqrt(np.mean(np.square(error.reshape(len(error), -1)), axis=1))
    first = np.flatnonzero(np.diff(place, prepend=-1))
    return place[first], np.maximum.reduceat(np.linalg.norm(error, axis=1), first)


def _force_errors(forces: Compared | None, structure: int, n_atoms: int) -> np.ndarray | None:
    """Return the error of the force on each atom of a structure that is not too large to be looked at."""
    rows = np.flatnonzero(forces.structure == structure) if forces is not None and n_atoms <= MOST_ATOMS else ()
    if forces is None or forces.atom is None or not len(rows):
        return None
    errors = np.full((n_atoms, 3), np.nan)
    errors[forces.atom[rows]] = forces.prediction[rows] - forces.reference[rows]
    return errors
