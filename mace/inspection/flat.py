"""The structures of one file as arrays over all their atoms, so that checks need no loop over structures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mace.graphs.pairs import find_pairs
from mace.inspection.findings import Finding, found
from mace.structures.condition_values import conditions_of_atoms
from mace.structures.configuration import Configuration
from mace.structures.stress import SMALLEST_VOLUME


@dataclass(frozen=True)
class FlatFile:
    """Structures of one file, isolated atoms left out; what is not labeled is NaN.

    Attributes:
        file: As the user named it.
        role: ``training``, ``validation`` or ``test``.
        configurations: The structures.
        index: Place of each in the file, ``[structures]``.
        n_atoms: ``[structures]``.
        first: First atom of each, ``[structures]``.
        structure_of_atom: ``[atoms]``.
        numbers: Atomic numbers, ``[atoms]``.
        positions: Angstrom, ``[atoms, 3]``.
        cells: Angstrom, ``[structures, 3, 3]``.
        pbc: ``[structures, 3]``.
        energies: eV, ``[structures]``.
        forces: eV/Angstrom, ``[atoms, 3]``.
        stresses: eV/Angstrom^3, ``[structures, 3, 3]``.
        conditions: What each atom is under, ``[atoms, values]``; without columns where nothing is read of it.
    """

    file: str
    role: str
    configurations: Sequence[Configuration]
    index: np.ndarray
    n_atoms: np.ndarray
    first: np.ndarray
    structure_of_atom: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    cells: np.ndarray
    pbc: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    stresses: np.ndarray
    conditions: np.ndarray

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.configurations)

    @property
    def volumes(self) -> np.ndarray:
        """Angstrom^3 of structures that repeat in all directions, NaN of others, ``[structures]``."""
        volumes = np.abs(np.linalg.det(self.cells))
        return np.where(self.pbc.all(axis=1) & (volumes > SMALLEST_VOLUME), volumes, np.nan)

    @property
    def heights(self) -> np.ndarray:
        """Distance of opposite faces of the cell in Angstrom, infinite where nothing repeats, ``[structures, 3]``."""
        return cell_heights(self.cells, self.pbc)

    def atoms_of(self, structure: int) -> slice:
        """The atoms of one structure."""
        return slice(int(self.first[structure]), int(self.first[structure] + self.n_atoms[structure]))

    def identity_of_atoms(self, structure: int, in_order: bool = True) -> bytes:
        """Elements and conditions of the atoms of a structure; energies are compared where these are equal only."""
        numbers, conditions = self.numbers[self.atoms_of(structure)], self.conditions[self.atoms_of(structure)]
        if not in_order:
            numbers, conditions = np.sort(numbers), np.sort(conditions, axis=0)
        return numbers.tobytes() + conditions.tobytes()

    @property
    def has_forces(self) -> np.ndarray:
        """Which structures have a force on every atom, ``[structures]``."""
        return np.bincount(self.structure_of_atom, ~np.isfinite(self.forces.sum(axis=1)), len(self)) == 0

    @property
    def has_stress(self) -> np.ndarray:
        """Which structures have a stress and a volume, ``[structures]``."""
        return np.isfinite(self.stresses).all(axis=(1, 2)) & np.isfinite(self.volumes)

    def pairs(self, structure: int, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find all pairs of atoms of one structure within a cutoff.

        Returns:
            Both atoms, counted within the structure, and the vector from the first to the second in Angstrom:
            ``[pairs]``, ``[pairs]``, ``[pairs, 3]``.
        """
        positions, cell = self.positions[self.atoms_of(structure)], self.cells[structure]
        a, b, c = self.pbc[structure].tolist()
        where = self.configurations[structure].where()
        first, second, shift = find_pairs(positions, cell, (a, b, c), cutoff, where)
        return first, second, positions[second] - positions[first] + shift @ cell

    def found(self, name: str, text: str, chosen: np.ndarray | None = None) -> Finding:
        """Write a finding, see `mace.inspection.findings.found`.

        Args:
            name: Its kind.
            text: The rest of the sentence.
            chosen: The structures concerned, by a mask or by indices; None for the whole file.
        """
        return found(name, self.file, text, () if chosen is None else self.index[chosen], len(self))


def grouped(places: Iterable[int], key: Callable[[int], Hashable]) -> list[np.ndarray]:
    """Collect places with the same key, the largest groups first."""
    members: dict[Hashable, list[int]] = {}
    for place in places:
        members.setdefault(key(place), []).append(place)
    return sorted(map(np.array, members.values()), key=len, reverse=True)


def spread(places: np.ndarray, most: int) -> np.ndarray:
    """Choose some places evenly from all, if there are more than wanted."""
    if len(places) <= most:
        return places
    return places[np.unique(np.linspace(0, len(places) - 1, most).astype(int))]


def flatten(file: str, role: str, configurations: Sequence[Configuration]) -> FlatFile:
    """Collect the structures of a file in arrays."""
    n_atoms = np.array([c.n_atoms for c in configurations], dtype=np.int64)
    total = int(n_atoms.sum())
    missing = np.full((3, 3), np.nan)
    forces = [c.forces if c.forces is not None else np.full((c.n_atoms, 3), np.nan) for c in configurations]
    return FlatFile(
        file=file,
        role=role,
        configurations=configurations,
        index=np.array([c.index for c in configurations], dtype=np.int64),
        n_atoms=n_atoms,
        first=np.cumsum(n_atoms) - n_atoms,
        structure_of_atom=np.repeat(np.arange(len(configurations)), n_atoms),
        numbers=_joined([c.atomic_numbers for c in configurations], (total,), np.int64),
        positions=_joined([c.positions for c in configurations], (total, 3)),
        cells=np.array([c.cell for c in configurations], dtype=np.float64).reshape(-1, 3, 3),
        pbc=np.array([c.pbc for c in configurations], dtype=bool).reshape(-1, 3),
        energies=np.array([np.nan if c.energy is None else c.energy for c in configurations], dtype=np.float64),
        forces=_joined(forces, (total, 3)),
        stresses=np.array(
            [missing if c.stress is None else c.stress for c in configurations], dtype=np.float64
        ).reshape(-1, 3, 3),
        conditions=np.concatenate([np.zeros((total, 0)), *conditions_of_atoms(configurations).values()], axis=1),
    )


def _joined(parts: Sequence[np.ndarray], shape: tuple[int, ...], kind: type = np.float64) -> np.ndarray:
    return np.concatenate(parts).astype(kind, copy=False).reshape(shape) if parts else np.zeros(shape, kind)


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
