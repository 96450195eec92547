"""ASE structures: checked, converted to the model's unit of length, and compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes

from mace.errors import UserError
from mace.structures.configuration import Configuration
from mace.structures.stress import SMALLEST_VOLUME


def to_configuration(
    atoms: Atoms, length_unit: float, charges: np.ndarray | None, conditions: Mapping[str, np.ndarray], head: str
) -> Configuration:
    """Check a structure and convert it to the model's unit of length.

    Args:
        atoms: The structure.
        length_unit: The model's unit of length in Angstrom.
        charges: Charges that contribute to dipoles.
        conditions: Conditions the models depend on; see `mace.structures.condition_values.find_conditions`.
        head: The head to use for it.

    Raises:
        UserError: If it has no atoms, NaN or infinite numbers, no cell vector along a periodic direction, or charges
            that are not one number per atom.
    """
    if len(atoms) == 0:
        raise UserError("The structure has no atoms, so there is nothing to calculate.")
    positions, cell = np.array(atoms.positions, dtype=np.float64), np.array(atoms.cell.array, dtype=np.float64)
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise UserError("A position or the cell is NaN or infinite; did the simulation break down before this step?")
    pbc = (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2]))
    if any(pbc) and np.linalg.matrix_rank(cell[list(pbc)]) < sum(pbc):  # older NumPy gives no rank of empty matrices
        raise UserError(
            f"The structure repeats along pbc={list(pbc)}, but its lattice vectors there are zero or linearly "
            "dependent; give it a cell, or set pbc to False."
        )
    if charges is not None and (charges.shape != (len(atoms),) or not np.isfinite(charges).all()):
        raise UserError("The charges of the structure must be one finite number for every atom.")
    return Configuration(
        charges=None if charges is None else charges.astype(np.float64),
        atomic_numbers=np.array(atoms.numbers, dtype=np.int64),
        positions=positions / length_unit,
        cell=cell / length_unit,
        pbc=pbc,
        conditions=dict(conditions),
        head=head,
    )


def volume_of(atoms: Atoms) -> float | None:
    """Return the volume of the cell in Angstrom^3, or None if it is too small to define a stress."""
    volume = float(abs(np.linalg.det(atoms.cell.array)))
    return volume if volume > SMALLEST_VOLUME else None


def what_changed(before: Atoms | None, now: Atoms, tolerance: float) -> list[str]:
    """Return what ``ase.calculators.calculator.compare_atoms`` does, which takes as long as evaluating a small model.

    Args:
        before: A structure; None if there was none.
        now: Another one.
        tolerance: Largest difference of numbers that count as equal.

    Returns:
        Names from ASE's ``all_changes``.
    """
    if before is None:
        return list(all_changes)
    return [name for name in all_changes if _differ(_values(before, name), _values(now, name), tolerance)]


def _values(atoms: Atoms, name: str) -> np.ndarray | None:
    values: np.ndarray | None = atoms.arrays.get(name)
    return {"cell": atoms.cell.array, "pbc": atoms.pbc}[name] if name in ("cell", "pbc") else values


def _differ(one: np.ndarray | None, other: np.ndarray | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is not other
    if one.shape != other.shape:
        return True
    return not (np.array_equal(one, other) or bool((abs(np.subtract(one, other, dtype=float)) <= tolerance).all()))
