"""Do checkpoints of every version ever released still load, and can their runs go on?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import train, untimed, write_water

from mace.errors import UserError
from mace.model.model_file import load_model
from mace.training.checkpoints import FORMAT, UPGRADES, encode, load_safely

SAMPLES = Path(__file__).parent / "samples"
SMALLEST = (
    "--hidden_irreps=1x0e + 1x1o", "--r_max=2.0", "--num_radial_basis=2", "--radial_MLP=[2]", "--MLP_irreps=2x0e",
    "--swa", "--start_swa=2", "--ema",
)  # fmt: skip
"""The run of the samples: three epochs, one of them in stage two; see `make_samples.py`."""

VERSIONS = range(1, FORMAT + 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_state_of_each_version_is_archived_and_loads(version: int) -> None:
    state = load_safely(SAMPLES / f"checkpoint-{version}_last.pt")
    assert state["format"] == FORMAT
    assert state["progression"]["epoch"] == 3 and state["progression"]["best_epochs"] == {"one": 1, "two": 2}
    assert state["progression"]["evaluated_at_start"]
    assert all(torch.isfinite(weight).all() for weight in state["weights"].values())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_each_version_goes_on(tmp_path: Path, version: int) -> None:
    data = placed(tmp_path, version)
    run = train(tmp_path, data, *SMALLEST, "--max_num_epochs=5", "--restart_latest")
    assert run.epochs_trained == [3, 4]
    assert run.last_state()["format"] == FORMAT
    assert all(torch.isfinite(weight).all() for weight in run.weights("_stagetwo").values())


def test_every_older_version_has_an_upgrade() -> None:
    assert sorted(UPGRADES) == list(range(1, FORMAT))


def placed(tmp_path: Path, version: int, lost: tuple[str, ...] = ()) -> Path:
    """Put the files of a version in the place of a run, but for those that are lost."""
    (tmp_path / "checkpoints").mkdir()
    for sample in SAMPLES.glob(f"checkpoint-{version}_*.pt"):
        if not sample.name.endswith(lost):
            name = sample.name.replace(f"checkpoint-{version}", "tiny_run-7")
            shutil.copy(sample, tmp_path / "checkpoints" / name)
    return write_water(tmp_path / "train.xyz")


WITHOUT_BEST = [1, 2]
"""Versions whose states do not hold the best weights, so that these are in their files alone."""


@pytest.mark.parametrize("version", WITHOUT_BEST)
@pytest.mark.parametrize(
    ("lost", "stage", "left"), [("_epoch-1.pt", "One", "_stagetwo"), ("_epoch-2_swa.pt", "Two", "")]
)
def test_lost_weights_of_one_stage_do_not_block_the_other(
    tmp_path: Path, version: int, lost: str, stage: str, left: str
) -> None:
    data = placed(tmp_path, version, (lost,))
    run = train(tmp_path, data, *SMALLEST, "--max_num_epochs=3", "--restart_latest")
    assert run.said(
        rf"WARNING: .*{lost}: the checkpoint cannot be opened .* best weights of stage {stage.lower()} are lost"
    )
    assert run.said(f"WARNING: There is no model of Stage {stage}: the weights of its best epoch")
    assert [file.name for file in tmp_path.glob("*.model")] == [f"tiny{left}.model"]
    longer = train(tmp_path, data, *SMALLEST, "--max_num_epochs=5", "--restart_latest", "--start_swa=2")
    assert longer.weights("_stagetwo")  # the next best takes the place of what was lost
    assert (tmp_path / "tiny.model").exists() == (stage == "Two")


@pytest.mark.parametrize("version", WITHOUT_BEST)
def test_a_run_without_any_best_weights_says_so_before_anything_is_written(tmp_path: Path, version: int) -> None:
    data = placed(tmp_path, version, ("_epoch-1.pt", "_epoch-2_swa.pt"))
    with pytest.raises(UserError, match=r"_epoch-1.pt: .*; .*_epoch-2_swa.pt: .*no other file has its best"):
        train(tmp_path, data, *SMALLEST, "--max_num_epochs=3", "--restart_latest")
    run = train(tmp_path, data, *SMALLEST, "--max_num_epochs=5", "--restart_latest")
    assert run.epochs_trained == [3, 4] and run.weights("_stagetwo")


@pytest.mark.parametrize("version", WITHOUT_BEST)
def test_a_run_that_patience_ended_needs_more_of_it_to_find_other_best_weights(tmp_path: Path, version: int) -> None:
    data = placed(tmp_path, version, ("_epoch-1.pt", "_epoch-2_swa.pt", "previous.pt"))
    last = tmp_path / "checkpoints" / "tiny_run-7_last.pt"
    state = load_safely(last)
    last.write_bytes(encode({**state, "progression": {**state["progression"], "finished": True}}))
    longer = (*SMALLEST, "--max_num_epochs=5", "--restart_latest")
    with pytest.raises(UserError, match="the run is finished, and no other file has its best weights"):
        train(tmp_path, data, *longer)
    patience = json.loads(state["settings"])["patience"]
    run = train(tmp_path, data, *longer, f"--patience={patience + 1}")
    assert run.epochs_trained == [3, 4] and run.weights("_stagetwo")


RUNS = sorted(SAMPLES.glob("run-*"))
ACCURACY = 1e-9
"""Relative; another processor adds numbers in another order. On the one that made the samples nothing differs."""


def records_in(path: Path) -> list[dict[str, Any]]:
    return [untimed(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same_model(path: Path, archived: Path) -> None:
    found, expected = load_model(path), load_model(archived)
    assert found.model.plan == expected.model.plan and found.metadata.epoch == expected.metadata.epoch
    weights = found.model.state_dict()
    assert weights.keys() == expected.model.state_dict().keys()
    for name, weight in expected.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=ACCURACY, atol=1e-12)


@pytest.mark.parametrize("sample", RUNS, ids=lambda sample: sample.name)
def test_a_run_of_before_goes_on_as_it_would_have(tmp_path: Path, sample: Path) -> None:
    for folder in ("checkpoints", "results"):
        (tmp_path / folder).mkdir()
    for file in sample.glob("tiny_run-7_*.pt"):
        shutil.copy(file, tmp_path / "checkpoints")
    shutil.copy(sample / "tiny_run-7_train.txt", tmp_path / "results")
    data = write_water(tmp_path / "train.xyz")
    run = train(tmp_path, data, *SMALLEST, "--max_num_epochs=5", "--restart_latest")
    assert run.epochs_trained == [0, 1, 2, 3, 4]
    for name in ("tiny.model", "tiny_stagetwo.model"):
        assert_same_model(tmp_path / name, sample / "continued" / name)
    expected = records_in(sample / "continued" / "tiny_run-7_train.txt")
    found = records_in(tmp_path / "results" / "tiny_run-7_train.txt")
    assert len(found) == len(expected)
    for record, archived in zip(found, expected, strict=True):
        assert record == pytest.approx(archived, rel=ACCURACY)


@pytest.mark.parametrize("sample", RUNS, ids=lambda sample: sample.name)
def test_the_models_of_a_run_of_before_are_made_again_to_rounding(tmp_path: Path, sample: Path) -> None:
    data = write_water(tmp_path / "train.xyz")
    train(tmp_path, data, *SMALLEST, "--max_num_epochs=3")
    for name in ("tiny.model", "tiny_stagetwo.model"):
        assert_same_model(tmp_path / name, sample / name)
