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
    found = write_alloy(options.folder, options.elements, options.neighbors, options.structures)
    print(f"{options.folder}: {options.structures} cells, {found:.1f} neighbors")


def write_alloy(folder: Path, n_elements: int = 89, neighbors: float = 62.0, n_structures: int = 20) -> float:
    """Write the files of random alloys.

    Args:
        folder: Where to; it is made if it does not exist.
        n_elements: The elements are the first so many.
        neighbors: Number of neighbors within `R_MAX` that the density asks for.
        n_structures: Number of cells.

    Returns:
        The number of neighbors that was found.
    """
    generator = np.random.default_rng(0)
    structures = [make_structure(n_elements, neighbors, generator) for _ in range(n_structures)]
    folder.mkdir(parents=True, exist_ok=True)
    ase.io.write(folder / TRAINING_FILE, structures, format="extxyz")
    atoms = [labeled(Atoms([z], cell=np.zeros((3, 3))), generator) for z in range(1, n_elements + 1)]
    ase.io.write(folder / ISOLATED_FILE, atoms, format="extxyz")
    return mean_neighbors(structures, R_MAX)


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
