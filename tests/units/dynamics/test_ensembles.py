"""Do integrators get what the plan says, in ASE's units, and does matter then do what theory says?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ase.md.nose_hoover_chain
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from mace.dynamics import ensembles
from mace.dynamics.ensembles import draw_velocities, make_dynamics
from mace.dynamics.plan import SimulationPlan

PLAN = SimulationPlan(
    ensemble="nvt",
    steps=1,
    timestep_fs=0.7,
    temperature_K=400.0,
    pressure_GPa=2.0,
    friction=30.0,
    thermostat_fs=80.0,
    barostat_fs=900.0,
)


class Springs(Calculator):  # type: ignore[misc]  # the types of ASE are not looked at
    """Atoms bound to their places by springs of a strength in eV/Angstrom^2; zero for an ideal gas."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, places: np.ndarray, strength: float = 0.0) -> None:
        super().__init__()
        self._places, self._strength = places.copy(), strength

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        moved = atoms.positions - self._places
        energy = 0.5 * self._strength * float(np.square(moved).sum())
        self.results = {"energy": energy, "forces": -self._strength * moved, "stress": np.zeros(6)}


def gas(symbols: str = "Ar1000", length: float = 40.0, strength: float = 0.0) -> Atoms:
    atoms = Atoms(symbols)
    atoms.positions = np.random.default_rng(0).uniform(0.0, length, (len(atoms), 3))
    atoms.cell, atoms.pbc = length * np.eye(3), True
    atoms.calc = Springs(atoms.positions, strength)
    return atoms


def dynamics(atoms: Atoms, plan: SimulationPlan) -> Any:
    return make_dynamics(atoms, plan, np.random.default_rng(plan.seed))


def test_time_in_the_microcanonical_ensemble() -> None:
    """A spring's period is 2 pi sqrt(m / k); after a quarter of it what was pulled is where it belongs."""
    atoms = gas("Ar1", strength=0.5)
    atoms.positions += [0.3, 0.0, 0.0]
    quarter_fs = 0.5 * np.pi * np.sqrt(atoms.get_masses()[0] / 0.5) / units.fs
    moving = dynamics(atoms, replace(PLAN, ensemble="nve", timestep_fs=quarter_fs / 200))
    assert type(moving) is VelocityVerlet
    moving.run(200)
    np.testing.assert_allclose(atoms.positions, atoms.calc._places, atol=1e-4)
    assert atoms.get_kinetic_energy() == pytest.approx(0.5 * 0.5 * 0.3**2, rel=1e-4)


@pytest.mark.parametrize("friction", [2.0, 10.0, 50.0])
def test_the_kinetic_energy_relaxes_at_twice_the_friction(friction: float) -> None:
    """Of an ideal gas at rest it grows as 1 - exp(-2 friction time)."""
    atoms = gas("Ar4000")
    moving = dynamics(atoms, replace(PLAN, friction=friction, timestep_fs=500.0 / friction / 40))
    assert type(moving) is Langevin
    moving.run(40)  # in all half of 1 / friction
    assert atoms.get_temperature() == pytest.approx(400.0 * (1.0 - np.exp(-1.0)), rel=0.05)


def test_the_thermostat_pushes_the_center_of_mass() -> None:
    atoms = gas("Ar20")
    dynamics(atoms, PLAN).run(5)
    assert np.abs(atoms.get_momenta().sum(0)).max() > 1e-3


def test_kicks_come_from_the_given_random_numbers() -> None:
    momenta = []
    for seed in (1, 1, 2):
        atoms = gas("Ar5")
        make_dynamics(atoms, PLAN, np.random.default_rng(seed)).run(3)
        momenta.append(atoms.get_momenta())
    np.testing.assert_array_equal(momenta[0], momenta[1])
    assert np.abs(momenta[0] - momenta[2]).max() > 1e-3


