"""Does the history of a run add up its records as they are, also where a run went back?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mace.reporting.history import RunHistory


def step(epoch: int, loss: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {"loss": loss, "time": 0.5, "mode": "opt", "epoch": epoch, **more}


def evaluation(epoch: int | None, loss: float = 1.0, head: str = "Default", **more: Any) -> dict[str, Any]:
    return {"loss": loss, "time": 0.25, "mode": "eval", "epoch": epoch, "head": head, **more}


def test_epochs_add_up_their_steps() -> None:
    split = {"time_data": 0.1, "time_forward": 0.2}
    history = RunHistory.of(
        [
            evaluation(None, 9.0),
            step(0, 4.0, lr=0.1, grad_norm=3.0, atoms=10, **split),
            step(0, 2.0, lr=0.05, grad_norm=5.0, atoms=20, **split),
            evaluation(0, 1.5, rmse_f=0.2),
        ]
    )
    sums = history.epochs[0]
    assert (sums.steps, sums.mean_loss, sums.mean_norm, sums.largest_norm) == (2, 3.0, 4.0, 5.0)
    assert (sums.rate, sums.atoms, sums.seconds) == (0.05, 30, 1.0)
    assert sums.phases == pytest.approx({"data": 0.2, "forward": 0.4})
    assert sums.working_seconds == pytest.approx(0.6)
    assert history.initial["Default"]["loss"] == 9.0 and history.numbers() == [0]
    assert history.evaluation_seconds() == pytest.approx(0.5)
    assert history.has_metric("rmse_f") and not history.has_metric("rmse_stress")


def test_repeated_epochs_replace_the_earlier_ones() -> None:
    records = [r for epoch in range(6) for r in (step(epoch, 10.0 + epoch), step(epoch, 20.0), evaluation(epoch))]
    records += [r for epoch in (3, 4) for r in (step(epoch, 80.0), evaluation(epoch, 0.5))]
    history = RunHistory.of(records)
    assert history.numbers() == [0, 1, 2, 3, 4]
    assert history.epochs[2].mean_loss == pytest.approx(16.0)
    assert history.epochs[3].steps == 1 and history.epochs[3].mean_loss == 80.0
    assert history.valid["Default"][4]["loss"] == 0.5
    _, losses, _ = history.steps(100)
    assert losses.tolist() == [10.0, 20.0, 11.0, 20.0, 12.0, 20.0, 80.0, 80.0]


def test_the_loss_of_several_heads_is_the_one_that_chooses_the_best() -> None:
    records = [evaluation(None, 9.0, "a"), evaluation(None, 9.0, "b")]
    records += [evaluation(epoch, loss, head) for epoch in (0, 1) for head, loss in (("a", 1.0 + epoch), ("b", 3.0))]
    history = RunHistory.of(records)
    assert history.heads == ("a", "b") and history.select_by is None
    assert history.validation_losses() == {0: 2.0, 1: 2.5}  # the mean, as nothing says what chose
    assert history.validation_losses("a") == {0: 1.0, 1: 2.0} and history.validation_losses("c") == {}
    chosen = [{"mode": "selection", "epoch": epoch, "head": "all", "loss": 1.5} for epoch in (None, 0, 1)]
    history = RunHistory.of([*records, *chosen])
    assert history.validation_losses() == {0: 1.5, 1: 1.5} and history.select_by == "all"
    history.add(step(2))
    history.add(step(1))  # the run went back
    assert history.validation_losses() == {0: 1.5} and history.validation_losses("b") == {0: 3.0}


def test_a_history_of_other_programs_has_gaps_and_no_more() -> None:
    history = RunHistory.of([step(0, None), step(0, 1.0), {"mode": "other", "epoch": 3}, {"epoch": "x", "mode": "opt"}])
    assert math.isnan(history.epochs[0].mean_loss) and math.isnan(history.epochs[0].mean_norm)
    assert history.epochs[0].rate is None and history.epochs[0].working_seconds == 1.0
    assert history.numbers() == [0] and history.stage_two_start is None


def test_stage_two_begins_where_the_steps_say() -> None:
    history = RunHistory.of([step(0), step(1), step(2, stage="two"), step(3, stage="two")])
    assert history.stage_two_start == 2


@pytest.mark.parametrize("most", [4, 7, 1000])
def test_steps_are_averaged_without_losing_any(most: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((5, 6))
    history = RunHistory.of(
        step(e, float(values[e, i]), grad_norm=float(values[e, i])) for e in range(5) for i in range(6)
    )
    times, losses, norms = history.steps(most)
    assert len(times) == min(most, 30) and times[-1] == pytest.approx(5.0) and (np.diff(times) > 0).all()
    assert norms.max() == pytest.approx(values.max(), rel=1e-6)
    if 30 % most == 0 or most > 30:
        assert losses.mean() == pytest.approx(values.mean(), rel=1e-6)


def test_the_present_epoch_is_not_drawn_as_complete() -> None:
    history = RunHistory.of([step(0) for _ in range(10)] + [step(1) for _ in range(5)])
    assert history.steps(100)[0][-1] == pytest.approx(1.5)
