"""What a simulation is to do, in the units of the command line."""

from __future__ import annotations

from dataclasses import dataclass

ENSEMBLES = ("nve", "nvt", "npt")
"""Constant energy; constant temperature by random kicks and friction; constant temperature and pressure."""


@dataclass(frozen=True)
class SimulationPlan:
    """What a simulation is to do.

    Attributes:
        ensemble: One of `ENSEMBLES`.
        steps: Number of time steps, those before a restart included.
        timestep_fs: Length of a step.
        temperature_K: Of the thermostat and of the first velocities; None where velocities are given and no
            thermostat is there.
        pressure_GPa: Of the barostat.
        friction: Of the thermostat of ``nvt``, 1/ps.
        thermostat_fs: Time in which the thermostat of ``npt`` acts.
        barostat_fs: Time in which the barostat acts.
        cell_changes: ``isotropic`` or ``full``.
        seed: Of velocities and random kicks.
        log_interval: Steps between two lines of the log.
        trajectory_interval: Steps between two frames of the trajectory.
        state_interval: Steps between two savings of the state.
        max_temperature_K: Beyond it the simulation is taken to have exploded.
        max_force: Likewise, eV/Angstrom.
        min_distance: Likewise, if two atoms come closer, Angstrom.
    """

    ensemble: str
    steps: int
    timestep_fs: float
    temperature_K: float | None
    pressure_GPa: float = 0.0
    friction: float = 10.0
    thermostat_fs: float = 100.0
    barostat_fs: float = 1000.0
    cell_changes: str = "isotropic"
    seed: int = 1
    log_interval: int = 10
    trajectory_interval: int = 10
    state_interval: int = 1000
    max_temperature_K: float = 10000.0
    max_force: float = 100.0
    min_distance: float = 0.3
