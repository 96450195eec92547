"""Running recordings with kernels in C."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping, Sequence
from functools import cache

from torch import Tensor

from mace.kernels.c_backend import library
from mace.kernels.c_source.parts import launcher_source
from mace.kernels.compiled import Kernel
from mace.kernels.compiler import compile_and_load, thread_pool
from mace.program.record import Array, Extent, Launch, Word
from mace.program.workspace import Table, TableMaker, Workspace


def address(kernel: Kernel) -> int:
    """Return the address of a compiled kernel."""
    function = getattr(library(kernel.source, kernel.dtype, *kernel.shape), f"{kernel.name}_blocks")
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found
    return found


@cache
def _launcher() -> ctypes.CDLL:
    return compile_and_load(launcher_source())


class ProcessorRecording:
    """Launches of kernels in C, all of what they read in one table.

    Args:
        sections: The launches of each section.

    Attributes:
        table: The table.
        sections: Place of the first launch of each section in the table, and their number.
    """

    def __init__(self, sections: Sequence[Sequence[Launch]]) -> None:
        maker = TableMaker()
        at = maker.itself.at
        rows: list[tuple[Word, ...]] = []
        for launch in itertools.chain(*sections):
            pointers, dimensions = launch.pointers, launch.dimensions
            if launch.records:
                place = maker.append([word for record in launch.records for word in record])
                pointers, dimensions = (at(place),), (len(launch.records), Extent("threads"))
            places = maker.append(pointers), maker.append(dimensions)
            rows.append((address(launch.kernel), *map(at, places), launch.units))
        start = maker.append([word for row in rows for word in row])
        ends = itertools.accumulate(map(len, sections))
        self.sections = [(start + 4 * (end - len(each)), len(each)) for end, each in zip(ends, sections, strict=True)]
        self.table: Table = maker.finish()

    def workspace(self, fixed: Mapping[Array, Tensor]) -> Workspace:
        """Return a workspace; see there."""
        return ProcessorWorkspace(self, fixed)


class ProcessorWorkspace(Workspace):
    """A workspace whose table all kernels read, in one parallel region."""

    def __init__(self, recording: ProcessorRecording, fixed: Mapping[Array, Tensor]) -> None:
        super().__init__(recording.table, fixed)
        self._address[self._place[recording.table.itself]] = self.words.ctypes.data
        self._sections = recording.sections

    def run(self, section: int) -> None:
        """See `Workspace`."""
        start, count = self._sections[section]
        if not count:
            return
        pool = thread_pool()
        _launcher().run_all(
            ctypes.c_void_p(self.words.ctypes.data + 8 * start),
            ctypes.c_int64(count),
            ctypes.c_int64(self.threads),
            ctypes.c_void_p(pool.parallel),
            ctypes.c_void_p(pool.thread_number),
            ctypes.c_void_p(pool.team_size),
            ctypes.c_void_p(pool.barrier),
        )
