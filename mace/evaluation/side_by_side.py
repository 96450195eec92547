"""Parallel batches on the CPU: while one runs Python code on one core, the other computes on the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

LANES = 2
"""Number of parallel batches; more would gain little, and each needs the memory of a batch."""


def choose_lanes(device: torch.device) -> int:
    """Return how many batches to process in parallel: one if threads cannot be divided evenly.

    Every lane gets the same number of threads, so that results do not depend on the lane.
    """
    return LANES if device.type == "cpu" and torch.get_num_threads() % LANES == 0 else 1


def divided(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of some items each, which are taken from the iteration when a list is asked for."""
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


def work_in_lanes(work: Callable[[Item], Result], items: Iterable[Item], lanes: int) -> Generator[Result, None, None]:
    """Process several items in parallel and yield the results in the order of the items.

    Each lane is a thread with its share of torch's threads. Items are taken as lanes become free, at most two ahead of
    the results. If the iteration ends early, items in progress are finished, but no new ones are started.

    Args:
        work: Called in the lanes; its exceptions are raised here when the item's result is due.
        items: The items to process.
        lanes: Number of lanes; with one, everything runs in the caller's thread.
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
        torch.set_num_threads(threads)  # later threads inherit the last number set anywhere
