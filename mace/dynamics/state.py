"""The saved state of a simulation, from which it continues as if it had not stopped."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mace.calculators.calculator import MACECalculator
from mace.dynamics.plan import SimulationPlan
from mace.errors import UserError
from mace.files.durable import write_durably

_KEPT = ("ensemble", "timestep_fs", "trajectory_interval")
"""Plan fields that must not change on restart: time steps and frames would no longer be evenly spaced."""


@dataclass
class SimulationState:
    """The current state of a simulation.

    Attributes:
        step: Number of steps done.
        atoms: The structure with positions, momenta and cell.
        random: The random number generator in its current state.
        length: Length of the trajectory, in the unit of its writer.
        sums: Number of logged steps, and sums over them of time, energy per atom, time squared, time x energy per atom,
            and temperature.
    """

    step: int
    atoms: Atoms
    random: np.random.Generator
    length: int
    sums: np.ndarray


def _conditions(atoms: Atoms) -> dict[str, list[float]]:
    """Return the conditions of a structure that the model depends on, as numbers that JSON can hold."""
    if not isinstance(atoms.calc, MACECalculator):
        return {}
    return {name: values.tolist() for name, values in atoms.calc.find_conditions(atoms).values.items()}


def state_path(trajectory: Path) -> Path:
    """Return the file of the state that belongs to a trajectory."""
    return trajectory.with_name(f"{trajectory.name}.state.npz")


def save_state(path: Path, state: SimulationState, plan: SimulationPlan) -> None:
    """Write the state atomically: a reader sees either the old or the new one.

    Raises:
        UserError: If it cannot be written.
    """
    facts = {
        "step": state.step,
        "length": state.length,
        "random": state.random.bit_generator.state,
        "plan": {name: getattr(plan, name) for name in _KEPT},
        "conditions": _conditions(state.atoms),
    }
    arrays = {
        "numbers": state.atoms.numbers,
        "positions": state.atoms.positions,
        "momenta": state.atoms.get_momenta(),
        "cell": state.atoms.cell.array,
        "sums": state.sums,
        "facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
    }
    content = io.BytesIO()
    np.savez(content, **arrays)
    try:
        write_durably(path, content.getvalue())
    except OSError as error:
        raise UserError(f"{path}: the state cannot be written ({error.strerror or error}).") from error


def load_state(path: Path, atoms: Atoms, plan: SimulationPlan) -> SimulationState:
    """Read a saved state and set the structure to it.

    Args:
        path: The file.
        atoms: The structure the simulation began with; it is changed.
        plan: The current simulation plan.

    Raises:
        UserError: If there is no such file, it is damaged, or it belongs to another structure or plan.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no state to go on from; leave --restart out to begin.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        random = np.random.default_rng()
        random.bit_generator.state = facts["random"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: the state cannot be read ({error}); leave --restart out to begin anew.") from error
    if not np.array_equal(arrays["numbers"], atoms.numbers):
        raise UserError(f"{path}: the state belongs to another structure; name the one the simulation began with.")
    for name in _KEPT:
        if facts["plan"][name] != getattr(plan, name):
            raise UserError(
                f"{path}: the simulation began with --{name}={facts['plan'][name]}, not {getattr(plan, name)}; give "
                "the same, or another --trajectory to begin anew."
            )
    now = _conditions(atoms)
    began = facts.get("conditions", now)  # earlier versions had none
    if changed := sorted(name for name in began.keys() | now.keys() if began.get(name) != now.get(name)):
        raise UserError(
            f"{path}: the simulation began with another {' and '.join(changed)}; give the structure the same, or "
            "another --trajectory to begin anew."
        )
    atoms.set_cell(arrays["cell"])
    atoms.set_positions(arrays["positions"], apply_constraint=False)
    atoms.set_momenta(arrays["momenta"], apply_constraint=False)
    return SimulationState(facts["step"], atoms, random, facts["length"], arrays["sums"])
