"""Crystals of many elements, as large data sets of materials have them, and molecules where there are no data.

python benchmarks/crystals.py folder --structures 100
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from make_alloy import labeled
from molecules import ISOLATED_FILE, TRAINING_FILE, mean_neighbors

N_ELEMENTS = 89
R_MAX = 6.0
NEIGHBORS = 57.0


def frequencies(n_elements: int, generator: np.random.Generator) -> np.ndarray:
    """Return how often each element occurs: the k-th most frequent one ``1 / k`` times as often as the first."""
    weights = 1.0 / np.arange(1, n_elements + 1)
    return generator.permutation(weights / weights.sum())


def make_crystal(
    n_atoms: int, generator: np.random.Generator, of_elements: np.ndarray, neighbors: float = NEIGHBORS
) -> Atoms:
    """Make a periodic cell of atoms on a distorted lattice, of a few elements, with random labels.

    Args:
        n_atoms: Number of atoms.
        generator: Random numbers.
        of_elements: How often each element occurs.
        neighbors: Mean number of neighbors within `R_MAX`, which the density gives.
    """
    shape = _shape(n_atoms)
    spacing = (4.0 / 3.0 * np.pi * R_MAX**3 / neighbors) ** (1.0 / 3.0)
    lattice = np.indices(shape).reshape(3, -1).T
    places = lattice[generator.permutation(len(lattice))[:n_atoms]] if len(lattice) > n_atoms else lattice
    # sites left empty would lower the density
    spacing *= (n_atoms / len(lattice)) ** (1.0 / 3.0)
    positions = spacing * (places + generator.uniform(-0.15, 0.15, (n_atoms, 3)))
    chosen = generator.choice(len(of_elements), generator.integers(2, 6), replace=False, p=of_elements)
    numbers = 1 + generator.choice(chosen, n_atoms)
    return labeled(Atoms(numbers, positions, cell=spacing * np.array(shape), pbc=True), generator)


def _shape(n_atoms: int) -> tuple[int, int, int]:
    """Return how many sites a lattice has along each side, at least as many as atoms, and as few more as possible."""
    side = round(n_atoms ** (1.0 / 3.0))
    shapes = [
        (a, b, -(-n_atoms // (a * b))) for a in range(max(side - 1, 1), side + 2) for b in range(max(a - 1, 1), a + 2)
    ]
    return min(shapes, key=lambda shape: (shape[0] * shape[1] * shape[2], max(shape) - min(shape)))


def make_crystals(n_structures: int, least: int = 20, most: int = 60, seed: int = 0) -> list[Atoms]:
    """Make crystals of 20 to 60 atoms."""
    generator = np.random.default_rng(seed)
    of_elements = frequencies(N_ELEMENTS, generator)
    sizes = generator.integers(least, most + 1, n_structures)
    return [make_crystal(int(size), generator, of_elements) for size in sizes]


def make_molecules(n_structures: int, seed: int = 0, n_atoms: int = 15) -> list[Atoms]:
    """Make stand-ins for the labeled molecules of acetylacetone: atoms of the same elements, about as dense."""
    generator = np.random.default_rng(seed)
    numbers = np.array([6, 8, 1, 1, 6, 6, 6, 6, 8, 1, 1, 1, 1, 1, 1])[:n_atoms]
    lattice = np.indices((3, 3, 2)).reshape(3, -1).T
    structures = []
    for _ in range(n_structures):
        places = lattice[generator.permutation(len(lattice))[: len(numbers)]]
        positions = 1.8 * (places + generator.uniform(-0.15, 0.15, places.shape))
        structures.append(labeled(Atoms(numbers, positions), generator))
    return structures


def write_data(folder: Path, structures: list[Atoms], numbers: list[int], seed: int = 0) -> None:
    """Write structures and free atoms into the two files that benchmarks read."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    ase.io.write(folder / TRAINING_FILE, structures, format="extxyz")
    atoms = [labeled(Atoms([z], cell=np.zeros((3, 3))), generator) for z in numbers]
    ase.io.write(folder / ISOLATED_FILE, atoms, format="extxyz")


def write_crystals(folder: Path, n_structures: int) -> None:
    """Write crystals of `N_ELEMENTS` elements; see `make_crystals`."""
    write_data(folder, make_crystals(n_structures), list(range(1, N_ELEMENTS + 1)))


def write_molecules(folder: Path, n_structures: int, n_atoms: int = 15) -> None:
    """Write molecules; see `make_molecules`."""
    write_data(folder, make_molecules(n_structures, n_atoms=n_atoms), [1, 6, 8])


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Crystals of many elements as data for benchmarks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--structures", type=int, default=100)
    options = parser.parse_args()
    write_crystals(options.folder, options.structures)
    structures = list(ase.io.iread(options.folder / TRAINING_FILE))
    sizes, found = [len(atoms) for atoms in structures], mean_neighbors(structures, R_MAX)
    print(f"{options.folder}: {len(sizes)} cells of {min(sizes)} to {max(sizes)} atoms, {found:.1f} neighbors")
    closest = min(neighbor_list("d", atoms, 3.0).min(initial=np.inf) for atoms in structures)
    print(f"shortest distance {closest:.2f} Angstrom")


if __name__ == "__main__":
    main()
