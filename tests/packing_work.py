"""Work for the processes of `mace.packing.workers`, in a module that other processes can import."""

from __future__ import annotations

import os
import signal
import sys
import time

from mace.errors import UserError


def square(task: int) -> tuple[int, int]:
    """The square and the process that computed it; what is printed on the way does no harm."""
    print("on the way", file=sys.stdout, flush=True)
    time.sleep(0.002 * (task % 3))
    return task * task, os.getpid()


def refuse_large(task: int) -> int:
    """Refuse tasks above 5, the later ones sooner."""
    if task > 5:
        time.sleep(max(0.3 - 0.03 * task, 0.0))
        raise UserError(f"task {task} is too large.")
    return task


def fail(task: int) -> int:
    """A defect."""
    raise ZeroDivisionError(f"task {task}")


def die(task: int) -> int:
    """End as the system ends a process that has no memory left."""
    if task == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def leave(task: int) -> int:
    """End without a word."""
    if task == 4:
        os._exit(3)
    return task


def wait_long(task: int) -> int:
    """Say which process this is and take longer than anybody waits."""
    with open(f"{task}.pid", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
    return task
