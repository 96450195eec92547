"""Do states and trajectories come back as they were, and is what does not fit refused in words?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read

from mace.calculators import MACECalculator
from mace.dynamics.plan import SimulationPlan
from mace.dynamics.state import SimulationState, load_state, save_state, state_path
from mace.dynamics.trajectory import make_frame, open_trajectory
from mace.errors import UserError
from mace.model.plan import ModelPlan

PLAN = SimulationPlan(ensemble="nvt", steps=9, timestep_fs=0.5, temperature_K=300.0)


def begun() -> SimulationState:
    atoms = molecule("CH3OH", cell=np.diag([7.0, 8.0, 9.0]), pbc=True)
    atoms.set_momenta(np.random.default_rng(0).normal(size=(6, 3)))
    random = np.random.default_rng(4)
    random.normal(size=7)
    return SimulationState(40, atoms, random, 123, np.arange(6.0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_state(tmp_path / "a.state.npz", begun(), PLAN)
    return tmp_path / "a.state.npz"


def test_a_state_stands_beside_its_trajectory() -> None:
    assert state_path(Path("runs/md.xyz")) == Path("runs/md.xyz.state.npz")


@pytest.mark.parametrize("fixed", [(), (0, 3)])
def test_a_state_comes_back(path: Path, fixed: tuple[int, ...]) -> None:
    """Into the structure the simulation began with, held atoms included."""
    atoms, expected = molecule("CH3OH"), begun()
    atoms.set_constraint(FixAtoms(list(fixed)))
    found = load_state(path, atoms, replace(PLAN, steps=99, temperature_K=500.0, friction=1.0))
    assert found.atoms is atoms and (found.step, found.length) == (40, 123)
    np.testing.assert_array_equal(atoms.positions, expected.atoms.positions)
    np.testing.assert_array_equal(atoms.get_momenta(), expected.atoms.get_momenta())
    np.testing.assert_array_equal(atoms.cell.array, np.diag([7.0, 8.0, 9.0]))
    np.testing.assert_array_equal(found.sums, np.arange(6.0))
    np.testing.assert_array_equal(found.random.normal(size=5), expected.random.normal(size=5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ensemble": "nve"}, "began with --ensemble=nvt, not nve"),
        ({"timestep_fs": 0.25}, "began with --timestep_fs=0.5, not 0.25"),
        ({"trajectory_interval": 7}, "began with --trajectory_interval=10, not 7"),
    ],
)
def test_a_state_of_another_plan_is_refused(path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_state(path, molecule("CH3OH"), replace(PLAN, **change))


def test_a_state_under_other_conditions_is_refused(tmp_path: Path) -> None:
    model = files.model(ModelPlan.model_validate(files.PLAN.model_dump() | {"conditions": (files.CHARGE, files.SPIN)}))
    state, path = begun(), tmp_path / "a.state.npz"
    state.atoms.calc = MACECalculator(models=model)
    state.atoms.info["charge"] = 1
    save_state(path, state, PLAN)
    now = molecule("CH3OH")
    now.calc = MACECalculator(models=model)
    for info, words in (({}, "total_charge"), ({"charge": -1, "spin": 3}, "total_charge and total_spin")):
        now.info = dict(info)
        with pytest.raises(UserError, match=f"the simulation began with another {words}; give the structure the same"):
            load_state(path, now, PLAN)
    now.calc = MACECalculator(models=files.model())  # of a model that knows of no charge
    with pytest.raises(UserError, match="began with another total_charge and total_spin"):
        load_state(path, now, PLAN)
    now.calc = MACECalculator(models=model)
    now.info = {"charge": 1.0, "spin": 1}
    assert load_state(path, now, PLAN).step == 40


@pytest.mark.parametrize("symbols", ["COH3", "COH5", "CH3OH", "NOH4"])
def test_a_state_of_other_atoms_is_refused(path: Path, symbols: str) -> None:
    with pytest.raises(UserError, match="the state belongs to another structure"):
        load_state(path, Atoms(symbols), PLAN)


def test_a_missing_state_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no state to go on from; leave --restart out"):
        load_state(tmp_path / "none.npz", molecule("CH3OH"), PLAN)


def without(name: str, path: Path) -> None:
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files if key != name}
    np.savez(path, **arrays)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no facts", "no random numbers", "no JSON"])
def test_a_damaged_state_is_told(path: Path, damage: str) -> None:
    if damage in ("cut", "empty", "text"):
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    elif damage == "no facts":
        without("facts", path)
    else:
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in stored.files}
        facts = json.loads(arrays["facts"].tobytes())
        del facts["random"]
        text = json.dumps(facts) if damage == "no random numbers" else "{"
        np.savez(path, **arrays | {"facts": np.frombuffer(text.encode(), dtype=np.uint8)})
    with pytest.raises(UserError, match=r"a\.state\.npz: the state cannot be read .*leave --restart out"):
        load_state(path, molecule("CH3OH"), PLAN)


def test_a_state_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="the state cannot be written"):
        save_state(tmp_path / "file" / "a.npz", begun(), PLAN)


def frame(number: int) -> Atoms:
    atoms = molecule("H2O")
    atoms.positions += number
    atoms.calc = SinglePointCalculator(atoms, energy=float(number), forces=np.full((3, 3), number), charges=np.ones(3))
    return make_frame(atoms, number, 0.5 * number)


def test_a_frame_holds_a_state_as_it_was() -> None:
    atoms = molecule("H2O", cell=np.eye(3) * 9, pbc=True)
    atoms.info["name"] = "water"
    stress = np.arange(6.0)
    atoms.calc = SinglePointCalculator(atoms, energy=2.0, forces=np.ones((3, 3)), stress=stress, charges=np.ones(3))
    found = make_frame(atoms, 7, 3.5)
    atoms.positions += 1.0
    assert found.info == {"name": "water", "step": 7, "time_fs": 3.5} and atoms.info == {"name": "water"}
    assert found.positions[0, 2] != atoms.positions[0, 2]
    assert found.calc.results.keys() == {"energy", "forces", "stress"}
    assert found.get_potential_energy() == 2.0
    np.testing.assert_array_equal(found.get_stress(), stress)


def steps(path: Path) -> list[int]:
    return [int(atoms.get_potential_energy()) for atoms in read(path, ":")]


def write_frames(path: Path, length: int | None, numbers: list[int]) -> list[int]:
    """Write frames; return the length after each."""
    trajectory, lengths = open_trajectory(path, length), []
    for number in numbers:
        trajectory.write(frame(number))
        lengths.append(trajectory.length())
    trajectory.close()
    return lengths


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.traj"])
def test_a_trajectory_goes_on_where_the_state_was(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / "folder" / name
    lengths = write_frames(path, None, [1, 2, 3, 4])
    assert steps(path) == [1, 2, 3, 4] and sorted(lengths) == lengths
    write_frames(path, lengths[1], [30, 40])
    assert steps(path) == [1, 2, 30, 40]
    (after_all,) = write_frames(path, lengths[0] if name == "a.traj" else None, [9])
    assert steps(path) == ([1, 9] if name == "a.traj" else [9]) and after_all == path_length(path)
    assert [file.name for file in path.parent.iterdir()] == [name]


def path_length(path: Path) -> int:
    return len(steps(path)) if path.suffix == ".traj" else path.stat().st_size


@pytest.mark.parametrize("name", ["a.xyz", "a.traj"])
def test_a_trajectory_without_new_frames_is_as_it_was(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    length = write_frames(path, None, [1, 2])[-1]
    before = path.read_bytes()
    write_frames(path, length, [])
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a.xyz", "a.traj"])
def test_a_trajectory_that_is_gone_or_too_short_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lengths = write_frames(path, None, [1, 2])
    for length in (lengths[-1] + 1, 10**9):
        with pytest.raises(UserError, match="missing or shorter than when the state was saved; put it back"):
            open_trajectory(path, length)
    assert steps(path) == [1, 2]
    path.unlink()
    with pytest.raises(UserError, match="missing or shorter"):
        open_trajectory(path, lengths[0])


@pytest.mark.parametrize("name", ["a.xyz", "a.traj"])
def test_a_trajectory_that_cannot_be_written_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="the trajectory cannot be written"):
        open_trajectory(tmp_path / "file" / name, None)
