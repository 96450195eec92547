"""Does every kind of data, loss, model and optimizer train to the end, and learn?"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import read, write
from training_runs import TINY_MODEL, Run, copper, isolated_atoms, train, water, write_water

from mace.errors import UserError
from mace.model.model_file import load_model

PROGRAM = Path(__file__).parents[2] / "mace" / "cli" / "run_train.py"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Molecules without stress beside crystals with it."""
    path = tmp_path / "mixed.xyz"
    molecules = water(8, config_type="molecule", config_stress_weight=0.0)
    crystals = copper(6, config_type="crystal")
    write(path, isolated_atoms("HO") + isolated_atoms(["Cu"]) + molecules + crystals, format="extxyz")  # type: ignore[arg-type]
    return path


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.records if record["mode"] == "eval"]


def assert_learned(run: Run) -> None:
    values = losses(run)
    assert all(value is not None and math.isfinite(value) for value in values)
    assert min(values[1:]) < 0.5 * values[0]


NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
VARIANTS = {
    "weighted": (),
    "ef": ("--loss=ef",),
    "forces only": ("--loss=forces_only",),
    "huber": ("--loss=huber", "--stress_weight=0"),
    "universal": ("--loss=universal", "--stress_weight=0"),
    "shifted": ("--model=ScaleShiftMACE", "--scaling=std_scaling"),
    "average E0s": ("--E0s=average",),
    "given E0s": ("--E0s={1: 3.2, 8: 4.6}",),
    "adamw": ("--optimizer=adamw",),
    "exponential": ("--scheduler=ExponentialLR", "--lr_scheduler_gamma=0.9"),
    "single precision": ("--default_dtype=float32",),
    "averaged": ("--ema", "--ema_decay=0.5"),
    "no limit on gradients": ("--clip_grad=None",),
    "one layer": ("--num_interactions=1",),
    "density": ("--interaction_first=RealAgnosticDensityInteractionBlock",),
    "attention": ("--interaction=RealAgnosticAttResidualInteractionBlock", "--apply_cutoff=False"),
    "gates": (
        *("--model=ScaleShiftMACE", f"--interaction={NONLINEAR}", f"--interaction_first={NONLINEAR}"),
        *("--apply_cutoff=False", "--edge_irreps=2x0e + 2x1o", "--use_edge_irreps_first=True"),
    ),
    "shared products, last readout": ("--use_agnostic_product=True", "--use_last_readout_only=True"),
    "other radial functions": ("--radial_type=chebyshev", "--distance_transform=Agnesi", "--pair_repulsion"),
}


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())
def test_water_is_learned(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    run = train(tmp_path, data, "--max_num_epochs=8", "--lr=0.03", *flags)
    assert_learned(run)
    assert run.said("Done")


def test_energies_that_jump_at_the_cutoff_are_told(tmp_path: Path, data: Path) -> None:
    run = train(tmp_path, data, "--max_num_epochs=1", "--interaction=RealAgnosticAttResidualInteractionBlock")
    assert run.said("energies jump when an atom crosses r_max")


def test_the_schedulefree_optimizer_learns(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("schedulefree")
    run = train(tmp_path, data, "--max_num_epochs=12", "--optimizer=schedulefree", "--lr=0.05")
    assert_learned(run)


def test_single_precision_is_that_of_the_file(tmp_path: Path, data: Path) -> None:
    run = train(tmp_path, data, "--default_dtype=float32")
    assert {value.dtype for value in run.weights().values()} == {torch.float32}
    double = train(tmp_path / "double", data)
    assert losses(run) == pytest.approx(losses(double), rel=1e-3)


@pytest.mark.parametrize("loss", ["stress", "virials", "universal", "huber"])
def test_molecules_without_stress_train_beside_crystals_with_it(tmp_path: Path, mixed: Path, loss: str) -> None:
    run = train(tmp_path, mixed, f"--loss={loss}", "--max_num_epochs=6", "--lr=0.03", "--valid_fraction=0.3")
    assert_learned(run)
    evaluation = next(record for record in run.records if record["mode"] == "eval")
    assert evaluation["rmse_stress"] > 0.0 and evaluation["rmse_virials"] > 0.0
    assert run.said(r"stress 6 of 14 \(info 'REF_stress'\)")


def test_a_crystal_alone_trains_its_stress_in_two_stages(tmp_path: Path) -> None:
    path = tmp_path / "copper.xyz"
    write(path, isolated_atoms(["Cu"]) + copper(8), format="extxyz")  # type: ignore[arg-type]
    run = train(tmp_path, path, "--loss=stress", "--max_num_epochs=6", "--swa", "--start_swa=4", "--stress_weight=100")
    assert run.said(r"stress\(energy_weight=1000.000, forces_weight=100.000, stress_weight=10.000\)")
    assert run.said("RMSE_stress= +[0-9.]+ meV / A\\^3")
    assert (tmp_path / "tiny_stagetwo.model").exists()


def test_virials_alone_train_a_stress_loss(tmp_path: Path) -> None:
    frames = copper(8)
    for atoms in frames:
        atoms.info["REF_virials"] = -atoms.get_volume() * atoms.info.pop("REF_stress")
    write(tmp_path / "virials.xyz", isolated_atoms(["Cu"]) + frames, format="extxyz")  # type: ignore[arg-type]
    write(tmp_path / "stress.xyz", isolated_atoms(["Cu"]) + copper(8), format="extxyz")  # type: ignore[arg-type]
    one = train(tmp_path / "a", tmp_path / "virials.xyz", "--loss=stress")
    other = train(tmp_path / "b", tmp_path / "stress.xyz", "--loss=stress")
    assert losses(one) == pytest.approx(losses(other), rel=1e-6)


def test_energies_alone_train_a_model(tmp_path: Path) -> None:
    frames = isolated_atoms() + water(12)
    for atoms in frames:
        del atoms.arrays["REF_forces"]
    write(tmp_path / "energies.xyz", frames, format="extxyz")
    flags = ("--forces_weight=0", "--compute_forces=False", "--max_num_epochs=8", "--lr=0.03")
    run = train(tmp_path, tmp_path / "energies.xyz", *flags)
    assert_learned(run)
    assert not any("rmse_f" in record for record in run.records)
    assert run.said("RMSE_F= +n/a meV / A")
    assert run.said("forces 0 of 12")


def test_energies_alone_never_differentiate(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("forces were computed")

    monkeypatch.setattr("mace.model.prediction.forces_of_pairs", forbidden)
    flags = ("--forces_weight=0", "--compute_forces=False", "--swa", "--start_swa=1", "--swa_forces_weight=0")
    train(tmp_path, data, *flags)
    with pytest.raises(AssertionError, match="forces were computed"):
        train(tmp_path / "with", data)


def test_forces_that_the_loss_needs_cannot_be_left_out(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserError, match="--compute_forces=False needs --forces_weight=0"):
        train(tmp_path, data, "--compute_forces=False")


def test_a_frame_without_energy_is_left_out_of_the_energies_only(tmp_path: Path) -> None:
    frames = water(12)
    for atoms in frames[::2]:
        del atoms.info["REF_energy"]
    write(tmp_path / "half.xyz", isolated_atoms() + frames, format="extxyz")
    run = train(tmp_path, tmp_path / "half.xyz", "--max_num_epochs=8", "--lr=0.03", "--E0s=average")
    assert_learned(run)
    assert run.said(r"energy 6 of 12 \(info 'REF_energy'\), forces 12 of 12")


def test_structures_without_weight_do_not_teach(tmp_path: Path) -> None:
    valid = write_water(tmp_path / "valid.xyz", count=3, seed=1)
    plain = write_water(tmp_path / "plain.xyz", count=4)
    wrong = water(1, seed=5, config_type="wrong")
    wrong[0].arrays["REF_forces"] += 1000.0
    wrong[0].info["REF_energy"] += 1000.0
    write(tmp_path / "more.xyz", isolated_atoms() + water(4) + wrong, format="extxyz")
    fixed = (f"--valid_file={valid}", "--scaling=no_scaling", "--batch_size=10", "--config_type_weights={'wrong': 0.0}")
    one = train(tmp_path / "a", plain, *fixed, "--config_type_weights={'Default': 1.0}")
    other = train(tmp_path / "b", tmp_path / "more.xyz", *fixed)
    # a structure of weight zero still counts in the denominator: 4 of 5 structures
    assert other.records[1]["loss"] == pytest.approx(0.8 * one.records[1]["loss"], rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_isolated_atoms_are_trained_on_but_never_validated_on(tmp_path: Path, seed: int) -> None:
    data = write_water(tmp_path / "train.xyz", count=4)
    flags = ("--keep_isolated_atoms=True", "--valid_fraction=0.25", "--batch_size=1", f"--seed={seed}")
    run = train(tmp_path, data, *flags, "--max_num_epochs=1")
    assert run.said("Total number of configurations: train=5, valid=1")  # three molecules and two atoms
    assert sum(record["mode"] == "opt" for record in run.records) == 5
    assert losses(run)[0] > 1.0  # an isolated atom has a loss of exactly zero


def test_the_same_seed_gives_the_same_model_bit_for_bit(tmp_path: Path, data: Path) -> None:
    flags = ("--max_num_epochs=4", "--ema", "--swa")
    runs = [train(tmp_path / name, data, *flags) for name in ("a", "b")]
    for ending in ("", "_stagetwo"):
        one, other = (run.weights(ending) for run in runs)
        assert all(torch.equal(one[name], other[name]) for name in one)
    different = train(tmp_path / "c", data, *flags, "--seed=8").weights()
    assert not all(torch.equal(different[name], value) for name, value in runs[0].weights().items())


@pytest.mark.parametrize("flags", [(), ("--swa",), ("--restart_latest",)])
def test_a_dry_run_prints_the_plan_and_trains_nothing(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    run = train(tmp_path, data, "--dry_run", *flags)
    assert re.search(r"structures +\| 11 training, 1 validation, 0 test", run.shown)
    assert re.search(r"elements +\| H, O", run.shown)
    assert re.search(r"batches per epoch +\| 3 of 4", run.shown)
    assert re.search(r"parameters +\| 648", run.shown)
    assert ("from epoch" in run.shown) == ("--swa" in flags)
    assert not list(tmp_path.rglob("*.model")) and not list(tmp_path.rglob("*.pt"))
    assert not list(tmp_path.rglob("*_train.txt")) and not list(tmp_path.rglob("*.png"))


def test_a_dry_run_leaves_an_earlier_run_alone(tmp_path: Path, data: Path) -> None:
    before = train(tmp_path, data)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"}
    train(tmp_path, data, "--dry_run")
    train(tmp_path, data, "--dry_run", "--restart_latest")
    assert {path: path.read_bytes() for path in files} == files
    assert before.epochs_trained == [0, 1]


def test_a_test_file_is_reported_by_config_type(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "test.xyz"
    write(path, water(2, seed=3, config_type="near") + water(3, seed=4, config_type="far"), format="extxyz")
    run = train(tmp_path, data, f"--test_file={path}")
    assert run.said(r"tests=\[near_Default: 2, far_Default: 3\]")
    table = run.log.split("Error-table on TEST:")[1]
    assert "| near_Default |" in table and "| far_Default  |" in table
    metrics = load_model(tmp_path / "tiny.model").metadata.metrics
    assert set(metrics) == {"train_Default", "valid_Default", "near_Default", "far_Default"}


def test_a_folder_of_tests_is_reported_file_by_file(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    for name in ("cold", "hot"):
        write(folder / f"{name}.xyz", water(2, seed=len(name)), format="extxyz")
    run = train(tmp_path, data, f"--test_dir={folder}")
    table = run.log.split("Error-table on TEST:")[1]
    assert "| cold " in table and "| hot " in table


def test_settings_from_a_yaml_file(tmp_path: Path, data: Path) -> None:
    lines = [flag[2:].replace("=", ": ", 1) for flag in TINY_MODEL]
    config = tmp_path / "run.yaml"
    config.write_text(
        "\n".join([*lines, "name: from_yaml", f"train_file: {data}", f"work_dir: {tmp_path}", "max_num_epochs: 5"])
        + "\nbatch_size: 4\nema: true\nlr: 1e-2\nE0s: {1: 3.21, 8: 4.6}\nplot: false\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(PROGRAM), f"--config={config}", "--max_num_epochs=1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "from_yaml.model").exists()
    log = (tmp_path / "logs" / "from_yaml_run-123.log").read_text(encoding="utf-8")
    assert "Epoch 0:" in log and "Epoch 1:" not in log
    assert "Using Exponential Moving Average" in log


def test_as_a_module_from_any_folder(tmp_path: Path, data: Path) -> None:
    flags = [*TINY_MODEL, "--name=a", f"--train_file={data}", "--max_num_epochs=1", "--plot=False"]
    command = [sys.executable, "-m", "mace.cli.run_train", *flags]
    path = {"PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a.model").exists()
    assert (tmp_path / "logs" / "a_run-123.log").exists()


def test_the_model_predicts_what_the_tables_say(tmp_path: Path, data: Path) -> None:
    """The errors in the file are those of the calculator that loads it."""
    from mace.calculators import MACECalculator

    test = tmp_path / "test.xyz"
    write(test, water(3, seed=9), format="extxyz")
    train(tmp_path, data, f"--test_file={test}", "--ema")
    calculator = MACECalculator(model_paths=str(tmp_path / "tiny.model"), device="cpu", default_dtype="float64")
    errors = []
    for atoms in read(test, ":"):
        label = atoms.info["REF_energy"]
        atoms.calc = calculator
        errors.append((atoms.get_potential_energy() - label) / len(atoms))
    metrics = load_model(tmp_path / "tiny.model").metadata.metrics["Default_Default"]
    expected = math.sqrt(sum(error**2 for error in errors) / len(errors))
    assert metrics["rmse_e_per_atom"] == pytest.approx(expected, rel=1e-6)


def test_a_term_that_the_validation_set_says_nothing_about_is_told(tmp_path: Path) -> None:
    path, valid = tmp_path / "train.xyz", tmp_path / "valid.xyz"
    write(path, isolated_atoms(["Cu"]) + copper(6), format="extxyz")  # type: ignore[arg-type]
    frames = copper(2, seed=1)
    for atoms in frames:
        del atoms.info["REF_stress"]
    write(valid, frames, format="extxyz")
    run = train(tmp_path, path, f"--valid_file={valid}", "--loss=stress")
    assert run.said("WARNING: No validation structure has a label 'stress' with weight; that term of .* is zero there")
    assert run.said("Done")


def test_start_swa_alone_means_stage_two(data: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", data, "--start_swa=1", "--max_num_epochs=2")
    assert list(run.folder.glob("*_stagetwo.model"))


def test_a_missing_optimizer_is_said_before_anything_is_read(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mace.training.optimization.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        train(tmp_path / "run", data, "--optimizer=schedulefree")
    assert not (tmp_path / "run").exists()
