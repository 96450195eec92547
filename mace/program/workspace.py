"""Memory for the arrays of a recording, and the words that kernels read.

Words - addresses, sizes, descriptions of products - are 64-bit integers in a table. It is made once for a model; for
each graph, the words that depend on the graph's sizes or on where its arrays lie are computed all at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mace.program.record import SIZES, Array, Extent, Pointer, Word, bits

_ALIGNMENT = 64


class TableMaker:
    """Makes a table: collects words, and notes which of them depend on the graph."""

    def __init__(self) -> None:
        self.itself = Array("table", bytes=8, external=True)
        self._arrays: dict[Array, int] = {}
        self._words: list[int] = []
        self._sizes: list[tuple[int, int, int, int]] = []
        self._addresses: list[tuple[int, int, int]] = []

    def append(self, words: Sequence[Word]) -> int:
        """Append words to the table; return the place of the first."""
        start = len(self._words)
        for word in words:
            place, value = len(self._words), 0
            if isinstance(word, Array):
                word = word.at()
            if isinstance(word, Pointer):
                self._addresses.append((place, self.note(word.array), word.offset * word.array.bytes))
            elif isinstance(word, Extent):
                self._sizes.append((place, SIZES.index(word.size), word.times, word.plus))
            elif isinstance(word, float):
                value = bits(word)
            elif word is not None:
                value = int(word)
            self._words.append(value)
        return start

    def note(self, array: Array) -> int:
        """Return the number of an array's memory, which it gets where it is first used."""
        return self._arrays.setdefault(array.home, len(self._arrays))

    def finish(self) -> Table:
        """Return the table."""
        self.note(self.itself)
        words = np.array(self._words, dtype=np.int64)
        sizes = np.array(self._sizes, dtype=np.int64).reshape(-1, 4).T
        addresses = np.array(self._addresses, dtype=np.int64).reshape(-1, 3).T
        return Table(tuple(self._arrays), self.itself, words, sizes, addresses)


@dataclass(frozen=True)
class Table:
    """The words of a recording.

    Attributes:
        arrays: All arrays.
        itself: The array that stands for the table.
        words: The words; those that depend on the graph are zero.
        sizes: Words that depend on sizes: place, number of the size, factor, constant.
        addresses: Words that are addresses: place, number of the array, bytes added.
    """

    arrays: tuple[Array, ...]
    itself: Array
    words: np.ndarray
    sizes: np.ndarray
    addresses: np.ndarray


def _layout(array: Array) -> tuple[int, int, int]:
    """Return on which size the length of an array in bytes depends, a factor and a constant; zeros if external."""
    if array.external:
        return 0, 0, 0
    length = array.length
    return SIZES.index(length.size), length.times * array.bytes, length.plus * array.bytes


class Memory:
    """Memory for the arrays of one run at a time, which grows as needed and is kept.

    Args:
        device: Where it is.

    Attributes:
        prepared: What its user notes of the arrays that do not depend on the graph; None after it has grown.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._more = self._buffer
        self.prepared: object = None

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""
        return self._buffer.numel() + self._more.numel()

    def reserve(self, n_bytes: int) -> Tensor:
        """Return the memory as bytes, at least as many as wanted; it then holds nothing if it was too small."""
        if n_bytes > self._buffer.numel():
            device = self._buffer.device
            # free the old one before the new one is allocated
            self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
            # somewhat more, so that batches of slightly different sizes do not need new memory each time
            self._buffer = torch.empty(n_bytes + n_bytes // 8, dtype=torch.uint8, device=device)
            self.prepared = None
        return self._buffer

    def reserve_more(self, n_bytes: int) -> Tensor:
        """Return other memory as bytes, at least as many as wanted, for what nobody needs after a launch."""
        if n_bytes > self._more.numel():
            device = self._buffer.device
            self._more = torch.empty(0, dtype=torch.uint8, device=device)
            n_bytes += n_bytes // 8 // _ALIGNMENT * _ALIGNMENT
            self._more = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        return self._more


class Workspace:
    """A table with the places of its arrays for a graph; one run at a time may use it.

    Args:
        table: The table.
        fixed: External arrays that never move.

    Attributes:
        threads: Number of threads of the next run.
        sizes: Those of `SIZES`, in order, of the graph.
    """

    def __init__(self, table: Table, fixed: Mapping[Array, Tensor]) -> None:
        self._table, self.words = table, table.words.copy()
        self._layout = np.array([_layout(array) for array in table.arrays], dtype=np.int64).T
        self._place = {array: place for place, array in enumerate(table.arrays)}
        self._offsets = np.zeros(len(table.arrays), dtype=np.int64)
        self._address = np.zeros(len(table.arrays), dtype=np.int64)
        for array, values in fixed.items():
            self._address[self._place[array]] = values.data_ptr()
        self._own = np.array([p for array, p in self._place.items() if not array.external], dtype=np.int64)
        known = {*fixed, table.itself}
        others = [p for array, p in self._place.items() if array.external and array not in known]
        self._given = np.array(others, dtype=np.int64)
        self.threads, self.sizes = 1, np.ones(len(SIZES), dtype=np.int64)
        self.disconnect()

    def connect(self, memory: Memory, sizes: Mapping[str, int], given: Mapping[Array, Tensor], threads: int) -> None:
        """Lay out the arrays for a graph, and fill in sizes and addresses.

        Arrays that do not depend on the graph, and were recorded first, keep their place while the memory does not
        grow.

        Args:
            memory: Where the arrays will be.
            sizes: Those of `SIZES` that belong to the graph.
            given: External arrays, contiguous; those that are not given are null.
            threads: Number of threads.
        """
        self.threads = threads
        of_graph = [sizes[name] for name in SIZES[1:-2]]
        self.sizes = np.array([1, *of_graph, threads, sizes["slots"] * threads], dtype=np.int64)
        size, times, plus = self._layout
        lengths = self.sizes[size] * times + plus
        lengths += -lengths % _ALIGNMENT
        ends = np.cumsum(lengths)
        self.buffer = memory.reserve(int(ends[-1]))
        self._offsets = ends - lengths
        self._address[self._own] = self._offsets[self._own] + self.buffer.data_ptr()
        self._address[self._given] = 0
        places, sources, factors, added = self._table.sizes
        self.words[places] = self.sizes[sources] * factors + added
        self.give(given)

    def disconnect(self) -> None:
        """Let go of the memory, which may not be freed otherwise where others need more of it."""
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def give(self, arrays: Mapping[Array, Tensor]) -> None:
        """Fill in further external arrays; what the recording does not use is left out."""
        for array, values in arrays.items():
            place = self._place.get(array)
            if place is not None:
                self._address[place] = values.data_ptr()
        places, sources, added = self._table.addresses
        found = self._address[sources]
        self.words[places] = np.where(found != 0, found + added, 0)

    def tensor(self, array: Array, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return an array as a tensor, which shares its memory until the next `connect`."""
        start = int(self._offsets[self._place[array.home]])
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self.buffer[start : start + count].view(dtype).view(*shape)

    @abstractmethod
    def run(self, section: int) -> None:
        """Run the launches of a section of the recording."""
