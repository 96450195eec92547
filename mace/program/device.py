"""Running recordings with kernels in Triton, on the current stream of a device.

Kernels get their arrays and sizes as arguments. Only lists of products lie in a table of words, which is copied to the
device whenever its words have changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mace.kernels.c_source.convolution import convolution_source, tabulated_source
from mace.kernels.triton_backend import DEVICES, device_kernel, source_module
from mace.kernels.triton_source.records import PLANNED, RECORD
from mace.program.capture import DeviceWords
from mace.program.record import SIZES, Array, Extent, Launch, Pointer, Word
from mace.program.schedule import scheduled, with_activations
from mace.program.workspace import Memory, TableMaker, Workspace

if TYPE_CHECKING:
    from mace.kernels.triton_source.launching import DeviceKernel, KernelSequence


@dataclass(frozen=True)
class _List:
    """A launch of a kernel that reads a list of records in the table.

    Attributes:
        kernel: The kernel.
        place: Place of the first word of the first record.
        number: Place among all lists of products; None for lists of matrices to pack.
        count: Number of records.
    """

    kernel: DeviceKernel | KernelSequence
    place: int
    number: int | None
    count: int


@dataclass(frozen=True)
class _Direct:
    """A launch of a kernel with arguments of its own."""

    kernel: DeviceKernel | KernelSequence
    pointers: tuple[Pointer | None, ...]
    dimensions: tuple[Word, ...]


class DeviceRecording:
    """Launches of kernels in Triton.

    Args:
        sections: The launches of each section.
        dtype: Precision of the numbers.
        tf32: Whether products of matrices may be computed with TensorFloat-32.

    Attributes:
        table: The words of all lists, those of products first.
        sections: The launches of each section.
        lists: Number of records of each list of products.
        compiled: Sections whose kernels are known to be compiled.
        shares: Number of programs that add to the gradient of the harmonics of a slot, as many as blocks of channels.
    """

    def __init__(self, sections: Sequence[Sequence[Launch]], dtype: torch.dtype, tf32: bool) -> None:
        self.dtype, self._tf32 = dtype, tf32
        maker = TableMaker()
        sections = [scheduled(with_activations(section)) for section in sections]
        launches = list(itertools.chain(*sections))
        products = [launch for launch in launches if launch.kernel.name == "products"]
        self.lists = [len(launch.records) for launch in products]
        made = {launch: self._list(maker, launch, number, len(RECORD)) for number, launch in enumerate(products)}
        self.end_of_products = sum(self.lists) * len(RECORD)
        self.sections = [[made.get(launch) or self._other(maker, launch) for launch in section] for section in sections]
        self.table = maker.finish()
        self.compiled = set[int]()
        convolutions = [x for x in launches if x.kernel.source in (convolution_source, tabulated_source)]
        self.shares = max((x.units for x in convolutions if isinstance(x.units, int)), default=1)

    def _list(self, maker: TableMaker, launch: Launch, number: int | None, length: int = 0) -> _List:
        rows = [(*record, *(0,) * (length - len(record))) for record in launch.records]
        place = maker.append([word for row in rows for word in row])
        return _List(device_kernel(launch.kernel, self._tf32), place, number, len(launch.records))

    def _other(self, maker: TableMaker, launch: Launch) -> _List | _Direct:
        if launch.records:
            return self._list(maker, launch, None)
        pointers = tuple(_pointer(word) for word in launch.pointers)
        for pointer in pointers:
            if pointer is not None:
                maker.note(pointer.array)
        return _Direct(device_kernel(launch.kernel, self._tf32), pointers, launch.dimensions)

    def workspace(self, fixed: Mapping[Array, Tensor]) -> Workspace:
        """Return a workspace; see there."""
        return DeviceWorkspace(self, fixed)


def _pointer(word: Word) -> Pointer | None:
    if word is None or isinstance(word, Pointer):
        return word
    assert isinstance(word, Array)
    return word.at()


_Arguments = tuple["DeviceKernel | KernelSequence", list[Tensor | None], list[int | float]]


class DeviceWorkspace(Workspace):
    """A workspace on a device."""

    def __init__(self, recording: DeviceRecording, fixed: Mapping[Array, Tensor]) -> None:
        super().__init__(recording.table, fixed)
        self._recording, self._fixed = recording, dict(fixed)
        self._copies: DeviceWords | None = None
        self._there: Tensor | None = None

    def disconnect(self) -> None:
        """See `Workspace`; arrays that were given are let go too."""
        super().disconnect()
        self._outside: dict[Array, Tensor] = {}
        self._found: dict[Pointer, Tensor | None] = {}
        self._partial = self.buffer

    def connect(self, memory: Memory, sizes: Mapping[str, int], given: Mapping[Array, Tensor], threads: int) -> None:
        """See `Workspace`; in place of the number of threads is that of the programs of a slot."""
        self.disconnect()
        self._outside |= self._fixed
        super().connect(memory, sizes, given, self._recording.shares)
        recording = self._recording
        records = self.words[: recording.end_of_products].reshape(-1, len(RECORD))
        planned = source_module("matrices").plan(records, np.array(recording.lists))
        records[:, -len(PLANNED) :] = planned.columns
        self._dimensions = planned.dimensions.tolist()
        self._partial = memory.reserve_more(planned.partial * recording.dtype.itemsize).view(recording.dtype)
        if self._copies is None:
            self._copies = DeviceWords(len(self.words), self.buffer.device)

    def give(self, arrays: Mapping[Array, Tensor]) -> None:
        """See `Workspace`."""
        super().give(arrays)
        self._outside |= arrays
        self._found = {pointer: found for pointer, found in self._found.items() if pointer.array not in arrays}
        self._is_new = True

    def run(self, section: int) -> None:
        """See `Workspace`."""
        assert self._copies is not None
        if self._is_new or self._there is None:
            self._there, self._is_new = self._copies.copied(self.words), False
        launches = [self._arguments(launch) for launch in self._recording.sections[section]]
        if self.buffer.device.type in DEVICES and section not in self._recording.compiled:
            with source_module("launching").compiling():
                for kernel, pointers, dimensions in launches:
                    kernel.compile(pointers, dimensions)
            self._recording.compiled.add(section)
        for kernel, pointers, dimensions in launches:
            kernel.run(pointers, dimensions)

    def _arguments(self, launch: _List | _Direct) -> _Arguments:
        """Return a kernel with its arrays and dimensions."""
        if isinstance(launch, _Direct):
            pointers = [None if pointer is None else self._array(pointer) for pointer in launch.pointers]
            return launch.kernel, pointers, [self._number(word) for word in launch.dimensions]
        assert self._there is not None
        records = self._there[launch.place :]
        if launch.number is not None:
            return launch.kernel, [records, self._partial], self._dimensions[launch.number]
        return launch.kernel, [records], [launch.count, 0]

    def _number(self, word: Word) -> int | float:
        """Return a dimension."""
        if isinstance(word, Extent):
            return int(self.sizes[SIZES.index(word.size)]) * word.times + word.plus
        assert isinstance(word, int | float)
        return word

    def _array(self, pointer: Pointer) -> Tensor | None:
        """Return the numbers of an array from one of them on, or None if it was not given."""
        if pointer not in self._found:
            array, found = pointer.array.home, None
            if not array.external:
                kind = torch.int64 if array.integers else self._recording.dtype
                found = self.tensor(array, kind, int(self._number(array.length)))
            elif array in self._outside:
                found = self._outside[array].view(-1)
            self._found[pointer] = None if found is None else found[pointer.offset :]
        return self._found[pointer]
