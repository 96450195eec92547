"""A whole simulation: run the dynamics, log, record frames, and stop if it explodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from mace.console.interruption import Interruption
from mace.dynamics.ensembles import draw_velocities, make_dynamics
from mace.dynamics.plan import SimulationPlan
from mace.dynamics.state import SimulationState, load_state, save_state, state_path
from mace.dynamics.trajectory import TrajectoryWriter, make_frame, open_trajectory
from mace.dynamics.watch import sign_of_explosion
from mace.errors import UserError

_LOGGER = logging.getLogger(__name__)

Progress = Callable[[range], Iterable[int]]
"""Wraps the iteration over steps."""


@dataclass(frozen=True)
class SimulationSummary:
    """Summary of a simulation.

    Attributes:
        steps: Number of steps taken by this run of the program.
        seconds: Time that these steps took.
        mean_temperature_K: Mean temperature over the logged steps, including those before a restart.
        drift: Slope of the total energy over these steps, in eV per atom and ps.
    """

    steps: int
    seconds: float
    mean_temperature_K: float
    drift: float


class Simulation:
    """Molecular dynamics of one structure.

    Args:
        atoms: The initial structure, with its calculator; it is moved.
        plan: The simulation plan.
        trajectory: The trajectory file; the state file is placed beside it.
        restart: Whether to continue from the saved state.

    Raises:
        UserError: If there is no state to continue from, velocities are missing, or a file cannot be written.
    """

    def __init__(self, atoms: Atoms, plan: SimulationPlan, trajectory: Path, restart: bool) -> None:
        self.plan, self._path = plan, state_path(trajectory)
        self.state = load_state(self._path, atoms, plan) if restart else _begin(atoms, plan)
        if restart and self.state.step >= plan.steps:
            raise UserError(f"{self._path}: all {plan.steps} steps are done; ask for more to go on.")
        self._trajectory: TrajectoryWriter | None = None
        self._check("at the start")
        self._trajectory = open_trajectory(trajectory, self.state.length if restart else None)
        self._dynamics = make_dynamics(atoms, plan, self.state.random)
        self._has_volume = abs(np.linalg.det(atoms.cell.array)) > 1e-6
        if restart and plan.ensemble == "npt":
            _LOGGER.warning("Thermostat and barostat start from rest; positions, velocities and cell go on")

    def run(self, progress: Progress, interruption: Interruption) -> SimulationSummary:
        """Run the remaining steps.

        Args:
            progress: Wraps the iteration over steps.
            interruption: Records signals to stop the simulation.

        Raises:
            UserError: If the simulation explodes; what was recorded until then is kept.
            RunInterrupted: If a signal to stop arrived; the state has been saved.
        """
        began, first = time.perf_counter(), self.state.step
        cell = f"{'P/GPa':>10} {'V/A^3':>12}" if self._has_volume else ""
        energies = f"{'Epot/eV':>16} {'Ekin/eV':>12} {'Etot/eV':>16}"
        _LOGGER.info("%s", f"{'step':>10} {'t/ps':>12} {'T/K':>9} {energies} {'Fmax/eV/A':>10} {cell}".rstrip())
        if first == 0:
            self._record(0)
        with interruption.patient():
            for step in progress(range(first + 1, self.plan.steps + 1)):
                self._dynamics.run(1)
                self.state.step = step
                self._check(f"at step {step}")
                self._record(step)
                if interruption.requested:
                    break
        self._save()
        self._writer().close()
        if self.state.step < self.plan.steps:
            raise interruption.error(f"{self.state.step} of {self.plan.steps} steps are done; --restart goes on")
        n, t, e, tt, te, temperatures = self.state.sums
        spread = n * tt - t * t
        slope = float((n * te - t * e) / spread) if spread > 0.0 else 0.0
        seconds = time.perf_counter() - began
        return SimulationSummary(self.state.step - first, seconds, temperatures / n, slope)

    def _check(self, when: str) -> None:
        """Raise an error if the simulation has exploded."""
        step, atoms = self.state.step, self.state.atoms
        if (reason := sign_of_explosion(atoms, self.plan, step % self.plan.log_interval == 0)) is not None:
            if self._trajectory is not None:
                self._trajectory.write(make_frame(atoms, step, step * self.plan.timestep_fs))
                self._trajectory.close()
            raise UserError(
                f"The simulation broke down {when}: {reason}. Try a smaller --timestep_fs, relax the structure first, "
                "or train the model with such structures."
            )

    def _record(self, step: int) -> None:
        """Write the log line, frame and state that are due at a step."""
        plan, atoms = self.plan, self.state.atoms
        if step % plan.log_interval == 0:
            energy, temperature = atoms.get_total_energy() / len(atoms), atoms.get_temperature()
            ps = 1e-3 * step * plan.timestep_fs
            self.state.sums += [1.0, ps, energy, ps * ps, ps * energy, temperature]
            _LOGGER.info("%s", self._row(step, ps))
        if step % plan.trajectory_interval == 0:
            self._writer().write(make_frame(atoms, step, step * plan.timestep_fs))
        if step % plan.state_interval == 0:
            self._save()

    def _writer(self) -> TrajectoryWriter:
        assert self._trajectory is not None
        return self._trajectory

    def _save(self) -> None:
        self.state.length = self._writer().length()
        save_state(self._path, self.state, self.plan)

    def _row(self, step: int, ps: float) -> str:
        atoms = self.state.atoms
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        largest = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        energies = f"{potential:16.6f} {kinetic:12.6f} {potential + kinetic:16.6f}"
        row = f"{step:10d} {ps:12.4f} {atoms.get_temperature():9.2f} {energies} {largest:10.3f}"
        if not self._has_volume:
            return row
        pressure = -float(atoms.get_stress(include_ideal_gas=True)[:3].mean()) / units.GPa
        return f"{row} {pressure:10.4f} {atoms.get_volume():12.3f}"


def _begin(atoms: Atoms, plan: SimulationPlan) -> SimulationState:
    """Return the initial state, with velocities drawn unless the structure keeps its own."""
    random: Any = np.random.default_rng(plan.seed)
    if plan.ensemble == "nve" and plan.temperature_K is None:
        if not atoms.has("momenta") or not atoms.get_momenta().any():
            raise UserError("The structure has no velocities; give --temperature_K to draw some.")
        _LOGGER.info("The velocities of the structure are kept, %.1f K", atoms.get_temperature())
    elif plan.temperature_K is not None:
        draw_velocities(atoms, plan.temperature_K, random)
        _LOGGER.info("Velocities of %g K are drawn with the seed %d", plan.temperature_K, plan.seed)
    return SimulationState(0, atoms, random, 0, np.zeros(6))
