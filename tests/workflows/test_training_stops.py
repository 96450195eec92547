"""Does a run end when it should, change its stage when it should, and validate when it should?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import Run, train, write_water

from mace.errors import UserError
from mace.model.model_file import load_model
from mace.training import loop
from mace.training.evaluation import Evaluation

STUCK = "--lr=1e-30"
"""A learning rate at which the weights stay as they are, so that no evaluation is better than the first."""


@pytest.fixture
def water(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the validation losses after the initial one by given numbers."""
    measure = loop.evaluate

    def replace(*losses: float) -> None:
        values = iter([10.0, *losses])

        def evaluate(*args: object, **keywords: object) -> Evaluation:
            result: Evaluation = measure(*args, **keywords)  # type: ignore[arg-type]
            return Evaluation(next(values), result.metrics)

        monkeypatch.setattr(loop, "evaluate", evaluate)

    return replace


def test_patience_ends_the_run(tmp_path: Path, water: Path) -> None:
    run = train(tmp_path, water, "--max_num_epochs=30", "--patience=3", STUCK)
    assert run.epochs_trained == [0, 1, 2, 3]
    assert run.said("Stopping optimization after 3 epochs without improvement")
    assert not run.said("starting Stage Two")
    assert (tmp_path / "tiny.model").exists()


def test_patience_counts_from_the_last_gain(tmp_path: Path, water: Path, pretend: Callable[..., None]) -> None:
    pretend(5.0, 6.0, 4.0, 4.0, 5.0, 3.0)
    run = train(tmp_path, water, "--max_num_epochs=6", "--patience=2")
    assert run.epochs_trained == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*epoch*")] == ["tiny_run-7_epoch-2.pt"]


def test_patience_in_stage_one_goes_on_with_stage_two(tmp_path: Path, water: Path) -> None:
    run = train(tmp_path, water, "--max_num_epochs=12", "--patience=2", "--swa", "--start_swa=10", STUCK)
    assert run.epochs_trained == [0, 1, 2, 10, 11]
    assert run.said("Stopping optimization after 2 epochs without improvement and starting Stage Two")
    assert run.said("Changing loss based on Stage Two Weights")
    assert (tmp_path / "tiny_stagetwo.model").exists()


def test_patience_ends_stage_two(tmp_path: Path, water: Path) -> None:
    run = train(
        tmp_path, water, "--max_num_epochs=30", "--patience=2", "--swa", "--start_swa=1", "--swa_lr=1e-30", STUCK
    )
    assert run.epochs_trained == [0, 1, 2, 3]


def test_patience_does_not_promise_a_stage_two_that_is_out_of_reach(tmp_path: Path, water: Path) -> None:
    run = train(tmp_path, water, "--max_num_epochs=9", "--patience=2", "--swa", "--start_swa=10", STUCK)
    assert run.epochs_trained == [0, 1, 2]
    assert run.said("WARNING: Stage Two is to begin at epoch 10, which this run of 9 epochs does not reach")
    assert not run.said("starting Stage Two")


def test_patience_counts_evaluations(tmp_path: Path, water: Path) -> None:
    run = train(tmp_path, water, "--max_num_epochs=30", "--patience=2", "--eval_interval=3", STUCK)
    assert run.epochs_trained == list(range(7))
    assert run.epochs_evaluated == [None, 0, 3, 6]


def test_evaluations_come_at_their_interval_and_at_the_end(tmp_path: Path, water: Path) -> None:
    run = train(tmp_path, water, "--max_num_epochs=6", "--eval_interval=2")
    assert run.epochs_trained == list(range(6))
    assert run.epochs_evaluated == [None, 0, 2, 4, 5]


def test_each_stage_has_its_best_epoch(tmp_path: Path, water: Path, pretend: Callable[..., None]) -> None:
    # stage two has losses of its own size, so that a lower loss in stage one says nothing
    pretend(3.0, 1.0, 2.0, 500.0, 400.0, 450.0)
    run = train(tmp_path, water, "--max_num_epochs=6", "--swa", "--start_swa=3", "--ema")
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*epoch*"))
    assert names == ["tiny_run-7_epoch-1.pt", "tiny_run-7_epoch-4_swa.pt"]
    assert run.said("Loaded Stage one model from epoch 1 for evaluation")
    assert run.said("Loaded Stage two model from epoch 4 for evaluation")
    one, two = run.weights(), run.weights("_stagetwo")
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_stage_two_changes_weights_and_rate(tmp_path: Path, water: Path) -> None:
    run = train(
        tmp_path, water, "--max_num_epochs=3", "--stage_two", "--start_stage_two=2", "--lr=0.01", "--stage_two_lr=0.002"
    )
    rates = {record["epoch"]: record["lr"] for record in run.records if record["mode"] == "opt"}
    assert rates == {0: 0.01, 1: 0.01, 2: 0.002}
    assert run.said(r"Stage Two: weighted\(energy_weight=1000.000, forces_weight=100.000\), learning rate 0.002")


