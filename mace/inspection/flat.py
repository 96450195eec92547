"""Consecutive structures of one file as arrays over all their atoms, so that checks need no loop over structures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mace.graphs.pairs import find_pairs
from mace.inspection.findings import MOST_PLACES, Evidence
from mace.properties import PROPERTIES
from mace.structures.collection import Names, StructureCollection
from mace.structures.flat import FlatStructures
from mace.structures.stress import SMALLEST_VOLUME


@dataclass(frozen=True)
class FlatFile:
    """Consecutive structures of one file, one at least; what is not labeled is NaN.

    Attributes:
        file: As the user named it.
        index: Place of each in the file, ``[structures]``.
        config_types: The config_type of each.
        heads: The head of each.
        flat: Their columns.
    """

    file: str
    index: np.ndarray
    config_types: Names
    heads: Names
    flat: FlatStructures

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.flat)

    @property
    def n_atoms(self) -> np.ndarray:
        """``[structures]``."""
        return self.flat.n_atoms

    @cached_property
    def first(self) -> np.ndarray:
        """First atom of each structure, ``[structures]``."""
        return np.cumsum(self.n_atoms) - self.n_atoms

    @cached_property
    def structure_of_atom(self) -> np.ndarray:
        """``[atoms]``."""
        return np.repeat(np.arange(len(self)), self.n_atoms)

    @cached_property
    def numbers(self) -> np.ndarray:
        """Atomic numbers, ``[atoms]``."""
        return self.flat.numbers

    @property
    def positions(self) -> np.ndarray:
        """Angstrom, ``[atoms, 3]``."""
        return self.flat.columns["positions"]

    @property
    def cells(self) -> np.ndarray:
        """Angstrom, ``[structures, 3, 3]``."""
        return self.flat.columns["cell"]

    @property
    def pbc(self) -> np.ndarray:
        """``[structures, 3]``."""
        return self.flat.columns["pbc"]

    @cached_property
    def energies(self) -> np.ndarray:
        """eV, ``[structures]``."""
        return self.values("energy")

    @cached_property
    def forces(self) -> np.ndarray:
        """eV/Angstrom, ``[atoms, 3]``."""
        return self.values("forces")

    @cached_property
    def stresses(self) -> np.ndarray:
        """eV/Angstrom^3, ``[structures, 3, 3]``."""
        return self.values("stress")

    @cached_property
    def conditions(self) -> np.ndarray:
        """What each atom is under, ``[atoms, values]``; without columns where nothing is read of it."""
        return np.concatenate([np.zeros((len(self.numbers), 0)), *self.flat.conditions().values()], axis=1)

    def values(self, name: str) -> np.ndarray:
        """The labels of a property, ``[structures, ...]`` or ``[atoms, ...]``."""
        labeled, values = self.flat.labeled(name), self.flat.labels(name)
        if labeled.all():
            return values
        values = np.array(values, dtype=np.float64)
        values[~(labeled[self.structure_of_atom] if PROPERTIES[name].of_atoms else labeled)] = np.nan
        return values

    @cached_property
    def volumes(self) -> np.ndarray:
        """Angstrom^3 of structures that repeat in all directions, NaN of others, ``[structures]``."""
        volumes = np.abs(np.linalg.det(self.cells))
        return np.where(self.pbc.all(axis=1) & (volumes > SMALLEST_VOLUME), volumes, np.nan)

    @cached_property
    def heights(self) -> np.ndarray:
        """Distance of opposite faces of the cell in Angstrom, infinite where nothing repeats, ``[structures, 3]``."""
        return cell_heights(self.cells, self.pbc)

    def atoms_of(self, structure: int) -> slice:
        """The atoms of one structure."""
        return slice(int(self.first[structure]), int(self.first[structure] + self.n_atoms[structure]))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Add up over the atoms of each structure, ``[atoms, ...]`` to ``[structures, ...]``."""
        added: np.ndarray = np.add.reduceat(values, self.first)
        return added

    @cached_property
    def ranks(self) -> np.ndarray:
        """Place of each atom in its structure, ``[atoms]``."""
        return np.arange(len(self.numbers)) - self.first[self.structure_of_atom]

    @cached_property
    def marks(self) -> np.ndarray:
        """Equal where elements and conditions of the atoms are, in the same order, ``[structures]``, uint64.

        Energies are compared where these are equal only.
        """
        return self.sums(mixed(self.numbers, self.ranks, *self.conditions.T))

    @cached_property
    def unordered_marks(self) -> np.ndarray:
        """The same in any order of the atoms."""
        return self.sums(mixed(self.numbers, *self.conditions.T))

    @cached_property
    def has_forces(self) -> np.ndarray:
        """Which structures have a force on every atom, ``[structures]``."""
        return self.flat.labeled("forces")

    @cached_property
    def has_stress(self) -> np.ndarray:
        """Which structures have a stress and a volume, ``[structures]``."""
        return self.flat.labeled("stress") & np.isfinite(self.volumes)

    def pairs(self, structure: int, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find all pairs of atoms of one structure within a cutoff.

        Returns:
            Both atoms, counted within the structure, and the vector from the first to the second in Angstrom:
            ``[pairs]``, ``[pairs]``, ``[pairs, 3]``.
        """
        positions, cell = self.positions[self.atoms_of(structure)], self.cells[structure]
        a, b, c = self.pbc[structure].tolist()
        where = f"{self.file}: structure {self.index[structure]}"
        first, second, shift = find_pairs(positions, cell, (a, b, c), cutoff, where)
        return first, second, positions[second] - positions[first] + shift @ cell

    def saw(
        self,
        name: str,
        text: str,
        chosen: np.ndarray | None = None,
        key: str = "",
        severity: float = 0.0,
        is_of_part: bool = False,
    ) -> Evidence:
        """Note what was seen, see `mace.inspection.findings.Evidence`.

        Args:
            name: Its kind.
            text: The rest of the sentence.
            chosen: The structures concerned, by a mask or by indices; None if all together are.
            key: Tells it from others of its kind.
            severity: How bad it is.
            is_of_part: Whether it was decided from all structures; it is if none are chosen.
        """
        places = self.index[:0] if chosen is None else self.index[chosen]
        return Evidence(
            name,
            text,
            tuple(places[:MOST_PLACES].tolist()),
            len(places),
            key,
            severity,
            is_of_part=is_of_part or chosen is None,
            span=(int(self.index[0]), int(self.index[-1])),
        )


def flatten(file: str, structures: StructureCollection) -> FlatFile:
    """Collect structures of a file in arrays."""
    return FlatFile(
        file,
        structures.file_index,
        structures.config_types,
        structures.heads,
        structures.flat(np.arange(len(structures))),
    )


def mixed(*columns: np.ndarray) -> np.ndarray:
    """Hash rows of numbers, by the finalizer of splitmix64 after every column.

    Args:
        *columns: Of 64-bit numbers, of which all bits count, ``[rows]`` each.

    Returns:
        ``[rows]``, uint64.
    """
    state = np.full(len(columns[0]), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in columns:
        state += np.ascontiguousarray(column).view(np.uint64)
        state += np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(30)
        state *= np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state *= np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def grouped(places: np.ndarray, marks: np.ndarray, fewest: int = 1) -> list[np.ndarray]:
    """Collect places with the same mark, the largest groups first.

    Args:
        places: Rising.
        marks: Those of the places.
        fewest: Smaller groups are left out.
    """
    order = np.argsort(marks, kind="stable")
    starts = np.flatnonzero(np.diff(marks[order], prepend=~marks[order[:1]]))
    sizes = np.diff(starts, append=len(marks))
    kept = sizes >= fewest
    groups = [places[order[start : start + size]] for start, size in zip(starts[kept], sizes[kept], strict=True)]
    return sorted(groups, key=lambda group: (-len(group), int(group[0])))


def spread(places: np.ndarray, most: int) -> np.ndarray:
    """Choose some places evenly from all, if there are more than wanted."""
    if len(places) <= most:
        return places
    return places[np.unique(np.linspace(0, len(places) - 1, most).astype(int))]


def cell_heights(cells: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Measure how far images are apart along each direction, at right angles to the other repeating ones.

    Args:
        cells: Angstrom, ``[structures, 3, 3]``.
        pbc: ``[structures, 3]``.

    Returns:
        Angstrom, infinite along directions that do not repeat, ``[structures, 3]``.
    """
    gram = cells @ cells.transpose(0, 2, 1)
    # a direction that does not repeat is replaced by a unit vector at right angles to all others
    both = pbc[:, :, None] & pbc[:, None, :]
    gram = np.where(both, gram, np.eye(3))
    heights = 1.0 / np.sqrt(np.linalg.inv(gram)[:, range(3), range(3)])
    return np.where(pbc, heights, np.inf)
