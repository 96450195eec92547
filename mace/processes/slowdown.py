"""Notices when steps become much slower than they were because others use the same cores."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mace.processes.cores import Resting, RestPlan, WaitMeter, usable_cores

_LOGGER = logging.getLogger(__name__)

WINDOW = 60.0
"""Seconds of steps that are judged together."""

_FEWEST = 5
"""Steps that are judged together at least."""

SLOWER, AS_BEFORE = 2.0, 1.3
"""How many times as long as usual steps take to be called slow, and at most to be called as fast as before."""

_WAITING = 0.25
"""Threads that wait for a core, on average, without which others are not the reason."""

_OWN_SHARE = 0.8
"""Part of the cores that could be used from which on this process keeps its threads waiting by itself."""

BETWEEN_NOTICES = 300.0
"""Seconds between two messages."""


@dataclass(frozen=True)
class Window:
    """Some steps, one after the other.

    Attributes:
        pace: Median of the time of a step by the number of its atoms, in seconds.
        waiting: Threads that waited for a core, on average; None if unknown.
        used: Cores that this process kept busy, on average.
        usable: Cores that it could have kept busy with its threads.
        load: Load average of the machine: threads that run or want to; None if unknown.
    """

    pace: float
    waiting: float | None
    used: float
    usable: int
    load: float | None

    @property
    def is_crowded(self) -> bool:
        """Whether others kept this process from its cores."""
        if self.used > _OWN_SHARE * self.usable:
            return False
        if self.waiting is not None:
            return self.waiting >= _WAITING
        return self.load is not None and self.load > 1.5 * self.usable


def is_slow(window: Window, usual: float, was_slow: bool) -> bool:
    """Return whether steps are much slower than usual because of others.

    Args:
        window: The latest steps.
        usual: The best pace so far.
        was_slow: What was found for the steps before.
    """
    if was_slow:
        return window.pace > AS_BEFORE * usual
    return window.pace >= SLOWER * usual and window.is_crowded


def notice(window: Window, usual: float) -> str:
    """Say that steps are slow, why, and what to do."""
    reasons = []
    if window.load is not None:
        reasons.append(f"load average {window.load:.1f}")
    if window.waiting is not None:
        reasons.append(f"{window.waiting:.1f} threads of this run wait for a core on average")
    threads = torch.get_num_threads()
    fewer = f", or with fewer threads (--num_threads={max(1, threads // 2)})" if threads > 1 else ""
    return (
        f"Steps take {window.pace / usual:.1f} times as long as they did, because other programs use the same cores "
        f"({', '.join(reasons)}); stopped now, the run goes on with --restart_latest on free cores{fewer}"
    )


class CoreWatch:
    """Follows the steps of a run on a CPU that may be shared with others.

    It lets threads that wait for each other sleep where cores are short, and says so once steps become much slower.

    Args:
        clock: Returns the seconds since some fixed time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._meter, self._plan, self._resting = clock, WaitMeter(), RestPlan(), Resting()
        self._look_at = clock()
        self._usual, self._is_slow, self._told, self._told_at = float("inf"), False, False, -float("inf")
        self._begin()

    def _begin(self) -> None:
        """Begin a window."""
        self._paces, self._seconds = list[float](), 0.0
        self._waits: list[tuple[float, float]] = []
        self._looked = self._clock()
        self._began = self._clock(), time.process_time()

    def step(self, seconds: float, size: int) -> None:
        """Take note of a step.

        Args:
            seconds: Its time, without waiting for data or for other processes.
            size: Its number of atoms.
        """
        self.heed()
        self._seconds += seconds
        if size:
            self._paces.append(seconds / size)
        if self._seconds >= WINDOW and len(self._paces) >= _FEWEST:
            self.judge(self._window())
            self._begin()

    def heed(self) -> None:
        """Look at the cores if it is time for it; takes no time otherwise."""
        if self._clock() >= self._look_at:
            self.look()

    def look(self) -> None:
        """See how long threads wait for a core, and let them wait for each other accordingly."""
        now, waiting = self._clock(), self._meter.read()
        if waiting is not None:
            self._waits.append((waiting, now - self._looked))
            threads = torch.get_num_threads()
            if self._resting.is_possible and threads > 1:
                self._resting.set(self._plan.decide(now, waiting), threads)
        self._looked, self._look_at = now, now + self._plan.look

    def _window(self) -> Window:
        """Return what was seen since the window began."""
        self.look()
        elapsed = max(self._clock() - self._began[0], 1e-9)
        weights = sum(weight for _, weight in self._waits)
        return Window(
            pace=statistics.median(self._paces),
            waiting=sum(number * weight for number, weight in self._waits) / weights if weights else None,
            used=(time.process_time() - self._began[1]) / elapsed,
            usable=min(usable_cores(), torch.get_num_threads()),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        )

    def judge(self, window: Window) -> None:
        """Say what has changed, unless something was said a short while ago."""
        self._is_slow = is_slow(window, self._usual, self._is_slow)
        self._usual = min(self._usual, window.pace)
        now = self._clock()
        if self._is_slow == self._told or now - self._told_at < BETWEEN_NOTICES:
            return
        self._told, self._told_at = self._is_slow, now
        if self._is_slow:
            _LOGGER.warning("%s", notice(window, self._usual))
        else:
            _LOGGER.info("Steps are as fast again as they were before other programs used the same cores")

    def close(self) -> None:
        """Let threads wait as they did before."""
        self._resting.set(False, 1)
