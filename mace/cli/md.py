"""The command ``mace_md``: molecular dynamics of a structure with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import dataclasses
import logging
import warnings
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from mace.cli.command import LogLevel, log_level, quiet, run_program
from mace.dynamics.plan import SimulationPlan
from mace.errors import UserError
from mace.files.outputs import check_output
from mace.settings.declaration import DeviceName, Settings, device_setting, setting
from mace.settings.reading import parse_settings

if TYPE_CHECKING:
    from ase import Atoms

_LOGGER = logging.getLogger("mace.cli.md")  # by name: as a program this module is called __main__

_START, _CONDITIONS, _LIMITS = "Structure and model", "Time and conditions", "When to stop early"
_ONLY_FOR = {
    "friction": "nvt",
    "pressure_GPa": "npt",
    "thermostat_fs": "npt",
    "barostat_fs": "npt",
    "cell_changes": "npt",
}


class DynamicsSettings(Settings):
    """What is simulated, under which conditions, and what is written."""

    program: ClassVar[str] = "mace_md"
    description: ClassVar[str] = (
        "Run molecular dynamics of a structure with a trained model. Beside the trajectory are written TRAJECTORY.log, "
        "and TRAJECTORY.state.npz, from which --restart goes on."
    )

    structure: str = setting(..., "where to start: any file of structures", group=_START, placeholder="FILE")
    index: int = setting(0, "which structure of the file, from 0; -1 for the last", group=_START)
    model: list[str] = setting(
        ...,
        "model file; several, or a pattern, form a committee",
        group=_START,
        kind="several",
        placeholder="FILE...",
    )
    head: str | None = setting(
        None,
        "head of a model that has several",
        group=_START,
        placeholder="NAME",
        default_words="the one called default",
    )
    charges_key: str = setting("Qs", "array of charges, for models of dipoles", group=_START, placeholder="KEY")
    device: DeviceName = device_setting("where to compute", group=_START)
    default_dtype: Literal["float32", "float64"] | None = setting(
        None, "precision", group=_START, default_words="the model's"
    )
    ensemble: Literal["nve", "nvt", "npt"] = setting(
        "nvt",
        "constant energy; temperature (Langevin); temperature and pressure (Martyna, Tobias and Klein)",
        group=_CONDITIONS,
    )
    steps: int | None = setting(
        None, "time steps, those before a restart included", group=_CONDITIONS, ge=1, default_words="see --time_ps"
    )
    time_ps: float | None = setting(
        None, "the same in ps", group=_CONDITIONS, gt=0, unit="ps", default_words="see --steps"
    )
    timestep_fs: float = setting(0.5, "length of a step", group=_CONDITIONS, gt=0, unit="fs")
    temperature_K: float | None = setting(
        None,
        "of the thermostat and of the first velocities",
        group=_CONDITIONS,
        gt=0,
        unit="K",
        default_words="may be left out for nve if the structure has velocities",
    )
    friction: float = setting(10.0, "of nvt", group=_CONDITIONS, gt=0, unit="1/ps")
    pressure_GPa: float = setting(0.0, "of npt", group=_CONDITIONS, unit="GPa")
    cell_changes: Literal["isotropic", "full"] = setting(
        "isotropic", "of npt: volume alone, or shape too", group=_CONDITIONS
    )
    thermostat_fs: float = setting(
        100.0, "of npt: time in which the thermostat acts", group=_CONDITIONS, gt=0, unit="fs"
    )
    barostat_fs: float = setting(1000.0, "of npt: time in which the barostat acts", group=_CONDITIONS, gt=0, unit="fs")
    seed: int = setting(1, "of velocities and random kicks", group=_CONDITIONS, ge=0)
    trajectory: str = setting("md.xyz", "frames: .xyz, .extxyz or .traj", group="Files", placeholder="FILE")
    log_interval: int = setting(10, "steps between two lines of the log", group="Files", ge=1)
    trajectory_interval: int = setting(10, "steps between two frames", group="Files", ge=1)
    state_interval: int = setting(1000, "steps between two savings of the state", group="Files", ge=1)
    restart: bool = setting(False, "go on from the state beside the trajectory", group="Files", kind="switch")
    max_temperature_K: float | None = setting(
        None,
        "stop beyond it",
        group=_LIMITS,
        gt=0,
        unit="K",
        default_words="10000, or ten times --temperature_K",
    )
    max_force: float = setting(100.0, "stop if a force exceeds it", group=_LIMITS, gt=0, unit="eV/Angstrom")
    min_distance: float = setting(0.3, "stop if atoms come closer", group=_LIMITS, gt=0, unit="Angstrom")
    log_level: LogLevel = log_level()
    quiet: bool = quiet()

    @model_validator(mode="after")
    def _check_together(self) -> DynamicsSettings:
        if (self.steps is None) == (self.time_ps is None):
            raise ValueError("Say how long: either --steps or --time_ps.")
        for name, ensemble in _ONLY_FOR.items():
            if name in self.model_fields_set and self.ensemble != ensemble:
                raise ValueError(f"--{name} has no effect with --ensemble={self.ensemble}; it is for {ensemble}.")
        if self.temperature_K is None and self.ensemble != "nve":
            raise ValueError(f"--ensemble={self.ensemble} needs --temperature_K.")
        return self

    def plan(self) -> SimulationPlan:
        """Turn the settings into a plan."""
        names = {field.name for field in dataclasses.fields(SimulationPlan)}
        chosen = {name: value for name, value in self if name in names}
        if self.time_ps is not None:
            chosen["steps"] = max(1, round(1000.0 * self.time_ps / self.timestep_fs))
        if self.max_temperature_K is None:
            chosen["max_temperature_K"] = max(10000.0, 10.0 * (self.temperature_K or 0.0))
        return SimulationPlan(**chosen)


def run(arguments: Sequence[str]) -> None:
    """Simulate with the given command-line arguments.

    Raises:
        UserError: If arguments, model or structure do not allow it, or the simulation explodes.
        RunInterrupted: If a signal ends it.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(DynamicsSettings, arguments)
    plan = settings.plan()
    # torch is loaded only once the arguments are known to be good
    from pathlib import Path

    from mace.calculators.calculator import MACECalculator
    from mace.console.interruption import Interruption
    from mace.console.logs import close_logging, setup_logging
    from mace.console.progress import track
    from mace.console.terminal import PlainConsole
    from mace.dynamics.simulation import Simulation
    from mace.dynamics.trajectory import FORMATS

    trajectory = Path(settings.trajectory)
    if trajectory.suffix not in FORMATS:
        raise UserError(f"--trajectory={trajectory} must end in {', '.join(FORMATS)}.")
    atoms = _read_structure(settings, plan)
    check_output(trajectory, "trajectory", {"structure": [settings.structure], "model": settings.model})
    console = PlainConsole()
    atoms.calc = MACECalculator(
        settings.model,
        device=settings.device,
        default_dtype=settings.default_dtype or "",
        head=settings.head,
        charges_key=settings.charges_key,
    )
    if "forces" not in atoms.calc.implemented_properties:
        raise UserError(f"{settings.model[0]}: the model predicts dipoles only, no forces; name one with energies.")
    setup_logging(settings.log_level, trajectory.with_name(f"{trajectory.name}.log"), console, settings.quiet)
    try:
        _log_start(atoms, settings.model, plan)

        def progress(steps: range) -> Iterable[int]:
            return track(
                steps,
                f"{plan.ensemble.upper()} of {atoms.get_chemical_formula()}",
                console=console,
                mode="off" if settings.quiet else "auto",
                rate=lambda per_second: f"{ns_per_day(per_second, plan):.3g} ns/day",
            )

        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *details: _LOGGER.warning("%s", message)
            simulation = Simulation(atoms, plan, trajectory, settings.restart)
            with Interruption() as interruption:
                summary = simulation.run(progress, interruption)
        _LOGGER.info("Mean temperature: %.1f K", summary.mean_temperature_K)
        if plan.ensemble == "nve":
            _LOGGER.info("Drift of the total energy: %.5f meV/atom per ps", 1e3 * summary.drift)
        speed = ns_per_day(summary.steps / summary.seconds, plan)
        _LOGGER.info("%d steps in %.1f s, %.3g ns/day", summary.steps, summary.seconds, speed)
        _LOGGER.info("Wrote %s", trajectory)
    finally:
        close_logging()


