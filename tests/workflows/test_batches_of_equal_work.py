"""Runs whose batches are filled up to a number of edges or atoms: are they shown, stopped, shared as others are?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from killed_runs import Trainers
from training_runs import (
    TINY_MODEL,
    Run,
    isolated_atoms,
    labeled,
    rattled,
    same,
    settings_of,
    train,
    untimed,
    water,
    write_frames,
)  # fmt: skip

from mace.console.interruption import Interruption
from mace.errors import RunInterrupted
from mace.graphs.batch_plan import EqualWork, Step
from mace.graphs.batch_size import BatchSize, plan_batches, training_batch, validation_batch
from mace.graphs.dataset import Dataset
from mace.settings import parse_training_settings
from mace.training import evaluation, loop
from mace.training.batch_step import BatchStep
from mace.training.checkpoints import load_safely

FLAGS = ("--name=tiny", "--seed=7", "--plot=False", "--valid_fraction=0.2", "--batch_edges=900", *TINY_MODEL)
NEEDED = ["--name=a", "--train_file=a.xyz"]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Water molecules of 6 edges, and crystals of 32 atoms and some 400 edges."""
    rng = np.random.default_rng(0)
    crystals = [labeled(rattled(bulk("Cu", cubic=True) * (2, 2, 2), 0.08, rng), stress=True) for _ in range(9)]
    frames = [*isolated_atoms(["H", "O", "Cu"]), *water(41, seed=1), *crystals]
    return write_frames(tmp_path / "mixed.xyz", frames)


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    with Trainers() as program:
        yield program


def steps_of(run: Run) -> list[dict[str, Any]]:
    return [untimed(record) for record in run.records if record["mode"] == "opt"]


@pytest.mark.parametrize(
    ("flags", "training", "validation"),
    [
        ((), BatchSize(10), BatchSize(10)),
        (("--batch_size=3",), BatchSize(3), BatchSize(10)),
        (("--batch_edges=500",), BatchSize(500, "edges"), BatchSize(500, "edges")),
        (("--batch_atoms=500",), BatchSize(500, "atoms"), BatchSize(500, "atoms")),
        (("--batch_atoms=500", "--valid_batch_size=10"), BatchSize(500, "atoms"), BatchSize(10)),
        (("--batch_atoms=500", "--valid_batch_edges=9"), BatchSize(500, "atoms"), BatchSize(9, "edges")),
        (("--batch_size=3", "--valid_batch_atoms=9"), BatchSize(3), BatchSize(9, "atoms")),
    ],
)
def test_which_setting_decides(flags: tuple[str, ...], training: BatchSize, validation: BatchSize) -> None:
    settings = parse_training_settings([*NEEDED, *flags])
    assert training_batch(settings) == training and validation_batch(settings) == validation


def test_it_is_shown_what_batches_hold(tmp_path: Path, mixed: Path) -> None:
    run = train(tmp_path, mixed, *FLAGS)
    spread = r".* edges \((\d+) to (\d+)\); .* atoms \(.*\); .* structures \("
    told = re.search(rf"first epoch, (\d+) steps: {spread}", run.log)
    assert told is not None, run.log
    n_steps, least, most = (int(number) for number in told.groups()[:3])
    assert 0.6 * 900 < least <= most <= 900 and run.said("Batch size: up to 900 edges")
    per_epoch = [sum(step["epoch"] == epoch for step in steps_of(run)) for epoch in range(2)]
    assert per_epoch[0] == n_steps and all(count > 2 for count in per_epoch)
    assert run.said(rf"Number of gradient updates: about {2 * n_steps}")
    assert "up to 900 edges; " in (tmp_path / "results" / "tiny_run-7.html").read_text()
    dry = train(tmp_path / "dry", mixed, *FLAGS, "--dry_run")
    assert re.search(rf"batches per epoch +\| {n_steps} of up to 900 edges", dry.shown)


def test_structures_that_are_too_large_are_told_once(tmp_path: Path, mixed: Path) -> None:
    run = train(tmp_path, mixed, *FLAGS[: -len(TINY_MODEL) - 1], *TINY_MODEL, "--batch_atoms=20")
    assert re.search(
        r"WARNING: \d training structures have more than --batch_atoms=20, and are batches by themselves: the largest "
        r"one is .*mixed.xyz: structure \d+ with 32", run.log
    )  # fmt: skip
    assert run.log.count("batches by themselves") == 1


