"""Does a run that is killed at any instant, again and again, end as if nothing had happened?"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_runs import END, EVENTS, LBFGS, STAGE_CHANGE, Trainers
from training_runs import TINY_MODEL, same, untimed, write_water

from mace.training.checkpoints import CheckpointFolder, load_safely

KILLED = -9
FLAGS = [
    "--name=tiny", "--seed=7", "--train_file=../train.xyz", "--batch_size=4", "--max_num_epochs=4", "--plot=False",
    "--swa", "--start_swa=2", "--ema", "--lr_factor=0.5", "--scheduler_patience=0", "--restart_latest",
    "--checkpoint_minutes=0", "--lbfgs", "--lbfgs_steps=3", *TINY_MODEL,
]  # fmt: skip
"""A state after every step, and all stages in about a second; the flag to go on from the start, as in a queue."""


def results(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves and that does not tell the time."""
    models = {p.name: re.sub(rb'created\\": \\"[^"]*"', b"", p.read_bytes()) for p in folder.glob("*.model")}
    lines = (folder / "results" / "tiny_run-7_train.txt").read_text().splitlines()
    records = [untimed(json.loads(line)) for line in lines]
    state = load_safely(folder / "checkpoints" / "tiny_run-7_last.pt")
    best = {p.name: load_safely(p)["weights"] for p in sorted((folder / "checkpoints").glob("*_epoch-*.pt"))}
    timeless = {key: value for key, value in state.items() if key not in ("run", "records")}
    return {"models": models, "records": records, "state": timeless, "best": best}


def assert_readable(folder: Path) -> None:
    """After a kill, the last state is readable, and so is all that it names as the best."""
    checkpoints = CheckpointFolder(folder / "checkpoints", "tiny_run-7")
    if not checkpoints.files():
        return
    state = load_safely(checkpoints.last)
    for stage, epoch in state["progression"]["best_epochs"].items():
        assert load_safely(checkpoints.of_epoch(epoch, stage))["run"] == state["run"]
    for file in checkpoints.files():
        load_safely(file)


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    with Trainers() as program:
        yield program


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, trainers: Trainers) -> Path:
    """A folder with data and the uninterrupted run."""
    place = tmp_path_factory.mktemp("killed")
    write_water(place / "train.xyz")
    assert trainers.run(place / "straight", FLAGS) == 0, (place / "straight" / "output").read_text()
    return place


def instants(rng: np.random.Generator, rounds: int) -> list[dict[str, Any]]:
    """Kills at every event in its stage, in the order of a run, and as many at random times."""
    plan: list[dict[str, Any]] = []
    for _ in range(rounds):
        for stage in ("one", "two"):
            for event in rng.permutation(EVENTS):
                plan.append({"at": str(event), "stage": stage, "count": int(rng.integers(1, 3))})
            if stage == "one":
                plan += [{"at": event} for event in STAGE_CHANGE]
        plan += [{"at": event, "count": int(rng.integers(1, 4))} for event in LBFGS]
        plan += [{"at": event} for event in END]
        plan += [{"after": float(rng.uniform(0.1, 1.5))} for _ in range(8)]
    return plan


def kill_again_and_again(trainers: Trainers, place: Path, plan: list[dict[str, Any]]) -> int:
    """Kill one run after the other, each until it is done, and compare; return the number of kills."""
    straight, kills, number = results(place / "straight"), 0, 0
    for kill in [*plan, {}]:
        for attempt in range(3):
            folder = place / f"killed-{number}"
            status = trainers.run(folder, FLAGS, **kill)
            if status == KILLED:
                kills += 1
                assert_readable(folder)
                break
            assert status == 0, (folder / "output").read_text()
            # it was past that instant: this run is done, another one shall be killed there
            finished = results(folder)
            for part, expected in straight.items():
                assert same(expected, finished[part]), f"{part} of {folder} after {kill}"
            shutil.rmtree(folder)
            number += 1
            if not kill or "after" in kill:
                break
            assert attempt < 2, f"{kill} never happens"
    return kills


def test_thirty_kills_change_nothing(trainers: Trainers, place: Path) -> None:
    assert kill_again_and_again(trainers, place, instants(np.random.default_rng(0), 1)) >= 25


def test_killed_runs_with_corrections_end_alike(trainers: Trainers, place: Path) -> None:
    flags = [*FLAGS, "--lora=True", "--lora_rank=2", "--freeze=interactions.0"]
    assert trainers.run(place / "corrected", flags) == 0, (place / "corrected" / "output").read_text()
    folder = place / "corrected-killed"
    for stage, event in (("one", "half written"), ("two", "evaluate")):
        assert trainers.run(folder, flags, at=event, stage=stage, count=2) == KILLED
        assert_readable(folder)
    assert trainers.run(folder, flags) == 0, (folder / "output").read_text()
    straight, killed = results(place / "corrected"), results(folder)
    assert straight["state"]["moved"]["factors"]
    for part, expected in straight.items():
        assert same(expected, killed[part]), part


@pytest.mark.slow
def test_many_kills_change_nothing(trainers: Trainers, place: Path) -> None:
    assert kill_again_and_again(trainers, place, instants(np.random.default_rng(1), 8)) >= 200
