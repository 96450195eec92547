"""Does L-BFGS come after the last epoch, from the best weights, and go on as if it had never been stopped?"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import Run, same, train, untimed, write_water

from mace.errors import RunInterrupted
from mace.model.model_file import load_model
from mace.training import evaluation, lbfgs
from mace.training.finiteness import Diverged
from mace.training.lbfgs import LBFGS, FullBatch

STUCK = "--lr=1e-30"
SHORT = ("--max_num_epochs=2", "--lbfgs", "--lbfgs_steps=4", "--ema")
AGAIN = ("--restart_latest", "--checkpoint_minutes=0")


@pytest.fixture
def water(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Where minimizations start."""
    found, advance = list[Tensor](), FullBatch.advance

    def watched(full: FullBatch, minimizer: LBFGS, *arguments: Any) -> bool:
        if minimizer.gradient is None:
            found.append(minimizer.point)
        return advance(full, minimizer, *arguments)

    monkeypatch.setattr(FullBatch, "advance", watched)
    return found


def iterations(run: Run) -> list[dict[str, Any]]:
    return [untimed(record) for record in run.records if "evaluations" in record]


def vector(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in weights.values()])


def assert_the_same(one: Run, other: Run) -> None:
    """Two runs ended in the same way, bit for bit."""
    assert [untimed(record) for record in one.records] == [untimed(record) for record in other.records]
    states = [run.last_state() for run in (one, other)]
    for part in ("weights", "lbfgs", "average", "best", "progression", "optimizer"):
        assert same(states[0][part], states[1][part]), part
    assert torch.equal(vector(one.weights()), vector(other.weights()))


def test_it_begins_after_the_last_epoch_with_the_best_weights(
    tmp_path: Path, water: Path, starts: list[Tensor]
) -> None:
    before = train(tmp_path / "a", water, "--max_num_epochs=2", "--ema")
    run = train(tmp_path / "b", water, *SHORT)
    assert len(starts) == 1 and torch.equal(starts[0], vector(before.weights()))
    assert run.epochs_trained == list(range(6)) and run.epochs_evaluated == [None, *range(6)]
    found = iterations(run)
    assert [record["epoch"] for record in found] == [2, 3, 4, 5]
    losses = [record["loss"] for record in found]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.5 * losses[0]
    assert all(record["evaluations"] >= 1 and record["grad_norm"] > 0.0 and "lr" not in record for record in found)
    assert found[0]["atoms"] == 33 * found[0]["evaluations"]
    assert run.said(r"L-BFGS: weighted\(.*\) of all 11 training structures at once, from the weights of epoch 1")
    best = min((r for r in run.records if r["mode"] == "eval"), key=lambda record: float(record["loss"]))
    assert load_model(tmp_path / "b" / "tiny.model").metadata.epoch == best["epoch"]


def test_gradients_are_not_clipped(tmp_path: Path, water: Path) -> None:
    runs = [
        train(tmp_path / clip, water, "--max_num_epochs=0", "--lbfgs", "--lbfgs_steps=4", f"--clip_grad={clip}")
        for clip in ("1e-9", "None")
    ]
    assert iterations(runs[0]) == iterations(runs[1])
    assert runs[0].epochs_trained == [0, 1, 2, 3]


def test_after_stage_two_it_minimizes_the_loss_of_stage_two(tmp_path: Path, water: Path) -> None:
    run = train(tmp_path, water, *SHORT, "--swa", "--start_swa=1")
    assert run.said(r"L-BFGS: weighted\(energy_weight=1000.000.* from the weights of epoch 1")
    assert {record["stage"] for record in iterations(run)} == {"two"}
    assert list(run.last_state()["best"]) == ["one", "two"]


def test_patience_goes_on_with_it_and_ends_it(tmp_path: Path, water: Path) -> None:
    run = train(tmp_path, water, "--max_num_epochs=20", "--patience=2", STUCK, "--lbfgs", "--lbfgs_steps=90")
    assert run.epochs_trained[:4] == [0, 1, 2, 20]
    assert run.said("Stopping optimization after 2 epochs without improvement and starting L-BFGS")
    losses = {record["epoch"]: record["loss"] for record in run.records if record["mode"] == "eval"}
    ends = run.epochs_trained[-1]
    assert ends < 109 and min(losses[ends], losses[ends - 1]) >= min(losses.values())