def test_evaluations_are_the_same_whatever_fills_their_batches(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[tuple[int, int]]()
    divide = evaluation._batches

    def noted(dataset: Dataset, *arguments: Any) -> list[np.ndarray]:
        batches = divide(dataset, *arguments)
        sizes.extend((len(batch), int(dataset.edges_of(batch).sum())) for batch in batches)
        return batches

    monkeypatch.setattr(evaluation, "_batches", noted)
    found = []
    for flag in ("--valid_batch_size=3", "--valid_batch_edges=500", "--valid_batch_atoms=1000"):
        sizes.clear()
        run = train(tmp_path / flag, mixed, *FLAGS, flag, "--max_num_epochs=1")
        found.append([record for record in run.records if record["mode"] == "eval"])
        if "edges" in flag:
            assert max(edges for _, edges in sizes) <= 500 and max(count for count, _ in sizes) > 3
    for records in found[1:]:
        for one, other in zip(found[0], records, strict=True):
            assert untimed(one) == pytest.approx(untimed(other), rel=1e-9)


def test_a_run_killed_within_epochs_ends_as_if_nothing_had_happened(
    tmp_path: Path, mixed: Path, trainers: Trainers
) -> None:
    """A state is saved after every step."""
    ends = ("--max_num_epochs=2", "--swa", "--start_swa=1", "--ema", "--checkpoint_minutes=0", "--restart_latest")
    command = [f"--train_file={mixed}", *FLAGS, *ends]
    assert trainers.run(tmp_path / "straight", command) == 0
    for stage in ("one", "two"):
        assert trainers.run(tmp_path / "killed", command, at="step", stage=stage, count=2) == -9
        state = load_safely(tmp_path / "killed" / "checkpoints" / "tiny_run-7_last.pt")["progression"]
        assert state["structures_done"] > 0 and state["stage_two"] == (stage == "two")
    assert trainers.run(tmp_path / "killed", command) == 0
    runs = [Run(settings_of(tmp_path / name, mixed, *FLAGS), tmp_path / name, "") for name in ("straight", "killed")]
    states = [run.last_state() for run in runs]
    for part in ("weights", "optimizer", "best", "progression", "average"):
        assert same(states[0][part], states[1][part]), part
    assert [[untimed(record) for record in run.records] for run in runs[:1]] == [
        [untimed(record) for record in run.records] for run in runs[1:]
    ]


@pytest.mark.parametrize(
    ("changed", "goes_on"),
    [
        ("--batch_edges=450", False),
        ("--batch_edges=900", True),
        ("--batch_atoms=100", False),
        ("--batch_size=5", False),
    ],
)
def test_the_epoch_begins_anew_where_its_batches_are_other_ones_now(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch, changed: str, goes_on: bool
) -> None:
    taken, take = list[Step](), BatchStep.take

    def noted(self: BatchStep, step: Step, *arguments: Any) -> Any:
        taken.append(step)
        return take(self, step, *arguments)

    monkeypatch.setattr(BatchStep, "take", noted)
    monkeypatch.setattr(Interruption, "requested", property(lambda self: len(taken) == 2))
    with pytest.raises(RunInterrupted, match="structures of epoch 0"):
        train(tmp_path, mixed, *FLAGS)
    before = [step.structures for step in taken]
    monkeypatch.setattr(Interruption, "requested", False)
    taken.clear()
    others = [flag for flag in FLAGS if not flag.startswith("--batch_edges")]
    run = train(tmp_path, mixed, *others, changed, "--restart_latest", "--max_num_epochs=1")
    assert run.said("The batches are filled in another way now: epoch 0 begins anew") != goes_on
    gone_through = np.concatenate([*(before if goes_on else ()), *(step.structures for step in taken)])
    assert sorted(gone_through.tolist()) == list(range(40))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes both batches of each step alone."""
    shared = (f"--train_file={mixed}", *FLAGS, "--max_num_epochs=3", "--eval_interval=2")
    folder = tmp_path / "two"
    folder.mkdir()
    program = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "--no_python"),
            *(sys.executable, "-m", "mace.cli.run_train", *shared),
        ],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    class BothOfTwo(EqualWork):
        def steps(self, epoch: int, done: int = 0) -> Iterator[Step]:
            return (replace(step, batches=None) for step in super().steps(epoch, done))

    def of_two(settings: Any, dataset: Dataset, sampling: Any, processes: int) -> EqualWork:
        plan = plan_batches(settings, dataset, sampling, 2)
        assert processes == 1 and isinstance(plan, EqualWork)
        return BothOfTwo(plan.sampling, plan.seed, plan.sizes, plan.capacity, 2)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "plan_batches", of_two)
        one = train(tmp_path / "one", mixed, *shared)
    output, _ = program.communicate(timeout=240)
    assert program.returncode == 0, output
    two = Run(settings_of(folder, mixed, *shared), folder, "")
    assert two.said("2 processes with up to 900 edges each in a step, 1800 together")
    for name, value in one.weights().items():
        torch.testing.assert_close(value, two.weights()[name], rtol=1e-6, atol=1e-6 * float(value.detach().abs().max()))
    assert len(one.records) == len(two.records)
    for a, b in zip(one.records, two.records, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    # within an epoch, one process can go on only with batches of its own
    assert two.last_state()["progression"]["batches"] == one.last_state()["progression"]["batches"] != 0
