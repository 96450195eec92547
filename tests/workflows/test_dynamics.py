"""Does a stranger get a trajectory from a structure and a model, a way to go on, and a word when it breaks down?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.io import read, write

from mace.calculators import MACECalculator
from mace.cli import md
from mace.errors import UserError
from mace.model.mace import MACE
from mace.model.model_file import ModelMetadata, save_model
from mace.model.plan import InteractionPlan, ModelPlan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with soft forces, a molecule and a crystal."""
    folder = tmp_path_factory.mktemp("dynamics")
    plan = ModelPlan(
        model="ScaleShiftMACE",
        r_max=3.5,
        l_max=1,
        n_channels=3,
        hidden_l=(0,),
        interactions=(InteractionPlan(residual=False),),
        correlation=(2,),
        radial_mlp=(6,),
        avg_num_neighbors=6.0,
        atomic_numbers=(1, 6, 8),
        reference_energies=(-13.0, -1000.0, -2000.0),
        scale=0.3,
        pair_repulsion=True,
    )
    model = MACE(plan, torch.float64).initialize(torch.Generator().manual_seed(5))
    save_model(folder / "small.model", model, ModelMetadata(shortest_distances={"C-C": 1.0}))
    write(folder / "molecule.xyz", ase.build.molecule("CH3OH"))
    write(folder / "crystal.xyz", ase.build.bulk("C", cubic=True))
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small.model", "molecule.xyz", "crystal.xyz"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)


def _run(*flags: str, structure: str = "molecule.xyz") -> list[Atoms]:
    md.run([f"--structure={structure}", "--model=small.model", *flags])
    name = next((flag.partition("=")[2] for flag in flags if flag.startswith("--trajectory=")), "md.xyz")
    frames: list[Atoms] = read(name, ":")
    return frames


def test_a_head_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_model(tmp_path / "heads.model", files.model(files.with_heads("low", "high")))
    flags = ["--structure=molecule.xyz", f"--model={path}", "--ensemble=nve", "--temperature_K=300", "--steps=1"]
    md.run([*flags, "--head=high", "--trajectory_interval=1"])
    assert ", head high, in float64" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    for atoms in read("md.xyz", ":"):
        expected = MACECalculator(path, head="high").evaluate([atoms])[0]["energy"]
        assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-6)


def test_constant_energy(capsys: pytest.CaptureFixture[str]) -> None:
    frames = _run("--ensemble=nve", "--temperature_K=300", "--steps=40", "--timestep_fs=0.2", "--trajectory_interval=4")
    total = np.array([atoms.get_total_energy() for atoms in frames])
    kinetic = np.array([atoms.get_kinetic_energy() for atoms in frames])
    assert len(frames) == 11 and [atoms.info["step"] for atoms in frames] == list(range(0, 41, 4))
    assert frames[0].get_temperature() == pytest.approx(300.0, abs=0.1)
    assert np.ptp(total) < 0.02 * np.ptp(kinetic)
    np.testing.assert_allclose(frames[0].get_momenta().sum(0), 0.0, atol=1e-6)
    text = capsys.readouterr().out
    assert "Drift of the total energy" in text and "ns/day" in text and "Wrote md.xyz" in text
    assert "Etot/eV" in Path("md.xyz.log").read_text(encoding="utf-8")


