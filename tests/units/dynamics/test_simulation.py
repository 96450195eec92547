"""Does a simulation log, measure and stop as it says, where what must come out is known beforehand?"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.io import read

from mace.console.interruption import Interruption
from mace.dynamics import simulation
from mace.dynamics.plan import SimulationPlan
from mace.dynamics.simulation import Simulation, SimulationSummary
from mace.dynamics.watch import sign_of_explosion
from mace.errors import RunInterrupted, UserError

PLAN = SimulationPlan(
    ensemble="nve", steps=40, timestep_fs=2.0, temperature_K=None, log_interval=4, trajectory_interval=10, seed=3
)
SPEED = 0.02
"""Angstrom per fs."""


class Slope(Calculator):  # type: ignore[misc]  # the types of ASE are not looked at
    """An energy that grows with the first coordinate, and forces that do not follow from it."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, slope: float = 0.0, forces: Any = 1e-9) -> None:
        super().__init__()
        self.slope, self.forces = slope, forces

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        forces = np.zeros((len(atoms), 3)) + self.forces
        energy = self.slope * float(atoms.positions[0, 0])
        self.results = {"energy": energy, "forces": forces, "stress": np.full(6, -0.01)}


def flying(n_atoms: int = 2, slope: float = 0.0) -> Atoms:
    """Atoms side by side that fly along x at the same speed."""
    atoms = Atoms("Ar" * n_atoms, positions=5.0 * np.arange(n_atoms)[:, None] * [0.0, 1.0, 0.0])
    atoms.set_velocities(np.full((n_atoms, 3), SPEED / units.fs) * [1.0, 0.0, 0.0])
    atoms.calc = Slope(slope)
    return atoms


def simulate(atoms: Atoms, plan: SimulationPlan, path: Path, restart: bool = False) -> SimulationSummary:
    with Interruption() as interruption:
        return Simulation(atoms, plan, path, restart).run(lambda steps: steps, interruption)


@pytest.mark.parametrize("n_atoms", [1, 2, 4])
@pytest.mark.parametrize("slope", [0.3, -1.0])
def test_the_drift_is_per_atom_and_picosecond(tmp_path: Path, n_atoms: int, slope: float) -> None:
    summary = simulate(flying(n_atoms, slope), PLAN, tmp_path / "md.xyz")
    assert summary.drift == pytest.approx(slope * SPEED * 1000.0 / n_atoms, rel=1e-6)
    assert summary.mean_temperature_K == pytest.approx(flying(n_atoms).get_temperature(), rel=1e-6)
    assert summary.steps == 40 and 0.0 < summary.seconds < 60.0


