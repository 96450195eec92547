"""Do patience, stage two, schedulers and intervals act together as documented, also in a run stopped inside?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from training_runs import Run, train, untimed, write_water

from mace.training.batch_step import BatchStep

STUCK = "--lr=1e-30"
"""Weights stay as they are, so that no evaluation is better than the first."""

HALVED = ("--scheduler=ExponentialLR", "--lr_scheduler_gamma=0.5")
SWA = ("--swa", "--swa_lr=0.004")


class Case(NamedTuple):
    """A table row: what is asked for, and what must happen.

    Attributes:
        flags: The settings.
        trained: Epochs that are trained.
        evaluated: Epochs that are evaluated.
        rates: Learning rate of each epoch trained.
    """

    flags: tuple[str, ...]
    trained: list[int]
    evaluated: list[int]
    rates: list[float]


CASES = {
    "patience ends a run of one stage": Case(
        (STUCK, "--max_num_epochs=9", "--patience=2"), [0, 1, 2], [0, 1, 2], [1e-30] * 3
    ),
    "patience counts evaluations, not epochs": Case(
        (STUCK, "--max_num_epochs=9", "--patience=1", "--eval_interval=2"), [0, 1, 2], [0, 2], [1e-30] * 3
    ),
    "patience jumps to stage two": Case(
        (STUCK, "--max_num_epochs=8", "--patience=1", "--start_swa=6", *SWA),
        [0, 1, 6, 7],
        [0, 1, 6, 7],
        [1e-30, 1e-30, 0.004, 0.004],
    ),
    "patience jumps from an evaluation in between": Case(
        (STUCK, "--max_num_epochs=8", "--patience=1", "--eval_interval=2", "--start_swa=6", *SWA),
        [0, 1, 2, 6, 7],
        [0, 2, 6, 7],
        [1e-30, 1e-30, 1e-30, 0.004, 0.004],
    ),
    "patience begins anew in stage two and ends it": Case(
        (STUCK, "--max_num_epochs=9", "--patience=2", "--start_swa=2", "--swa", "--swa_lr=1e-30"),
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [1e-30] * 5,
    ),
    "stage two takes the constant rate, whatever the schedule did": Case(
        ("--lr=0.01", "--max_num_epochs=4", *HALVED, "--start_swa=2", *SWA),
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0.01, 0.005, 0.004, 0.004],
    ),
    "exponential decay counts epochs, not evaluations": Case(
        ("--lr=0.01", "--max_num_epochs=4", "--eval_interval=3", *HALVED),
        [0, 1, 2, 3],
        [0, 3],
        [0.01, 0.005, 0.0025, 0.00125],
    ),
    "a plateau counts evaluations, not epochs": Case(
        (STUCK, "--max_num_epochs=6", "--eval_interval=2", "--scheduler_patience=0", "--lr_factor=0.5"),
        [0, 1, 2, 3, 4, 5],
        [0, 2, 4, 5],
        [1e-30, 1e-30, 1e-30, 5e-31, 5e-31, 2.5e-31],
    ),
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz", 8)


def history(run: Run) -> list[dict[str, Any]]:
    return [untimed(record) for record in run.records]


def as_in_table(run: Run) -> tuple[list[int], list[int | None], list[float]]:
    rates = {record["epoch"]: record["lr"] for record in run.records if record["mode"] == "opt"}
    return run.epochs_trained, run.epochs_evaluated[1:], list(rates.values())


@pytest.mark.parametrize("row", CASES.values(), ids=CASES.keys())
def test_what_happens(tmp_path: Path, data: Path, row: Case) -> None:
    trained, evaluated, rates = as_in_table(train(tmp_path, data, *row.flags))
    assert (trained, evaluated) == (row.trained, row.evaluated)
    assert rates == pytest.approx(row.rates)


@pytest.mark.parametrize("row", CASES.values(), ids=CASES.keys())
def test_the_same_happens_when_stopped_inside(
    tmp_path: Path, data: Path, row: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process takes three steps and is gone; an epoch has two."""
    straight = train(tmp_path / "a", data, *row.flags)
    take, steps = BatchStep.take, [0]

    def dying(step: BatchStep, *arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] > 3:
            raise KeyboardInterrupt
        return take(step, *arguments)

    monkeypatch.setattr(BatchStep, "take", dying)
    for _ in range(10):
        steps[0] = 0
        try:
            run = train(tmp_path / "b", data, *row.flags, "--checkpoint_minutes=0", "--restart_latest")
            break
        except KeyboardInterrupt:
            continue
    assert history(run) == history(straight)
    assert run.last_state()["progression"] == straight.last_state()["progression"]
