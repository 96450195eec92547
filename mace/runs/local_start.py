"""Starting the processes of a run on this machine, one for each device, without another launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from mace.console.interruption import SIGNALS
from mace.errors import UserError
from mace.processes.cores import is_number_set, usable_cores
from mace.processes.launch import TORCHRUN


def is_to_start(devices: int | None, launcher: str, environment: Mapping[str, str]) -> bool:
    """Return whether this program is to start the processes of a run, and not one of them itself.

    Args:
        devices: The setting: how many devices of this machine are to be used.
        launcher: The setting: what else starts processes.
        environment: Environment variables of the process.
    """
    several = devices is not None and devices > 1 and launcher in ("auto", "torchrun")
    return several and not all(name in environment for name in TORCHRUN)


def check_devices(devices: int, kind: str, count: int) -> None:
    """Check that a machine has as many devices as are to be used.

    Args:
        devices: How many.
        kind: The device as given.
        count: How many of the kind there are.

    Raises:
        UserError: If it has not, or they cannot be used together.
    """
    if kind not in ("cpu", "cuda", "xpu"):
        without = kind.partition(":")[0]
        instead = f"--device={without}" if without in ("cuda", "xpu") else "--device=cuda, xpu or cpu"
        raise UserError(f"--devices={devices} with --device={kind}: several processes need {instead}.")
    if kind != "cpu" and devices > count:
        raise UserError(f"--devices={devices}: there are {count} devices of the kind {kind} on this machine.")


def run_together(command: Sequence[str], devices: int, environment: Mapping[str, str] = os.environ) -> int:
    """Run a command once for each device, with the environment variables of torchrun, and wait until all have ended.

    Signals that end programs are passed on, and those from a terminal reach the processes in no other way. That all end
    if one of them fails is up to them.

    Args:
        command: The command.
        devices: Number of processes.
        environment: Environment variables of this process.

    Returns:
        An exit status: 0 if all have ended well, else that of the first one that has not.
    """
    shared = dict(environment) | {
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(_free_port()),
    }
    if not is_number_set(None, environment):
        shared["OMP_NUM_THREADS"] = str(max(1, usable_cores() // devices))
    processes = list[subprocess.Popen[bytes]]()
    with _passing_on(processes) as received:
        for rank in map(str, range(devices)):
            # in a session of their own, where Ctrl-C of a terminal does not reach them a second time
            own = shared | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=own, start_new_session=True))
        for number in received:  # while some of them were not there yet
            _send(processes, number)
        statuses = [process.wait() for process in processes]
    return next((status for status in statuses if status > 0), max(128 - min(statuses), 0) if any(statuses) else 0)


@contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Send signals on to processes inside a ``with`` block; yield those that have arrived."""
    received = list[int]()

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _send(processes, number)

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        heeded = []  # signals reach the main thread alone
    before = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])
