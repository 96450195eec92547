"""Make the outputs of this folder: silicon with Quantum ESPRESSO, in about eight minutes on one core.

Run ``python make_data.py --pseudopotentials FOLDER`` where ``pw.x`` is on the path and FOLDER holds Si.pz-vbc.UPF.
With ``--check`` nothing is written; one frame is computed again with a larger basis and more k points.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import read

HERE = Path(__file__).resolve().parent
OUTPUTS = HERE / "outputs"
PSEUDOPOTENTIAL = "Si.pz-vbc.UPF"
LATTICE_CONSTANT = 5.40  # Angstrom, close to the minimum of this functional
CUTOFF_RY = 20
K_POINTS = 3
TIMESTEP_RY = 60  # 2.9 fs
TRAINING_STEPS, TEST_STEPS = 60, 20
STRAINED = 16

INPUT = """&control
 calculation='{calculation}', prefix='si', outdir='{folder}', pseudo_dir='{pseudopotentials}', disk_io='none',
 tprnfor=.true., tstress={stress}, nstep={steps}, dt={timestep}
/
&system
 ibrav=0, nat={count}, ntyp=1, ecutwfc={cutoff}, nosym=.true. {electrons}
/
&electrons
 conv_thr=1e-8
/
&ions
 {ions}
/
ATOMIC_SPECIES
Si 28.0855 {pseudopotential}
CELL_PARAMETERS angstrom
{cell}
ATOMIC_POSITIONS angstrom
{positions}
K_POINTS {k_points}
"""


def pw_input(atoms: Atoms, folder: str, pseudopotentials: str, **changes: object) -> str:
    """Write the input of pw.x for a structure; a single point unless ``changes`` say otherwise."""
    mesh = changes.pop("mesh", K_POINTS)
    values: dict[str, object] = {
        "calculation": "scf",
        "stress": ".true.",
        "steps": 1,
        "timestep": TIMESTEP_RY,
        "cutoff": CUTOFF_RY,
        "electrons": "",
        "ions": "",
        "k_points": f"automatic\n{mesh} {mesh} {mesh} 1 1 1",
        "count": len(atoms),
        "folder": folder,
        "pseudopotentials": pseudopotentials,
        "pseudopotential": PSEUDOPOTENTIAL,
        "cell": "\n".join(" ".join(f"{x:.8f}" for x in row) for row in atoms.cell),
        "positions": "\n".join("Si " + " ".join(f"{x:.8f}" for x in row) for row in atoms.positions),
    }
    return INPUT.format(**values | changes)


def run(atoms: Atoms, pseudopotentials: str, **changes: object) -> str:
    """Run pw.x and return its output."""
    with tempfile.TemporaryDirectory() as folder:
        text = pw_input(atoms, folder, pseudopotentials, **changes)
        output = subprocess.run(["pw.x"], input=text, capture_output=True, text=True, check=True).stdout
    return output.replace(pseudopotentials.rstrip("/"), "pseudo").replace(folder, "scratch")


def dynamics(pseudopotentials: str, temperature: float, steps: int, seed: int) -> str:
    """Molecular dynamics of eight atoms; half of the kinetic energy becomes potential energy on the way."""
    atoms = bulk("Si", "diamond", a=LATTICE_CONSTANT, cubic=True)
    atoms.positions += np.random.default_rng(seed).normal(scale=0.02, size=atoms.positions.shape)
    ions = f"ion_temperature='initial', tempw={2 * temperature:g}"
    return run(atoms, pseudopotentials, calculation="md", steps=steps, ions=ions)


def strained(seed: int) -> Atoms:
    """A crystal with random strain of up to 5 percent and displaced atoms."""
    random = np.random.default_rng(seed)
    atoms = bulk("Si", "diamond", a=LATTICE_CONSTANT, cubic=True)
    strain = random.uniform(-0.05, 0.05, size=(3, 3))
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def make(pseudopotentials: str) -> None:
    """Write all outputs."""
    OUTPUTS.mkdir(exist_ok=True)
    atom = Atoms("Si", positions=[[0.1, 0.2, 0.3]], cell=np.diag([9.0, 9.1, 9.2]), pbc=True)
    electrons = ", nspin=2, starting_magnetization(1)=0.5, tot_magnetization=2, nbnd=8, occupations='smearing', "
    electrons += "degauss=0.001"
    outputs = {"atom": run(atom, pseudopotentials, electrons=electrons, k_points="gamma", stress=".false.")}
    outputs["md_1200K"] = dynamics(pseudopotentials, 1200, TRAINING_STEPS, seed=1)
    outputs["md_600K"] = dynamics(pseudopotentials, 600, TEST_STEPS, seed=2)
    for k in range(STRAINED):
        outputs[f"strained_{k:02d}"] = run(strained(k), pseudopotentials)
    for name, text in outputs.items():
        (OUTPUTS / f"{name}.pwo").write_text(text, encoding="utf-8")


def check(pseudopotentials: str) -> None:
    """Compute one frame with a larger basis and more k points, and print how far the labels move."""
    frame = read(OUTPUTS / "md_1200K.pwo", -1)
    with tempfile.NamedTemporaryFile("w", suffix=".pwo") as file:
        file.write(run(frame, pseudopotentials, cutoff=30, mesh=4))
        file.flush()
        better = read(file.name)
    forces = frame.get_forces() - better.get_forces()
    stress = frame.get_stress() - better.get_stress()
    energy = (frame.get_potential_energy() - better.get_potential_energy()) / len(frame)
    print(f"energy {1e3 * energy:.1f} meV/atom, largest change of a force {abs(forces).max():.3f} eV/Angstrom")
    print(f"rms of the forces {frame.get_forces().std():.3f}, of their change {forces.std():.4f} eV/Angstrom")
    print(f"largest change of the stress {abs(stress).max():.5f} eV/Angstrom^3")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Silicon with Quantum ESPRESSO.")
    parser.add_argument("--pseudopotentials", required=True, help="folder with Si.pz-vbc.UPF")
    parser.add_argument("--check", action="store_true", help="compare one frame with a better basis")
    arguments = parser.parse_args()
    (check if arguments.check else make)(arguments.pseudopotentials)
