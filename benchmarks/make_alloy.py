"""Make data of many elements in the two files the benchmarks read: random alloys with random labels.

python benchmarks/make_alloy.py alloy && python benchmarks/training.py --data alloy --batch-size 2 --peer-python ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from molecules import ISOLATED_FILE, TRAINING_FILE, mean_neighbors

N_ATOMS = 16
R_MAX = 5.0


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Random alloys as data for benchmarks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--elements", type=int, default=89)
    parser.add_argument(
        "--neighbors", type=float, default=62.0, help="that the density asks for; the number found is printed"
    )
    parser.add_argument("--structures", type=int, default=20)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    structures = [make_structure(options.elements, options.neighbors, generator) for _ in range(options.structures)]
    options.folder.mkdir(parents=True, exist_ok=True)
    ase.io.write(options.folder / TRAINING_FILE, structures, format="extxyz")
    atoms = [labeled(Atoms([z], cell=np.zeros((3, 3))), generator) for z in range(1, options.elements + 1)]
    ase.io.write(options.folder / ISOLATED_FILE, atoms, format="extxyz")
    print(f"{options.folder}: {len(structures)} cells, {mean_neighbors(structures, R_MAX):.1f} neighbors")


def make_structure(n_elements: int, neighbors: float, generator: np.random.Generator) -> Atoms:
    """Distort a body-centered lattice of random elements as dense as the number of neighbors asks for."""
    edge = (2.0 * 4.0 / 3.0 * np.pi * R_MAX**3 / neighbors) ** (1.0 / 3.0)
    lattice = np.indices((2, 2, N_ATOMS // 8)).reshape(3, -1).T
    positions = np.concatenate([lattice, lattice + 0.5]) * edge + generator.normal(0.0, 0.3, (N_ATOMS, 3))
    numbers = generator.integers(1, n_elements + 1, N_ATOMS)
    cell = np.diag([2.0, 2.0, N_ATOMS / 8]) * edge
    return labeled(Atoms(numbers, positions, cell=cell, pbc=True), generator)


def labeled(atoms: Atoms, generator: np.random.Generator) -> Atoms:
    """Attach a random energy and random forces."""
    energy, forces = float(generator.normal()), generator.normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


if __name__ == "__main__":
    main()
