"""Does a run of two processes, one of which is killed again and again, end as if nothing had happened?"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_runs import EVENTS, Trainers
from training_runs import TINY_MODEL, same, write_water

from mace.model.model_file import load_model
from mace.training.checkpoints import load_safely

KILLED = -9
KILLS = 60
FLAGS = [
    "--name=tiny", "--seed=7", "--train_file=../train.xyz", "--batch_size=2", "--max_num_epochs=4", "--plot=False",
    "--swa", "--start_swa=2", "--ema", "--restart_latest", "--checkpoint_minutes=0", "--kernels=torch", *TINY_MODEL,
]  # fmt: skip
OF_ALL = ("step", "evaluate", "before the change of stage", "after the change of stage")
"""Events of processes that write no files."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port


class Pair:
    """Two processes of a run, as torchrun starts them."""

    def __init__(self, programs: list[Trainers]) -> None:
        self._programs = programs

    def run(self, folder: Path, victim: int | None = None, **kill: Any) -> list[int]:
        """Run the command in both; one of them is killed."""
        folder.mkdir(parents=True, exist_ok=True)
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}

        def start(rank: int) -> int:
            place = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            how = kill if rank == victim else {}
            return self._programs[rank].run(folder, FLAGS, place, f"output-{rank}", **how)

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(start, range(2)))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Trainers() as first, Trainers() as second:
        yield Pair([first, second])


def said(folder: Path) -> list[str]:
    return [(folder / f"output-{rank}").read_text() for rank in range(2)]


@pytest.mark.slow
def test_sixty_kills_of_one_of_two_lose_nothing(tmp_path: Path, pair: Pair) -> None:
    write_water(tmp_path / "train.xyz")
    straight = tmp_path / "straight"
    assert pair.run(straight) == [0, 0], said(straight)
    expected = {name: load_model(straight / name).model.state_dict() for name in ("tiny.model", "tiny_stagetwo.model")}
    rng, kills, number, named = np.random.default_rng(0), 0, 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{number}"
        victim = int(rng.integers(2))
        events = (*EVENTS, *OF_ALL[2:]) if victim == 0 else OF_ALL
        kill: dict[str, Any] = {"at": str(rng.choice(events)), "count": int(rng.integers(1, 12))}
        if rng.random() < 0.3:
            kill = {"after": float(rng.uniform(0.8, 4.0))}
        if kills == KILLS - 1:
            kill = {}
        statuses = pair.run(folder, victim if kill else None, **kill)
        output = said(folder)
        assert "Traceback" not in "".join(output), (kill, output)
        if statuses == [0, 0]:
            for name, weights in expected.items():
                assert same(weights, load_model(folder / name).model.state_dict()), f"{name} of {folder}"
            number += 1
            kills += not kill
            continue
        assert statuses[victim] == KILLED, (kill, statuses, output)
        survivor = 1 - victim
        kills += 1
        if statuses[survivor] != 0:  # the other may have left already
            assert statuses[survivor] == 2, (kill, statuses, output)
            last = output[survivor].rstrip().splitlines()[-1]
            assert re.search(f"process {victim} .*(ended|meet|sign of life|reached)|did not meet", last), (kill, last)
            named += f"process {victim}" in last
        state = folder / "checkpoints" / "tiny_run-7_last.pt"
        if state.exists():
            load_safely(state)
    print(f"{kills} kills, {number} runs to their end, {named} messages that name the process")
    assert named >= KILLS // 2
