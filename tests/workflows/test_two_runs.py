"""Do two runs in one folder leave each other alone, and does a run notice what happens to its files?"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_runs import Run, same, train, untimed, write_water

from mace.errors import RunInterrupted, UserError
from mace.files.ownership import OwnedByAnother
from mace.model.model_file import load_model
from mace.training.batch_step import BatchStep

FOUR = "--max_num_epochs=4"
RESUME = "--restart_latest"
TAG = "tiny_run-7"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four epochs that nothing happens to."""
    folder = tmp_path_factory.mktemp("straight")
    return train(folder, write_water(folder / "train.xyz"), FOUR)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """Let something happen before a step of the first run that comes so far."""

    def install(number: int, happens: Callable[[], Any]) -> None:
        take, steps = BatchStep.take, list[int]()

        def then(step: BatchStep, *arguments: Any) -> Any:
            steps.append(1)
            if len(steps) == number:
                happens()
            return take(step, *arguments)

        monkeypatch.setattr(BatchStep, "take", then)

    return install


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_equal_runs(one: Run, other: Run) -> None:
    assert [untimed(r) for r in one.records] == [untimed(r) for r in other.records]
    assert same(one.weights(), other.weights())


# ownership


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ((), {}, "--work_dir.$"),
        ((RESUME,), {}, "--work_dir.$"),
        (("--take_over", "--lr=0.1"), {}, "--work_dir.$"),
        (("--results_dir={elsewhere}",), {}, "--work_dir.$"),
        (("--checkpoints_dir={elsewhere}",), {}, "--work_dir.$"),
        ((), {"SLURM_NTASKS": "2"}, "or add --distributed if the 2 processes started together are to be one run.$"),
        ((), {"OMPI_COMM_WORLD_SIZE": "4"}, "--distributed if the 4 processes"),
        ((), {"SLURM_NTASKS": "1"}, "--work_dir.$"),
    ],
)
def test_a_second_run_is_refused_before_it_touches_anything(
    tmp_path: Path, data: Path, at_step: Any, monkeypatch: pytest.MonkeyPatch, flags: Any, environment: Any, words: str
) -> None:
    refusals: list[str] = []
    second = [flag.format(elsewhere=tmp_path / "elsewhere") for flag in flags]

    def begin_another() -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        before = contents(tmp_path / "run")
        with pytest.raises(OwnedByAnother, match=rf"{TAG}.lock: process {os.getpid()} on .*{words}") as caught:
            train(tmp_path / "run", data, *second)
        refusals.append(str(caught.value))
        assert contents(tmp_path / "run") == before

    at_step(5, begin_another)
    run = train(tmp_path / "run", data, FOUR)
    assert refusals and run.epochs_trained == [0, 1, 2, 3] and run.weights()
    assert not list((tmp_path / "run").rglob("*.lock*")) and not run.said("WARNING")


@pytest.mark.parametrize("flags", [("--name=other",), ("--seed=8",), ("--work_dir={elsewhere}",), ("--dry_run",)])
def test_the_ways_out_lead_out(tmp_path: Path, data: Path, straight: Run, at_step: Any, flags: tuple[str, ...]) -> None:
    others = [flag.format(elsewhere=tmp_path / "elsewhere") for flag in flags]
    at_step(5, lambda: train(tmp_path / "run", data, *others))
    run = train(tmp_path / "run", data, FOUR)
    assert [untimed(r) for r in straight.records] == [untimed(r) for r in run.records]
    own = tmp_path / "run" / "checkpoints" / f"{TAG}.model"
    assert same(dict(load_model(own).model.named_parameters()), straight.weights())


def test_models_of_other_seeds_under_the_same_name_are_kept(tmp_path: Path, data: Path) -> None:
    first = train(tmp_path, data).weights()
    second = train(tmp_path, data, "--seed=8")
    assert second.said("WARNING: .*tiny.model held the model of seed 7, which is in .*tiny_run-7.model too; it is repl")
    assert load_model(tmp_path / "tiny.model").metadata.seed == 8
    (tmp_path / "checkpoints" / "tiny_run-8.model").unlink()
    third = train(tmp_path, data, "--seed=9")
    assert third.said("WARNING: .*tiny.model held the model of seed 8, which was moved to .*tiny_run-8_earlier-1.model")
    kept = {p.name: load_model(p).metadata.seed for p in tmp_path.rglob("*.model")}
    assert kept == {"tiny.model": 9, "tiny_run-7.model": 7, "tiny_run-8_earlier-1.model": 8, "tiny_run-9.model": 9}
    own = load_model(tmp_path / "checkpoints" / "tiny_run-7.model").model
    assert same(dict(own.named_parameters()), first)