def test_it_ends_where_the_loss_has_its_minimum(tmp_path: Path, water: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is flat beyond the third iteration."""
    evaluate, known = FullBatch.loss_and_gradient, list[tuple[float, Tensor]]()

    def flat(full: FullBatch, *arguments: Any) -> tuple[float, Tensor]:
        known.append(evaluate(full, *arguments))
        return known[-1] if len(known) < 9 else (known[0][0], known[0][1] * 0.0)

    monkeypatch.setattr(FullBatch, "loss_and_gradient", flat)
    flags = ("--max_num_epochs=1", "--lbfgs", "--eval_interval=100", "--default_dtype=float32")
    run = train(tmp_path, water, *flags)
    assert run.said("L-BFGS has ended: no step lowers the loss")
    assert run.epochs_evaluated == [None, 0, run.epochs_trained[-1]]
    again = train(tmp_path, water, *flags, "--restart_latest")
    assert again.epochs_trained == run.epochs_trained


@pytest.mark.parametrize(
    "flags",
    [
        ("--ema", "--swa", "--start_swa=1", "--default_dtype=float32"),
        ("--max_edges_per_batch=15", "--eval_interval=2", "--amsgrad"),
    ],
    ids=["averages and stages", "parts"],
)
def test_killed_between_any_two_evaluations_it_ends_the_same(
    tmp_path: Path, water: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process takes two evaluations and is gone."""
    flags = ("--max_num_epochs=2", "--lbfgs", "--lbfgs_steps=6", *flags)
    straight = train(tmp_path / "a", water, *flags)
    advance, left = FullBatch.advance, [0]

    def dying(full: FullBatch, *arguments: Any) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return advance(full, *arguments)

    monkeypatch.setattr(FullBatch, "advance", dying)
    attempts, run = 0, None
    while run is None:
        attempts, left[0] = attempts + 1, 2
        with contextlib.suppress(KeyboardInterrupt):
            run = train(tmp_path / "b", water, *flags, *AGAIN)
    assert attempts >= 4
    assert_the_same(run, straight)


@pytest.mark.parametrize(
    ("module", "name", "call", "place"),
    [
        pytest.param(lbfgs, "loss_gradient", 1, "saved before epoch 2", marks=pytest.mark.slow),
        (lbfgs, "loss_gradient", 4, "saved after evaluation 1 of L-BFGS in epoch 2"),
        pytest.param(lbfgs, "loss_gradient", 12, "saved ", marks=pytest.mark.slow),
        (evaluation, "predict", 10, "saved after 9 of 9 structures of epoch 2"),
    ],
)
def test_a_signal_at_any_time_saves_and_changes_nothing(
    tmp_path: Path, water: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int, place: str
) -> None:
    flags = (*SHORT, "--valid_fraction=0.25", "--valid_batch_size=1")
    straight = train(tmp_path / "a", water, *flags)
    work: Callable[..., Any] = getattr(module, name)
    calls = [0]

    def signaled(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(*arguments, **keywords)

    monkeypatch.setattr(module, name, signaled)
    with pytest.raises(RunInterrupted, match=place) as stopped:
        train(tmp_path / "b", water, *flags)
    assert stopped.value.status == 143
    assert_the_same(train(tmp_path / "b", water, *flags, "--restart_latest"), straight)


def test_added_to_a_run_that_has_ended_it_is_the_same(tmp_path: Path, water: Path) -> None:
    straight = train(tmp_path / "a", water, *SHORT)
    train(tmp_path / "b", water, "--max_num_epochs=2", "--ema")
    assert_the_same(train(tmp_path / "b", water, *SHORT, "--restart_latest"), straight)


def test_added_to_a_run_that_patience_has_ended(tmp_path: Path, water: Path) -> None:
    flags = ("--max_num_epochs=20", "--patience=2", STUCK)
    train(tmp_path, water, *flags)
    run = train(tmp_path, water, *flags, "--lbfgs", "--lbfgs_steps=2", "--restart_latest")
    assert run.epochs_trained == [0, 1, 2, 20, 21]


def test_more_iterations_go_on_where_it_was(tmp_path: Path, water: Path) -> None:
    straight = train(tmp_path / "a", water, *SHORT)
    train(tmp_path / "b", water, *SHORT, "--lbfgs_steps=2")
    run = train(tmp_path / "b", water, *SHORT, "--restart_latest")
    assert torch.equal(vector(run.weights()), vector(straight.weights()))
    assert [r["loss"] for r in iterations(run)] == [r["loss"] for r in iterations(straight)]


def test_more_epochs_go_on_with_the_optimizer_and_then_again_with_it(tmp_path: Path, water: Path) -> None:
    train(tmp_path, water, *SHORT)
    run = train(tmp_path, water, *SHORT, "--max_num_epochs=8", "--restart_latest")
    assert run.said("L-BFGS had begun already; with more epochs before it")
    with_rate = {record["epoch"] for record in run.records if "lr" in record}
    assert with_rate == {0, 1, 6, 7}
    assert [record["epoch"] for record in iterations(run)] == [2, 3, 4, 5, 8, 9, 10, 11]
    assert run.last_state()["average"] is None


def test_without_the_flag_it_ends(tmp_path: Path, water: Path) -> None:
    train(tmp_path, water, *SHORT, "--lbfgs_steps=2")
    run = train(tmp_path, water, "--max_num_epochs=2", "--ema", "--restart_latest")
    assert run.epochs_trained == [0, 1, 2, 3]


def test_another_loss_makes_it_begin_anew_where_it_is(tmp_path: Path, water: Path, starts: list[Tensor]) -> None:
    train(tmp_path, water, *SHORT, "--lbfgs_steps=2")
    run = train(tmp_path, water, *SHORT, "--energy_weight=50", "--restart_latest")
    assert len(starts) == 2 and not torch.equal(starts[0], starts[1])
    losses = [record["loss"] for record in iterations(run)]
    assert losses[2] > losses[1] and losses[3] < losses[2]


def test_numbers_that_are_none_where_it_begins_end_the_run_with_its_best_model(
    tmp_path: Path, water: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FullBatch, "loss_and_gradient", lambda *_: (float("nan"), torch.zeros(3)))
    with pytest.raises(Diverged, match="or leave out --lbfgs"):
        train(tmp_path, water, *SHORT)
    assert (tmp_path / "tiny.model").exists()


def test_a_trial_that_is_no_number_is_shortened(tmp_path: Path, water: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = FullBatch.loss_and_gradient, [0]

    def rough(full: FullBatch, *arguments: Any) -> tuple[float, Tensor]:
        loss, gradient = evaluate(full, *arguments)
        calls[0] += 1
        return (float("inf") if calls[0] in (2, 4, 5) else loss), gradient

    monkeypatch.setattr(FullBatch, "loss_and_gradient", rough)
    run = train(tmp_path, water, *SHORT)
    losses = [record["loss"] for record in iterations(run)]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)


def test_the_page_and_the_dry_run_tell_of_it(tmp_path: Path, water: Path) -> None:
    run = train(tmp_path, water, *SHORT)
    page = (tmp_path / "results" / "tiny_run-7.html").read_text(encoding="utf-8")
    assert "4 iterations from epoch 2" in page and "6 of 6 epochs" in page
    assert "4 iterations after that" in train(tmp_path / "dry", water, *SHORT, "--dry_run").shown
    assert run.said("L-BFGS after 2 epochs: 4 iterations")


@pytest.mark.parametrize("optimizer", ["adamw", "schedulefree"])
def test_it_follows_every_optimizer(tmp_path: Path, water: Path, optimizer: str, starts: list[Tensor]) -> None:
    if optimizer == "schedulefree":
        pytest.importorskip("schedulefree")
    flags = (f"--optimizer={optimizer}", "--max_num_epochs=2")
    before = train(tmp_path / "a", water, *flags)
    train(tmp_path / "b", water, *flags, "--lbfgs", "--lbfgs_steps=3")
    assert torch.equal(starts[0], vector(before.weights()))
    longer = train(tmp_path / "b", water, *flags, "--max_num_epochs=6", "--restart_latest")
    assert longer.epochs_trained == list(range(6))


def test_every_head_counts_as_it_is_sampled(tmp_path: Path) -> None:
    files = {"few": (5, 1), "many": (11, 2)}
    heads = {name: {"train_file": str(write_water(tmp_path / f"{name}.xyz", *of))} for name, of in files.items()}
    flags = (f"--heads={heads}", "--max_num_epochs=0", "--lbfgs", "--lbfgs_steps=3", "--valid_fraction=0.2")
    first = []
    for sampling in ("all", "balanced"):
        run = train(tmp_path / sampling, None, *flags, f"--head_sampling={sampling}")
        losses = [record["loss"] for record in iterations(run)]
        assert losses == sorted(losses, reverse=True)
        first.append(losses[0])
    assert first[0] != first[1]
    assert {record["head"] for record in run.records if record["mode"] == "eval"} == set(files)
