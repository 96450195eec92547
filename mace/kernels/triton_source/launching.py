"""Kernels in Triton and how they are launched.

A kernel has the name, the arrays and the dimensions of the one in `mace.kernels.c_source`. What differs is the number
of channels in a block, `LANES`, and that one program of the grid does what the C kernel does in a step of its loops;
the grid follows from the dimensions. No kernel uses atomic operations, so that every run gives the same bits.
"""

from __future__ import annotations

import linecache
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 32
"""Channels in a block, one for each thread of a warp; arrays are laid out in whole blocks, in every precision."""

Number = int | float


@dataclass(frozen=True)
class DeviceKernel:
    """A kernel and its grid.

    Attributes:
        function: The function in Triton. Its arguments are all pointers, then all dimensions; those that never change
            for a model are ``tl.constexpr``, those that differ from graph to graph are not.
        grid: Number of programs along each axis, from the dimensions.
        warps: Warps of a program.
        options: Further arguments by name, constants of the kernel.
        n_pointers: How many of the arrays it gets, the first ones; None for all.
    """

    function: Any
    grid: Callable[[Sequence[Number]], tuple[int, ...]]
    warps: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    n_pointers: int | None = None

    def run(self, pointers: Sequence[Tensor | None], dimensions: Sequence[Number]) -> None:
        """Launch the kernel on the current stream.

        Args:
            pointers: Its arrays; a tensor stands for the address of its first number, None for a null pointer.
            dimensions: Its dimensions.
        """
        grid = self.grid(dimensions)
        if all(grid):
            self.function[grid](*pointers[: self.n_pointers], *dimensions, **self._options)

    def compile(self, pointers: Sequence[Tensor | None], dimensions: Sequence[Number]) -> None:
        """Compile what `run` would launch with the same arguments; see `compiling`."""
        grid = self.grid(dimensions)
        if all(grid):
            self.function.warmup(*pointers[: self.n_pointers], *dimensions, grid=grid, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        # newer versions of Triton fuse products with sums only if told to
        return {**self.options, "num_warps": self.warps, "enable_fp_fusion": True}


@dataclass(frozen=True)
class KernelSequence:
    """Kernels that run one after the other, with the same arrays and dimensions, for one kernel in C.

    Attributes:
        kernels: The kernels.
    """

    kernels: tuple[DeviceKernel, ...]

    def run(self, pointers: Sequence[Tensor | None], dimensions: Sequence[Number]) -> None:
        """Launch the kernels; see `DeviceKernel.run`."""
        for kernel in self.kernels:
            kernel.run(pointers, dimensions)

    def compile(self, pointers: Sequence[Tensor | None], dimensions: Sequence[Number]) -> None:
        """Compile the kernels; see `DeviceKernel.compile`."""
        for kernel in self.kernels:
            kernel.compile(pointers, dimensions)


@contextmanager
def compiling() -> Iterator[None]:
    """Compile kernels inside a ``with`` block by several threads, if this version of Triton can; at its end all are."""
    mode = getattr(triton, "AsyncCompileMode", None)
    if mode is None:
        yield
        return
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, mode(pool):
        yield


@cache
def load_text(name: str, text: str) -> ModuleType:
    """Make a module of generated source, whose lines `inspect` finds, as Triton reads the source of its functions.

    Args:
        name: What is generated, for messages.
        text: The source; ``triton``, ``tl`` and ``LANES`` are defined.
    """
    file = f"<{name} {hash(text) & 0xFFFFFFFFFFFF:x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module = ModuleType(f"mace_generated_{name}")
    vars(module).update(triton=triton, tl=tl, LANES=tl.constexpr(LANES))
    exec(compile(text, file, "exec"), vars(module))
    return module


def number_type(dtype: torch.dtype) -> str:
    """Return how Triton calls a precision."""
    return {torch.float32: "tl.float32", torch.float64: "tl.float64"}[dtype]
