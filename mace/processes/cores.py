"""Cores that others use too: how threads wait for each other there, and how long they wait for a core.

At the end of every parallel region threads wait for the slowest one. The OpenMP runtime of GCC, which torch brings
along on Linux, lets them spin for some milliseconds before they sleep. That is fast on free cores. Where other programs
use the same cores, one thread spins while another has no core to finish its share on, over and over.

Imports neither torch nor anything else that loads an OpenMP runtime, since that reads its environment only once.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

_LOGGER = logging.getLogger(__name__)

SPIN_COUNT = 5000
"""Turns for which a thread spins: 0.05 to 0.2 ms, longer than most gaps between parallel regions of a step."""

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

CROWDED = 0.1
"""Threads waiting for a core, on average, from which on those that wait for each other sleep at once."""

LOOK = 1.0
"""Seconds between looks at how long threads wait for a core."""

_TRIAL = 0.2
"""Seconds for which threads spin again, to see whether cores are free."""

_SHORTEST_REST, _LONGEST_REST = 5.0, 80.0
"""Seconds until that is tried; twice as long after each trial in vain."""


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Let threads spin for a short time only, unless the environment says how they wait.

    It has an effect on libraries loaded later, and on processes started later. Only programs call it, never an import.
    """
    if not any(name in environment for name in _WAITING):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def may_rest(environment: Mapping[str, str]) -> bool:
    """Return whether the environment leaves to this package how threads wait."""
    return "OMP_WAIT_POLICY" not in environment and environment.get("GOMP_SPINCOUNT") in (None, str(SPIN_COUNT))


def is_number_set(given: int | None, environment: Mapping[str, str]) -> bool:
    """Return whether somebody has chosen the number of threads.

    Args:
        given: The setting.
        environment: Environment variables of the process.
    """
    return given is not None or any(environment.get(name) for name in _THREADS)


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores this process may use at a time, by its affinity and the quota of its control group.

    Args:
        root: Where the file system begins.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _quotas(root):
        count = min(count, max(1, round(quota)))
    return count


def _quotas(root: Path) -> list[float]:
    """Return the limits of all control groups this process is in, in cores."""
    quotas = []
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        # in a container the path may be that of the host, and its own group is the top
        for folder in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
            try:
                if controllers:
                    words = [(folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
                else:
                    words = (folder / "cpu.max").read_text().split()
                limit, period = float(words[0]), float(words[1])
            except (OSError, ValueError, IndexError):  # none, or "max"
                continue
            if limit > 0:
                quotas.append(limit / period)
    return quotas


def waits_for_cores() -> dict[str, float] | None:
    """Return for how many seconds each thread of this process has waited for a core, by thread.

    Returns:
        Seconds since the thread began; None if the system does not tell, as only Linux does.
    """
    found = {}
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return None
    for name in threads:
        try:
            with open(f"/proc/self/task/{name}/schedstat", "rb", buffering=0) as file:
                found[name] = int(file.read().split()[1]) * 1e-9
        except (OSError, ValueError, IndexError):  # the thread has ended, or the kernel does not count
            continue
    return found or None


class RestPlan:
    """Decides when threads that wait for each other sleep at once instead of spinning.

    They do while threads of this process have to wait for a core. Whether that is over shows only while they spin, so
    this is tried from time to time.

    Attributes:
        rests: Whether they sleep.
        look: Seconds until it should be decided again.
    """

    def __init__(self) -> None:
        self.rests, self.look = False, LOOK
        self._rest, self._since = _SHORTEST_REST, -_LONGEST_REST

    def decide(self, now: float, waiting: float) -> bool:
        """Return whether threads should sleep from now on.

        Args:
            now: Seconds since some fixed time.
            waiting: Threads that waited for a core since the last decision, on average.
        """
        since = now - self._since
        if self.rests:
            self._change(now, since < self._rest)
        elif waiting > CROWDED:
            self._rest = min(2.0 * self._rest, _LONGEST_REST) if since < _SHORTEST_REST else _SHORTEST_REST
            self._change(now, True)
        else:
            self.look = LOOK
        return self.rests

    def _change(self, now: float, rests: bool) -> None:
        if rests != self.rests:
            self._since = now
        self.rests, self.look = rests, LOOK if rests else _TRIAL


class Resting:
    """Makes threads that wait for each other sleep at once, and lets them spin again.

    The runtime spins hardly at all while it has more threads than there are cores, which its manual says of
    ``GOMP_SPINCOUNT``. An idle team in a thread of its own brings that about. Which thread computes what, and thereby
    every result, stays the same.
    """

    def __init__(self) -> None:
        self._end, self._threads = threading.Event(), 0
        self._runtime = _gnu_runtime() if may_rest(os.environ) else None

    @property
    def is_possible(self) -> bool:
        """Whether threads wait as the runtime of GCC lets them, and nobody has said how."""
        return self._runtime is not None

    def set(self, rests: bool, threads: int) -> None:
        """Let threads sleep, or spin.

        Args:
            rests: Whether they should sleep.
            threads: How many of them wait for each other.
        """
        threads = threads if rests and self._runtime is not None else 0
        if threads == self._threads:
            return
        self._end.set()
        self._end, self._threads = threading.Event(), threads
        if threads == 0 or self._runtime is None:
            return
        # the runtime counts all threads but the first one of each further team
        work = (self._runtime, max(2, self._runtime.omp_get_num_procs() - threads + 2), self._end)
        try:
            threading.Thread(target=_hold_team, args=work, daemon=True, name="mace resting").start()
        except RuntimeError as error:  # there is a limit on the threads of a user
            _LOGGER.debug("no thread can be started (%s)", error)


def _gnu_runtime() -> ctypes.CDLL | None:
    """Find the OpenMP runtime of GCC in this process."""
    try:
        process = ctypes.CDLL(None)
        # LLVM's has functions of the same names, but counts its threads otherwise
        is_there = hasattr(process, "GOMP_parallel") and not hasattr(process, "kmp_set_blocktime")
    except (OSError, TypeError):
        return None
    return process if is_there else None


def _hold_team(runtime: ctypes.CDLL, size: int, end: threading.Event) -> None:
    """Keep a team that has nothing to do until told to end; it ends with this thread."""
    nothing = ctypes.cast(runtime.omp_get_thread_num, ctypes.c_void_p)
    runtime.GOMP_parallel(nothing, None, ctypes.c_uint(size), ctypes.c_uint(0))
    end.wait()


class WaitMeter:
    """Measures how many threads of this process wait for a core, on average."""

    def __init__(self) -> None:
        self._before, self._time = waits_for_cores(), time.perf_counter()

    def read(self) -> float | None:
        """Return the number since the last call; None if the system does not tell."""
        waits, now = waits_for_cores(), time.perf_counter()
        before, elapsed = self._before, now - self._time
        self._before, self._time = waits, now
        if waits is None or before is None or elapsed <= 0.0:
            return None
        return sum(max(0.0, waited - before.get(name, 0.0)) for name, waited in waits.items()) / elapsed
