"""Make the methanol example: molecular dynamics frames labeled with density functional theory.

Three steps, each of which can be killed and started again:

1. *sample*: GFN2-xTB Langevin dynamics of one methanol molecule and of pairs of molecules at several temperatures;
2. *label*: energy, forces and dipole of every frame from PBE/def2-SVP, in shuffled order, one small file per frame;
3. *collect*: everything labeled so far is written to ``methanol_train.xyz`` and ``methanol_test.xyz``.

Pairs with a hydrogen bond are all labeled, the other frames up to ``--frames``, by default all. The split depends on
the seed and the number of sampled frames alone, so labeling more never moves a frame from one side to the other.

Usage::

    OMP_NUM_THREADS=1 python make_data.py            # all three steps, about an hour on one core
    python make_data.py --collect                    # only write what has been labeled so far
    python make_data.py --check                      # compare forces with finite differences of the energy
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS
from pyscf import dft, gto
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tblite.ase import TBLite

HERE = Path(__file__).resolve().parent
TEMPERATURES = (300, 600, 1000)  # Kelvin
SPIN = {"H": 1, "C": 2, "O": 2}  # unpaired electrons of the free atoms in their ground state
OXYGEN_DISTANCES = (2.7, 2.8, 2.9, 3.2, 3.6, 4.2, 4.8, 5.5)  # Angstrom; one dynamics segment of the dimer each
HYDROGEN_BOND_LENGTH = 1.9  # Angstrom; from the donated hydrogen to the accepting oxygen
SEGMENTS = {"monomer": 5, "dimer": len(OXYGEN_DISTANCES), "bonded_dimer": 4}
TEST_FRACTION = 0.18
TIMESTEP = 0.5  # fs
SAMPLING_INTERVAL = 100  # steps between saved frames: 50 fs
EQUILIBRATION = 400  # steps before the first saved frame: 200 fs, several times the friction time
FRICTION = 0.02  # 1/fs


@dataclass(frozen=True)
class Plan:
    """Everything that decides which frames exist, which of them are labeled and where they go."""

    monomers: int
    dimers: int
    bonded_dimers: int
    labeled: int
    seed: int
    work: Path

    def counts(self) -> dict[tuple[str, int], int]:
        """Return the number of frames of every (system, temperature in Kelvin)."""
        sizes = {"monomer": self.monomers, "dimer": self.dimers, "bonded_dimer": self.bonded_dimers}
        return {(system, t): size // len(TEMPERATURES) for system, size in sizes.items() for t in TEMPERATURES}

    def frame_names(self) -> list[str]:
        """Return the names of all sampled frames, in a fixed order."""
        return [f"{system}_{t}K_{i:03d}" for (system, t), count in self.counts().items() for i in range(count)]

    def names_to_label(self) -> list[str]:
        """Return the names of the frames to label: all bonded dimers, then others in shuffled order."""
        bonded = [name for name in self.frame_names() if name.startswith("bonded_dimer")]
        others = [name for name in self.frame_names() if not name.startswith("bonded_dimer")]
        order = np.random.default_rng([self.seed, 3]).permutation(len(others))
        return bonded + [others[i] for i in order[: self.labeled]]

    def test_names(self) -> set[str]:
        """Return the names of the test frames: the same fraction of every system and temperature."""
        rng = np.random.default_rng([self.seed, 1])
        chosen: set[str] = set()
        for (system, t), count in self.counts().items():
            picked = rng.permutation(count)[: round(TEST_FRACTION * count)]
            chosen.update(f"{system}_{t}K_{i:03d}" for i in picked)
        return chosen


class DistanceRestraint:
    """Harmonic force on the distance of two atoms, in the form of an ASE constraint.

    It brings two molecules to a wanted distance, and holds a hydrogen bond while it is sampled; labels never see it.

    Args:
        first: Index of one atom.
        second: Index of the other atom.
        distance: Wanted distance in Angstrom.
        stiffness: Force constant in eV/Angstrom^2.
    """

    def __init__(self, first: int, second: int, distance: float, stiffness: float = 0.3) -> None:
        self.pair = [first, second]
        self.distance = distance
        self.stiffness = stiffness

    def get_removed_dof(self, atoms: Atoms) -> int:
        """Return zero: a restraint removes no degree of freedom."""
        return 0

    def adjust_positions(self, atoms: Atoms, new: np.ndarray) -> None:
        """Leave the positions alone."""

    def adjust_potential_energy(self, atoms: Atoms) -> float:
        """Return the energy of the restraint in eV; without this method ASE leaves a constraint out of dynamics."""
        first, second = self.pair
        length = np.linalg.norm(atoms.positions[second] - atoms.positions[first])
        return float(0.5 * self.stiffness * (length - self.distance) ** 2)

    def adjust_forces(self, atoms: Atoms, forces: np.ndarray) -> None:
        """Add the restoring force to ``forces`` [n_atoms, 3] in eV/Angstrom."""
        first, second = self.pair
        bond = atoms.positions[second] - atoms.positions[first]
        length = np.linalg.norm(bond)
        pull = self.stiffness * (length - self.distance) * bond / length
        forces[first] += pull
        forces[second] -= pull


def build_progress() -> Progress:
    """Return a progress bar that shows counts, elapsed and remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn())


