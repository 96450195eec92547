"""Are the traps that users of the original fell into during a run really gone? One test for each, in that situation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import train, untimed, write_water

from mace.model.model_file import load_model
from mace.runs import finishing
from mace.training import loop
from mace.training.batch_step import BatchStep
from mace.training.evaluation import Evaluation


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


def test_patience_that_says_it_stops_does_stop(tmp_path: Path, data: Path) -> None:
    run = train(tmp_path, data, "--lr=1e-30", "--patience=2", "--max_num_epochs=50")
    assert run.said("Stopping optimization after 2 epochs without improvement")
    assert run.epochs_trained == [0, 1, 2]


def test_a_validation_loss_of_nan_leaves_the_best_and_counts_for_patience(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([9.0, 5.0, math.nan, math.nan])
    measure = loop.evaluate
    monkeypatch.setattr(
        loop, "evaluate", lambda *args, **keywords: Evaluation(next(losses), measure(*args, **keywords).metrics)
    )
    run = train(tmp_path, data, "--patience=2", "--max_num_epochs=50")
    assert run.epochs_trained == [0, 1, 2]
    assert load_model(tmp_path / "tiny.model").metadata.epoch == 0


def test_the_same_name_seed_and_folder_never_give_the_old_weights(tmp_path: Path, data: Path) -> None:
    old = train(tmp_path, data, "--max_num_epochs=5", "--lr=0.03")
    weights = old.weights()
    new = train(tmp_path, data, "--max_num_epochs=2", "--lr=0.001")
    expected = train(tmp_path / "elsewhere", data, "--max_num_epochs=2", "--lr=0.001")
    assert load_model(tmp_path / "tiny.model").metadata.epoch == 1
    for name, value in new.weights().items():
        assert torch.equal(value, expected.weights()[name])
    assert any(not torch.equal(value, weights[name]) for name, value in new.weights().items())


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_restart_is_a_resume(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stopped in the middle of an epoch; weights, averages, optimizer, order, patience and history go on."""
    flags = ("--max_num_epochs=4", "--ema", "--lr_factor=0.5", "--scheduler_patience=0", "--checkpoint_minutes=0")
    straight = train(tmp_path / "a", data, *flags)
    take, taken = BatchStep.take, [0]

    def stop(self: BatchStep, *arguments: Any) -> Any:
        taken[0] += 1
        if taken[0] > step:
            raise KeyboardInterrupt
        return take(self, *arguments)

    monkeypatch.setattr(BatchStep, "take", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", data, *flags)
    monkeypatch.undo()
    resumed = train(tmp_path / "b", data, *flags, "--restart_latest")
    for name, value in straight.weights().items():
        assert torch.equal(value, resumed.weights()[name])
    for one, other in zip(straight.records, resumed.records, strict=True):
        assert untimed(one) == untimed(other)


def test_a_final_evaluation_that_fails_does_not_cost_the_model(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(finishing, "write_final_report", fail)
    run = train(tmp_path, data, "--swa", "--start_swa=1")
    assert "out of luck" in run.log
    for name in ("tiny.model", "tiny_stagetwo.model"):
        assert load_model(tmp_path / name).model is not None
