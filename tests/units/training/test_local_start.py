"""Are the processes of ``--devices`` started, told apart, stopped and waited for?"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mace.console import interruption
from mace.console.interruption import Interruption
from mace.errors import UserError
from mace.processes.launch import check_size, find_launch
from mace.runs.local_start import check_devices, is_to_start, run_together

WRITING = """
import os, sys
rank = os.environ["RANK"]
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
open(rank, "w").write(" ".join(os.environ[name] for name in names))
"""


def started(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int = 3) -> int:
    monkeypatch.chdir(tmp_path)
    return run_together([sys.executable, "-c", program], n)


def test_processes_know_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(WRITING, tmp_path, monkeypatch) == 0
    written = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [words[:4] for words in written] == [[str(r), str(r), "3", "localhost"] for r in range(3)]
    assert len({words[4] for words in written}) == 1 and all(int(words[5]) >= 1 for words in written)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = dict(zip(names, written[2], strict=False))
    assert not is_to_start(3, "auto", environment)
    found = find_launch(False, "auto", environment)
    assert found is not None and (found.rank, found.local_rank, found.size) == (2, 2, 3)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import os, sys; sys.exit(2 if os.environ['RANK'] == '1' else 0)", 2),
        ("import os, sys; sys.exit(2 if os.environ['RANK'] == '1' else 143)", 143),
        ("import os; os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else None", 137),
    ],
)
def test_the_status_is_that_of_one_that_failed(
    program: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started(program, tmp_path, monkeypatch) == status


def test_signals_reach_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, time; open(os.environ['RANK'], 'w'); time.sleep(60)"

    def stop() -> None:
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    begin, before = time.monotonic(), signal.getsignal(signal.SIGTERM)
    assert started(program, tmp_path, monkeypatch) == 143
    assert time.monotonic() - begin < 30 and signal.getsignal(signal.SIGTERM) == before


def test_who_starts_processes() -> None:
    assert is_to_start(2, "auto", {}) and is_to_start(2, "torchrun", {})
    assert not any(is_to_start(n, launcher, {}) for n, launcher in ((None, "auto"), (1, "auto"), (4, "slurm")))
    with pytest.raises(UserError, match="--devices=4, but the run has 1 process: the command mace_run_train starts"):
        check_size(4, None)
    check_size(None, None)
    check_size(1, None)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cuda", "--devices=3: there are 2 devices of the kind cuda on this machine"),
        ("cuda:1", "--devices=3 with --device=cuda:1: several processes need --device=cuda"),
        ("mps", "several processes need --device=cuda, xpu or cpu"),
    ],
)
def test_too_many_devices(kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_devices(3, kind, 2)
    check_devices(3, "cpu", 1)
    check_devices(2, "cuda", 2)


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler sends it to all processes of a job, and the one that started the others passes it on."""
    ended = list[int]()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(interruption.os, "_exit", ended.append)
    with Interruption() as stopping, stopping.patient():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert stopping.requested and not ended
        time.sleep(interruption.AT_ONCE)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert ended == [143]