def rotate_randomly(atoms: Atoms, rng: np.random.Generator) -> None:
    """Give ``atoms`` a uniformly random orientation about their center of mass, in place."""
    phi, psi = rng.uniform(0.0, 360.0, size=2)
    theta = np.degrees(np.arccos(rng.uniform(-1.0, 1.0)))
    atoms.euler_rotate(phi, theta, psi, center="COM")


def add_partner_apart(atoms: Atoms, distance: float, rng: np.random.Generator) -> None:
    """Add a second, randomly oriented methanol in place and restrain the oxygens to ``distance`` in Angstrom."""
    partner = molecule("CH3OH")
    rotate_randomly(partner, rng)
    oxygen, partner_oxygen = atoms.symbols.search("O")[0], partner.symbols.search("O")[0]
    # Starting along the C-O bond and 1.6 Angstrom too far keeps the molecules from overlapping; the restraint
    # pulls them together during the relaxation.
    outward = atoms.positions[oxygen] - atoms.get_center_of_mass()
    outward /= np.linalg.norm(outward)
    partner.positions += atoms.positions[oxygen] + (distance + 1.6) * outward - partner.positions[partner_oxygen]
    restraint = DistanceRestraint(oxygen, len(atoms) + partner_oxygen, distance)
    atoms += partner
    atoms.set_constraint(restraint)


def add_acceptor(atoms: Atoms, rng: np.random.Generator) -> None:
    """Add a second methanol in place that accepts a hydrogen bond from the first one, and restrain that bond."""
    oxygen = atoms.symbols.search("O")[0]
    hydrogens = atoms.symbols.search("H")
    donated = hydrogens[np.argmin(atoms.get_distances(oxygen, hydrogens))]
    direction = atoms.positions[donated] - atoms.positions[oxygen]
    target = atoms.positions[donated] + HYDROGEN_BOND_LENGTH * direction / np.linalg.norm(direction)
    best, best_distance = molecule("CH3OH"), 0.0
    for _ in range(50):  # the orientation that keeps all other atoms of the two molecules farthest apart
        partner = molecule("CH3OH")
        rotate_randomly(partner, rng)
        partner_oxygen = partner.symbols.search("O")[0]
        partner.positions += target - partner.positions[partner_oxygen]
        others = np.delete(partner.positions, partner_oxygen, axis=0)
        closest = np.linalg.norm(others[:, None] - atoms.positions, axis=2).min()
        if closest > best_distance:
            best, best_distance = partner, closest
    acceptor = len(atoms) + best.symbols.search("O")[0]
    # Without a restraint, at 600 K and above, the bond would break before the first frame is saved.
    restraint = DistanceRestraint(donated, acceptor, HYDROGEN_BOND_LENGTH, stiffness=1.0)
    atoms += best
    atoms.set_constraint(restraint)


def build_start(system: str, segment: int, rng: np.random.Generator) -> Atoms:
    """Return the start of a dynamics segment, with the calculator (and for two molecules the restraint) attached."""
    atoms = molecule("CH3OH")
    rotate_randomly(atoms, rng)
    if system == "dimer":
        add_partner_apart(atoms, OXYGEN_DISTANCES[segment], rng)
    elif system == "bonded_dimer":
        add_acceptor(atoms, rng)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    return atoms


