"""Crystals with labels that go together, and ways to spoil them."""

from __future__ import annotations

import functools

import numpy as np
from ase import Atoms
from ase.build import bulk
from training_runs import labeled, rattled


def crystals(count: int, seed: int = 0) -> list[Atoms]:
    """Strained and rattled copper crystals, labeled with energy, forces and stress."""
    return [atoms.copy() for atoms in make_crystals(count, seed)]


@functools.cache
def make_crystals(count: int, seed: int) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True)
        strain = rng.uniform(-0.02, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        frames.append(labeled(rattled(atoms, 0.05, rng), stress=True))
    return frames


def strained(count: int) -> list[Atoms]:
    """Copper crystals that differ in their cell alone."""
    frames = []
    for step in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array * (0.97 + 0.06 * step / count), scale_atoms=True)
        frames.append(labeled(atoms, stress=True))
    return frames


def changed(frames: list[Atoms], **factors: float) -> list[Atoms]:
    """Multiply labels, as a wrong unit or sign does."""
    for atoms in frames:
        for name, factor in factors.items():
            store = atoms.arrays if name == "forces" else atoms.info
            store[f"REF_{name}"] = store[f"REF_{name}"] * factor
    return frames


def constant(frames: list[Atoms], key: str, value: object) -> list[Atoms]:
    for atoms in frames:
        atoms.info[key] = value
    return frames


def pushed(frames: list[Atoms]) -> list[Atoms]:
    """Molecules whose forces are those of a larger system."""
    for atoms in frames:
        atoms.arrays["REF_forces"] += [0.5, -1.0, 2.0]
    return frames


def shuffled(frames: list[Atoms]) -> list[Atoms]:
    """Molecules whose forces lost their signs."""
    for atoms in frames:
        atoms.arrays["REF_forces"] = np.abs(atoms.arrays["REF_forces"])
    return frames
