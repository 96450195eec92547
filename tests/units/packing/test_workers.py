"""Do several processes return what one returns, and does each way to fail end in words?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import packing_work
import pytest

from mace.errors import UserError
from mace.packing.workers import Workers


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_processes(n_processes: int) -> None:
    with Workers[int](n_processes, str) as workers:
        for tasks in ([3], list(range(20)), []):  # the same processes again
            found = dict(workers.run(packing_work.square, tasks))
            assert {place: result[0] for place, result in found.items()} == {k: t * t for k, t in enumerate(tasks)}
            processes = {process for _, process in found.values()}
            # how many take part depends on how fast they start
            assert (len(processes) > 0) == (len(tasks) > 0) and len(processes) <= n_processes
            assert (os.getpid() in processes) == (len(tasks) == 1 or n_processes == 1 and len(tasks) > 0)


@pytest.mark.parametrize("n_processes", [1, 3])
def test_the_first_task_that_is_refused_is_named(n_processes: int) -> None:
    """Whichever is refused first in time; all tasks before it are done."""
    done = []
    with Workers[int](n_processes, str) as workers, pytest.raises(UserError, match=r"task 6 is too large\."):
        for _, result in workers.run(packing_work.refuse_large, list(range(12))):
            done.append(result)
    assert sorted(done) == list(range(6))


def test_defects_keep_their_traceback() -> None:
    with Workers[int](2, str) as workers, pytest.raises(RuntimeError, match="(?s)ZeroDivisionError.*in fail"):
        list(workers.run(packing_work.fail, [1, 2]))


@pytest.mark.parametrize(("work", "words"), [("die", "was killed"), ("leave", "ended with status 3")])
def test_a_process_that_dies_is_named_by_its_task(work: str, words: str) -> None:
    with Workers[int](2, lambda task: f"a.xyz: structures {task}") as workers:
        with pytest.raises(UserError, match=rf"a.xyz: structures 4: a process that prepared .* {words}"):
            list(workers.run(getattr(packing_work, work), list(range(8))))


def test_workers_end_when_the_first_process_is_killed(tmp_path: Path) -> None:
    """In the middle of their work, so that they write nothing any more."""
    program = (
        "import packing_work; from mace.packing.workers import Workers\n"
        "with Workers(2, str) as workers: list(workers.run(packing_work.wait_long, [0, 1]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    files = [tmp_path / f"{task}.pid" for task in range(2)]
    deadline = time.monotonic() + 30
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    processes = [int(file.read_text()) for file in files]
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether there is such a process, other than one that has ended and that nobody has asked about."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
