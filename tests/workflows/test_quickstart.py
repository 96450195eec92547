"""Does a stranger get from structures to a trained model with what is proposed?"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ase.io import write
from rich.console import Console
from training_runs import Run, copper, isolated_atoms, water, write_water

from mace.errors import UserError
from mace.quickstart import pace
from mace.quickstart.session import Outcome, run_quickstart
from mace.runs.run import run_training
from mace.settings import parse_training_settings
from mace.settings.other_commands import QuickstartSettings
from mace.settings.reading import parse_settings

TINY = (
    *("--num_channels=4", "--max_L=0", "--max_ell=1", "--correlation=2", "--r_max=3", "--radial_MLP=[8]"),
    *("--kernels=torch", "--plot=False", "--max_num_epochs=4"),
)
"""What makes the proposed model so small that it trains in a second."""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pace, "ENOUGH_SECONDS", 0.05)


def quickstart(*arguments: str) -> tuple[Outcome, str]:
    output = io.StringIO()
    settings = parse_settings(QuickstartSettings, [*arguments])
    return run_quickstart(settings, Console(file=output, width=150)), output.getvalue()


def train_with(file: Path) -> Run:
    settings = parse_training_settings([f"--config={file}"])
    output = io.StringIO()
    run_training(settings, Console(file=output, width=200))
    return Run(settings, Path("."), output.getvalue())


def test_molecules_train_with_the_file_as_it_is():
    write_water(Path("train.xyz"), 20)
    outcome, shown = quickstart("train.xyz", *TINY)
    assert outcome.file == Path("train.yaml") and "mace_run_train --config train.yaml" in shown
    run = train_with(outcome.file)
    assert run.settings.name == "train" and Path("train_stagetwo.model").exists()
    assert run.epochs_trained == [0, 1, 2, 3]
    assert run.settings.swa and run.settings.ema and run.settings.default_dtype == "float32"


def test_crystals_are_trained_on_stress():
    write("cu.xyz", isolated_atoms(["Cu"]) + copper(10), format="extxyz")
    outcome, _ = quickstart("cu.xyz", *TINY)
    run = train_with(outcome.file)
    assert run.settings.loss == "stress" and run.settings.stress_weight > 1.0
    assert run.records[-1]["rmse_stress"] is not None


def test_energies_alone_without_isolated_atoms():
    frames = water(12)
    for atoms in frames:
        del atoms.arrays["REF_forces"]
    write("e.xyz", frames, format="extxyz")
    outcome, _ = quickstart("e.xyz", *TINY)
    assert outcome.proposal.value("E0s") == "average"
    assert train_with(outcome.file).settings.forces_weight == 0.0


def test_dipoles_alone():
    frames = water(12)
    for atoms in frames:
        del atoms.arrays["REF_forces"], atoms.info["REF_energy"]
        atoms.info["REF_dipole"] = [0.1, 0.2, 0.3]
    write("mu.xyz", frames, format="extxyz")
    outcome, _ = quickstart("mu.xyz", *[flag for flag in TINY if "max_L" not in flag])
    assert train_with(outcome.file).settings.model == "AtomicDipolesMACE"


def test_files_of_their_own_and_all_settings_are_kept():
    write_water(Path("train.xyz"), 20)
    write_water(Path("valid.xyz"), 5, seed=1)
    outcome, shown = quickstart(
        "train.xyz", "--valid_file=valid.xyz", "--name=mine", "--seed=5", "--lr=0.003", "--work_dir=runs", *TINY
    )
    run = train_with(outcome.file)
    given = run.settings
    assert (given.name, given.seed, given.lr, given.valid_file) == ("mine", 5, 0.003, "valid.xyz")
    assert Path("runs/mine.model").exists() and "as given" in shown


def test_the_prediction_adds_up_what_was_measured():
    write_water(Path("train.xyz"), 20)
    outcome, shown = quickstart("train.xyz", *TINY)
    measured, predicted = outcome.pace, outcome.prediction
    assert measured.steps >= pace.FEWEST_STEPS and measured.training_structures == 18
    assert predicted.steps == pytest.approx(4 * measured.updates * measured.step)
    assert predicted.total == pytest.approx(predicted.steps + predicted.evaluations + predicted.saving + predicted.rest)
    assert min(measured.step, measured.evaluation, measured.save, measured.final) > 0.0
    assert "Time: about" in shown and "steps were timed" in shown and "GB at the peak" in shown


def test_a_part_of_many_structures_is_timed(monkeypatch):
    monkeypatch.setattr(pace, "_LARGEST_SAMPLE", 12)
    write_water(Path("train.xyz"), 40)
    outcome, _ = quickstart("train.xyz", *TINY, "--batch_size=4")
    assert outcome.pace.training_structures == 36 and outcome.pace.updates == 9


def test_no_file_is_overwritten_silently():
    write_water(Path("train.xyz"), 8)
    Path("train.yaml").write_text("mine")
    with pytest.raises(UserError, match="train.yaml: the file exists; .*--output.*--overwrite"):
        quickstart("train.xyz", *TINY)
    assert Path("train.yaml").read_text() == "mine"
    quickstart("train.xyz", "--overwrite", *TINY)
    assert "batch_size" in Path("train.yaml").read_text()


def test_errors_in_data_end_it_in_a_sentence():
    frames = isolated_atoms() + water(8)
    frames[4].positions[1] = frames[4].positions[0] + 0.05
    write("bad.xyz", frames, format="extxyz")
    with pytest.raises(UserError, match="close"):
        quickstart("bad.xyz", *TINY)
    assert not Path("bad.yaml").exists()
    write("atoms.xyz", isolated_atoms(), format="extxyz")
    with pytest.raises(UserError, match="atoms.xyz: there is no structure to train on"):
        quickstart("atoms.xyz", *TINY)


def test_too_little_time_is_told():
    write_water(Path("train.xyz"), 8)
    with pytest.raises(UserError, match="--time=0.1 s does not suffice"):
        quickstart("train.xyz", "--time=0.1s", *[flag for flag in TINY if "epochs" not in flag])


def test_answers_on_a_terminal(monkeypatch):
    write_water(Path("train.xyz"), 20)
    answers = iter(["large", "1.5", "0.25", "tomorrow", "40 s"])
    asked: list[str] = []

    def answer(self: Console, prompt: Any = "", **arguments: Any) -> str:
        asked.append(str(prompt))
        return next(answers)

    monkeypatch.setattr(Console, "input", answer)
    settings = parse_settings(
        QuickstartSettings, ["train.xyz", *[f for f in TINY if not f.startswith(("--max_num", "--num_ch"))]]
    )
    outcome = run_quickstart(settings, Console(file=io.StringIO(), width=150), asks=True)
    assert outcome.proposal.value("valid_fraction") == 0.25  # after 1.5 was refused
    assert outcome.proposal.value("num_channels") == 128
    assert outcome.prediction.total <= 40.0  # after 'tomorrow' was refused
    assert len(asked) == 5


def test_as_a_program_without_a_terminal(tmp_path):
    write_water(Path("train.xyz"), 12)
    command = [sys.executable, "-m", "mace.cli.quickstart"]
    # the tests may run in the folder of a checkout or of an installation
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run([*command, "train.xyz", "--quiet", *TINY], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    shown = subprocess.run(
        [*command, "train.xyz", "--overwrite", *TINY], capture_output=True, text=True, env=environment
    ).stdout
    assert "Proposed settings" in shown and "\x1b" not in shown and "\r" not in shown
    nothing = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert nothing.returncode == 2 and "train_file is required" in nothing.stderr


@pytest.mark.parametrize("flag", ["--foundation_model=small", "--distributed", "--restart_latest", "--dry_run"])
def test_what_a_proposal_cannot_take_into_account_is_refused(flag):
    with pytest.raises(UserError, match=f"^{flag.partition('=')[0]}: "):
        quickstart("train.xyz", flag)