def _log_start(atoms: Atoms, model: list[str], plan: SimulationPlan) -> None:
    """Log what is simulated."""
    _LOGGER.info(
        "%s of %s (%d atoms, pbc %s) with %s%s in %s: %d steps of %g fs, %g ps",
        plan.ensemble.upper(),
        atoms.get_chemical_formula(),
        len(atoms),
        "".join("T" if periodic else "F" for periodic in atoms.pbc),
        ", ".join(model),
        f", head {atoms.calc.head}," if len(atoms.calc.available_heads) > 1 else "",
        atoms.calc.default_dtype,
        plan.steps,
        plan.timestep_fs,
        1e-3 * plan.steps * plan.timestep_fs,
    )
    for name, values in atoms.calc.find_conditions(atoms).values.items():
        _LOGGER.info("%s: %s", name, f"{values.item():g}" if values.size == 1 else "of every atom")


def ns_per_day(steps_per_second: float, plan: SimulationPlan) -> float:
    """Say how far a simulation gets in a day."""
    return steps_per_second * 1e-6 * plan.timestep_fs * 86400.0


def _read_structure(settings: DynamicsSettings, plan: SimulationPlan) -> Atoms:
    """Read the structure and refuse what cannot be simulated."""
    from mace.formats.reading import iterate_frames
    from mace.structures.checks import check_geometry
    from mace.structures.configuration import Configuration
    from mace.structures.sources import expand_paths

    (file,) = expand_paths(settings.structure)[:1]
    frames = list(iterate_frames(file))
    if not -len(frames) <= settings.index < len(frames):
        raise UserError(f"{file}: there is no structure {settings.index}; the file has {len(frames)}.")
    frame = frames[settings.index]
    index = settings.index % len(frames)
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
