"""Data that are sound one by one, where only statistics of all of them can notice what is wrong.

What follows the name is the finding that the report on the data must give, and words of its sentence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write as write_structures
from ase.units import Bohr, GPa, Hartree, kcal, mol

from mace.structures.stress import full_tensor
from malformed_inputs.cases import E0S, plain_row, sound, suspect, trained_on, write

COPPER = "--E0s={29: 3.5}"


def strained_copper(count: int = 24) -> list[Atoms]:
    """Sheared, strained and distorted copper, with labels of ASE's effective-medium potential."""
    rng = np.random.default_rng(5)
    frames = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0.0, 0.03, (3, 3))), scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.info["REF_stress"] = atoms.get_stress()
        atoms.calc = None
        frames.append(atoms)
    return frames


def _trained_on(folder: Path, frames: list[Atoms]) -> list[str]:
    for atoms in frames:
        if "REF_stress" in atoms.info:
            atoms.info["REF_stress"] = full_tensor(atoms.info["REF_stress"]).ravel()
    write_structures(folder / "train.xyz", frames, format="extxyz")
    return [f"--train_file={folder / 'train.xyz'}", COPPER, "--loss=stress"]


@suspect("a stress in the order of VASP", "swapped-stress", "its last three components are taken as xy yz xz")
def _order(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.info["REF_stress"] = atoms.info["REF_stress"][[0, 1, 2, 5, 3, 4]]
    return _trained_on(folder, frames)


@suspect("a stress in kbar", "suspicious-stress", "the stress is in kbar")
def _kilobar(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.info["REF_stress"] = atoms.info["REF_stress"] / (0.1 * GPa)
    return _trained_on(folder, frames)


@suspect("a stress in GPa", "suspicious-stress", "the stress is in GPa")
def _gigapascal(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.info["REF_stress"] = atoms.info["REF_stress"] / GPa
    return _trained_on(folder, frames)


@suspect("a stress of the opposite sign", "suspicious-stress", "the sign is opposite")
def _pressure(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.info["REF_stress"] = -atoms.info["REF_stress"]
    return _trained_on(folder, frames)


@suspect("forces of the opposite sign", "suspicious-forces", "the sign is opposite")
def _gradients(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.arrays["REF_forces"] = -atoms.arrays["REF_forces"]
    return _trained_on(folder, frames)


@suspect("lengths in bohr", "unlikely-distances", "lengths were in bohr")
def _bohr(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.set_cell(atoms.cell.array / Bohr, scale_atoms=True)
    return _trained_on(folder, frames)


@suspect("forces in Hartree per bohr", "suspicious-forces", "forces are in Hartree/bohr")
def _atomic_forces(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.arrays["REF_forces"] = atoms.arrays["REF_forces"] / (Hartree / Bohr)
    return _trained_on(folder, frames)


@suspect("energies in kcal/mol", "suspicious-forces", "energies are in kcal/mol")
def _kilocalories(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.info["REF_energy"] / (kcal / mol)
    return _trained_on(folder, frames)


@suspect("virials of the sign of a stress", "suspicious-stress", "the sign is opposite")
def _virials(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.info["REF_virials"] = atoms.get_volume() * full_tensor(atoms.info.pop("REF_stress")).ravel()
    return _trained_on(folder, frames)


@suspect("positions as fractions of the cell", "unlikely-distances", "positions were fractions of the cell")
def _fractions(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.positions = atoms.get_scaled_positions()
    return _trained_on(folder, frames)


@suspect("two atoms at one place", "close-atoms", "structure 3", "closest: Cu-Cu, 0.01 Angstrom")
def _same_place(folder: Path) -> list[str]:
    frames = strained_copper()
    frames[3].positions[1] = frames[3].positions[0] + [0.01, 0.0, 0.0]
    return _trained_on(folder, frames)


@suspect("a structure that comes twice", "duplicates", "(3 = 24)", "copies may be trained on and validated with")
def _duplicates(folder: Path) -> list[str]:
    frames = strained_copper()
    return _trained_on(folder, [*frames, frames[3].copy()])


@suspect("one structure with two energies", "contradicting-duplicates", "differ by up to 1 eV")
def _contradictions(folder: Path) -> list[str]:
    frames = strained_copper()
    again = frames[3].copy()
    again.info["REF_energy"] += 1.0
    return _trained_on(folder, [*frames, again])


@suspect("forces of zero on fixed atoms", "zeroed-forces", "eV/Angstrom, not zero")
def _fixed(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames:
        atoms.arrays["REF_forces"][:2] = 0.0
    return _trained_on(folder, frames)


@suspect("the same structures for training and validation", "leakage", "of the validation set")
def _leakage(folder: Path) -> list[str]:
    return trained_on(folder, sound(), f"--valid_file={write(folder, sound(), 'valid.xyz')}")


@suspect("a force beyond reason", "large-forces", "structure 0", "largest: 500")
def _large_forces(folder: Path) -> list[str]:
    text = sound()
    lines = text.splitlines()
    lines[2] = "O 0.0 0.0 0.12 500.0 0.0 0.0"
    return [f"--train_file={write(folder, chr(10).join(lines) + chr(10))}", E0S]


@suspect("forces of zero for forces that are missing", "placeholder-labels", "labels 'forces' that are exactly zero")
def _no_forces(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames[:5]:
        atoms.arrays["REF_forces"][:] = 0.0
    return _trained_on(folder, frames)


@suspect("a stress of zero for a stress that is missing", "placeholder-labels", "labels 'stress' that are exactly zero")
def _no_stress(folder: Path) -> list[str]:
    frames = strained_copper()
    for atoms in frames[:5]:
        atoms.info["REF_stress"][:] = 0.0
    return _trained_on(folder, frames)


@suspect("forces on molecules that are pushed", "net-forces", "eV/Angstrom (median), not zero")
def _pushed(folder: Path) -> list[str]:
    rows = sound(row=lambda s, p, f: plain_row(s, p, f + [0.0, 1.0, -1.0]))
    return trained_on(folder, rows)
