"""Do commands as workflow programs and guides write them run here, with a word about what has no effect?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write
from training_runs import Run, copper, isolated_atoms, labeled, train, water, write_water

from mace.errors import UserError
from mace.model.model_file import load_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Water with energies and forces, and without stress."""
    return write_water(tmp_path_factory.mktemp("water") / "train.xyz")


def losses_of(run: Run) -> list[str]:
    """The losses of the stages, as the log has them."""
    told = run.log.partition("OPTIMIZER INFORMATION")[2].partition("=TRAINING=")[0]
    return re.findall(r"(?:INFO: |function: )(\w+\(.*?\))", told)


@pytest.mark.parametrize(
    ("flags", "warning", "losses"),
    [
        (
            ["--loss=huber"],
            "--stress_weight=1, the default, has no effect: no training structure has such a label",
            ["huber(energy_weight=1.000, forces_weight=100.000)"],
        ),
        (
            ["--loss=universal", "--energy_weight=2"],
            "--stress_weight=1, the default, has no effect",
            ["universal(energy_weight=2.000, forces_weight=100.000)"],
        ),
        (
            ["--loss=huber", "--stress_weight=0", "--swa", "--start_swa=1"],
            "--swa_stress_weight=10, the default, has no effect",
            [
                "huber(energy_weight=1.000, forces_weight=100.000)",
                "huber(energy_weight=1000.000, forces_weight=100.000)",
            ],
        ),
        (
            ["--loss=universal", "--stress_weight=3", "--stress_key="],
            "--stress_weight=3 has no effect: --stress_key says that there is none",
            ["universal(energy_weight=1.000, forces_weight=100.000)"],
        ),
        (
            ["--loss=stress", "--stress_key=None"],
            "--stress_weight=1, the default, has no effect: --stress_key says that there is none",
            ["stress(energy_weight=1.000, forces_weight=100.000)"],
        ),
        (
            ["--forces_key=None", "--forces_weight=50"],
            "--forces_weight=50 has no effect: --forces_key says that there is none",
            ["weighted(energy_weight=1.000)"],
        ),
    ],
)
def test_labels_nobody_insists_on_may_be_absent(
    data: Path, tmp_path: Path, flags: list[str], warning: str, losses: list[str]
) -> None:
    run = train(tmp_path, data, *flags)
    told = [line for line in run.log.splitlines() if "WARNING" in line and "has no effect" in line]
    assert len(told) == 1 and warning in told[0]
    assert losses_of(run) == losses
    assert load_model(tmp_path / "tiny.model").metadata.epoch is not None


def test_a_label_that_is_there_stays_in_the_loss(tmp_path: Path) -> None:
    write(tmp_path / "train.xyz", copper(8), format="extxyz")
    run = train(tmp_path, tmp_path / "train.xyz", "--loss=universal", "--E0s={29: 3.5}", "--dry_run")
    assert "has no effect" not in run.log and "stress_weight=1.000" in run.shown


@pytest.mark.parametrize("key", ["--stress_key=", "--stress_key=None"])
def test_an_empty_key_hides_a_label(tmp_path: Path, key: str) -> None:
    write(tmp_path / "train.xyz", copper(8), format="extxyz")
    run = train(tmp_path, tmp_path / "train.xyz", "--loss=huber", key, "--E0s={29: 3.5}", "--dry_run")
    assert run.said(r"Training set: .*stress 0 of 8 \(its key says that there is none\)")
    assert run.said(r"Total Training set \[energy: 8, stress: 0, ")


