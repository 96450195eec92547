"""Make structures without end, with the exact energies, forces and stress of a pair potential, as extended XYZ.

    python benchmarks/make_structures.py large --structures 1000000 --files 16

Two thirds are free molecules of H, C, N and O, one third periodic cells of O, Na, Mg, Al, Si and Cl: sites of a grid,
some left empty, in a strained box, every atom moved. They have 3 to 60 atoms, 12 on average. Structure ``i`` depends on
the seed and on ``i`` alone: neither on how many are made nor on files and processes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import vesin

CUTOFF = 5.0
"""Where the potential ends, with zero first and second derivative, in Angstrom."""

STEEPNESS = 1.2
"""Of the Morse potential, in 1/Angstrom."""

ELEMENTS = {  # number: symbol, energy of the isolated atom (eV), radius (Angstrom), depth (eV)
    1: ("H", -13.6, 0.8, 0.3),
    6: ("C", -1030.0, 1.1, 0.8),
    7: ("N", -1486.0, 1.05, 0.7),
    8: ("O", -2042.0, 1.0, 0.9),
    11: ("Na", -1297.0, 1.5, 0.4),
    12: ("Mg", -1690.0, 1.35, 0.6),
    13: ("Al", -1945.0, 1.3, 0.8),
    14: ("Si", -2380.0, 1.25, 0.9),
    17: ("Cl", -3720.0, 1.4, 0.5),
}
MOLECULES = np.array([1, 1, 1, 1, 6, 6, 7, 8])
"""What is drawn from for the atoms of a molecule."""

CELLS = np.array([8, 8, 8, 11, 12, 13, 14, 17])
MOLECULE_SPACING, CELL_SPACING = 1.9, 2.4
"""Of the sites, in Angstrom."""

MOVED = 0.1
"""Standard deviation of the moves of atoms, in Angstrom."""

BLOCK = 1000
"""How many structures share a generator of random numbers, and go through NumPy at once."""

_TABLE = np.zeros((max(ELEMENTS) + 1, 3))
for _number, (_, *_values) in ELEMENTS.items():
    _TABLE[_number] = _values


@dataclass(frozen=True)
class Structure:
    """One structure without labels.

    Attributes:
        numbers: Atomic numbers, ``[atoms]``.
        positions: In Angstrom, ``[atoms, 3]``.
        cell: Lattice vectors in rows, in Angstrom, ``[3, 3]``; None for a molecule.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray | None


def reference_energies() -> dict[int, float]:
    """Return the energy of each isolated atom by atomic number, in eV."""
    return {number: row[1] for number, row in ELEMENTS.items()}


def draw_block(seed: int, block: int, count: int = BLOCK) -> list[Structure]:
    """Draw the first structures of a block."""
    random = np.random.default_rng([seed, block])
    sizes = np.clip(3 + random.exponential(9.5, BLOCK).astype(int), 3, 60)
    periodic = random.random(BLOCK) < 1 / 3
    return [
        _draw_cell(int(size), random) if cell else _draw_molecule(int(size), random)
        for size, cell in zip(sizes[:count], periodic[:count], strict=True)
    ]


def _draw_molecule(size: int, random: np.random.Generator) -> Structure:
    """Take the sites of a grid that are nearest to a random point."""
    sites = np.indices((6, 6, 6)).reshape(3, -1).T * MOLECULE_SPACING
    center = (2.5 + random.uniform(-0.5, 0.5, 3)) * MOLECULE_SPACING
    near = np.argsort(np.sum((sites - center) ** 2, axis=1), kind="stable")[:size]
    positions = sites[near] + random.normal(0.0, MOVED, (size, 3))
    # as the file has them, so that the labels are those of the file
    return Structure(random.choice(MOLECULES, size), positions.round(8), None)


def _draw_cell(size: int, random: np.random.Generator) -> Structure:
    """Fill a grid that is as near to a cube as it can be, strain it, and move the atoms."""
    shape = [1, 1, 1]
    while shape[0] * shape[1] * shape[2] < size:
        shape[shape.index(min(shape))] += 1
    sites = np.indices(shape).reshape(3, -1).T
    fractional = sites[random.permutation(len(sites))[:size]] / shape
    strain = np.eye(3) + random.normal(0.0, 0.04, (3, 3))
    cell = (CELL_SPACING * np.diag(shape) @ strain).round(8)
    positions = fractional @ cell + random.normal(0.0, MOVED, (size, 3))
    return Structure(random.choice(CELLS, size), positions.round(8), cell)


@dataclass(frozen=True)
class Labels:
    """What the potential says about several structures.

    Attributes:
        energies: In eV, ``[structures]``.
        forces: In eV/Angstrom, of the atoms of all structures, ``[atoms, 3]``.
        virials: Derivative of the energy with respect to a strain, in eV, ``[structures, 3, 3]``; the stress is that
            divided by the volume.
    """

    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray


