"""The number of threads of a run: measured where nobody set it, kept where it is resumed, and of no other effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Run, same, train, write_water

from mace.training.checkpoints import load_safely

MEASURED = r"Threads: \d+; the gradient of a batch takes"
KEPT = r"Threads: \d+, as measured when the run began"


@pytest.fixture(autouse=True)
def _nobody_sets_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("mace.runs.threads.usable_cores", lambda: 2)
    monkeypatch.setattr("mace.processes.thread_choice.SECONDS", 0.2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prefer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a number of threads the fastest."""

    def choose(threads: int) -> None:
        monkeypatch.setattr("mace.processes.thread_choice.fewest_good", lambda seconds: threads)

    return choose


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


def threads_of(run: Run) -> Any:
    return run.last_state()["threads"]


def test_it_is_measured_and_kept(tmp_path: Path, data: Path, prefer: Any) -> None:
    prefer(1)
    run = train(tmp_path, data, "--max_num_epochs=1", "--no_report")
    assert run.said("up to 2 threads") and run.said(MEASURED)
    assert torch.get_num_threads() == 1 and threads_of(run) == [1]
    torch.set_num_threads(2)
    prefer(2)
    resumed = train(tmp_path, data, "--restart_latest", "--no_report")
    assert resumed.said(KEPT)
    assert torch.get_num_threads() == 1 and threads_of(resumed) == [1]


def test_who_sets_it_is_obeyed(tmp_path: Path, data: Path, prefer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(1)
    run = train(tmp_path, data, "--num_threads=2", "--max_num_epochs=1", "--no_report")
    assert not run.said("up to 2 threads") and not run.said(MEASURED)
    assert torch.get_num_threads() == 2 and threads_of(run) == [None]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run = train(tmp_path / "environment", data, "--max_num_epochs=1", "--no_report")
    assert not run.said(MEASURED) and threads_of(run) == [None]
    monkeypatch.delenv("OMP_NUM_THREADS")
    run = train(tmp_path / "other", data, "--max_num_epochs=1", "--no_report")
    run = train(tmp_path / "other", data, "--num_threads=2", "--restart_latest", "--no_report")
    assert torch.get_num_threads() == 2 and not run.said(KEPT) and threads_of(run) == [None]


def test_a_run_that_began_without_is_resumed_without(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are states of older versions, whose threads were PyTorch's choice."""
    train(tmp_path, data, "--num_threads=2", "--max_num_epochs=1", "--no_report")
    real = load_safely

    def older(path: Path, *others: Any) -> dict[str, Any]:
        return {key: value for key, value in real(path, *others).items() if key != "threads"}

    monkeypatch.setattr("mace.training.checkpoints.load_safely", older)
    run = train(tmp_path, data, "--restart_latest", "--no_report")
    assert run.said("Restarting from")
    assert not run.said(MEASURED) and not run.said(KEPT) and torch.get_num_threads() == 2


def test_fewer_cores_than_then_are_measured_anew(
    tmp_path: Path, data: Path, prefer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(2)
    assert threads_of(train(tmp_path, data, "--max_num_epochs=1", "--no_report")) == [2]
    monkeypatch.setattr("mace.runs.threads.usable_cores", lambda: 1)
    run = train(tmp_path, data, "--restart_latest", "--no_report")
    assert not run.said(KEPT) and threads_of(run) == [1] and torch.get_num_threads() == 1


@pytest.mark.parametrize("flags", [(), ("--ema", "--optimizer=schedulefree"), ("--batch_edges=40",)])
def test_measuring_leaves_no_trace(tmp_path: Path, data: Path, prefer: Any, flags: tuple[str, ...]) -> None:
    """Weights, optimizer and history are those of a run whose number was set."""
    if "--optimizer=schedulefree" in flags:
        pytest.importorskip("schedulefree")
    prefer(2)
    measured = train(tmp_path / "measured", data, *flags)
    given = train(tmp_path / "given", data, *flags, "--num_threads=2")
    assert measured.said(MEASURED) and not given.said(MEASURED)
    one, other = measured.last_state(), given.last_state()
    for part in ("weights", "optimizer", "schedule", "average", "progression", "best"):
        assert same(one[part], other[part]), part


def test_too_little_memory_for_it_is_no_error(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("mace.training.batch_step.BatchStep.rehearsal", fails)
    run = train(tmp_path, data, "--max_num_epochs=1", "--no_report")
    assert run.epochs_trained == [0] and threads_of(run) == [None] and torch.get_num_threads() == 2


def test_it_is_left_alone_where_there_is_one_core(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mace.runs.threads.usable_cores", lambda: 1)
    run = train(tmp_path, data, "--max_num_epochs=1", "--no_report")
    assert threads_of(run) == [1] and not run.said(MEASURED)
