"""Train a potential for methanol and run molecular dynamics with it.

Three steps, each printed as it is done: train with ``mace_run_train --config demo.yaml``, compare the model with the
density-functional labels of the test set, and follow two molecules for half a picosecond at constant energy.

Usage::

    python demo.py                       # about three minutes of training on two cores
    python demo.py --epochs 2 --steps 20 # a quick look
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from rich.progress import track

from mace.calculators import MACECalculator

HERE = Path(__file__).resolve().parent
TEMPERATURE = 300.0  # Kelvin
TIMESTEP = 0.5  # fs
FRAME_INTERVAL = 10  # steps between saved frames


@dataclass(frozen=True)
class Dynamics:
    """A trajectory at constant energy.

    Attributes:
        times: ps, ``[frames]``.
        energies: Potential plus kinetic energy per atom in eV, ``[frames]``.
        temperatures: Kelvin, ``[frames]``.
        frames: The structures.
    """

    times: np.ndarray
    energies: np.ndarray
    temperatures: np.ndarray
    frames: list[Atoms]

    @property
    def drift(self) -> float:
        """Slope of the total energy, eV per atom and ps."""
        return float(np.polyfit(self.times, self.energies, 1)[0])


def train(epochs: int | None, work_dir: Path) -> Path:
    """Run the training command as a user would.

    Args:
        epochs: Number of epochs instead of the one in ``demo.yaml``; the last quarter of them is stage two.
        work_dir: Folder for the files of the run.

    Returns:
        The model file of stage two.
    """
    arguments = ["--config", "demo.yaml", "--work_dir", str(work_dir)]
    if epochs is not None:
        arguments += ["--max_num_epochs", str(epochs), "--start_swa", str(max(1, 3 * epochs // 4))]
    say(f"1. Training: mace_run_train {shlex.join(arguments)}")
    finished = subprocess.run([sys.executable, "-m", "mace.cli.run_train", *arguments], cwd=HERE, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)  # the command has said what is wrong
    return work_dir / "methanol_stagetwo.model"


def compare(calculator: MACECalculator, structures: Sequence[Atoms]) -> tuple[float, float]:
    """Measure a model on labeled structures.

    Returns:
        Root mean square errors of the energy per atom in eV and of the force components in eV/Angstrom.
    """
    energy_errors, force_errors = [], []
    for atoms in track(structures, "Test set"):
        copy = atoms.copy()
        copy.calc = calculator
        energy_errors.append((copy.get_potential_energy() - atoms.info["REF_energy"]) / len(atoms))
        force_errors.append((copy.get_forces() - atoms.arrays["REF_forces"]).ravel())
    return rms(np.array(energy_errors)), rms(np.concatenate(force_errors))


def rms(values: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(values**2)))


def follow(atoms: Atoms, calculator: MACECalculator, steps: int) -> Dynamics:
    """Run molecular dynamics at constant energy from random velocities, without drift or rotation of the whole.

    Args:
        atoms: Where to start; a copy is moved.
        calculator: The potential.
        steps: Number of time steps.
    """
    atoms = Atoms(atoms.symbols, atoms.positions, calculator=calculator)
    spread = np.sqrt(atoms.get_masses()[:, None] * units.kB * TEMPERATURE)
    atoms.set_momenta(spread * np.random.default_rng(1).standard_normal((len(atoms), 3)))
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = VelocityVerlet(atoms, timestep=TIMESTEP * units.fs)
    times, energies, temperatures, frames = [], [], [], []
    for step in track(range(steps + 1), "Dynamics"):
        times.append(step * TIMESTEP * 1e-3)
        energies.append(atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())
        if step % FRAME_INTERVAL == 0:
            frames.append(atoms.copy())
        dynamics.run(1)
    return Dynamics(np.array(times), np.array(energies), np.array(temperatures), frames)


def say(text: str) -> None:
    """Print a line that stands out from the log, at once even where output is not a terminal."""
    print(f"\n=== {text}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a potential for methanol and run molecular dynamics with it.")
    parser.add_argument("--epochs", type=int, help="epochs of training (default: as in demo.yaml)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of molecular dynamics (default: %(default)s)")
    parser.add_argument("--work_dir", type=Path, default=HERE / "runs" / "demo", help="folder for all files")
    return parser.parse_args()


def main() -> None:
    """Train, compare, run dynamics."""
    arguments = parse_arguments()
    work_dir = arguments.work_dir.resolve()
    model = train(arguments.epochs, work_dir)
    calculator = MACECalculator(model_paths=model)

    structures = read(HERE / "methanol_test.xyz", ":")
    say(f"2. The test set once more, with the ASE calculator: {len(structures)} structures the model has never seen")
    energy_error, force_error = compare(calculator, structures)
    print(f"RMSE of the energy: {1e3 * energy_error:.2f} meV/atom, of the forces: {1e3 * force_error:.1f} meV/A")

    start = next(atoms for atoms in structures if atoms.info["config_type"].endswith("dimer_300K"))
    say(f"3. Molecular dynamics of two molecules, NVE, {arguments.steps} steps of {TIMESTEP} fs from {TEMPERATURE:g} K")
    dynamics = follow(start, calculator, arguments.steps)
    write(work_dir / "nve.xyz", dynamics.frames)
    spread = float(np.std(dynamics.energies))
    print(f"Mean temperature: {dynamics.temperatures.mean():.0f} K")
    print(f"Drift of the total energy: {1e3 * dynamics.drift:.4f} meV/atom per ps, spread {1e3 * spread:.4f} meV/atom")

    say("Done")
    print(f"Model:       {model}")
    (report,) = (path for path in (work_dir / "results").glob("*_run-*.html") if not path.stem.endswith("_data"))
    print(f"Report:      {report} (open it in a browser)")
    print(f"Plots:       {work_dir / 'results'}")
    print(f"Log:         {work_dir / 'logs'}")
    print(f"Trajectory:  {work_dir / 'nve.xyz'}")


if __name__ == "__main__":
    main()
