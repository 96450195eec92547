"""Does training survive what disks, memory, numbers and schedulers do to it?"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed_runs import Trainers
from training_runs import TINY_MODEL, Run, settings_of, train, untimed, write_water

from mace.errors import RunInterrupted, UserError
from mace.files import durable as durable_file
from mace.graphs.batch_plan import Step
from mace.model.model_file import load_model
from mace.reporting import records
from mace.runs import finishing
from mace.training import batch_step, saving
from mace.training.batch_step import BatchStep
from mace.training.checkpoints import load_safely

FOUR = "--max_num_epochs=4"
RESUME = "--restart_latest"
EVERY_STEP = "--checkpoint_minutes=0"
QUICK = ["--name=tiny", "--seed=7", "--batch_size=4", "--max_num_epochs=3", "--plot=False", *TINY_MODEL]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    with Trainers() as program:
        yield program


def history(run: Run) -> list[dict[str, Any]]:
    return [untimed(record) for record in run.records]


def assert_equal_runs(one: Run, other: Run) -> None:
    assert history(one) == history(other)
    for name, value in one.weights().items():
        assert torch.equal(value, other.weights()[name]), name


# the disk


class Disk:
    """A disk that is full from one synchronization to another one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, begin: int, end: int) -> None:
        self.calls, self.begin, self.end = 0, begin, end
        self._synchronize = os.fsync
        for module in (durable_file, records):
            monkeypatch.setattr(module.os, "fsync", self.synchronize)

    def synchronize(self, descriptor: int) -> None:
        self.calls += 1
        if self.begin <= self.calls < self.end:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._synchronize(descriptor)


