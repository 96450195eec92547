"""The number of threads, chosen by timing the work with several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

TOLERANCE = 0.05
"""Part of the shortest time that a smaller number of threads may take longer."""

SECONDS = 1.5
"""Time after which no further measurement begins."""

_ENOUGH = 7
"""Times of each number that are enough."""

_HOPELESS = 1.5
"""A number of threads with which work takes this many times the shortest time is not timed again."""

_LONG = 0.2
"""Seconds of work whose first time with another number of threads counts."""


@dataclass(frozen=True)
class ThreadChoice:
    """The number of threads chosen, and why.

    Attributes:
        threads: The number.
        seconds: Median time of the work with each number that was timed.
    """

    threads: int
    seconds: dict[int, float]

    def __str__(self) -> str:
        """Return the times in words."""
        words = [f"{1e3 * seconds:.3g} ms with {number}" for number, seconds in sorted(self.seconds.items())]
        return f"{self.threads}; the gradient of a batch takes {', '.join(words)}"


def candidates(most: int) -> list[int]:
    """Return the numbers of threads that are tried: all, half as many, and so on to one.

    >>> candidates(12)
    [12, 6, 3, 1]
    """
    return [most >> halvings for halvings in range(most.bit_length())]


def fewest_good(seconds: dict[int, float]) -> int:
    """Return the smallest number of threads that is about as fast as the fastest.

    >>> fewest_good({1: 1.04, 2: 1.0, 4: 1.01})
    1
    """
    best = min(seconds.values())
    return min(number for number, time_of in seconds.items() if time_of <= (1.0 + TOLERANCE) * best)


def choose_threads(
    work: Callable[[], object],
    most: int,
    settle: Callable[[], None] = lambda: None,
    use: Callable[[int], None] = torch.set_num_threads,
    clock: Callable[[], float] = time.perf_counter,
) -> ThreadChoice:
    """Time some work with several numbers of threads, and set the smallest one that is about as fast as the fastest.

    The numbers take turns, so that what else happens on the machine meets all alike. It takes about `SECONDS`, and more
    only if the work is so long that it is done but a few times; numbers that there is no time for are not chosen.

    Args:
        work: What is timed.
        most: The largest number.
        settle: Called once the work has been done for a while with the largest number.
        use: Sets the number of threads.
        clock: Returns the seconds since some fixed time.
    """
    begin = clock()

    def timed() -> float:
        start = clock()
        work()
        return clock() - start

    use(most)
    first = timed()  # the first time is slow
    while clock() - begin < min(_LONG, 4.0 * first):
        timed()
    settle()
    times: dict[int, list[float]] = {}
    left = candidates(most)
    for turn in range(_ENOUGH):
        for number in left:
            if times and clock() - begin > SECONDS:
                break
            use(number)
            found = timed()
            if found < _LONG:  # this one may have started threads
                found = min(timed(), timed())
            times.setdefault(number, []).append(found)
            shortest = min(map(statistics.median, times.values()))
            if turn == 0 and found > 2.0 * _HOPELESS * shortest:
                break  # fewer threads take still longer
        left = [number for number in times if statistics.median(times[number]) <= _HOPELESS * shortest]
        if len(left) == 1 or clock() - begin > SECONDS:
            break
    seconds = {number: statistics.median(of_number) for number, of_number in times.items()}
    choice = ThreadChoice(fewest_good(seconds), seconds)
    use(choice.threads)
    return choice