def label(structures: list[Structure]) -> Labels:
    """Evaluate the potential: Morse by pairs, times ``(1 - (r / CUTOFF)^2)^3``."""
    search = vesin.NeighborList(cutoff=CUTOFF, full_list=False)
    counts = np.array([len(structure.numbers) for structure in structures])
    first = np.cumsum(counts) - counts
    pairs = [_pairs(search, structure) for structure in structures]
    n_pairs = [len(found[2]) for found in pairs]
    offset = np.repeat(first, n_pairs)
    i, j = (np.concatenate([found[side] for found in pairs]).astype(int) + offset for side in (0, 1))
    vectors = np.concatenate([found[2] for found in pairs])
    numbers = np.concatenate([structure.numbers for structure in structures])
    energy, slope, r = _pair_energies(numbers[i], numbers[j], vectors)
    along = vectors * (slope / r)[:, None]  # derivative of the pair's energy with respect to the place of j
    structure_of = np.repeat(np.arange(len(structures)), n_pairs)
    n, atoms = len(structures), len(numbers)
    atom_of = np.repeat(np.arange(n), counts)
    energies = np.bincount(structure_of, energy, n) + np.bincount(atom_of, _TABLE[numbers, 0], n)
    forces = [np.bincount(i, along[:, k], atoms) - np.bincount(j, along[:, k], atoms) for k in range(3)]
    virials = [np.bincount(structure_of, along[:, k] * vectors[:, m], n) for k in range(3) for m in range(3)]
    return Labels(energies, np.stack(forces, 1), np.stack(virials, 1).reshape(n, 3, 3))


def _pairs(search: vesin.NeighborList, structure: Structure) -> list[np.ndarray]:
    """Return both atoms of every pair, and the vector from the first to the second."""
    box = np.zeros((3, 3)) if structure.cell is None else structure.cell
    return search.compute(structure.positions, box, structure.cell is not None, "ijD")


def _pair_energies(
    one: np.ndarray, other: np.ndarray, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return energy, its derivative with respect to the distance, and the distance of pairs of elements."""
    r = np.linalg.norm(vectors, axis=1)
    depth = np.sqrt(_TABLE[one, 2] * _TABLE[other, 2])
    decay = np.exp(-STEEPNESS * (r - _TABLE[one, 1] - _TABLE[other, 1]))
    inside = 1.0 - (r / CUTOFF) ** 2
    morse, slope = depth * ((1.0 - decay) ** 2 - 1.0), 2.0 * depth * STEEPNESS * decay * (1.0 - decay)
    return morse * inside**3, slope * inside**3 - morse * 6.0 * r / CUTOFF**2 * inside**2, r


def as_text(structures: list[Structure], labels: Labels) -> str:
    """Write structures with their labels as extended XYZ."""
    parts, start = [], 0
    for place, structure in enumerate(structures):
        size = len(structure.numbers)
        rows = np.concatenate([structure.positions, labels.forces[start : start + size]], axis=1)
        start += size
        head = f"{size}\n"
        if structure.cell is not None:
            volume = abs(np.linalg.det(structure.cell))
            stress = labels.virials[place] / volume
            head += f'Lattice="{_join(structure.cell, "%.8f")}" REF_stress="{_join(stress, "%.10f")}" '
        kind, pbc = ("molecule", "F F F") if structure.cell is None else ("cell", "T T T")
        head += "Properties=species:S:1:pos:R:3:REF_forces:R:3 "
        head += f'REF_energy={labels.energies[place]:.10f} config_type={kind} pbc="{pbc}"\n'
        symbols = "".join(f"{ELEMENTS[number][0]} %.8f %.8f %.8f %.8f %.8f %.8f\n" for number in structure.numbers)
        parts += [head, symbols % tuple(rows.ravel().tolist())]
    return "".join(parts)


def _join(matrix: np.ndarray, form: str) -> str:
    return " ".join(form % value for value in matrix.ravel())


def write_file(path: Path, seed: int, first: int, end: int) -> None:
    """Write the structures from one to before another; both are multiples of BLOCK, or the end is that of the set."""
    with open(path, "w", encoding="ascii") as file:
        for start in range(first, end, BLOCK):
            structures = draw_block(seed, start // BLOCK, min(BLOCK, end - start))
            file.write(as_text(structures, label(structures)))


def write_structures(folder: Path, structures: int, files: int = 1, seed: int = 0, processes: int = 1) -> list[Path]:
    """Write a set.

    Args:
        folder: Made if it does not exist.
        structures: How many.
        files: Into how many files of about equal size; fewer if there are not as many blocks of 1000.
        seed: Of all random numbers.
        processes: How many work at once, on a file each.

    Returns:
        The files in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = [(folder / f"part-{place:03}.xyz", seed, *span) for place, span in enumerate(_spans(structures, files))]
    with ProcessPoolExecutor(processes) as pool:
        for done in [pool.submit(write_file, *each) for each in work]:
            done.result()
    return [path for path, *_ in work]


def _spans(structures: int, files: int) -> Iterator[tuple[int, int]]:
    blocks = -(-structures // BLOCK)
    for share in np.array_split(np.arange(blocks), min(files, blocks)):
        yield int(share[0]) * BLOCK, min(int(share[-1] + 1) * BLOCK, structures)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Structures with energies, forces and stress of a pair potential.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--structures", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    files = write_structures(options.folder, options.structures, options.files, options.seed, options.processes)
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{options.structures} structures in {len(files)} files, {size:.0f} MB")


if __name__ == "__main__":
    main()
