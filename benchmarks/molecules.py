"""Acetylacetone: the labeled molecules, and a periodic box packed with them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from workers import BenchmarkError

TRAINING_FILE = "train_300K.xyz"
ISOLATED_FILE = "isolated_atoms.xyz"
CLOSEST_CONTACT = 1.2
"""Atoms of different molecules in a box are farther apart than this, in Angstrom."""


def read_molecules(folder: Path) -> list[Atoms]:
    """Read the labeled molecules.

    Raises:
        BenchmarkError: If the file is missing.
    """
    return _read(folder, TRAINING_FILE)


def read_reference_energies(folder: Path) -> dict[int, float]:
    """Read the energies of the isolated atoms in eV, by atomic number, in rising order.

    Raises:
        BenchmarkError: If the file is missing.
    """
    energies = {int(a.numbers[0]): float(a.get_potential_energy()) for a in _read(folder, ISOLATED_FILE)}
    return dict(sorted(energies.items()))


def _read(folder: Path, name: str) -> list[Atoms]:
    file = folder / name
    if not file.is_file():
        raise BenchmarkError(
            f"{file} does not exist; name the folder with the acetylacetone data (the BOTNet data sets, "
            f"https://github.com/davkovacs/BOTNet-datasets, files {TRAINING_FILE} and {ISOLATED_FILE}) with --data."
        )
    return list(ase.io.iread(file))


def read_box(file: str) -> Atoms:
    """Read the one structure of a file."""
    (atoms,) = ase.io.iread(file)
    return atoms


def mean_neighbors(structures: list[Atoms], r_max: float) -> float:
    """Count the neighbors of an atom on average within a cutoff in Angstrom."""
    edges = sum(len(neighbor_list("i", atoms, r_max)) for atoms in structures)
    return edges / sum(len(atoms) for atoms in structures)


def rms_force(structures: list[Atoms]) -> float:
    """Return the root mean square of all force components in eV/Angstrom."""
    return float(np.sqrt(np.mean(np.concatenate([atoms.get_forces() for atoms in structures]) ** 2)))


def pack_box(molecules: list[Atoms], neighbors: float, r_max: float, per_side: int = 3, seed: int = 0) -> Atoms:
    """Pack molecules on a cubic grid with random orientations into a periodic box; the same arguments, the same box.

    Args:
        molecules: Evenly spaced ones of these are taken, ``per_side ** 3`` altogether.
        neighbors: Mean number of neighbors wanted; the size of the box follows.
        r_max: Cutoff of these neighbors in Angstrom.
        per_side: Molecules along each side.
        seed: Of the orientations.

    Returns:
        The box, without labels.

    Raises:
        BenchmarkError: If the molecules cannot be packed this densely.
    """
    chosen = [molecules[i] for i in np.linspace(0, len(molecules) - 1, per_side**3).astype(int)]
    numbers = np.concatenate([atoms.numbers for atoms in chosen])
    side = (len(numbers) * 4.0 / 3.0 * np.pi * r_max**3 / neighbors) ** (1.0 / 3.0)
    for _ in range(20):
        box = Atoms(numbers, _relaxed_positions(chosen, side, per_side, seed), cell=[side] * 3, pbc=True)
        found = mean_neighbors([box], r_max)
        if abs(found - neighbors) < 0.01 * neighbors:
            _check_contacts(box, [len(atoms) for atoms in chosen])
            return box
        side *= (found / neighbors) ** (1.0 / 3.0)
    raise BenchmarkError(f"No box with {neighbors} neighbors was found; the last one has {found:.1f}.")


def structure_of_size(molecules: list[Atoms], n_atoms: int, neighbors: float, r_max: float) -> Atoms:
    """Return one molecule in vacuum, or a periodic box: the smallest that can be packed, repeated along each side.

    Args:
        molecules: The molecules, of equal size.
        n_atoms: Number of atoms wanted.
        neighbors: See `pack_box`.
        r_max: See `pack_box`.

    Raises:
        BenchmarkError: If such a number of molecules does not fill a cube, or they cannot be packed.
    """
    size = len(molecules[0])
    side = round((n_atoms / size) ** (1.0 / 3.0))
    if side < 1 or size * side**3 != n_atoms:
        known = ", ".join(str(size * number**3) for number in range(1, 9))
        raise BenchmarkError(f"--sizes {n_atoms}: molecules of {size} atoms fill cubes of {known}, ... atoms.")
    if side == 1:
        return Atoms(molecules[0].numbers, molecules[0].positions)
    per_side = next(divisor for divisor in range(2, side + 1) if side % divisor == 0)
    for seed in range(9):  # in a small box some orientations do not reach the density
        with suppress(BenchmarkError):
            return pack_box(molecules, neighbors, r_max, per_side, seed).repeat(side // per_side)
    return pack_box(molecules, neighbors, r_max, per_side, 9).repeat(side // per_side)


def _relaxed_positions(molecules: list[Atoms], side: float, per_side: int, seed: int) -> np.ndarray:
    """Turn and shift molecules until the closest contacts are wide, ``[atoms, 3]``."""
    generator = np.random.default_rng(seed)
    shapes = [atoms.positions - atoms.positions.mean(0) for atoms in molecules]
    grid = (np.indices((per_side,) * 3).reshape(3, -1).T + 0.5) * side / per_side
    placed = [_turned(shape, generator) + center for shape, center in zip(shapes, grid, strict=True)]
    for _ in range(20 * len(molecules)):
        contacts = [_contact(placed, i, placed[i], side) for i in range(len(placed))]
        worst = int(np.argmin(contacts))
        if contacts[worst] > 1.5 * CLOSEST_CONTACT:
            break
        # the two molecules of the closest contact tie; taking either of them lets both move in the end
        worst = int(generator.choice(np.flatnonzero(np.isclose(contacts, contacts[worst]))))
        trials = [_turned(shapes[worst], generator) + grid[worst] + generator.uniform(-0.5, 0.5, 3) for _ in range(30)]
        placed[worst] = max([placed[worst], *trials], key=lambda trial: _contact(placed, worst, trial, side))
    return np.concatenate(placed)


def _turned(shape: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Turn a molecule at random; the orthogonal factor of a Gaussian matrix, with its signs settled, is uniform."""
    factor, triangle = np.linalg.qr(generator.normal(size=(3, 3)))
    rotation = factor * np.sign(np.diag(triangle))
    # a negative determinant would make the mirror image
    turned: np.ndarray = shape @ (rotation * np.sign(np.linalg.det(rotation))).T
    return turned


def _contact(placed: list[np.ndarray], own: int, positions: np.ndarray, side: float) -> float:
    """Return the distance from one molecule, placed anywhere, to the nearest other one or an image of it."""
    others = np.concatenate([other for i, other in enumerate(placed) if i != own])
    difference = positions[:, None] - others[None]
    difference -= side * np.round(difference / side)
    return float(np.sqrt((difference**2).sum(-1)).min())


def _check_contacts(box: Atoms, sizes: list[int]) -> None:
    """Refuse a box in which molecules nearly touch."""
    molecule = np.repeat(np.arange(len(sizes)), sizes)
    i, j, distance = neighbor_list("ijd", box, 2.0 * CLOSEST_CONTACT)
    closest = distance[molecule[i] != molecule[j]].min(initial=np.inf)
    if closest <= CLOSEST_CONTACT:
        raise BenchmarkError(f"Two molecules in the box are {closest:.2f} Angstrom apart; pack it less densely.")
