"""The command ``mace_md``: molecular dynamics of a structure with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import logging
import math
import warnings
from typing import TYPE_CHECKING

from mace.cli.command import FlagParser, add_output_flags, parse_flags, run_program
from mace.cli.outputs import check_output
from mace.dynamics.plan import ENSEMBLES
from mace.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from rich.console import Console

    from mace.dynamics.plan import SimulationPlan
    from mace.dynamics.simulation import SimulationSummary

_LOGGER = logging.getLogger("mace.cli.md")  # by name: as a program this module is called __main__

_POSITIVE = (
    "timestep_fs",
    "thermostat_fs",
    "barostat_fs",
    "max_temperature_K",
    "max_force",
    "min_distance",
    "time_ps",
    "friction",
)
_AT_LEAST_ONE = ("steps", "log_interval", "trajectory_interval", "state_interval")
_ONLY_FOR = {
    "friction": "nvt",
    "pressure_GPa": "npt",
    "thermostat_fs": "npt",
    "barostat_fs": "npt",
    "cell_changes": "npt",
}


def build_parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = FlagParser(
        prog="mace_md",
        description="Run molecular dynamics of a structure with a trained model. Beside the trajectory are written "
        "TRAJECTORY.log, and TRAJECTORY.state.npz, from which --restart goes on.",
    )
    _add_what(parser)
    _add_conditions(parser)
    _add_files(parser)
    _add_limits(parser)
    add_output_flags(parser)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Structure and model").add_argument
    add("--structure", required=True, help="where to start: any file ASE reads")
    add("--index", type=int, default=0, help="which structure of the file, from 0; -1 for the last (default: 0)")
    add("--model", required=True, nargs="+", help="model file; several, or a pattern, form a committee")
    add("--head", help="head of a model that has several (default: the one called default)")
    add("--charges_key", default="Qs", help="array of charges, for models of dipoles (default: Qs)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 or mps (default: cpu)")
    add("--default_dtype", choices=["float32", "float64"], default="", help="precision (default: the model's)")


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Time and conditions").add_argument
    add("--ensemble", choices=ENSEMBLES, default="nvt", help="constant energy; temperature (Langevin); "
        "temperature and pressure (Martyna, Tobias and Klein) (default: nvt)")  # fmt: skip
    add("--steps", type=int, help="time steps, those before a restart included; or --time_ps")
    add("--time_ps", type=float, help="the same in ps")
    add("--timestep_fs", type=float, default=0.5, help="length of a step (default: 0.5)")
    add("--temperature_K", type=float, help="of the thermostat and of the first velocities; may be left out for nve if "
        "the structure has velocities")  # fmt: skip
    add("--friction", type=float, help="of nvt, 1/ps (default: 10)")
    add("--pressure_GPa", type=float, help="of npt (default: 0)")
    add("--cell_changes", choices=["isotropic", "full"], help="of npt: volume alone, or shape too (default: isotropic)")
    add("--thermostat_fs", type=float, help="of npt: time in which the thermostat acts (default: 100)")
    add("--barostat_fs", type=float, help="of npt: time in which the barostat acts (default: 1000)")
    add("--seed", type=int, default=1, help="of velocities and random kicks (default: 1)")


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Files").add_argument
    add("--trajectory", default="md.xyz", help="frames: .xyz, .extxyz or .traj (default: md.xyz)")
    add("--log_interval", type=int, default=10, help="steps between two lines of the log (default: 10)")
    add("--trajectory_interval", type=int, default=10, help="steps between two frames (default: 10)")
    add("--state_interval", type=int, default=1000, help="steps between two savings of the state (default: 1000)")
    add("--restart", action="store_true", help="go on from the state beside the trajectory")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("When to stop early").add_argument
    add("--max_temperature_K", type=float, help="stop beyond it (default: 10000, or ten times --temperature_K)")
    add("--max_force", type=float, default=100.0, help="stop if a force exceeds it, eV/Angstrom (default: 100)")
    add("--min_distance", type=float, default=0.3, help="stop if atoms come closer, Angstrom (default: 0.3)")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the flags and refuse what makes no sense or has no effect.

    Raises:
        UserError: If a flag is unknown, missing or cannot be obeyed.
        SystemExit: With status 0 after ``--help``.
    """
    options = parse_flags(build_parser(), arguments)
    if (options.steps is None) == (options.time_ps is None):
        raise UserError("Say how long: either --steps or --time_ps.")
    for name in _POSITIVE:
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value > 0.0):
            raise UserError(f"--{name} is {value}; it must be a finite number above zero.")
    for name in _AT_LEAST_ONE:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    for name, ensemble in _ONLY_FOR.items():
        if getattr(options, name) is not None and options.ensemble != ensemble:
            raise UserError(f"--{name} has no effect with --ensemble={options.ensemble}; it is for {ensemble}.")
    if options.pressure_GPa is not None and not math.isfinite(options.pressure_GPa):
        raise UserError(f"--pressure_GPa is {options.pressure_GPa}; it must be a finite number.")
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}; it must not be negative.")
    _check_temperature(options)
    return options


def _check_temperature(options: argparse.Namespace) -> None:
    temperature = options.temperature_K
    if temperature is None and options.ensemble != "nve":
        raise UserError(f"--ensemble={options.ensemble} needs --temperature_K.")
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0.0):
        raise UserError(f"--temperature_K is {temperature}; it must be a finite number above zero.")


