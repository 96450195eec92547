"""The order of the launches of a section on a device, where each launch takes time: lists are joined.

Launches depend on each other through arrays. Products that are ready wait until nothing else is; then all of them
become one launch. Those whose results nobody reads in the section, such as gradients by weights, wait until the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mace.kernels.c_source.matrices import FIELDS
from mace.program.record import Array, Launch, Pointer, Word

_A, _B, _C = (FIELDS.index(name) for name in "abc")

_WRITTEN = {"products": (_C,), "packing": (1,)}
"""Places of what is written in the records of a list."""

_READ_ONLY = {
    **{"silu_value": (0,), "silu_gradient": (0, 1, 2), "silu_tangent": (0, 1, 2, 3), "silu_adjoint": (0, 1, 2)},
}
"""Places of pointers that kernels only read; of others, all are taken for written, unless nobody may write them."""


def scheduled(launches: Sequence[Launch]) -> list[Launch]:
    """Return the launches in an order in which few are needed.

    Args:
        launches: The launches of a section in an order in which they may run.
    """
    reads, writes = zip(*map(_accesses, launches), strict=True) if launches else ((), ())
    before: list[set[int]] = []
    is_read = set[int]()
    for place in range(len(launches)):
        needed = set[int]()
        for earlier in range(place):
            if not writes[earlier].isdisjoint(reads[place]):
                needed.add(earlier)
                is_read.add(earlier)
            elif not writes[earlier].isdisjoint(writes[place]) or not reads[earlier].isdisjoint(writes[place]):
                needed.add(earlier)
        before.append(needed)
    return _joined(launches, before, is_read)


def _joined(launches: Sequence[Launch], before: list[set[int]], is_read: set[int]) -> list[Launch]:
    """Order the launches, and join lists of the same kernel that are ready at the same time."""
    left, done = list(range(len(launches))), set[int]()
    order: list[Launch] = []
    while left:
        ready = [place for place in left if before[place] <= done]
        chosen = [place for place in ready if not launches[place].records][:1]
        if not chosen:
            lists = [place for place in ready if place in is_read] or ready
            kernel = launches[lists[0]].kernel
            chosen = [place for place in lists if launches[place].kernel == kernel]
        records = tuple(record for place in chosen for record in launches[place].records)
        order.append(replace(launches[chosen[0]], records=records))
        done.update(chosen)
        left = [place for place in left if place not in done]
    return order


def _accesses(launch: Launch) -> tuple[frozenset[Array], frozenset[Array]]:
    """Return the arrays whose memory a launch reads, and those whose memory it writes."""
    if launch.records:
        places = _WRITTEN[launch.kernel.name]
        rows = launch.records
        written = _homes(row[place] for row in rows for place in places)
        return _homes(word for row in rows for word in row), written
    read_only = _READ_ONLY.get(launch.kernel.name, ())
    homes = _homes(launch.pointers)
    constant = _homes(word for place, word in enumerate(launch.pointers) if place in read_only)
    return homes, frozenset(array for array in homes - constant if not array.read_only)


def _homes(words: Iterable[Word]) -> frozenset[Array]:
    found = (word.array if isinstance(word, Pointer) else word for word in words)
    return frozenset(array.home for array in found if isinstance(array, Array))
