"""Is a run the same whoever gathers its batches: weights, tables, when it is stopped, and when something fails?"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write
from training_runs import Run, same, train, untimed, water, write_water

from mace.errors import RunInterrupted, UserError
from mace.graphs import feeding
from mace.graphs.in_memory import InMemoryDataset
from mace.graphs.neighbors import Neighbors
from mace.training import phases
from mace.training.batch_step import BatchStep
from mace.training.checkpoints import load_safely
from mace.training.phases import WaitingTime

VARIANTS = {
    "stages": ("--swa", "--start_swa=1", "--ema"),
    "parts": ("--max_edges_per_batch=14",),
    "lbfgs": ("--max_num_epochs=1", "--lbfgs", "--lbfgs_steps=3"),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz", 14)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mace feeding")]


def assert_same_runs(one: Run, other: Run) -> None:
    """Compare records, states and weights, bit for bit."""
    assert [untimed(record) for record in one.records] == [untimed(record) for record in other.records]
    assert same(one.weights(), other.weights())
    states = [run.last_state() for run in (one, other)]
    for part in ("weights", "optimizer", "average", "best", "progression"):
        assert same(states[0][part], states[1][part]), part


def tables(run: Run) -> list[str]:
    """The rows of the error tables."""
    return [line for line in run.log.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_threads_changes_no_bit(tmp_path: Path, data: Path, variant: str) -> None:
    write(tmp_path / "test.xyz", water(5, seed=3), format="extxyz")
    flags = (f"--test_file={tmp_path / 'test.xyz'}", "--valid_fraction=0.3", *VARIANTS[variant])
    numbers = (0, 1, 4) if variant == "stages" else (0, 3)
    runs = [train(tmp_path / str(n), data, *flags, f"--num_workers={n}") for n in numbers]
    for run in runs[1:]:
        assert_same_runs(runs[0], run)
        assert len(tables(run)) > 6 and tables(run) == tables(runs[0])


def stopped(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict[str, Any]:
    """Train until a signal comes, seen in the second step of epoch 1; return how far the saved state has come."""
    take, taken = BatchStep.take, [0]

    def interrupted(step: BatchStep, *arguments: Any) -> Any:
        taken[0] += 1
        if taken[0] == 5:
            signal.raise_signal(signal.SIGTERM)
        return take(step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStep, "take", interrupted)
        with pytest.raises(RunInterrupted, match="structures of epoch 1"):
            train(folder, data, *flags)
    progression: dict[str, Any] = load_safely(folder / "checkpoints" / "tiny_run-7_last.pt")["progression"]
    return progression


@pytest.mark.parametrize(("before", "after"), [(3, 0), (0, 3), (3, 3)])
def test_what_was_gathered_ahead_does_not_count_as_done(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    straight = train(tmp_path / "straight", data)
    place = stopped(tmp_path / "b", data, monkeypatch, f"--num_workers={before}")
    assert (place["epoch"], place["structures_done"], place["structures"]) == (1, 8, 13)
    assert_same_runs(straight, train(tmp_path / "b", data, f"--num_workers={after}", "--restart_latest"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_structure_that_cannot_be_read_ends_the_run_by_its_name(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    neighbors = InMemoryDataset.neighbors

    def failing(dataset: InMemoryDataset, structures: np.ndarray) -> Neighbors:
        if 7 in [dataset[int(place)].index for place in structures]:
            raise OSError(5, "Input/output error")
        return neighbors(dataset, structures)

    monkeypatch.setattr(InMemoryDataset, "neighbors", failing)
    with pytest.raises(UserError, match=r"train.xyz: structure 7 cannot be made into a batch: OSError: .*Input/output"):
        train(tmp_path, data, f"--num_workers={workers}")


def test_a_signal_while_the_disk_does_not_answer_saves_and_ends(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_water(data, 30)
    straight = train(tmp_path / "straight", data)
    neighbors, take, answer, taken = InMemoryDataset.neighbors, BatchStep.take, threading.Event(), [0]
    answer.set()

    def waiting(dataset: InMemoryDataset, structures: np.ndarray) -> Neighbors:
        answer.wait()
        return neighbors(dataset, structures)

    def counted(step: BatchStep, *arguments: Any) -> Any:
        taken[0] += 1
        if taken[0] == 2:  # a later step waits for what it never gets
            answer.clear()
            threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGTERM)).start()
        return take(step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(InMemoryDataset, "neighbors", waiting)
        patch.setattr(BatchStep, "take", counted)
        patch.setattr(feeding, "LOOK", 0.05)
        patch.setattr(feeding, "CLOSING", 0.1)
        with pytest.raises(RunInterrupted, match=r"saved after \d+ of 27 structures of epoch 0"):
            train(tmp_path / "b", data, "--num_workers=1")
        answer.set()
    for thread in threading.enumerate():
        if thread.name.startswith("mace feeding"):
            thread.join(10.0)
    assert_same_runs(straight, train(tmp_path / "b", data, "--num_workers=1", "--restart_latest"))


def test_a_signal_in_the_final_tables_ends_the_threads(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mace.runs import final_report

    measure = final_report.evaluate

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        def progress(batches: Any) -> Iterator[Any]:
            for batch in batches:
                signal.raise_signal(signal.SIGTERM)
                yield batch

        return measure(*arguments, **{**keywords, "progress": progress})

    monkeypatch.setattr(final_report, "evaluate", interrupted)
    with pytest.raises(RunInterrupted, match="training is complete"):
        train(tmp_path, data, "--num_workers=2")


def test_the_share_of_waiting_is_told(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "JUDGED_FROM", 0.0)
    monkeypatch.setattr(phases, "MUCH_WAITING", 0.0)
    run = train(tmp_path, data, "--num_workers=1", "--report")
    (told,) = re.findall(r"Share of the time spent waiting for data: (\d+\.\d) %", run.log)
    assert 0.0 <= float(told) < 100.0
    assert run.log.count("was spent waiting for data; more threads than --num_workers=1, a faster disk or a set") == 1
    steps = [record for record in run.records if record["mode"] == "opt"]
    assert all(record["time_data"] >= 0.0 for record in steps)
    (page,) = (tmp_path / "results").glob("tiny_run-7.html")
    assert "% of the time of steps spent waiting for data" in page.read_text(encoding="utf-8")


def test_much_waiting_is_told_once_and_not_of_the_first_seconds(caplog: pytest.LogCaptureFixture) -> None:
    waiting = WaitingTime(0)
    waiting.add(5.0, 20.0)
    waiting.add_phases({"data": 0.0, "forward": 9.0})
    assert not caplog.records, "29 seconds are no basis"
    waiting.add_phases({"data": 0.5, "forward": 0.5, "backward": 1.0})
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("18 % of the time so far was spent waiting for data; --num_workers=4, a faster disk")
    waiting.add(50.0, 50.0)
    assert len(caplog.records) == 1
    assert waiting.share == pytest.approx(55.5 / 81.0)
    little = WaitingTime(4)
    little.add(10.0, 100.0)
    assert len(caplog.records) == 1 and little.share == 0.1
