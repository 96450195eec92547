"""Does the page say what is wrong with a run, and nothing where nothing is?"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from mace.pages.run_facts import MeasuredStage, RunFacts, RunState
from mace.pages.verdicts import tiles, verdicts
from mace.reporting.history import RunHistory
from mace.reporting.predictions import Predictions

NOW = datetime(2026, 1, 1)
FACTS = RunFacts(
    name="x", tag="x_run-1", identity="id", started=NOW, epochs=20, interval=1, patience=100, machine="cpu",
    settings=[], decisions={}, sets=[], data={}, data_pages={}, heads=[], head_sampling="all", elements=[],
    neighbors={}, looked_at=0, average_neighbors=1.0, r_max=5.0, versions={}, commands=[],
)  # fmt: skip


def state(losses: list[float | None], norm: Any = lambda epoch: 1.0, **more: Any) -> RunState:
    history = RunHistory()
    for epoch, loss in enumerate(losses):
        history.add({"mode": "opt", "epoch": epoch, "loss": 1.0, "time": 0.1, "grad_norm": norm(epoch), "atoms": 10})
        history.add({"mode": "eval", "epoch": epoch, "loss": loss, "time": 0.1, "rmse_f": loss, "head": "Default"})
    return replace(RunState("finished", "Done.", NOW, history, best_epochs={"one": 3}), **more)


def said(now: RunState) -> str:
    return " ".join(verdict.sentence for verdict in verdicts(FACTS, now))


def stage(train: float, valid: float, test: float) -> MeasuredStage:
    metrics = {"train_Default": {"rmse_f": train}, "valid_Default": {"rmse_f": valid}, "far_Default": {"rmse_f": test}}
    return MeasuredStage("one", 3, metrics, Predictions((), (), (), ()), {})


SETTLED = [1.0, 0.5, 0.3, 0.25, 0.24, 0.24, 0.24, 0.24, 0.24, 0.24, 0.24, 0.24]


def test_a_settled_run_has_nothing_to_say() -> None:
    assert said(state(SETTLED, stages=[stage(0.1, 0.11, 0.12)])) == "Done."


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (state([1.0, 0.1, 0.5, 2.0]), "20.0 times its lowest value"),
        (state([1.0, None, 0.5]), "not a number"),
        (state([1.0 / (k + 1) for k in range(20)]), "still falling"),
        (state(SETTLED, norm=lambda epoch: 500.0 if epoch == 7 else 1.0), "spikes up to 500 times"),
        (state(SETTLED, stages=[stage(0.1, 0.3, 0.3)]), "forces is 3.0 times larger in validation"),
        (state(SETTLED, stages=[stage(0.1, 0.1, 0.5)]), "Test set far: the error of forces is 5.0 times"),
        (state(SETTLED, times_back=2), "went back 2 times"),
        (state(SETTLED, stage_two_start=30), "not reached"),
    ],
)
def test_what_is_wrong_is_said(now: RunState, words: str) -> None:
    assert words in said(now)


def test_tiles_show_the_test_error_and_the_speed() -> None:
    shown = {
        tile.name: (tile.value, tile.detail) for tile in tiles(FACTS, state(SETTLED, stages=[stage(0.1, 0.11, 0.12)]))
    }
    assert shown["RMSE F, test"] == ("120", "meV/\u00c5")
    assert shown["validation / training error"] == ("1.10", "RMSE F")
    assert shown["atoms per second"][0] == "100"
    assert shown["state"] == ("finished", "12 of 20 epochs") and shown["best epoch"][0] == "3"


def of_heads(losses: dict[str, list[float]], **more: Any) -> RunState:
    """A run of several heads, whose best epoch is chosen by the first of them."""
    history = RunHistory()
    for epoch in range(len(next(iter(losses.values())))):
        history.add({"mode": "opt", "epoch": epoch, "loss": 1.0, "time": 0.1, "atoms": 10})
        for head, values in losses.items():
            history.add({"mode": "eval", "epoch": epoch, "loss": values[epoch], "rmse_f": values[epoch], "head": head})
        chosen = next(iter(losses))
        history.add({"mode": "selection", "epoch": epoch, "loss": losses[chosen][epoch], "head": chosen})
    return replace(RunState("finished", "Done.", NOW, history, best_epochs={"one": 1}), **more)


def test_a_head_whose_loss_rises_is_named() -> None:
    now = of_heads({"a": [1.0, 0.5, 0.5], "b": [0.1, 0.2, 0.6]})
    (_, verdict) = verdicts(FACTS, now)
    assert verdict.sentence == "The validation loss of head b rises: it is 6.0 times its lowest value."
    assert (verdict.level, verdict.head) == ("warning", "b")


def test_tiles_of_heads_show_the_worst_at_the_epoch_that_was_chosen() -> None:
    shown = {tile.name: tile.value for tile in tiles(FACTS, of_heads({"a": [1.0, 0.3, 0.4], "b": [0.1, 0.2, 0.25]}))}
    assert shown["RMSE F, validation, lowest loss, worst of 2 heads"] == "300"
    details = {tile.name: tile.detail for tile in tiles(FACTS, of_heads({"a": [1.0, 0.3], "b": [0.1, 0.2]}))}
    assert details["best epoch"] == "by head a"


def test_test_sets_are_judged_by_the_validation_of_their_head() -> None:
    metrics = {f"train_{head}": {"rmse_f": 0.1} for head in "ab"} | {f"x_{head}": {"rmse_f": 0.4} for head in "ab"}
    metrics |= {"valid_a": {"rmse_f": 0.2}, "valid_b": {"rmse_f": 0.1}}
    found = MeasuredStage("one", 1, metrics, Predictions((), (), (), ()), {}, ("a", "b"), {"x_a": "a", "x_b": "b"})
    words = said(of_heads({"a": [1.0, 0.5], "b": [1.0, 0.5]}, stages=[found]))
    assert "Test set x_b: the error of forces is 4.0 times" in words and "Test set x_a" not in words


def test_the_only_head_that_was_measured_is_named() -> None:
    metrics = {"train_a": {"rmse_f": 0.1}, "valid_a": {"rmse_f": 0.1}}
    found = MeasuredStage("one", 1, metrics, Predictions((), (), (), ()), {}, ("pt_head", "a"))
    names = {tile.name for tile in tiles(FACTS, of_heads({"a": [1.0, 0.5]}, stages=[found]))}
    assert "RMSE F, validation, a" in names


def test_a_head_that_knows_its_training_set_too_well_is_named() -> None:
    metrics = {"train_a": {"rmse_f": 0.1}, "valid_a": {"rmse_f": 0.1}}
    metrics |= {"train_b": {"rmse_f": 0.1}, "valid_b": {"rmse_f": 0.3}}
    found = MeasuredStage("one", 1, metrics, Predictions((), (), (), ()), {}, ("a", "b"))
    now = of_heads({"a": [1.0, 0.5], "b": [1.0, 0.5]}, stages=[found])
    assert "Head b: the error of forces is 3.0 times larger in validation" in said(now) and "Head a" not in said(now)
    assert ("validation / training error", "3.00", "RMSE F, b") in {
        (t.name, t.value, t.detail) for t in tiles(FACTS, now)
    }