def make_plan(options: argparse.Namespace) -> SimulationPlan:
    """Turn flags into a plan."""
    from mace.dynamics.plan import SimulationPlan

    given = {name: value for name, value in vars(options).items() if name in SimulationPlan.__dataclass_fields__}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.steps is None:
        chosen["steps"] = max(1, round(1000.0 * options.time_ps / options.timestep_fs))
    if options.max_temperature_K is None:
        chosen["max_temperature_K"] = max(10000.0, 10.0 * (options.temperature_K or 0.0))
    return SimulationPlan(**{"temperature_K": None, **chosen})


def run(arguments: Sequence[str]) -> None:
    """Simulate with the given command-line arguments.

    Raises:
        UserError: If arguments, model or structure do not allow it, or the simulation explodes.
        RunInterrupted: If a signal ends it.
        SystemExit: See `parse_arguments`.
    """
    options = parse_arguments(arguments)
    plan = make_plan(options)
    # torch is loaded only once the arguments are known to be good
    from pathlib import Path

    from mace.calculators.calculator import MACECalculator
    from mace.console.logs import close_logging, setup_logging
    from mace.console.terminal import PlainConsole
    from mace.dynamics.trajectory import FORMATS

    trajectory = Path(options.trajectory)
    if trajectory.suffix not in FORMATS:
        raise UserError(f"--trajectory={trajectory} must end in {', '.join(FORMATS)}.")
    atoms = _read_structure(options, plan)
    check_output(trajectory, "trajectory", {"structure": [options.structure], "model": options.model})
    console = PlainConsole()
    atoms.calc = MACECalculator(
        options.model,
        device=options.device,
        default_dtype=options.default_dtype,
        head=options.head,
        charges_key=options.charges_key,
    )
    if "forces" not in atoms.calc.implemented_properties:
        raise UserError(f"{options.model[0]}: the model predicts dipoles only, no forces; name one with energies.")
    setup_logging(options.log_level, trajectory.with_name(f"{trajectory.name}.log"), console, options.quiet)
    try:
        _tell(atoms, options, plan)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *details: _LOGGER.warning("%s", message)
            summary = _simulate(atoms, options, plan, trajectory, console)
        _LOGGER.info("Mean temperature: %.1f K", summary.mean_temperature_K)
        if plan.ensemble == "nve":
            _LOGGER.info("Drift of the total energy: %.5f meV/atom per ps", 1e3 * summary.drift)
        speed = ns_per_day(summary.steps / summary.seconds, plan)
        _LOGGER.info("%d steps in %.1f s, %.3g ns/day", summary.steps, summary.seconds, speed)
        _LOGGER.info("Wrote %s", trajectory)
    finally:
        close_logging()


def _simulate(
    atoms: Atoms, options: argparse.Namespace, plan: SimulationPlan, trajectory: Path, console: Console
) -> SimulationSummary:
    """Run, with progress and signals caught."""
    from mace.console.interruption import Interruption
    from mace.console.progress import track
    from mace.dynamics.simulation import Simulation

    def progress(steps: range) -> Iterable[int]:
        return track(
            steps,
            f"{plan.ensemble.upper()} of {atoms.get_chemical_formula()}",
            console=console,
            mode="off" if options.quiet else "auto",
            rate=lambda per_second: f"{ns_per_day(per_second, plan):.3g} ns/day",
        )

    simulation = Simulation(atoms, plan, trajectory, options.restart)
    with Interruption() as interruption:
        return simulation.run(progress, interruption)


def ns_per_day(steps_per_second: float, plan: SimulationPlan) -> float:
    """Say how far a simulation gets in a day."""
    return steps_per_second * 1e-6 * plan.timestep_fs * 86400.0


def _tell(atoms: Atoms, options: argparse.Namespace, plan: SimulationPlan) -> None:
    """Say what is simulated."""
    _LOGGER.info(
        "%s of %s (%d atoms, pbc %s) with %s%s in %s: %d steps of %g fs, %g ps",
        plan.ensemble.upper(),
        atoms.get_chemical_formula(),
        len(atoms),
        "".join("T" if periodic else "F" for periodic in atoms.pbc),
        ", ".join(options.model),
        f", head {atoms.calc.head}," if len(atoms.calc.available_heads) > 1 else "",
        atoms.calc.default_dtype,
        plan.steps,
        plan.timestep_fs,
        1e-3 * plan.steps * plan.timestep_fs,
    )
    for name, values in atoms.calc.find_conditions(atoms).values.items():
        _LOGGER.info("%s: %s", name, f"{values.item():g}" if values.size == 1 else "of every atom")


def _read_structure(options: argparse.Namespace, plan: SimulationPlan) -> Atoms:
    """Read the structure and refuse what cannot be simulated."""
    from mace.structures.checks import check_geometry
    from mace.structures.configuration import Configuration
    from mace.structures.formats import iterate_frames
    from mace.structures.sources import expand_paths

    (file,) = expand_paths(options.structure)[:1]
    frames = list(iterate_frames(file))
    if not -len(frames) <= options.index < len(frames):
        raise UserError(f"{file}: there is no structure {options.index}; the file has {len(frames)}.")
    frame = frames[options.index]
    index = options.index % len(frames)
    check_geometry(Configuration(frame.numbers, frame.positions, frame.cell, frame.pbc, file=file, index=index))
    atoms = frame.to_atoms()
    if plan.ensemble == "npt" and not atoms.pbc.all():
        raise UserError(f"{file}: --ensemble=npt needs a structure that repeats in all three directions; set pbc.")
    if plan.ensemble == "npt" and atoms.constraints:
        raise UserError(f"{file}: --ensemble=npt cannot hold atoms fixed; remove the constraints.")
    return atoms


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run, output_needed=False)


if __name__ == "__main__":
    main()
