"""Does whatever a run could go on from have all that it names, at every moment and after the data have changed?"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import train, write_water

from mace.errors import RunInterrupted
from mace.graphs.batch_plan import Step
from mace.training.batch_step import BatchStep
from mace.training.checkpoints import load_safely
from mace.training.saving import StateKeeper

RESUME = "--restart_latest"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


@pytest.mark.parametrize("flags", [(), ("--swa", "--start_swa=2"), ("--eval_interval=2",)], ids=str)
def test_both_states_have_their_best_weights(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """The last state may be unreadable tomorrow: what the one before names as the best must be there too."""
    save, seen = StateKeeper.save, list[dict[str, Any]]()

    def watched(keeper: StateKeeper, *arguments: Any, **named: Any) -> None:
        save(keeper, *arguments, **named)
        states = [load_safely(path) for path in sorted(folder.glob("tiny_run-7_last*.pt"))]
        for state in states:
            assert state["best"].keys() == state["progression"]["best_epochs"].keys()
        newest = load_safely(folder / "tiny_run-7_last.pt")
        for stage, epoch in newest["progression"]["best_epochs"].items():
            of_epoch = load_safely(folder / f"tiny_run-7_epoch-{epoch}{'_swa' if stage == 'two' else ''}.pt")
            assert all(torch.equal(of_epoch["weights"][name], value) for name, value in newest["best"][stage].items())
        seen.append({"states": len(states), "files": len(list(folder.glob("*epoch-*.pt")))})

    folder = tmp_path / "checkpoints"
    monkeypatch.setattr(StateKeeper, "save", watched)
    run = train(tmp_path, data, "--max_num_epochs=5", "--lr=0.005", *flags)
    assert {item["states"] for item in seen} == {1, 2}
    assert max(item["files"] for item in seen) <= 4  # two states with up to two stages
    best = run.last_state()["progression"]["best_epochs"]
    assert best["one"] > 0, "the case is one only if the best changes"
    assert seen[-1]["files"] == len(best)


def stopped_within_an_epoch(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a signal comes in the second step of epoch 1."""
    take, steps = BatchStep.take, list[int]()

    def interrupted(step: BatchStep, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:  # it is looked at before the next step
            signal.raise_signal(signal.SIGTERM)
        return take(step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStep, "take", interrupted)
        with pytest.raises(RunInterrupted, match="structures of epoch 1"):
            train(folder, data, "--max_num_epochs=3", "--valid_fraction=0.1")


@pytest.mark.parametrize(("count", "begins_anew"), [(12, False), (20, True), (9, True)])
def test_the_place_in_an_epoch_is_that_of_the_data_it_was_begun_with(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, count: int, begins_anew: bool
) -> None:
    """Of other structures the order is another, and what was done of the epoch says nothing of what is left."""
    stopped_within_an_epoch(tmp_path, data, monkeypatch)
    place = load_safely(tmp_path / "checkpoints" / "tiny_run-7_last.pt")["progression"]
    done, size = place["structures_done"], place["structures"]
    assert 0 < done < size
    write_water(data, count)
    trained = list[int]()
    take = BatchStep.take

    def counted(batch_step: BatchStep, step: Step, *arguments: Any) -> Any:
        trained.append(len(step.structures))
        return take(batch_step, step, *arguments)

    monkeypatch.setattr(BatchStep, "take", counted)
    run = train(tmp_path, data, "--max_num_epochs=3", "--valid_fraction=0.1", RESUME)
    now = run.last_state()["progression"]["structures"]
    assert (now == size) != begins_anew
    assert sum(trained) == (2 * now if begins_anew else now + now - done)
    told = re.search(r"There were (\d+) training structures, now (\d+): epoch 1 begins anew", run.log)
    assert (told is not None) == begins_anew
    assert told is None or [int(number) for number in told.groups()] == [size, now]