def sample_segment(system: str, temperature: int, segment: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield frames of one dynamics segment for ever, ``SAMPLING_INTERVAL`` steps apart."""
    atoms = build_start(system, segment, rng)
    BFGS(atoms, logfile=None).run(fmax=0.1, steps=60)
    if system == "dimer":
        atoms.set_constraint()  # released after the relaxation: segments are too short to evaporate altogether
    thermalize_momenta(atoms, temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        timestep=TIMESTEP * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        fixcm=False,  # the center of mass may drift; it is subtracted from every frame
        rng=rng,
    )
    dynamics.run(EQUILIBRATION)
    while True:
        frame = Atoms(atoms.symbols, positions=atoms.positions - atoms.get_center_of_mass())
        yield frame
        dynamics.run(SAMPLING_INTERVAL)


def sample_frames(plan: Plan) -> dict[str, Atoms]:
    """Return all unlabeled frames by name; each (system, temperature) is sampled once and kept on disk."""
    frames: dict[str, Atoms] = {}
    with build_progress() as progress:
        task = progress.add_task("sampling", total=len(plan.frame_names()))
        for number, ((system, temperature), count) in enumerate(plan.counts().items()):
            path = plan.work / f"sampled_{system}_{temperature}K.xyz"
            if not path.exists():
                rng = np.random.default_rng([plan.seed, 2, number])
                sampled: list[Atoms] = []
                for segment, indices in enumerate(np.array_split(np.arange(count), SEGMENTS[system])):
                    source = sample_segment(system, temperature, segment, rng)
                    for _ in indices:
                        sampled.append(next(source))
                        progress.advance(task)
                write_atomically(path, sampled)
            sampled = read(path, index=":")
            frames.update({f"{system}_{temperature}K_{i:03d}": atoms for i, atoms in enumerate(sampled)})
            progress.update(task, completed=len(frames))
    if sorted(frames) != sorted(plan.frame_names()):
        raise SystemExit(f"{plan.work} was sampled with other counts: name another folder with --work or empty it.")
    return frames


def write_atomically(path: Path, frames: Atoms | list[Atoms]) -> None:
    """Write extended XYZ so that a killed run leaves either the whole file or none."""
    temporary = path.with_suffix(".partial")
    write(temporary, frames, format="extxyz")
    temporary.replace(path)


def build_mean_field(atoms: Atoms) -> dft.rks.RKS | dft.uks.UKS:
    """Return the PBE/def2-SVP density-fitted mean field of ``atoms``; free atoms are spin polarized."""
    spin = SPIN[atoms.symbols[0]] if len(atoms) == 1 else 0
    geometry = list(zip(atoms.symbols, atoms.positions, strict=True))
    mean_field = (dft.UKS if spin else dft.RKS)(gto.M(atom=geometry, basis="def2-svp", spin=spin, verbose=0), xc="pbe")
    mean_field = mean_field.density_fit()
    mean_field.grids.level = 3
    mean_field.conv_tol = 1e-9
    mean_field.max_cycle = 100
    return mean_field


def converge(mean_field: dft.rks.RKS | dft.uks.UKS, name: str) -> dft.rks.RKS | dft.uks.UKS:
    """Return the converged mean field, with the second-order solver where the first one fails.

    The p shell of a free atom has several nearly equal solutions, so a free atom always takes the second-order solver
    and is moved on until its orbitals are stable.

    Raises:
        SystemExit: If neither solver converges.
    """
    mean_field.kernel()
    is_atom = mean_field.mol.natm == 1
    if is_atom or not mean_field.converged:
        second_order = mean_field.newton()
        second_order.kernel(mean_field.mo_coeff, mean_field.mo_occ)
        for _ in range(5 if is_atom else 0):
            orbitals, _, stable, _ = second_order.stability(return_status=True)
            if stable:
                break
            second_order.kernel(orbitals, second_order.mo_occ)
        mean_field = second_order
    if not mean_field.converged:
        raise SystemExit(f"{name}: the density did not converge; remove the frame from the plan or sample anew.")
    return mean_field


def label(atoms: Atoms, name: str) -> Atoms:
    """Return a copy of ``atoms`` with REF_energy [eV], REF_forces [eV/Angstrom] and REF_dipole [e*Angstrom]."""
    mean_field = converge(build_mean_field(atoms), name)
    if len(atoms) == 1:
        forces = np.zeros((1, 3))  # exact by symmetry
        dipole = np.zeros(3)
    else:
        gradient = mean_field.nuc_grad_method()
        gradient.grid_response = True  # the grid moves with the atoms: without it forces are off by up to 3e-3
        forces = -gradient.kernel() * units.Hartree / units.Bohr
        dipole = mean_field.dip_moment(unit="AU", verbose=0) * units.Bohr
    labeled = Atoms(atoms.symbols, positions=atoms.positions, pbc=False)
    labeled.info["REF_energy"] = float(mean_field.e_tot * units.Hartree)
    labeled.info["REF_dipole"] = np.round(dipole, 8)
    labeled.info["config_type"] = "IsolatedAtom" if len(atoms) == 1 else name.rsplit("_", 1)[0]
    labeled.arrays["REF_forces"] = forces
    return labeled


def label_frames(frames: dict[str, Atoms], plan: Plan) -> None:
    """Label every frame that has no labels yet; each one is on disk before the next begins."""
    todo = {f"atom_{symbol}": Atoms(symbol, positions=[[0.0, 0.0, 0.0]]) for symbol in SPIN}
    todo |= {name: frames[name] for name in plan.names_to_label()}
    folder = plan.work / "labeled"
    folder.mkdir(exist_ok=True)
    with build_progress() as progress:
        task = progress.add_task("labeling", total=len(todo))
        for name, atoms in todo.items():
            path = folder / f"{name}.xyz"
            if not path.exists():
                write_atomically(path, label(atoms, name))
            progress.advance(task)


def collect(plan: Plan, folder: Path) -> None:
    """Write all labeled frames to the training and the test file in ``folder`` and read them back.

    Raises:
        SystemExit: If nothing is labeled yet.
    """
    wanted = set(plan.names_to_label())
    names = [f"atom_{symbol}" for symbol in SPIN] + [name for name in plan.frame_names() if name in wanted]
    paths = {name: plan.work / "labeled" / f"{name}.xyz" for name in names}
    done = {name: read(path) for name, path in paths.items() if path.exists()}
    if not done:
        raise SystemExit(f"{plan.work / 'labeled'} holds no labeled frame yet: run without --collect first.")
    test_names = plan.test_names()
    parts = {"train": [n for n in done if n not in test_names], "test": [n for n in done if n in test_names]}
    for part, members in parts.items():
        path = folder / f"methanol_{part}.xyz"
        write_atomically(path, [done[name] for name in members])
        for atoms in read(path, index=":"):
            assert {"REF_energy", "REF_dipole", "config_type"} <= set(atoms.info) and "REF_forces" in atoms.arrays
        print(f"{path.name}: {len(members)} frames")
    print(f"{len(done)} of {len(names)} frames are labeled")


def check_forces(frames: dict[str, Atoms], step: float = 0.002) -> None:
    """Print forces beside central differences of the energy for three coordinates of a monomer and of a dimer.

    Args:
        frames: Sampled frames by name.
        step: Displacement in Angstrom.
    """
    for name in ("monomer_1000K_000", "dimer_1000K_000"):
        forces = label(frames[name], name).arrays["REF_forces"]
        print(f"{name}: net force {np.abs(forces.sum(axis=0)).max():.1e} eV/Angstrom")
        for atom, axis in ((0, 0), (1, 1), (5, 2)):
            energies = []
            for sign in (1, -1):
                moved = frames[name].copy()
                moved.positions[atom, axis] += sign * step
                energies.append(label(moved, name).info["REF_energy"])
            numerical = -(energies[0] - energies[1]) / (2 * step)
            analytic = forces[atom, axis]
            print(
                f"  atom {atom} axis {axis}: {analytic:+.6f}  {numerical:+.6f}  deviation {analytic - numerical:+.1e}"
            )


def parse_arguments() -> argparse.Namespace:
    """Return the command line options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--monomers", type=int, default=480, help="frames of one molecule, over all temperatures")
    parser.add_argument("--dimers", type=int, default=120, help="frames of two molecules, over all temperatures")
    parser.add_argument("--bonded_dimers", type=int, default=48, help="frames of hydrogen-bonded pairs, likewise")
    parser.add_argument("--frames", type=int, default=600, help="monomer and dimer frames to label, of those sampled")
    parser.add_argument("--seed", type=int, default=1, help="decides the dynamics, the order and the split")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of intermediate files")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the two data files")
    parser.add_argument("--collect", action="store_true", help="only write what has been labeled so far")
    parser.add_argument("--check", action="store_true", help="only compare forces with finite differences")
    return parser.parse_args()


def main() -> None:
    """Run the steps asked for on the command line."""
    options = parse_arguments()
    plan = Plan(
        monomers=options.monomers,
        dimers=options.dimers,
        bonded_dimers=options.bonded_dimers,
        labeled=options.frames,
        seed=options.seed,
        work=options.work,
    )
    plan.work.mkdir(parents=True, exist_ok=True)
    if options.collect:
        collect(plan, options.output)
        return
    frames = sample_frames(plan)
    if options.check:
        check_forces(frames)
        return
    label_frames(frames, plan)
    collect(plan, options.output)


if __name__ == "__main__":
    main()