def test_the_drift_is_the_slope_of_the_best_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of energies that go up and down it is what a fit by least squares gives."""
    energies = [0.0, 3.0, -2.0, 5.0, 4.0]
    told = iter(energies)
    monkeypatch.setattr(Atoms, "get_total_energy", lambda atoms: next(told))
    summary = simulate(flying(2), replace(PLAN, steps=4, log_interval=1), tmp_path / "md.xyz")
    expected = np.polyfit(0.002 * np.arange(5), np.array(energies) / 2.0, 1)[0]
    assert summary.drift == pytest.approx(expected, rel=1e-9)


def test_one_line_of_log_has_no_slope(tmp_path: Path) -> None:
    assert simulate(flying(2, 1.0), replace(PLAN, steps=3, log_interval=100), tmp_path / "md.xyz").drift == 0.0


def test_a_restart_counts_its_own_steps_and_all_energies(tmp_path: Path) -> None:
    simulate(flying(2, 0.3), replace(PLAN, steps=8), tmp_path / "md.xyz")
    summary = simulate(flying(2, 0.3), PLAN, tmp_path / "md.xyz", restart=True)
    assert summary.steps == 32
    assert summary.drift == pytest.approx(0.3 * SPEED * 1000.0 / 2, rel=1e-6)
    whole = simulate(flying(2, 0.3), PLAN, tmp_path / "whole.xyz")
    assert summary.mean_temperature_K == pytest.approx(whole.mean_temperature_K, rel=1e-12)
    frames, others = (read(tmp_path / f"{name}.xyz", ":") for name in ("md", "whole"))
    assert [frame.info["time_fs"] for frame in frames] == [0.0, 20.0, 40.0, 60.0, 80.0]
    for frame, other in zip(frames, others, strict=True):
        np.testing.assert_allclose(frame.positions, other.positions, atol=1e-7)


def test_rows_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    atoms = flying(2, 0.3)
    atoms.cell, atoms.pbc = 10.0 * np.eye(3), True
    atoms.calc.forces = np.array([[0.0, 0.03, 0.04], [0.0, 0.0, 0.01]])
    kinetic, temperature = atoms.get_kinetic_energy(), atoms.get_temperature()
    with caplog.at_level(logging.INFO):
        simulate(atoms, PLAN, tmp_path / "md.xyz")
    rows = [record.message.split() for record in caplog.records if record.message.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(0, 41, 4))
    step, ps, kelvin, potential, moving, total, largest, pressure, volume = map(float, rows[5])
    assert (step, ps, volume) == (20, pytest.approx(0.04), 1000.0)
    assert kelvin == pytest.approx(temperature, rel=1e-3) and moving == pytest.approx(kinetic, rel=1e-3)
    assert potential == pytest.approx(0.3 * SPEED * 40.0, abs=1e-5)
    assert total == pytest.approx(potential + moving, abs=2e-6)
    assert largest == 0.05
    ideal = 2.0 * kinetic / 3.0 / 1000.0
    assert pressure == pytest.approx((0.01 + ideal) / units.GPa, rel=1e-3)


def test_without_a_cell_no_pressure_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        simulate(flying(), PLAN, tmp_path / "md.xyz")
    assert "P/GPa" not in caplog.text and "Fmax/eV/A" in caplog.text


def test_velocities_drawn_have_the_seed(tmp_path: Path) -> None:
    first = []
    for seed in (1, 1, 2):
        simulate(flying(3), replace(PLAN, steps=1, temperature_K=200.0, seed=seed), tmp_path / "md.xyz")
        first.append(read(tmp_path / "md.xyz", "0").get_momenta())
    np.testing.assert_array_equal(first[0], first[1])
    assert np.abs(first[0] - first[2]).max() > 1e-2


def with_values(name: str, value: float) -> Atoms:
    """Two atoms of which one number is another."""
    atoms = flying()
    if name == "energy":
        atoms.calc.slope, atoms.positions[0, 0] = value, 1.0
    elif name == "forces":
        atoms.calc.forces = np.array([[0.0, 0.0, 0.0], [value, 0.0, 0.0]])
    elif name == "momenta":
        atoms.set_momenta([[0.0, 0.0, 0.0], [value, 0.0, 0.0]])
    else:
        atoms.positions[1, 2] = value
    return atoms


@pytest.mark.parametrize("name", ["energy", "forces", "momenta", "positions"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none(name: str, value: float) -> None:
    words = "the energy is not finite" if name == "energy" else f"the {name} are no longer finite numbers"
    assert sign_of_explosion(with_values(name, value), PLAN, False) == words


@pytest.mark.parametrize(("size", "seen"), [(9.99, False), (10.0, False), (10.01, True)])
def test_the_largest_force_counts(size: float, seen: bool) -> None:
    atoms = flying(3)
    atoms.calc.forces = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -size], [0.0, 0.0, 5.0]])
    told = sign_of_explosion(atoms, replace(PLAN, max_force=10.0), False)
    assert (told is not None) == seen
    assert told is None or f"the force on atom 1 is {size:.4g} eV/Angstrom, beyond --max_force=10" in told


def test_forces_on_fixed_atoms_count_too() -> None:
    atoms = with_values("forces", 500.0)
    atoms.set_constraint(FixAtoms([1]))
    assert "the force on atom 1 is 500" in str(sign_of_explosion(atoms, PLAN, False))


@pytest.mark.parametrize(("limit", "seen"), [(0.999, True), (1.0, False), (1.001, False)])
def test_the_temperature_has_a_limit(limit: float, seen: bool) -> None:
    atoms = flying()
    told = sign_of_explosion(atoms, replace(PLAN, max_temperature_K=limit * atoms.get_temperature()), False)
    assert (told is not None) == seen
    assert told is None or told.startswith(f"the temperature is {atoms.get_temperature():.4g} K, beyond")


@pytest.mark.parametrize(("distance", "looks", "seen"), [(0.29, True, True), (0.29, False, False), (0.31, True, False)])
def test_atoms_on_top_of_each_other(distance: float, looks: bool, seen: bool) -> None:
    atoms = flying(4)
    atoms.positions[2] = atoms.positions[3] + [0.0, 0.0, distance]
    told = sign_of_explosion(atoms, PLAN, looks)
    assert told == ("atoms 2 and 3 are closer than --min_distance=0.3 Angstrom" if seen else None)


def test_two_atoms_of_one_pair_are_named() -> None:
    atoms = flying(4)
    atoms.positions[:] = [[0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.1, 0.0, 0.0], [5.1, 0.0, 0.0]]
    assert str(sign_of_explosion(atoms, PLAN, True))[:13] in ("atoms 0 and 2", "atoms 1 and 3")


def test_atoms_on_top_of_each_other_across_the_border_of_the_cell() -> None:
    atoms = flying(2)
    atoms.positions[:] = [[0.1, 1.0, 1.0], [7.9, 1.0, 1.0]]
    atoms.cell = 8.0 * np.eye(3)
    assert sign_of_explosion(atoms, PLAN, True) is None
    atoms.pbc = (True, False, False)
    assert "atoms 0 and 1 are closer" in str(sign_of_explosion(atoms, PLAN, True))


@pytest.mark.parametrize(("n_atoms", "seen"), [(1, False), (2, True)])
def test_atoms_without_forces_have_flown_apart(n_atoms: int, seen: bool) -> None:
    atoms = flying(n_atoms)
    atoms.calc.forces = 0.0
    assert (sign_of_explosion(atoms, PLAN, False) is not None) == seen


def test_distances_are_looked_at_whenever_a_line_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(simulation, "sign_of_explosion", lambda atoms, plan, distances: looked.append(distances))
    simulate(flying(), replace(PLAN, steps=6, log_interval=3), tmp_path / "md.xyz")
    assert looked[-6:] == [False, False, True] * 2 and all(looked[:-6])


def test_an_explosion_leaves_the_last_frame(tmp_path: Path) -> None:
    atoms = flying(2)
    atoms.calc = type("Later", (Slope,), {"calculate": _explode_beyond(0.3)})()
    with pytest.raises(UserError, match=r"broke down at step 8: the force on atom 0 is 1000 eV/Angstrom"):
        simulate(atoms, PLAN, tmp_path / "md.xyz")
    frames = read(tmp_path / "md.xyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 8] and frames[-1].info["time_fs"] == 16.0


def _explode_beyond(place: float) -> Any:
    def calculate(self: Slope, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        self.forces = 1e-9
        if atoms.positions[0, 0] > place:
            self.forces = np.array([[1000.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        Slope.calculate(self, atoms, properties, system_changes)

    return calculate


def test_a_signal_saves_and_the_rest_follows(tmp_path: Path) -> None:
    """At the end of the step in which it comes, in this process."""

    def asked_at_seventh(steps: range) -> Iterator[int]:
        for step in steps:
            if step == 7:
                signal.raise_signal(signal.SIGTERM)
            yield step

    plan = replace(PLAN, steps=12)
    with Interruption() as interruption:
        simulation = Simulation(flying(2, 0.3), plan, tmp_path / "md.xyz", False)
        with pytest.raises(RunInterrupted, match="7 of 12 steps are done; --restart goes on") as caught:
            simulation.run(asked_at_seventh, interruption)
    assert caught.value.status == 128 + signal.SIGTERM
    going_on = Simulation(flying(2, 0.3), plan, tmp_path / "md.xyz", True)
    assert going_on.state.step == 7
    assert going_on.run(lambda steps: steps, Interruption()).steps == 5


def test_a_simulation_that_is_done_is_not_gone_on_with(tmp_path: Path) -> None:
    simulate(flying(), replace(PLAN, steps=4), tmp_path / "md.xyz")
    for steps in (3, 4):
        with pytest.raises(UserError, match=f"all {steps} steps are done; ask for more"):
            simulate(flying(), replace(PLAN, steps=steps), tmp_path / "md.xyz", restart=True)


def test_states_are_saved_at_their_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = list[int]()
    monkeypatch.setattr("mace.dynamics.simulation.save_state", lambda path, state, plan: saved.append(state.step))
    simulate(flying(), replace(PLAN, steps=10, state_interval=4), tmp_path / "md.xyz")
    assert saved == [0, 4, 8, 10]


def test_only_barostats_that_go_on_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def crystal() -> Atoms:
        atoms = flying(2)
        atoms.cell, atoms.pbc = 20.0 * np.eye(3), True
        return atoms

    for ensemble in ("nvt", "npt"):
        plan = replace(PLAN, ensemble=ensemble, temperature_K=300.0, steps=2)
        simulate(crystal(), plan, tmp_path / f"{ensemble}.xyz")
        assert "start from rest" not in caplog.text
        simulate(crystal(), replace(plan, steps=4), tmp_path / f"{ensemble}.xyz", restart=True)
        assert ("Thermostat and barostat start from rest" in caplog.text) == (ensemble == "npt")
