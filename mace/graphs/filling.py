"""Dividing structures into batches of about equal work."""

from __future__ import annotations

import bisect
import heapq

import numpy as np

STEPS_OF_WINDOW, STRUCTURES_OF_WINDOW = 64, 1024
"""Structures are packed among those of about so many steps of a random order, or so many structures if that is more."""

_SPARE = 64
"""One batch in so many is added at once: without any room to spare, the last structures would not fit."""


def pack(sizes: np.ndarray, capacity: int, processes: int = 1) -> tuple[np.ndarray, int]:
    """Divide structures into as few batches as possible of at most a given size, and of about equal sizes.

    Structures are dealt out from the largest to the smallest, each to the batch with the least so far. Every batch thus
    gets its part of the large and of the small ones, and what is common to structures of a size, such as their kind, is
    in all batches alike. Only where that needs more batches, because few structures fit into one, each structure goes
    to the fullest batch that has room for it. Sizes that differ by up to an eighth count as equal when structures are
    ordered, so that a random order gives random batches.

    Args:
        sizes: Size of each structure, at least 1, in random order, ``[structures]``.
        capacity: The largest size of a batch; a structure above it becomes a batch by itself.
        processes: The number of batches is a multiple of this; a few may be empty.

    Returns:
        The batch of each structure, ``[structures]``, and the number of batches.
    """
    order = np.argsort(-_class_of(sizes), kind="stable")
    descending = sizes[order].tolist()
    total = int(np.minimum(sizes, capacity).sum())
    wanted = _multiple(-(-total // capacity) + total // (_SPARE * capacity), processes)
    batch, used = _spread(descending, capacity, wanted)
    if used > wanted:
        packed, fewest = _best_fit(descending, capacity)
        for number in (fewest, fewest + fewest // _SPARE):
            wanted = _multiple(number, processes)
            batch, used = _spread(descending, capacity, wanted)
            if used == wanted:
                break
        else:
            batch, used = packed, _multiple(fewest, processes)
    found = np.empty(len(sizes), dtype=np.int64)
    found[order] = batch
    return found, used


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _class_of(sizes: np.ndarray) -> np.ndarray:
    """Return classes of about equal sizes; in exact arithmetic, so that all machines find the same."""
    mantissa, exponent = np.frexp(sizes.astype(np.float64))
    return (exponent * 8 + (mantissa * 16).astype(np.int64)).astype(np.int16)


def _spread(sizes: list[int], capacity: int, wanted: int) -> tuple[np.ndarray, int]:
    """Deal structures out, each to the batch with the least so far; open another batch where even that is too full."""
    # an entry of the heap is the size of a batch times `stride` plus its number: comparing integers is fastest
    stride = wanted + len(sizes) + 1
    limit, used = (capacity + 1) * stride, wanted
    heap, entries = list(range(wanted)), list[int]()
    for size in sizes:
        least = heap[0]
        entry = least + size * stride
        if entry < limit or least < stride:
            heapq.heapreplace(heap, entry)
        else:
            entry = size * stride + used
            used += 1
            heapq.heappush(heap, entry)
        entries.append(entry)
    return np.array(entries, dtype=np.int64) % stride, used


def _best_fit(sizes: list[int], capacity: int) -> tuple[np.ndarray, int]:
    """Put each structure into the fullest batch that has room for it, or else into a new one."""
    stride, used = len(sizes) + 1, 0
    room, batches = list[int](), list[int]()  # room in a batch times `stride` plus its number, ascending
    for size in sizes:
        place = bisect.bisect_left(room, size * stride)
        if place < len(room):
            entry = room.pop(place)
        else:
            entry = max(capacity, size) * stride + used
            used += 1
        batches.append(entry % stride)
        bisect.insort(room, entry - size * stride)
    return np.array(batches, dtype=np.int64), used


def windows(sizes: np.ndarray, size_of_step: int) -> list[np.ndarray]:
    """Cut structures into windows of about equal total size, each worth some steps.

    Args:
        sizes: Size of each structure, in the order of the epoch, ``[structures]``.
        size_of_step: The largest size of a step.

    Returns:
        The places of the structures of each window, consecutive.
    """
    if not len(sizes):
        return []
    total = np.cumsum(np.minimum(sizes, size_of_step))
    number = int(total[-1]) // (size_of_step * STEPS_OF_WINDOW)
    number = max(1, min(number, len(sizes) // STRUCTURES_OF_WINDOW))
    cuts = np.searchsorted(total, int(total[-1]) * np.arange(1, number) // number)
    return np.split(np.arange(len(sizes)), cuts)
