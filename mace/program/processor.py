"""A recording with kernels in C, and its connection to memory.

Everything that kernels read - addresses, sizes, descriptions of products - lies in one table of 64-bit words. It is
made once for a model; for each graph, the words that depend on the graph's sizes or on where its arrays lie are
computed all at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mace.kernels.c_backend import library
from mace.kernels.c_source.parts import launcher_source
from mace.kernels.compiler import compile_and_load, thread_pool
from mace.program.record import SIZES, Array, Extent, Kernel, Launch, Pointer, Word, bits

_ALIGNMENT = 64


def address(kernel: Kernel) -> int:
    """Return the address of a compiled kernel."""
    function = getattr(library(kernel.source, kernel.dtype, *kernel.shape), f"{kernel.name}_blocks")
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found
    return found


class _Table:
    """Words, and which of them depend on the graph."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._number: dict[Array, int] = {}
        self.words: list[int] = []
        self.sizes: list[tuple[int, int, int, int]] = []
        self.addresses: list[tuple[int, int, int]] = []

    def append(self, words: Sequence[Word]) -> int:
        """Append words to the table; return the place of the first."""
        start = len(self.words)
        for word in words:
            place, value = len(self.words), 0
            if isinstance(word, Array):
                word = word.at()
            if isinstance(word, Pointer):
                self.addresses.append((place, self._number_of(word.array), word.offset * word.array.bytes))
            elif isinstance(word, Extent):
                self.sizes.append((place, SIZES.index(word.size), word.times, word.plus))
            elif isinstance(word, float):
                value = bits(word)
            elif word is not None:
                value = int(word)
            self.words.append(value)
        return start

    def _number_of(self, array: Array) -> int:
        """Return the number of an array's memory, which it gets where it is first used."""
        array = array.home
        if array not in self._number:
            self._number[array] = len(self.arrays)
            self.arrays.append(array)
        return self._number[array]


@dataclass(frozen=True)
class Recording:
    """Launches, as the kernels read them.

    Attributes:
        arrays: All arrays.
        itself: The array that stands for the table.
        table: The words; those that depend on the graph are zero.
        launches: Place of the first launch.
        sizes: Words that depend on sizes: place, number of the size, factor, constant.
        addresses: Words that are addresses: place, number of the array, bytes added.
    """

    arrays: tuple[Array, ...]
    itself: Array
    table: np.ndarray
    launches: int
    sizes: np.ndarray
    addresses: np.ndarray


def recording(launches: Sequence[Launch]) -> Recording:
    """Return the recording of some launches."""
    table, itself = _Table(), Array("table", bytes=8, external=True)
    rows: list[tuple[Word, ...]] = []
    for launch in launches:
        pointers, dimensions = launch.pointers, launch.dimensions
        if launch.records:
            place = table.append([word for record in launch.records for word in record])
            pointers, dimensions = (itself.at(place),), (len(launch.records), Extent("threads"))
        places = table.append(pointers), table.append(dimensions)
        rows.append((address(launch.kernel), *(itself.at(place) for place in places), launch.units))
    start = table.append([word for row in rows for word in row])
    patches = (np.array(patches, dtype=np.int64).T for patches in (table.sizes, table.addresses))
    return Recording(tuple(table.arrays), itself, np.array(table.words, dtype=np.int64), start, *patches)


def _layout(array: Array) -> tuple[int, int, int]:
    """Return on which size the length of an array in bytes depends, a factor and a constant; zeros if external."""
    if array.external:
        return 0, 0, 0
    length = array.length
    return SIZES.index(length.size), length.times * array.bytes, length.plus * array.bytes


@cache
def _launcher() -> ctypes.CDLL:
    return compile_and_load(launcher_source())


class Memory:
    """Memory for the arrays of one run at a time, which grows as needed and is kept.

    Attributes:
        prepared: What its user notes of the arrays that do not depend on the graph; None after it has grown.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.prepared: object = None

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""
        return self._buffer.numel()

    def reserve(self, n_bytes: int) -> Tensor:
        """Return the memory as bytes, at least as many as wanted; it then holds nothing if it was too small."""
        if n_bytes > self.n_bytes:
            self._buffer = torch.empty(
                0, dtype=torch.uint8, device="cpu"
            )  # free the old one before the new one is allocated
            # somewhat more, so that batches of slightly different sizes do not need new memory each time
            self._buffer = torch.empty(n_bytes + n_bytes // 8, dtype=torch.uint8, device="cpu")
            self.prepared = None
        return self._buffer


class Workspace:
    """A recording with the places of its arrays for a graph; one run at a time may use it.

    Args:
        recording: The recording.
        fixed: External arrays that never move.

    Attributes:
        threads: Number of threads of the next run.
    """

    def __init__(self, recording: Recording, fixed: Mapping[Array, Tensor]) -> None:
        self._recording = recording
        self._table = recording.table.copy()
        self._layout = np.array([_layout(array) for array in recording.arrays], dtype=np.int64).T
        self._place = {array: place for place, array in enumerate(recording.arrays)}
        self._offsets = np.zeros(len(recording.arrays), dtype=np.int64)
        self._address = np.zeros(len(recording.arrays), dtype=np.int64)
        self._address[self._place[recording.itself]] = self._table.ctypes.data
        for array, values in fixed.items():
            self._address[self._place[array]] = values.data_ptr()
        self._own = np.array([p for array, p in self._place.items() if not array.external], dtype=np.int64)
        others = [p for array, p in self._place.items() if array.external and array not in {*fixed, recording.itself}]
        self._given = np.array(others, dtype=np.int64)
        self.threads = 1

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
        numbers = np.array([1, *of_graph, self.threads, sizes["slots"] * self.threads], dtype=np.int64)
        size, times, plus = self._layout
        lengths = numbers[size] * times + plus
        lengths += -lengths % _ALIGNMENT
        ends = np.cumsum(lengths)
        self._buffer = memory.reserve(int(ends[-1]))
        self._offsets = ends - lengths
        self._address[self._own] = self._offsets[self._own] + self._buffer.data_ptr()
        self._address[self._given] = 0
        places, sources, factors, added = self._recording.sizes
        self._table[places] = numbers[sources] * factors + added
        self.give(given)

    def give(self, arrays: Mapping[Array, Tensor]) -> None:
        """Fill in addresses of further external arrays; what the recording does not use is left out."""
        for array, values in arrays.items():
            place = self._place.get(array)
            if place is not None:
                self._address[place] = values.data_ptr()
        places, sources, added = self._recording.addresses
        found = self._address[sources]
        self._table[places] = np.where(found != 0, found + added, 0)

    def tensor(self, array: Array, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return an array as a tensor, which shares its memory until the next `connect`."""
        start = int(self._offsets[self._place[array.home]])
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self._buffer[start : start + count].view(dtype).view(*shape)

    def run(self, first: int, last: int) -> None:
        """Run the launches from the first up to, but not including, the last."""
        if first == last:
            return
        pool = thread_pool()
        start = self._table.ctypes.data + 8 * (self._recording.launches + 4 * first)
        _launcher().run_all(
            ctypes.c_void_p(start),
            ctypes.c_int64(last - first),
            ctypes.c_int64(self.threads),
            ctypes.c_void_p(pool.parallel),
            ctypes.c_void_p(pool.thread_number),
            ctypes.c_void_p(pool.team_size),
            ctypes.c_void_p(pool.barrier),
        )