@pytest.mark.parametrize("end", ["error", "signal"])
def test_the_files_are_free_after_every_end(tmp_path: Path, data: Path, at_step: Any, end: str) -> None:
    def fail() -> None:
        raise UserError("stopped here.")

    at_step(2, fail if end == "error" else lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises((UserError, RunInterrupted)):
        train(tmp_path, data, FOUR)
    assert not list(tmp_path.rglob("*.lock*"))
    assert train(tmp_path, data, FOUR, RESUME).epochs_trained == [0, 1, 2, 3]


def test_a_stale_lock_is_taken_over_with_a_line(tmp_path: Path, data: Path, at_step: Any) -> None:
    def killed() -> None:  # what kill -9 leaves
        shutil.copytree(tmp_path / "run", tmp_path / "copy")

    at_step(2, killed)
    train(tmp_path / "run", data)
    for lock in (tmp_path / "copy").rglob("*.lock"):
        lock.write_text(lock.read_text().replace('"began": "', '"began": "1'))
    run = train(tmp_path / "copy", data, RESUME)
    assert run.said(rf"WARNING: .*{TAG}.lock: process \d+ on .* has ended without freeing the files .*; taken over")
    assert run.epochs_trained == [0, 1]


# files that go while the run goes on


def _replaced(path: Path) -> None:
    shutil.copy(path.parent / f"{TAG}_last_previous.pt", path)


def _into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "checkpoint folder": (lambda f: shutil.rmtree(f / "checkpoints"), f"{TAG}_last.pt is gone"),
    "all folders": (
        lambda f: [shutil.rmtree(f / name) for name in ("checkpoints", "results")] and None,
        f"{TAG}_train.txt is gone",
    ),
    "last": (lambda f: (f / "checkpoints" / f"{TAG}_last.pt").unlink(), f"{TAG}_last.pt is gone"),
    "last replaced": (
        lambda f: _replaced(f / "checkpoints" / f"{TAG}_last.pt"),
        "_last.pt was replaced by another file",
    ),
    "last a folder": (
        lambda f: _into_folder(f / "checkpoints" / f"{TAG}_last.pt"),
        "_last.pt was replaced by a folder",
    ),
    "best": (lambda f: next((f / "checkpoints").glob("*_epoch-*")).unlink(), r"epoch-\d.pt is gone"),
    "best replaced": (
        lambda f: _replaced(next((f / "checkpoints").glob("*_epoch-*"))),
        r"epoch-\d.pt was replaced by another file while the run goes on; it is written anew",
    ),
    "history": (lambda f: (f / "results" / f"{TAG}_train.txt").unlink(), f"{TAG}_train.txt is gone"),
    "history replaced": (
        lambda f: os.replace(shutil.copy(f / "logs" / f"{TAG}.log", f / "x"), f / "results" / f"{TAG}_train.txt"),
        f"{TAG}_train.txt was replaced .* moves to .*{TAG}_train_rejected-1.txt",
    ),
    "lock": (lambda f: (f / "checkpoints" / f".{TAG}.lock").unlink(), f"{TAG}.lock was gone"),
}


@pytest.mark.parametrize("harm", HARM)
def test_files_that_go_are_told_and_written_anew(
    tmp_path: Path, data: Path, straight: Run, at_step: Any, harm: str
) -> None:
    act, words = HARM[harm]
    at_step(11, lambda: act(tmp_path / "b"))
    run = train(tmp_path / "b", data, FOUR)
    assert run.said(f"WARNING: .*{words}")
    assert_equal_runs(straight, run)
    names = {p.name for p in (straight.folder / "checkpoints").iterdir()}
    assert names <= {p.name for p in (tmp_path / "b" / "checkpoints").iterdir()}
    assert_equal_runs(straight, train(tmp_path / "b", data, FOUR, RESUME))


def test_who_lost_its_files_to_another_stops_and_keeps_its_state(
    tmp_path: Path, data: Path, straight: Run, at_step: Any
) -> None:
    folder = tmp_path / "b" / "checkpoints"

    def taken() -> None:
        lock = folder / f".{TAG}.lock"
        lock.write_text(lock.read_text().replace("token", "token of another"))

    at_step(8, taken)
    with pytest.raises(UserError, match=rf"lock: process \d+ on .*, has stopped; .*{TAG}_displaced-1, and") as caught:
        train(tmp_path / "b", data, FOUR)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "b").glob("*.model")) and (folder / f".{TAG}.lock").exists()
    displaced = folder / f"{TAG}_displaced-1"
    run = train(tmp_path / "c", data, FOUR, RESUME, f"--checkpoints_dir={displaced}")
    assert run.epochs_trained == [3] and same(run.weights(), straight.weights())