def test_the_seed_decides() -> None:
    flags = ("--temperature_K=300", "--steps=5", "--trajectory_interval=5")
    one, same, other = (_run(*flags, f"--seed={seed}")[-1].positions for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_the_thermostat_keeps_the_temperature() -> None:
    flags = ("--temperature_K=500", "--friction=200", "--steps=600", "--trajectory_interval=2", "--log_interval=100")
    frames = _run(*flags, structure="crystal.xyz")
    assert np.mean([atoms.get_temperature() for atoms in frames[100:]]) == pytest.approx(500.0, rel=0.25)


@pytest.mark.parametrize("cell_changes", ["isotropic", "full"])
def test_constant_pressure_moves_the_cell(cell_changes: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--ensemble=npt", "--temperature_K=300", "--pressure_GPa=50", f"--cell_changes={cell_changes}")
    frames = _run(*flags, "--barostat_fs=50", "--steps=40", "--trajectory=md.traj", structure="crystal.xyz")
    lengths = frames[-1].cell.lengths() / frames[0].cell.lengths()
    assert abs(lengths - 1.0).max() > 1e-4
    assert (np.ptp(lengths) < 1e-9) == (cell_changes == "isotropic")
    assert "P/GPa" in capsys.readouterr().out


def test_velocities_of_the_structure_are_kept() -> None:
    atoms = read("molecule.xyz")
    atoms.set_velocities(np.full((6, 3), 0.01 / units.fs * 0.01))
    write("moving.xyz", atoms)
    frames = _run("--ensemble=nve", "--steps=1", structure="moving.xyz")
    np.testing.assert_allclose(frames[0].get_momenta(), atoms.get_momenta(), atol=1e-6)
    with pytest.raises(UserError, match="has no velocities; give --temperature_K"):
        _run("--ensemble=nve", "--steps=1")


def test_fixed_atoms_stay() -> None:
    atoms = read("molecule.xyz")
    atoms.set_constraint(FixAtoms([1]))
    write("fixed.xyz", atoms)
    frames = _run("--temperature_K=300", "--steps=20", structure="fixed.xyz")
    np.testing.assert_allclose(frames[-1].positions[1], atoms.positions[1], atol=1e-7)
    assert np.abs(frames[-1].positions - atoms.positions).max() > 1e-3


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
@pytest.mark.parametrize("name", ["md.xyz", "md.traj"])
def test_a_restart_equals_the_uninterrupted_run(ensemble: str, name: str) -> None:
    flags = (f"--ensemble={ensemble}", "--temperature_K=300", "--trajectory_interval=3", "--log_interval=2")
    whole = _run(*flags, "--steps=30", f"--trajectory=whole_{name}")
    _run(*flags, "--steps=16", "--state_interval=10", f"--trajectory={name}")
    resumed = _run(*flags, "--steps=30", "--restart", f"--trajectory={name}")
    assert [atoms.info["step"] for atoms in resumed] == [atoms.info["step"] for atoms in whole] == list(range(0, 31, 3))
    for found, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_array_equal(found.get_momenta(), expected.get_momenta())


def test_frames_beyond_the_state_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that dies leaves a state older than the last frames."""
    flags = ("--temperature_K=300", "--trajectory_interval=2", "--state_interval=8")
    whole = _run(*flags, "--steps=16", "--trajectory=whole.traj")
    for name in ("md.xyz", "md.traj"):
        with monkeypatch.context() as patch:
            patch.setattr("mace.dynamics.simulation.Simulation._check", _die_at(13))
            with pytest.raises(MemoryError):
                _run(*flags, "--steps=16", f"--trajectory={name}")
        assert len(read(name, ":")) == 7
        resumed = _run(*flags, "--steps=16", "--restart", f"--trajectory={name}")
        assert [atoms.info["step"] for atoms in resumed] == list(range(0, 17, 2))
        np.testing.assert_allclose(resumed[-1].positions, whole[-1].positions, atol=1e-7)


def _die_at(step: int) -> Any:
    def check(simulation: Any, when: str) -> None:
        if simulation.state.step == step:
            raise MemoryError

    return check


def test_a_signal_saves_and_says_how_to_go_on() -> None:
    command = [
        sys.executable,
        "-m",
        "mace.cli.md",
        "--structure=molecule.xyz",
        "--model=small.model",
        "--steps=1000000",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    flags = ["--temperature_K=300", "--log_interval=1"]
    with subprocess.Popen([*command, *flags], env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        while " 3  " not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        message = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in message and "of 1000000 steps are done; --restart goes on" in message
    done = int(message.split(": ")[1].split()[0])
    _run("--temperature_K=300", f"--steps={done + 5}", "--restart")


def test_an_explosion_is_told_and_the_frames_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--ensemble=nve", "--temperature_K=2000", "--timestep_fs=20", "--steps=500", "--trajectory_interval=1")
    with pytest.raises(UserError, match=r"broke down at step \d+: .*(force on atom|temperature is|flown apart|closer)"):
        _run(*flags)
    assert len(read("md.xyz", ":")) > 1


def test_a_start_that_is_no_matter_is_refused() -> None:
    atoms = read("molecule.xyz")
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 0.1]
    write("close.xyz", atoms)
    with pytest.raises(UserError, match="broke down at the start: (the force on atom|atoms 0 and 1 are closer)"):
        _run("--temperature_K=300", "--steps=5", structure="close.xyz")
    assert not Path("md.xyz").exists()


def test_closer_atoms_than_in_training_are_in_the_log() -> None:
    flags = ("--temperature_K=300", "--steps=1")
    _run(*flags, structure="molecule.xyz")
    assert "WARNING: A distance" in Path("md.xyz.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --steps or --time_ps"),
        (["--steps=5", "--time_ps=1"], "either --steps or --time_ps"),
        (["--steps=0", "--temperature_K=9"], "--steps must be a whole number of at least 1"),
        (["--steps=5"], "--ensemble=nvt needs --temperature_K"),
        (["--steps=5", "--temperature_K=-3"], "--temperature_K must be a number above 0"),
        (["--steps=5", "--temperature_K=300", "--timestep_fs=0"], "--timestep_fs must be a number above 0"),
        (["--steps=5", "--temperature_K=300", "--pressure_GPa=1"], "--pressure_GPa has no effect with --ensemble=nvt"),
        (["--steps=5", "--temperature_K=300", "--ensemble=npt"], "repeats in all three directions"),
        (["--steps=5", "--temperature_K=300", "--trajectory=a.pdb"], "must end in .xyz, .extxyz, .traj"),
        (["--steps=5", "--temperature_K=300", "--index=4"], "there is no structure 4; the file has 1"),
        (["--steps=5", "--temperature_K=300", "--restart"], "there is no state to go on from"),
        (["--steps=5", "--temperatur_K=300"], "did you mean --temperature_K"),
        (["--steps=5", "--temperature_K=300", "--model=none.model"], "no such model file"),
        (["--steps=5", "--temperature_K=300", "--structure=none.xyz"], "no such file"),
    ],
)
def test_refusals(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _run(*flags)
    assert message in str(caught.value)
    assert not Path("md.xyz").exists()


def test_a_restart_must_be_of_the_same_simulation() -> None:
    _run("--temperature_K=300", "--steps=5")
    with pytest.raises(UserError, match="began with --timestep_fs=0.5, not 1.0"):
        _run("--temperature_K=300", "--steps=9", "--restart", "--timestep_fs=1")
    with pytest.raises(UserError, match="all 5 steps are done"):
        _run("--temperature_K=300", "--steps=5", "--restart")
    with pytest.raises(UserError, match="another structure"):
        _run("--temperature_K=300", "--steps=9", "--restart", structure="crystal.xyz")
    Path("md.xyz.state.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        _run("--temperature_K=300", "--steps=9", "--restart")
