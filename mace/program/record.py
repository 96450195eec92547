"""Recording of launches of kernels, with their arrays and sizes.

A recording is made once for a model. `mace.program.processor` runs it with kernels in C, `mace.program.device` with
kernels in Triton.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mace.kernels.compiled import Kernel

SIZES = ("one", "atoms", "neighbors", "pairs", "slots", "groups", "threads", "slots of shares")
"""Sizes that differ from graph to graph: atoms, slots per atom, pairs without the padding, slots, elements present; the
number of threads, and slots times threads."""


@dataclass(frozen=True)
class Extent:
    """A multiple of a size, plus a constant."""

    size: str
    times: int = 1
    plus: int = 0


@dataclass(eq=False)
class Array:
    """Numbers in memory; equal only to itself.

    Attributes:
        name: What it holds, for messages.
        rows: Number of rows.
        width: Numbers per row.
        bytes: Bytes of a number.
        external: Whether it belongs to the caller, who gives its address.
        read_only: Whether no kernel writes to it.
        integers: Whether its numbers are 64-bit integers.
        in_place_of: An array that is no longer needed when this one is first written, and whose memory it takes.
    """

    name: str
    rows: Extent = Extent("one")
    width: int = 1
    bytes: int = 4
    external: bool = False
    read_only: bool = False
    integers: bool = False
    in_place_of: Array | None = None

    @property
    def length(self) -> Extent:
        """How many numbers it has."""
        return Extent(self.rows.size, self.rows.times * self.width, self.rows.plus * self.width)

    @property
    def home(self) -> Array:
        """The array whose memory it has."""
        return self if self.in_place_of is None else self.in_place_of.home

    def at(self, offset: int = 0) -> Pointer:
        """Return the place of one of its numbers."""
        return Pointer(self, offset)


@dataclass(frozen=True)
class Pointer:
    """The address of a number of an array."""

    array: Array
    offset: int = 0


Word = int | float | Extent | Pointer | Array | None
"""What becomes a word of the table: a number, an address, or null."""


@dataclass(frozen=True, eq=False)
class Launch:
    """A launch of a kernel.

    Attributes:
        kernel: The kernel.
        pointers: Its arrays; None for a null pointer. Not those of a list.
        dimensions: Its dimensions, likewise.
        units: Number of its units of work.
        records: What a kernel reads that goes through a list, with as many units as there are threads.
    """

    kernel: Kernel
    pointers: tuple[Word, ...] = ()
    dimensions: tuple[Word, ...] = ()
    units: int | Extent = Extent("threads")
    records: tuple[tuple[Word, ...], ...] = ()


def bits(number: float) -> int:
    """Return the bits of a number in double precision, as an integer."""
    return int(struct.unpack("q", struct.pack("d", number))[0])


class Recorder:
    """Collects launches of kernels.

    Args:
        dtype: Precision of the numbers.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.launches: list[Launch] = []

    def launch(self, kernel: Kernel, pointers: Sequence[Word], dimensions: Sequence[Word], units: int | Extent) -> None:
        """Record a launch; see `Launch`."""
        self.launches.append(Launch(kernel, tuple(pointers), tuple(dimensions), units))

    def launch_list(self, kernel: Kernel, records: Sequence[Sequence[Word]]) -> None:
        """Record a launch of a kernel that reads a list of records."""
        self.launches.append(Launch(kernel, records=tuple(map(tuple, records))))
