"""The plan of a simulation, in the units of the command line."""

from __future__ import annotations

from dataclasses import dataclass

ENSEMBLES = ("nve", "nvt", "npt")
"""Constant energy; constant temperature by random forces and friction; constant temperature and pressure."""


@dataclass(frozen=True)
class SimulationPlan:
    """Parameters of a simulation.

    Attributes:
        ensemble: One of `ENSEMBLES`.
        steps: Number of time steps, including those before a restart.
        timestep_fs: Length of a time step in fs.
        temperature_K: Temperature of the thermostat and of the initial velocities; None if velocities are given and
            there is no thermostat.
        pressure_GPa: Pressure of the barostat.
        friction: Friction of the thermostat of ``nvt``, in 1/ps.
        thermostat_fs: Time constant of the thermostat of ``npt``.
        barostat_fs: Time constant of the barostat.
        cell_changes: ``isotropic`` or ``full``.
        seed: Seed of initial velocities and random forces.
        log_interval: Number of steps between two lines of the log.
        trajectory_interval: Number of steps between two frames of the trajectory.
        state_interval: Number of steps between two saves of the state.
        max_temperature_K: Temperature beyond which the simulation is considered to have exploded.
        max_force: Likewise, the force on an atom, in eV/Angstrom.
        min_distance: Likewise, the distance of two atoms below which this holds, in Angstrom.
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
