"""A structure as it is in the file, before its labels are interpreted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(slots=True)
class Frame:
    """The content of ASE's ``Atoms`` without creating one, which would take as long as all the rest of reading.

    Attributes:
        numbers: Atomic numbers, 0 for ``X``, ``[atoms]``.
        positions: ``[atoms, 3]``, float64.
        cell: Rows are the lattice vectors, ``[3, 3]``, float64.
        pbc: Whether each lattice direction repeats.
        info: Entries of the comment line.
        arrays: Columns besides numbers and positions, ``[atoms, ...]``.
        results: What ASE would store in a calculator.
        constraints: ASE's constraints.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]
    info: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    constraints: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of atoms."""
        return len(self.numbers)

    @classmethod
    def of_atoms(cls, atoms: Atoms) -> Frame:
        """Create a frame from an ASE structure; arrays are shared with it."""
        return cls(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.array(atoms.cell.array, dtype=np.float64),
            pbc=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
            info=dict(atoms.info),
            arrays={name: array for name, array in atoms.arrays.items() if name not in ("numbers", "positions")},
            results=dict(getattr(atoms.calc, "results", {})),
            constraints=list(atoms.constraints),
        )

    def to_atoms(self) -> Atoms:
        """Return the ASE structure that ASE would have read."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator

        atoms = Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc, info=self.info)
        for name, array in self.arrays.items():
            atoms.new_array(name, array)
        if self.constraints:
            atoms.set_constraint(self.constraints)
        if self.results:
            atoms.calc = SinglePointCalculator(atoms)
            atoms.calc.results.update(self.results)
        return atoms