def test_a_full_disk_does_not_stop_training(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(tmp_path / "a", data, FOUR)
    Disk(monkeypatch, 5, 9)  # a first state was saved, and the first epochs' are not
    run = train(tmp_path / "b", data, FOUR)
    assert run.said(r"WARNING: .*tiny_run-7_last.pt: the state cannot be written \(No space left on device\)")
    assert run.said("INFO: .*tiny_run-7_last.pt: the state could be written again")
    assert_equal_runs(straight, run)
    monkeypatch.undo()
    assert_equal_runs(straight, train(tmp_path / "b", data, FOUR, RESUME))


def test_the_model_waits_for_room(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 10**9, 10**9)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        disk.end = 0  # somebody made room

    monkeypatch.setattr(saving.insist, "__defaults__", (pause,))
    load_best = finishing._load_best

    def then_full(*arguments: Any) -> None:
        if not pauses:
            disk.begin, disk.end = 0, 10**9
        load_best(*arguments)

    monkeypatch.setattr(finishing, "_load_best", then_full)
    run = train(tmp_path, data)
    assert pauses == [saving.FINAL_PAUSE]
    assert run.said(r"WARNING: .*tiny_run-7.model: there is no room on the disk; trying again")
    assert (tmp_path / "tiny.model").exists()


def test_weights_without_room_are_kept_in_memory(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(tmp_path / "a", data)
    disk = Disk(monkeypatch, 5, 10**9)
    finish = saving.insist

    def with_room(*arguments: Any) -> Any:
        disk.end = 0
        return finish(*arguments)

    monkeypatch.setattr("mace.runs.finishing.insist", with_room)
    run = train(tmp_path / "b", data)
    assert all(torch.equal(value, run.weights()[name]) for name, value in straight.weights().items())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_refused_before_training(tmp_path: Path, data: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="files cannot be written there"):
        train(tmp_path / "locked", data)


def test_a_file_in_the_place_of_a_folder_is_refused_before_training(tmp_path: Path, data: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints: files cannot be written there .*--checkpoints_dir"):
        train(tmp_path, data)
    assert not list(tmp_path.glob("*.model"))


# damaged and changed files


@pytest.mark.parametrize("damage", ["flipped byte", "cut off", "empty", "gone"])
def test_a_damaged_last_state_gives_way_to_the_one_before(tmp_path: Path, data: Path, damage: str) -> None:
    straight = train(tmp_path / "a", data, FOUR)
    train(tmp_path / "b", data, "--max_num_epochs=2")
    last = tmp_path / "b" / "checkpoints" / "tiny_run-7_last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        last.unlink()
    else:
        last.write_bytes({"flipped byte": bytes(content), "cut off": bytes(content[:3000]), "empty": b""}[damage])
    run = train(tmp_path / "b", data, FOUR, RESUME)
    assert run.said("WARNING: .*tiny_run-7_last.pt: .* Going on from the state before, .*tiny_run-7_last_previous.pt")
    assert_equal_runs(straight, run)


def test_a_deleted_data_file_matters_only_at_the_next_start(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = BatchStep.take

    def deleting(step: BatchStep, *arguments: Any) -> Any:
        data.unlink(missing_ok=True)
        return take(step, *arguments)

    monkeypatch.setattr(BatchStep, "take", deleting)
    assert train(tmp_path, data).epochs_trained == [0, 1]
    with pytest.raises(UserError, match="train.xyz") as caught:
        train(tmp_path, data, FOUR, RESUME)
    assert "\n" not in str(caught.value)


def test_changed_data_are_noticed(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data)
    write_water(data, seed=5)
    run = train(tmp_path, data, FOUR, RESUME)
    assert run.said("WARNING: .*train.xyz has changed on the disk since the run was stopped")
    again = train(tmp_path, data, FOUR, RESUME)
    assert again.log.count("has changed on the disk") == 1


# signals


STOPPED = [*QUICK, "--train_file=../train.xyz", RESUME, "--valid_fraction=0.3", "--valid_batch_size=1"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, trainers: Trainers) -> Path:
    """A run that nobody stops."""
    folder = tmp_path_factory.mktemp("stopped")
    write_water(folder / "train.xyz")
    assert trainers.run(folder / "straight", STOPPED) == 0
    return folder / "straight"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("event", ["step", "evaluate"])
def test_a_signal_saves_and_leaves(straight: Path, trainers: Trainers, number: int, status: int, event: str) -> None:
    flags, folder = STOPPED, straight.parent / f"stopped-{number}-{event}"
    assert trainers.run(folder, flags, at=event, count=5, signal=number) == status
    lines = [line for line in (folder / "output").read_text().splitlines() if line.startswith("Stopped by")]
    assert len(lines) == 1 and "saved" in lines[0] and "--restart_latest goes on from there" in lines[0]
    assert trainers.run(folder, flags) == 0
    settings = settings_of(folder, "../train.xyz")
    assert_equal_runs(Run(settings, straight, ""), Run(settings, folder, ""))


def test_a_second_signal_leaves_at_once(tmp_path: Path, data: Path, trainers: Trainers) -> None:
    flags = [*QUICK, "--train_file=../train.xyz"]
    assert trainers.run(tmp_path / "run", flags, at="step", count=2, signal=signal.SIGTERM, times=2) == 143
    assert "Stopped by" not in (tmp_path / "run" / "output").read_text()
    assert load_safely(tmp_path / "run" / "checkpoints" / "tiny_run-7_last.pt")["progression"]["structures_done"] == 0


def test_handlers_are_given_back(tmp_path: Path, data: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train(tmp_path, data, "--max_num_epochs=1")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_before_training_says_that_nothing_is_lost(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not noticed")

    monkeypatch.setattr("mace.runs.run.read_and_check", signalled)
    with pytest.raises(RunInterrupted, match="SIGTERM: nothing was trained") as caught:
        train(tmp_path, data)
    assert caught.value.status == 143


# numbers


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[np.ndarray]]:
    """Make the gradient of some steps NaN; return the batches of all steps."""

    def install(which: Callable[[int, np.ndarray], bool]) -> list[np.ndarray]:
        take, gradient, batches = BatchStep.take, batch_step.loss_gradient, list[np.ndarray]()

        def counted(batch_step: BatchStep, step: Step, *others: Any) -> Any:
            batches.append(step.structures)
            return take(batch_step, step, *others)

        def spoiled(model: Any, *others: Any, **named: Any) -> Any:
            value = gradient(model, *others, **named)
            if which(len(batches) - 1, batches[-1]):
                next(model.parameters()).grad *= float("nan")
            return value

        monkeypatch.setattr(BatchStep, "take", counted)
        monkeypatch.setattr(batch_step, "loss_gradient", spoiled)
        return batches

    return install


def test_a_step_that_is_not_a_number_is_taken_back(
    tmp_path: Path, data: Path, spoil: Callable[..., list[np.ndarray]]
) -> None:
    batches = spoil(lambda number, _: number == 4)  # the second step of the second epoch
    run = train(tmp_path, data, FOUR, "--lr=0.01")
    assert run.said("WARNING: epoch 1: the gradient is not a finite number with the batch of .*train.xyz: structures")
    assert run.said("going back to epoch 1, structure 0, with the learning rate lowered to 0.005 .1 of 3 times")
    assert np.array_equal(batches[3], batches[5]) and np.array_equal(batches[4], batches[6])
    rates = [(record["epoch"], record["lr"]) for record in run.records if record["mode"] == "opt"]
    assert rates == [(0, 0.01)] * 3 + [(epoch, 0.005) for epoch in (1, 2, 3) for _ in range(3)]
    assert run.epochs_evaluated == [None, 0, 1, 2, 3]
    assert all(torch.isfinite(weight).all() for weight in run.weights().values())


def test_structures_that_are_never_a_number_end_the_run_by_name(
    tmp_path: Path, data: Path, spoil: Callable[..., list[np.ndarray]]
) -> None:
    spoil(lambda number, structures: number > 4 and 2 in structures)
    with pytest.raises(UserError, match="train.xyz: structures .*after going back 2 times.*lower --lr"):
        train(tmp_path, data, FOUR, "--nan_retries=2")
    assert load_model(tmp_path / "tiny.model").metadata.epoch is not None  # what was good is not lost
    state = load_safely(tmp_path / "checkpoints" / "tiny_run-7_last.pt")
    assert all(torch.isfinite(weight).all() for weight in state["weights"].values())
    assert state["progression"]["times_back"] == 2


def test_going_back_can_be_forbidden(tmp_path: Path, data: Path, spoil: Callable[..., list[np.ndarray]]) -> None:
    spoil(lambda number, _: number == 4)
    with pytest.raises(UserError, match="epoch 1: the gradient is not a finite number.*--nan_policy=stop"):
        train(tmp_path, data, FOUR, "--nan_policy=stop")


def test_a_lowered_rate_is_kept_when_resumed_and_in_stage_two(
    tmp_path: Path, data: Path, spoil: Callable[..., list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--swa", "--start_swa=2", "--lr=0.01", "--swa_lr=0.002")
    spoil(lambda number, _: number == 1)
    train(tmp_path, data, "--max_num_epochs=2", *flags)
    monkeypatch.undo()
    run = train(tmp_path, data, FOUR, RESUME, *flags)
    rates = {record["epoch"]: record["lr"] for record in run.records if record["mode"] == "opt"}
    assert rates == {0: 0.005, 1: 0.005, 2: 0.001, 3: 0.001}


# memory


def _allocation_fails_above(edges: int, monkeypatch: pytest.MonkeyPatch, name: str, module: Any) -> None:
    work = getattr(module, name)

    def limited(model: Any, subject: Any, *arguments: Any, **keywords: Any) -> Any:
        graph = getattr(subject, "graph", subject)
        if graph.n_edges > edges:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 1 TB")
        return work(model, subject, *arguments, **keywords)

    monkeypatch.setattr(module, name, limited)


def assert_close_runs(one: Run, other: Run) -> None:
    """Compare to rounding."""
    for a, b in zip(one.records, other.records, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
    for name, value in one.weights().items():
        torch.testing.assert_close(value, other.weights()[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("name", "where"), [("loss_gradient", "batch_step"), ("predict", "evaluation")])
def test_out_of_memory_divides_the_batch(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    from mace.training import evaluation

    straight = train(tmp_path / "a", data, "--valid_fraction=0.4")
    _allocation_fails_above(13, monkeypatch, name, {"batch_step": batch_step, "evaluation": evaluation}[where])
    run = train(tmp_path / "b", data, "--valid_fraction=0.4")
    work = "training" if where == "batch_step" else "validation"
    assert run.said(f"WARNING: Out of memory in {work} with 4 structures of 24 edges; .* at most 12 edges")
    assert run.log.count(f"Out of memory in {work}") == 1
    assert_close_runs(straight, run)


def test_a_structure_that_never_fits_is_named(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _allocation_fails_above(5, monkeypatch, "loss_gradient", batch_step)
    with pytest.raises(UserError, match=r"train.xyz: structure \d+ \(3 atoms, 6 edges\) alone does not fit into mem"):
        train(tmp_path, data)


def test_other_errors_are_not_taken_for_it(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(batch_step, "loss_gradient", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        train(tmp_path, data)


@pytest.mark.parametrize("edges", [1, 6, 12, 20])
def test_a_limit_of_edges_changes_no_weight_of_the_loss(tmp_path: Path, data: Path, edges: int) -> None:
    straight = train(tmp_path / "a", data)
    assert_close_runs(straight, train(tmp_path / "b", data, f"--max_edges_per_batch={edges}"))