def test_nothing_is_left_to_fit(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--loss=weighted: no training structure has a label that it fits"):
        train(tmp_path, data, "--energy_key=", "--forces_key=")


@pytest.mark.parametrize("fraction", ["0", "0.0", "1"])
def test_a_fraction_has_no_meaning_beside_a_validation_file(data: Path, tmp_path: Path, fraction: str) -> None:
    write(tmp_path / "valid.xyz", water(3, seed=1), format="extxyz")
    run = train(tmp_path, data, f"--valid_file={tmp_path / 'valid.xyz'}", f"--valid_fraction={fraction}", "--dry_run")
    assert run.said("train=12, valid=3")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--enable_cueq=True"], ["--enable_cueq=True changes nothing: this library is not used"]),
        (["--num_workers=8", "--enable_oeq=True"], ["--enable_oeq=True changes nothing"]),
        (["--compute_atomic_dipole=True"], ["--compute_atomic_dipole=True changes nothing: --model decides it"]),
        (["--num_samples_pt=7", "--foundation_head=a"], ["--num_samples_pt=7 has no", "--foundation_head=a has no"]),
        (["--hidden_irreps=4x0e", "--num_channels=8", "--max_L=1"], ["--hidden_irreps='4x0e' is overruled"]),
        (["--wandb_project=p", "--lora_rank=2"], ["--wandb_project=p has no effect without --wandb", "--lora_rank=2"]),
        (["--num_workers=0", "--enable_cueq=False", "--pin_memory=True", "--launcher=slurm"], []),
    ],
)
def test_what_changes_nothing_is_told_once(data: Path, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    run = train(tmp_path, data, "--dry_run", *flags)
    told = [line for line in run.log.splitlines() if " WARNING: --" in line]
    assert len(told) == len(words) and all(any(word in line for line in told) for word in words), told


def test_the_log_counts_labels_as_mace_torch_does(tmp_path: Path) -> None:
    """Lines that programs look for; the words and their order were taken from a log of 0.3.16."""
    frames = [labeled(Atoms("H2O", positions=[[0, 0, 0.1 * i], [0, 0.8, 0.5], [0, 0, 1.6]])) for i in range(10)]
    for atoms in frames[:3]:
        del atoms.arrays["REF_forces"]
    write(tmp_path / "train.xyz", isolated_atoms() + frames, format="extxyz")
    write(tmp_path / "valid.xyz", water(4, seed=1), format="extxyz")
    rest = "dipole components: 0, head: {0}, elec_temp: 0, total_charge: 0, polarizability: 0, total_spin: 0"
    split = train(tmp_path / "split", tmp_path / "train.xyz", "--dry_run")
    lines = [line.split("INFO: ")[-1] for line in split.log.splitlines()]
    assert f"Total Training set [energy: 10, stress: 0, virials: 0, {rest.format(10)}, forces: 7, charges: 0]" in lines
    assert f"Random Split Validation set [energy: 1, stress: 0, virials: 0, {rest.format(1)}," in split.log
    given = train(tmp_path / "given", tmp_path / "train.xyz", f"--valid_file={tmp_path / 'valid.xyz'}", "--dry_run")
    lines = [line.split("INFO: ")[-1] for line in given.log.splitlines()]
    assert f"Total Validation set [energy: 4, stress: 0, virials: 0, {rest.format(4)}, forces: 4, charges: 0]" in lines
    assert "Random Split" not in given.log


@pytest.mark.parametrize("flags", [[], ["--swa", "--start_swa=1"], ["--loss=huber", "--stress_weight=0"]])
def test_the_last_table_of_a_log_is_the_one_programs_read(data: Path, tmp_path: Path, flags: list[str]) -> None:
    """Such as autoplex, which divides the log at the lines of tables and looks for two rows in the last body."""
    run = train(tmp_path, data, *flags)
    body = re.split(r"\+-+\+\n", run.log)[-2]
    number = r"\s*([\d.]+)\s*\|"
    rows = re.findall(rf"\|\s*(train_default|valid_default)\s*\|{number * 3}", body, flags=re.IGNORECASE)
    assert [row[0] for row in rows] == ["train_Default", "valid_Default"]
    assert all(float(value) > 0.0 for row in rows for value in row[1:])


def test_the_tables_of_test_sets_come_after_that(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "test.xyz", water(3, seed=2), format="extxyz")
    run = train(tmp_path, data, f"--test_file={tmp_path / 'test.xyz'}")
    titles = re.findall(r"INFO: (Error-table on [A-Z]+|\S+ by config_type)", run.log)
    assert titles[-2:] == ["Error-table on TRAIN", "Error-table on TEST"]
    assert "| Default_Default" in run.log.split("Error-table on TEST")[1]


@pytest.mark.parametrize("flags", [[], ["--ema", "--swa"], ["--optimizer=adamw", "--loss=huber"]])
def test_no_epochs_measure_and_write_the_model_as_it_starts(data: Path, tmp_path: Path, flags: list[str]) -> None:
    run = train(tmp_path, data, "--max_num_epochs=0", *flags)
    assert run.epochs_trained == [] and run.epochs_evaluated == [None]
    assert run.said("Loaded Stage one model from epoch None for evaluation")  # as in mace-torch
    loaded = load_model(tmp_path / "tiny.model")
    assert loaded.metadata.epoch is None and loaded.metadata.metrics["valid_Default"]["rmse_f"] > 0.0
    assert not list(tmp_path.glob("*_stagetwo.model"))
    page = (tmp_path / "results" / "tiny_run-7.html").read_text(encoding="utf-8")
    assert "Nothing was trained, by --max_num_epochs=0" in page
    again = train(tmp_path, data, "--max_num_epochs=1", "--restart_latest", *flags)
    assert again.epochs_trained == [0]
    assert load_model(tmp_path / "tiny.model").metadata.epoch == 0
