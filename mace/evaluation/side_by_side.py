"""Batches side by side on the CPU: while one is in Python, where one core works, the other computes on the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

LANES = 2
"""More would hide little more, and each holds the memory of a batch."""


def choose_lanes(device: torch.device) -> int:
    """Return how many batches to work on at a time: one where the threads cannot be shared out evenly.

    Every lane gets the same number of threads, so that no result depends on the lane that made it.
    """
    return LANES if device.type == "cpu" and torch.get_num_threads() % LANES == 0 else 1


def work_in_lanes(work: Callable[[Item], Result], items: Iterable[Item], lanes: int) -> Generator[Result, None, None]:
    """Work on some items at a time and yield the results in the order of the items.

    Each lane is a thread with its share of torch's threads. Items are taken as lanes become free, two ahead of the
    results at most, and what is under way when the iteration ends early is finished, not begun anew.

    Args:
        work: Called in the lanes; what it raises is raised here, in the item's turn.
        items: What to work on.
        lanes: How many at a time; with one, all is done in the caller's thread.
    """
    if lanes == 1:
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads // lanes,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > lanes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that start later take the number that was set last anywhere
