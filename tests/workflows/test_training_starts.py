"""What does a run start from, and can files of another run be mistaken for its own?"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import original_files as files
import pytest
from ase.io import write
from training_runs import Run, isolated_atoms, same, train, water, write_water

from mace.errors import UserError
from mace.model.model_file import load_model, save_model
from mace.training.checkpoints import load_safely

FOUR = "--max_num_epochs=4"
STUCK = "--lr=1e-30"
RESUME = "--restart_latest"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


# weights of another run


@pytest.mark.parametrize("kind", ["model", "last", "best"])
def test_weights_can_come_from_a_file(tmp_path: Path, data: Path, kind: str) -> None:
    first = train(tmp_path / "a", data, "--ema", "--max_num_epochs=3")
    checkpoints = tmp_path / "a" / "checkpoints"
    best = load_safely(checkpoints / "tiny_run-7_last.pt")["progression"]["best_epochs"]["one"]
    assert best == 2
    file = {
        "model": tmp_path / "a" / "tiny.model",
        "last": checkpoints / "tiny_run-7_last.pt",
        "best": checkpoints / f"tiny_run-7_epoch-{best}.pt",
    }[kind]
    run = train(tmp_path / "b", data, f"--init_from={file}", STUCK, "--max_num_epochs=1")
    assert same(run.weights(), first.weights())
    assert run.epochs_trained == [0]
    assert run.said(f"Starting from the weights of {re.escape(str(file))}")
    assert run.records[0]["loss"] == pytest.approx(first.records[-1]["loss"], rel=1e-12)


def test_constants_that_belong_to_the_weights_come_along(tmp_path: Path, data: Path) -> None:
    first = train(tmp_path / "a", data, "--model=ScaleShiftMACE")
    other = write_water(tmp_path / "other.xyz", seed=9)
    run = train(tmp_path / "b", other, "--model=ScaleShiftMACE", f"--init_from={tmp_path / 'a' / 'tiny.model'}")
    one, two = (load_model(r.folder / "tiny.model").model.plan for r in (first, run))
    assert (one.scale, one.shift) == (two.scale, two.shift)
    assert run.said(r"INFO: scale: .* stays as in .*tiny.model")


def test_another_model_is_no_start(tmp_path: Path, data: Path) -> None:
    train(tmp_path / "a", data)
    file = tmp_path / "a" / "tiny.model"
    with pytest.raises(UserError, match=r"--init_from: .*tiny.model has another model .*r_max 3.0 -> 4.0"):
        train(tmp_path / "b", data, f"--init_from={file}", "--r_max=4.0")
    with pytest.raises(UserError, match=r"--init_from: .*none.model cannot be opened"):
        train(tmp_path / "b", data, "--init_from=none.model")
    several = save_model(tmp_path / "several.model", files.model(files.with_heads("low", "high")))
    with pytest.raises(UserError, match=r"--init_from: .*heads \['low', 'high'\] -> \['Default'\].* --foundation_head"):
        train(tmp_path / "b", data, f"--init_from={several}")
    hydrogen = tmp_path / "oh.xyz"
    write(hydrogen, isolated_atoms("O") + [atoms[atoms.numbers == 8] for atoms in water(6)], format="extxyz")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="name all elements with --atomic_numbers"):
        train(tmp_path / "c", hydrogen, f"--init_from={file}", "--r_max=3.0")


def test_a_resumed_run_does_not_start_from_them_again(tmp_path: Path, data: Path) -> None:
    straight = train(tmp_path / "a", data, FOUR)
    train(tmp_path / "b", data)
    run = train(tmp_path / "b", data, FOUR, RESUME, f"--init_from={tmp_path / 'a' / 'tiny.model'}")
    assert run.said("--init_from has no effect on a run that is resumed")
    assert same(run.weights(), straight.weights())


# files of other runs


def test_a_longer_earlier_run_never_wins(tmp_path: Path, data: Path) -> None:
    """With a higher epoch number, the original would write out the weights of the old run."""
    train(tmp_path, data, "--max_num_epochs=6", "--lr=0.02")
    fresh = train(tmp_path / "fresh", data, "--max_num_epochs=2")
    again = train(tmp_path, data, "--max_num_epochs=2")
    assert same(again.weights(), fresh.weights())


def test_an_earlier_stage_two_is_not_mistaken_for_this_runs(tmp_path: Path, data: Path) -> None:
    two = train(tmp_path, data, "--swa", "--start_swa=1")
    weights = two.weights("_stagetwo")
    run = train(tmp_path, data)
    assert not (tmp_path / "tiny_stagetwo.model").exists()
    assert run.said("WARNING: The models of an earlier run of the same name were moved to .*tiny_run-7_earlier-1")
    moved = load_model(tmp_path / "checkpoints" / "tiny_run-7_earlier-1" / "tiny_stagetwo.model").model
    assert same(dict(moved.named_parameters()), weights)


def test_best_weights_of_another_run_are_refused(tmp_path: Path, data: Path) -> None:
    train(tmp_path / "a", data)
    train(tmp_path / "b", data)
    for file in (tmp_path / "a" / "checkpoints").glob("*_epoch-*.pt"):
        shutil.copy(file, tmp_path / "b" / "checkpoints" / file.name)
    with pytest.raises(UserError, match=r"tiny_run-7_epoch-\d.pt: this is of another run \(.*, not .* as .*last.pt\)"):
        train(tmp_path / "b", data, RESUME)


def test_a_run_keeps_its_id(tmp_path: Path, data: Path) -> None:
    def ids(run: Run) -> list[str]:
        return re.findall(r"INFO: Run (\S+)", run.log)

    train(tmp_path, data)
    resumed = ids(train(tmp_path, data, FOUR, RESUME))
    assert len(resumed) == 2 and resumed[0] == resumed[1]
    fresh = ids(train(tmp_path, data))
    assert fresh[2] != fresh[0]


# repetition


def test_the_same_command_gives_the_same_bytes(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        train(Path("."), "../train.xyz", "--ema", "--swa", "--start_swa=1")
        files = sorted(Path(".").glob("*.model"))
        contents.append([re.sub(rb'created\\": \\"[^"]*"', b"", file.read_bytes()) for file in files])
    assert len(contents[0]) == 2 and contents[0] == contents[1]


def test_the_log_says_what_a_result_depends_on(tmp_path: Path, data: Path) -> None:
    run = train(tmp_path, data)
    assert run.said(r"MACE version: \S+")
    if (Path(__file__).parents[2] / ".git").exists():
        assert run.said(r"MACE version: \S+ \(commit [0-9a-f]{40}")
    assert run.said(r"Python 3\.\d+\.\d+, torch \S+, numpy \S+, ase \S+, vesin \S+, ")
    assert run.said(r"Using cpu, float64, \d+ threads?")
    assert run.said("Kernels: (c|torch)")
    assert run.said("Hash of all settings: [0-9a-f]{64}")
    assert run.said("Hash of the training and validation files: [0-9a-f]{64}")