@pytest.mark.parametrize(("changes", "name"), [("isotropic", "IsotropicMTKNPT"), ("full", "MTKNPT")])
def test_what_the_barostat_is_given(changes: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(ase.md.nose_hoover_chain, name, lambda *values, **named: given.append((values, named)))
    atoms = gas("Ar5")
    dynamics(atoms, replace(PLAN, ensemble="npt", cell_changes=changes))
    ((values, named),) = given
    assert values[0] is atoms and values[1] == pytest.approx(0.7 * units.fs)
    expected = {"pressure_au": 2.0e9 * units.Pascal, "tdamp": 80.0 * units.fs, "pdamp": 900.0 * units.fs}
    assert named == pytest.approx({"temperature_K": 400.0, **expected}, rel=1e-9)


@pytest.mark.parametrize("changes", ["isotropic", "full"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_gas_gives_way_to_the_pressure(changes: str, factor: float) -> None:
    """At its own pressure N k T / V an ideal gas stays; at twice that every length shrinks by exp(-t^2 / 2 tau^2)."""
    atoms = gas()
    draw_velocities(atoms, 400.0, np.random.default_rng(1))
    own = len(atoms) * units.kB * 400.0 / atoms.get_volume() / units.GPa
    plan = replace(PLAN, ensemble="npt", pressure_GPa=factor * own, cell_changes=changes, timestep_fs=4.5)
    dynamics(atoms, plan).run(50)  # in all a quarter of tau
    grown = np.log(atoms.cell.lengths() / 40.0)
    np.testing.assert_allclose(grown, 0.5 * 0.25**2 * (1.0 - factor), atol=0.003)


def test_an_ase_without_barostat_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ase.md.nose_hoover_chain, "MTKNPT")
    with pytest.raises(ensembles.UserError, match="--ensemble=npt needs a newer ASE"):
        dynamics(gas("Ar5"), replace(PLAN, ensemble="npt"))


def angular_momentum(atoms: Atoms) -> np.ndarray:
    found: np.ndarray = atoms.get_angular_momentum()
    return found


@pytest.mark.parametrize("name", ["CH3OH", "H2O", "CO2", "C6H6"])
def test_velocities_of_a_molecule_neither_move_nor_turn_it(name: str) -> None:
    atoms = molecule(name)
    draw_velocities(atoms, 350.0, np.random.default_rng(2))
    scale = np.abs(atoms.get_momenta()).max()
    np.testing.assert_allclose(atoms.get_momenta().sum(0), 0.0, atol=1e-12 * scale)
    np.testing.assert_allclose(angular_momentum(atoms), 0.0, atol=1e-10 * scale)
    assert atoms.get_temperature() == pytest.approx(350.0, rel=1e-12)


@pytest.mark.parametrize("pbc", [(True, True, True), (False, False, True)])
def test_velocities_of_what_repeats_may_turn(pbc: tuple[bool, bool, bool]) -> None:
    atoms = gas("Ar30")
    atoms.pbc = pbc
    draw_velocities(atoms, 350.0, np.random.default_rng(2))
    np.testing.assert_allclose(atoms.get_momenta().sum(0), 0.0, atol=1e-10)
    assert np.abs(angular_momentum(atoms)).max() > 1.0
    assert atoms.get_temperature() == pytest.approx(350.0, rel=1e-12)


def test_fixed_atoms_get_no_velocity_and_the_others_keep_theirs() -> None:
    atoms = molecule("CH3OH")
    atoms.set_constraint(FixAtoms([0, 1]))
    draw_velocities(atoms, 350.0, np.random.default_rng(2))
    assert not atoms.get_momenta()[:2].any() and atoms.get_momenta()[2:].all()
    assert np.abs(atoms.get_momenta().sum(0)).max() > 1e-3  # the fixed atoms bear it
    assert atoms.get_temperature() == pytest.approx(350.0, rel=1e-12)


@pytest.mark.parametrize("n_atoms", [1, 2])
def test_few_atoms_have_the_temperature_too(n_atoms: int) -> None:
    atoms = Atoms("Ar" * n_atoms, positions=3.0 * np.eye(3)[:n_atoms])
    draw_velocities(atoms, 350.0, np.random.default_rng(2))
    assert atoms.get_temperature() == pytest.approx(350.0, rel=1e-12)
    assert (np.abs(atoms.get_momenta().sum(0)).max() < 1e-12) == (n_atoms == 2)


def test_a_single_atom_moves_as_drawn_and_a_pair_may_turn() -> None:
    atoms = Atoms("Ar")
    draw_velocities(atoms, 350.0, np.random.default_rng(2))
    drawn = np.random.default_rng(2).standard_normal((1, 3))
    np.testing.assert_allclose(atoms.get_momenta() / np.linalg.norm(atoms.get_momenta()), drawn / np.linalg.norm(drawn))
    pair = Atoms("Ar2", positions=[[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    draw_velocities(pair, 350.0, np.random.default_rng(2))
    assert np.abs(angular_momentum(pair)).max() > 1.0


@pytest.mark.parametrize("name", ["Ar", "H2O"])
def test_at_zero_kelvin_nothing_moves(name: str) -> None:
    atoms = molecule(name) if name == "H2O" else Atoms(name)
    draw_velocities(atoms, 0.0, np.random.default_rng(2))
    assert not atoms.get_momenta().any()


def test_atoms_of_any_mass_have_the_same_share_of_the_energy() -> None:
    """Maxwell's distribution: momenta are normal with variance m k T."""
    atoms = gas("H2000Pb2000")
    draw_velocities(atoms, 350.0, np.random.default_rng(2))
    momenta, variance = atoms.get_momenta(), atoms.get_masses() * units.kB * 350.0
    for half in (slice(2000), slice(2000, None)):
        scaled = momenta[half] / np.sqrt(variance[half, None])
        assert scaled.var() == pytest.approx(1.0, abs=0.05)
        assert (scaled**4).mean() == pytest.approx(3.0, abs=0.3)
