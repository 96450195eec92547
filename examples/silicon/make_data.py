"""Make the silicon example: small periodic cells labeled with GFN1-xTB energies, forces and stress.

tblite evaluates periodic systems at the Gamma point only, and the energy of a small cell then says more about its
size than about its bonds. Every crystal is therefore replicated to the same supercell, two by two by two cubic cells
of diamond (64 atoms), evaluated there, and reduced again: energy per copy, mean force over the copies, the stress as
it is. All labels thus share one effective mesh of k points. Slabs are replicated along the surface only.

Usage::

    OMP_NUM_THREADS=1 python make_data.py            # about 10 minutes on one core; can be killed and started again
    python make_data.py --check                      # compare labels with finite differences and between cell sizes
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.io import read, write
from ase.neighborlist import neighbor_list
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tblite.ase import TBLite

HERE = Path(__file__).resolve().parent
LATTICE_CONSTANT = 5.60  # Angstrom; near the GFN1-xTB minimum in the 64-atom supercell
VACUUM = 12.0  # Angstrom
SHORTEST_DISTANCE = 2.0  # Angstrom; the bond length of the crystal is 2.42
DIMER_LENGTH = 2.45  # Angstrom; two silicon atoms of a reconstructed (001) surface
TEST_FRACTION = 0.18
COUNTS = {"diamond": 8, "strained": 24, "rattled": 56, "vacancy": 18, "slab": 14}


Copies = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Cell:
    """A cell of the diamond lattice and how it tiles the common supercell.

    Attributes:
        vectors: Cell vectors as rows, in units of the lattice constant.
        copies: Integer matrix whose rows give the supercell vectors in terms of the cell vectors.
    """

    vectors: tuple[tuple[float, float, float], ...]
    copies: Copies


CELLS = {
    2: Cell(((0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)), ((-2, 2, 2), (2, -2, 2), (2, 2, -2))),
    4: Cell(((0.5, 0.5, 0), (-0.5, 0.5, 0), (0, 0, 1)), ((2, -2, 0), (2, 2, 0), (0, 0, 2))),
    8: Cell(((1, 0, 0), (0, 1, 0), (0, 0, 1)), ((2, 0, 0), (0, 2, 0), (0, 0, 2))),
    16: Cell(((2, 0, 0), (0, 1, 0), (0, 0, 1)), ((1, 0, 0), (0, 2, 0), (0, 0, 2))),
}
SLAB_COPIES: Copies = ((2, 0, 0), (0, 2, 0), (0, 0, 1))
CELL_ALONE: Copies = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
LARGER_COPIES: Copies = ((3, 0, 0), (0, 2, 0), (0, 0, 2))  # of the cubic cell: 96 atoms


def build_diamond(n_atoms: int, lattice_constant: float = LATTICE_CONSTANT) -> Atoms:
    """Return perfect diamond in the cell with ``n_atoms`` atoms; the lattice constant is in Angstrom."""
    corners = np.array([(i, j, k) for i in range(-2, 3) for j in range(-2, 3) for k in range(-2, 3)])
    face_centers = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
    sites = (corners[:, None] + face_centers).reshape(-1, 3)
    sites = np.concatenate([sites, sites + 0.25])
    fractional = sites @ np.linalg.inv(CELLS[n_atoms].vectors)
    inside = fractional[((fractional > -1e-6) & (fractional < 1 - 1e-6)).all(axis=1)]
    cell = lattice_constant * np.array(CELLS[n_atoms].vectors)
    return Atoms(f"Si{n_atoms}", cell=cell, scaled_positions=inside, pbc=True)


def strain(atoms: Atoms, amount: float, rng: np.random.Generator) -> None:
    """Deform cell and atoms in place by a random symmetric strain with entries in ``[-amount, amount]``."""
    entries = rng.uniform(-amount, amount, size=(3, 3))
    deform(atoms, np.triu(entries) + np.triu(entries, 1).T)


def deform(atoms: Atoms, strain_tensor: np.ndarray) -> None:
    """Deform cell and atoms in place by a symmetric strain [3, 3]."""
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain_tensor), scale_atoms=True)


def rattle(atoms: Atoms, amplitude: float, rng: np.random.Generator) -> None:
    """Displace every coordinate in place by a normal deviate of standard deviation ``amplitude`` in Angstrom."""
    atoms.positions += rng.normal(scale=amplitude, size=(len(atoms), 3))


def build_slab(n_layers: int) -> Atoms:
    """Return a (001) slab of two atoms per layer, the two atoms of each surface layer joined to a dimer."""
    atoms = build_diamond(8).repeat((1, 1, -(-n_layers // 4)))
    atoms = atoms[np.argsort(atoms.positions[:, 2], kind="stable")[: 2 * n_layers]]
    for surface, below in ((0, 2), (2 * n_layers - 2, 2 * n_layers - 4)):
        bond = (atoms.positions[below] - atoms.positions[surface])[:2] / LATTICE_CONSTANT
        bond -= np.round(bond)
        # Surface atoms are bonded to the next layer along one diagonal; their dangling bonds point along the other.
        diagonal = np.array([1.0, -np.sign(bond[0] * bond[1]), 0.0]) / np.sqrt(2)
        shift = 0.5 * (LATTICE_CONSTANT / np.sqrt(2) - DIMER_LENGTH) * diagonal
        atoms.positions[surface] += shift
        atoms.positions[surface + 1] -= shift
    height = np.ptp(atoms.positions[:, 2])
    atoms.set_cell([LATTICE_CONSTANT, LATTICE_CONSTANT, height + VACUUM])
    atoms.center(axis=2)
    return atoms


def build_structure(kind: str, index: int, seed: int) -> Atoms:
    """Return structure ``index`` of its ``kind``; the same arguments always give the same structure.

    Structures with a pair of atoms below ``SHORTEST_DISTANCE`` are drawn again: a handful of violent collisions would
    otherwise dominate a fit of about a hundred frames.
    """
    rng = np.random.default_rng([seed, list(COUNTS).index(kind), index])
    while True:
        atoms = draw_structure(kind, index, rng)
        if neighbor_list("d", atoms, 3.0).min() >= SHORTEST_DISTANCE:
            return atoms


def draw_structure(kind: str, index: int, rng: np.random.Generator) -> Atoms:
    """Return one candidate for structure ``index`` of its ``kind``."""
    if kind == "diamond":
        return build_diamond(2, LATTICE_CONSTANT * np.linspace(0.94, 1.06, COUNTS["diamond"])[index])
    if kind == "strained":
        atoms = build_diamond((2, 4, 8)[index % 3])
        strain(atoms, 0.06, rng)
        return atoms
    if kind == "rattled":
        atoms = build_diamond((2, 4, 8, 8, 16)[index % 5])
        strain(atoms, 0.03, rng)
        rattle(atoms, np.linspace(0.02, 0.25, COUNTS["rattled"])[index], rng)
        return atoms
    if kind == "vacancy":
        atoms = build_diamond(16)
        del atoms[int(rng.integers(len(atoms)))]
        strain(atoms, 0.03, rng)
        rattle(atoms, np.linspace(0.02, 0.15, COUNTS["vacancy"])[index], rng)
        return atoms
    atoms = build_slab((4, 5, 6)[index % 3])
    rattle(atoms, np.linspace(0.02, 0.12, COUNTS["slab"])[index], rng)
    return atoms


def choose_copies(atoms: Atoms, kind: str) -> Copies:
    """Return the matrix that turns the cell of ``atoms`` into the common supercell."""
    if kind == "slab":
        return SLAB_COPIES
    return CELLS[16 if kind == "vacancy" else len(atoms)].copies


def label(atoms: Atoms, kind: str, copies: Copies | None = None) -> Atoms:
    """Return a labeled copy of ``atoms``.

    Args:
        atoms: A periodic cell.
        kind: Its kind, a key of ``COUNTS``.
        copies: Integer matrix that makes the supercell to evaluate; the common supercell if not given.

    Returns:
        The cell with ``REF_energy`` in eV, ``REF_forces`` in eV/Angstrom and ``REF_stress`` in eV/Angstrom^3, nine
        numbers, positive where the cell would shrink (the sign of ASE).

    Raises:
        SystemExit: If copies of one atom do not feel the same force.
    """
    supercell = make_supercell(atoms, copies or choose_copies(atoms, kind), wrap=False)
    n_copies = len(supercell) // len(atoms)
    supercell.calc = TBLite(method="GFN1-xTB", accuracy=0.1, max_iterations=500, verbosity=0)
    forces = supercell.get_forces().reshape(n_copies, len(atoms), 3)
    if np.ptp(forces, axis=0).max() > 1e-3:
        raise SystemExit(f"{kind}: copies of one atom feel forces that differ by {np.ptp(forces, axis=0).max():.1e}.")
    labeled = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True)
    labeled.info["REF_energy"] = float(supercell.get_potential_energy() / n_copies)
    labeled.info["REF_stress"] = np.round(supercell.get_stress(voigt=False).reshape(9), 10)
    labeled.info["config_type"] = kind
    labeled.arrays["REF_forces"] = forces.mean(axis=0)
    return labeled


def label_isolated_atom() -> Atoms:
    """Return the free silicon atom with its energy; GFN1-xTB knows no spin polarization."""
    atom = Atoms("Si", positions=[[0.0, 0.0, 0.0]])
    atom.calc = TBLite(method="GFN1-xTB", multiplicity=3, accuracy=0.1, verbosity=0)
    labeled = Atoms("Si", positions=atom.positions, pbc=False)
    labeled.info["REF_energy"] = float(atom.get_potential_energy())
    labeled.info["config_type"] = "IsolatedAtom"
    labeled.arrays["REF_forces"] = np.zeros((1, 3))
    return labeled


def write_atomically(path: Path, frames: Atoms | list[Atoms]) -> None:
    """Write extended XYZ so that a killed run leaves either the whole file or none."""
    temporary = path.with_suffix(".partial")
    write(temporary, frames, format="extxyz")
    temporary.replace(path)


def label_all(work: Path, seed: int) -> dict[str, list[Atoms]]:
    """Return the labeled structures of every kind; each one is on disk before the next begins."""
    labeled: dict[str, list[Atoms]] = {kind: [] for kind in COUNTS}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ) as progress:
        task = progress.add_task("labeling", total=sum(COUNTS.values()))
        for kind, count in COUNTS.items():
            for index in range(count):
                path = work / f"{kind}_{index:03d}.xyz"
                if not path.exists():
                    write_atomically(path, label(build_structure(kind, index, seed), kind))
                labeled[kind].append(read(path))
                progress.advance(task)
    return labeled


def collect(labeled: dict[str, list[Atoms]], folder: Path, seed: int) -> None:
    """Write ``silicon_train.xyz`` and ``silicon_test.xyz``, the same fraction of every kind in each."""
    rng = np.random.default_rng([seed, 100])
    parts: dict[str, list[Atoms]] = {"train": [label_isolated_atom()], "test": []}
    for frames in labeled.values():
        tested = set(rng.permutation(len(frames))[: round(TEST_FRACTION * len(frames))].tolist())
        for index, atoms in enumerate(frames):
            parts["test" if index in tested else "train"].append(atoms)
    for part, frames in parts.items():
        path = folder / f"silicon_{part}.xyz"
        write_atomically(path, frames)
        for atoms in read(path, index=":"):
            assert "REF_energy" in atoms.info and "REF_forces" in atoms.arrays
            assert atoms.info["config_type"] == "IsolatedAtom" or atoms.info["REF_stress"].shape in {(9,), (3, 3)}
        print(f"{path.name}: {len(frames)} frames")


def check_derivatives(seed: int) -> None:
    """Print forces and stress of a rattled, skewed cell beside central differences of the energy."""
    rng = np.random.default_rng([seed, 200])
    atoms = build_diamond(4)
    strain(atoms, 0.06, rng)
    rattle(atoms, 0.1, rng)
    reference = label(atoms, "rattled")
    step = 0.002  # Angstrom
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(label(moved, "rattled").info["REF_energy"])
        print_comparison(
            f"force {atom}{axis}", reference.arrays["REF_forces"][atom, axis], (energies[1] - energies[0]) / (2 * step)
        )
    step = 0.0005
    for i, j in ((0, 0), (2, 2), (0, 1), (1, 2)):
        energies = []
        for sign in (1, -1):
            moved, tensor = atoms.copy(), np.zeros((3, 3))
            tensor[i, j] += 0.5 * sign * step
            tensor[j, i] += 0.5 * sign * step
            deform(moved, tensor)
            energies.append(label(moved, "rattled").info["REF_energy"])
        numerical = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        print_comparison(f"stress {i}{j}", reference.info["REF_stress"].reshape(3, 3)[i, j], numerical)


def check_sizes(seed: int) -> None:
    """Print how much the labels depend on the size of the cell, and of the supercell, that is evaluated."""
    for n_atoms in CELLS:
        atoms = build_diamond(n_atoms)
        direct, reduced = (label(atoms, "diamond", c).info["REF_energy"] / n_atoms for c in (CELL_ALONE, None))
        print(f"diamond, {n_atoms:2d} atoms: cell {direct:.5f}, supercell {reduced:.5f} eV/atom")
    structures = {"diamond": build_diamond(8)}
    structures |= {f"rattled {i}": build_structure("rattled", i, seed) for i in (2, 22, 42)}
    for name, atoms in structures.items():
        usual, larger = (label(atoms, "rattled", c) for c in (None, LARGER_COPIES))
        shift = 1000 * (larger.info["REF_energy"] - usual.info["REF_energy"]) / len(atoms)
        change = np.sqrt(np.mean((larger.arrays["REF_forces"] - usual.arrays["REF_forces"]) ** 2))
        print(f"{name}: from 64 to 96 atoms {shift:+.1f} meV/atom, forces change by {change:.3f} eV/Angstrom rms")


def print_comparison(name: str, analytic: float, numerical: float) -> None:
    """Print one analytic derivative beside its finite difference."""
    print(f"{name}: {analytic:+.7f}  {numerical:+.7f}  deviation {analytic - numerical:+.1e}")


def parse_arguments() -> argparse.Namespace:
    """Return the command line options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="decides the structures and the split")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of intermediate files")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the two data files")
    parser.add_argument("--check", action="store_true", help="only check derivatives and the effect of the cell size")
    return parser.parse_args()


def main() -> None:
    """Run the steps asked for on the command line."""
    options = parse_arguments()
    if options.check:
        check_sizes(options.seed)
        check_derivatives(options.seed)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    collect(label_all(options.work, options.seed), options.output, options.seed)


if __name__ == "__main__":
    main()