def test_the_recorded_rate_is_that_of_the_parts_without_a_factor(tmp_path: Path, water: Path) -> None:
    factors = "--lr_params_factors={'embedding_lr_factor': 0.0}"
    run = train(tmp_path, water, "--max_num_epochs=1", "--lr=0.01", factors)
    assert {record["lr"] for record in run.records if record["mode"] == "opt"} == {0.01}


def test_the_validated_weights_of_the_best_epoch_become_the_model(
    tmp_path: Path, water: Path, pretend: Callable[..., None]
) -> None:
    pretend(2.0, 3.0)
    best_is_first = train(tmp_path / "a", water, "--max_num_epochs=2").weights()
    pretend(2.0)
    only_first = train(tmp_path / "b", water, "--max_num_epochs=1").weights()
    assert all(torch.equal(best_is_first[name], only_first[name]) for name in only_first)


def test_a_loss_that_is_not_a_number_never_becomes_the_best(
    tmp_path: Path, water: Path, pretend: Callable[..., None]
) -> None:
    pretend(2.0, math.nan, math.nan, math.nan)
    run = train(tmp_path, water, "--max_num_epochs=20", "--patience=3")
    assert run.epochs_trained == [0, 1, 2, 3]  # NaN counts as no gain
    assert [path.name for path in (tmp_path / "checkpoints").glob("*epoch*")] == ["tiny_run-7_epoch-0.pt"]
    assert run.records[-1]["loss"] is None  # NaN is no JSON


def test_a_number_after_nan_is_a_gain(tmp_path: Path, water: Path, pretend: Callable[..., None]) -> None:
    pretend(math.nan, 2.0, math.inf)
    train(tmp_path, water, "--max_num_epochs=3")
    assert [path.name for path in (tmp_path / "checkpoints").glob("*epoch*")] == ["tiny_run-7_epoch-1.pt"]


def _diverge(folder: Path, water: Path, *flags: str) -> None:
    train(folder, water, "--lr=1e200", "--clip_grad=None", "--no_amsgrad", "--default_dtype=float32", *flags)


def test_a_run_that_diverges_at_once_says_so_and_writes_no_model(tmp_path: Path, water: Path) -> None:
    with pytest.raises(UserError, match="epoch 0: .* is not a finite number .*after going back 3 times.*lower --lr"):
        _diverge(tmp_path, water)
    assert not list(tmp_path.glob("*.model"))
    assert not list((tmp_path / "checkpoints").glob("*epoch*"))


def test_a_stage_two_that_diverges_leaves_the_model_of_stage_one(tmp_path: Path, water: Path) -> None:
    flags = ("--max_num_epochs=3", "--swa", "--start_swa=1", "--swa_lr=1e200", "--default_dtype=float32")
    with pytest.raises(UserError, match="epoch 1: .* is not a finite number .*after going back 3 times"):
        train(tmp_path, water, *flags)
    assert load_model(tmp_path / "tiny.model").metadata.epoch == 0
    assert not (tmp_path / "tiny_stagetwo.model").exists()


def test_a_batch_larger_than_the_data_is_used(tmp_path: Path) -> None:
    eight = write_water(tmp_path / "eight.xyz", count=8)
    valid = write_water(tmp_path / "valid.xyz", count=2, seed=1)
    run = train(tmp_path, eight, "--batch_size=10", f"--valid_file={valid}")
    steps = [record for record in run.records if record["mode"] == "opt"]
    assert len(steps) == 2 and run.epochs_trained == [0, 1]


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 8), (3, 3), (4, 2), (8, 1)])
def test_the_last_partial_batch_is_used(tmp_path: Path, batch_size: int, steps: int) -> None:
    eight = write_water(tmp_path / "eight.xyz", count=8)
    valid = write_water(tmp_path / "valid.xyz", count=2, seed=1)
    flags = (f"--batch_size={batch_size}", f"--valid_file={valid}", "--max_num_epochs=1")
    run = train(tmp_path, eight, *flags)
    assert sum(record["mode"] == "opt" for record in run.records) == steps


def test_the_validation_loss_does_not_depend_on_its_batch_size(tmp_path: Path, water: Path) -> None:
    def losses(size: int) -> list[float]:
        flags = ("--valid_fraction=0.5", f"--valid_batch_size={size}", "--swa", "--start_swa=1")
        run: Run = train(tmp_path / str(size), water, *flags)
        return [record["loss"] for record in run.records if record["mode"] == "eval"]

    assert losses(1) == pytest.approx(losses(4), rel=1e-10)
    assert losses(1) == pytest.approx(losses(100), rel=1e-10)


def test_the_validation_loss_is_that_of_training_for_the_same_data(tmp_path: Path) -> None:
    data = write_water(tmp_path / "data.xyz", count=4)
    copy = write_water(tmp_path / "copy.xyz", count=4)
    run = train(tmp_path, data, f"--valid_file={copy}", "--batch_size=4", "--max_num_epochs=1", STUCK)
    initial, step, final = (record["loss"] for record in run.records)
    assert step == pytest.approx(initial, rel=1e-10)
    assert final == pytest.approx(initial, rel=1e-10)
