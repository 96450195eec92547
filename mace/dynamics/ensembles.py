"""ASE's integrators for the ensembles, and initial velocities."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from mace.dynamics.plan import SimulationPlan
from mace.errors import UserError


def make_dynamics(atoms: Atoms, plan: SimulationPlan, random: np.random.Generator) -> Any:
    """Create the integrator for a plan.

    Args:
        atoms: The structure, with its calculator.
        plan: The simulation plan.
        random: Generator of the random forces of ``nvt``.

    Returns:
        One of ASE's molecular dynamics objects.

    Raises:
        UserError: If the installed ASE has no such integrator.
    """
    timestep = plan.timestep_fs * units.fs
    if plan.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    if plan.ensemble == "nvt":
        friction = plan.friction / (1000.0 * units.fs)
        # the center of mass is free to move: holding it fixed would not sample the ensemble
        kicks = {"friction": friction, "fixcm": False, "rng": random}
        return Langevin(atoms, timestep, temperature_K=plan.temperature_K, **kicks)
    try:
        from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT  # after Martyna, Tobias and Klein
    except ImportError as error:
        raise UserError("--ensemble=npt needs a newer ASE; install it with 'pip install --upgrade ase'.") from error
    barostat = MTKNPT if plan.cell_changes == "full" else IsotropicMTKNPT
    return barostat(
        atoms,
        timestep,
        temperature_K=plan.temperature_K,
        pressure_au=plan.pressure_GPa * units.GPa,
        tdamp=plan.thermostat_fs * units.fs,
        pdamp=plan.barostat_fs * units.fs,
    )


def draw_velocities(atoms: Atoms, temperature_K: float, random: np.random.Generator) -> None:
    """Draw velocities of exactly the given temperature, without total momentum or, for a molecule, rotation.

    Args:
        atoms: The structure whose velocities are replaced; fixed atoms stay at rest.
        temperature_K: The temperature in K.
        random: Generator of the velocities.
    """
    spread = np.sqrt(atoms.get_masses()[:, None] * units.kB * temperature_K)
    atoms.set_momenta(spread * random.standard_normal((len(atoms), 3)))
    if not atoms.constraints and len(atoms) > 1:
        Stationary(atoms)
        if not atoms.pbc.any() and len(atoms) > 2:
            ZeroRotation(atoms)
    found = atoms.get_temperature()
    if found > 0.0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature_K / found))
