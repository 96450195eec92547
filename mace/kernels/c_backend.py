"""Kernels in C, for the CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mace.graphs.graph import Graph
from mace.kernels.backend import blocks_of_rows, joined
from mace.kernels.c_source.contraction import LARGEST_NUMBER_OF_TERMS, ContractionTerms, contraction_source
from mace.kernels.c_source.convolution import ConvolutionLayout, convolution_source, tabulated_source
from mace.kernels.c_source.geometry import harmonics_width
from mace.kernels.c_source.parts import lanes
from mace.kernels.compiled import CompiledBackend, Kernel, layout_of, terms_of
from mace.kernels.compiler import CompilationError, compile_and_load, thread_pool
from mace.kernels.convolution import Convolution
from mace.kernels.gather import join_components
from mace.kernels.symmetric_contraction import SymmetricContraction


@cache
def library(source: Callable[..., str], dtype: torch.dtype, *shape: Any) -> ctypes.CDLL:
    """Compile and load the source that a function generates for a shape and a precision."""
    return compile_and_load(source(*shape, dtype))


def _run(
    library: ctypes.CDLL, name: str, arrays: Sequence[Tensor | None], dimensions: Sequence[int], blocks: int
) -> None:
    """Run a kernel on contiguous tensors, with torch's number of threads."""
    assert all(array is None or array.is_contiguous() for array in arrays)
    pointers = (ctypes.c_void_p * len(arrays))(*[None if array is None else array.data_ptr() for array in arrays])
    sizes = (ctypes.c_int64 * len(dimensions))(*dimensions)
    pool = thread_pool()
    getattr(library, name)(
        pointers,
        sizes,
        ctypes.c_int64(blocks),
        ctypes.c_int64(_shares(blocks)),
        ctypes.c_void_p(pool.parallel),
        ctypes.c_void_p(pool.thread_number),
        ctypes.c_void_p(pool.team_size),
    )


def _shares(blocks: int) -> int:
    """Return among how many threads blocks of channels are divided."""
    return min(torch.get_num_threads(), blocks)


def _compile(shape: ConvolutionLayout | ContractionTerms, dtype: torch.dtype, tables: bool) -> None:
    if isinstance(shape, ConvolutionLayout):
        library(tabulated_source if tables else convolution_source, dtype, shape)
        return
    if shape.n_terms() > LARGEST_NUMBER_OF_TERMS:
        raise CompilationError(
            f"its symmetric contraction has {shape.n_terms()} terms, more than the {LARGEST_NUMBER_OF_TERMS} that are "
            "compiled in reasonable time"
        )
    library(contraction_source, dtype, shape)


class CBackend(CompiledBackend):
    """Kernels in C, compiled on first use, for the CPU only; a block of channels is one vector."""

    name = "c"

    def has_programs(self, device: torch.device) -> bool:
        """See `Backend`."""
        return device.type == "cpu"

    def prepare(
        self,
        kernels: Collection[Convolution | SymmetricContraction],
        dtype: torch.dtype,
        tables: bool = False,
        sources: Collection[str] = (),
    ) -> None:
        """See `Backend`."""
        shapes = dict.fromkeys(layout_of(k) if isinstance(k, Convolution) else terms_of(k) for k in kernels)
        # threads suffice, as compilers run as separate processes
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            futures: list[Future[Any]] = [pool.submit(_compile, shape, dtype, tables) for shape in shapes]
            futures += [pool.submit(compile_and_load, source) for source in sources]
            for future in futures:
                future.result()

    def lanes(self, dtype: torch.dtype) -> int:
        """See `CompiledBackend`."""
        return lanes(dtype)

    def harmonics_width(self, l_max: int, dtype: torch.dtype) -> int:
        """See `CompiledBackend`."""
        return harmonics_width(l_max, dtype)

    def shares(self, blocks: int) -> int:
        """See `CompiledBackend`; one for each thread."""
        return _shares(blocks)

    def run(self, kernel: Kernel, arrays: Sequence[Tensor | None], dimensions: Sequence[int], blocks: int) -> None:
        """See `CompiledBackend`."""
        _run(library(kernel.source, kernel.dtype, *kernel.shape), kernel.name, arrays, dimensions, blocks)

    def mix(
        self,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        graph: Graph,
        element_weights: Tensor | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor:
        """See `Backend`."""
        mixed = []
        for pieces, matrices in blocks_of_rows(rows, weights, element_weights, graph):
            of_degree = joined([piece @ matrix for piece, matrix in zip(pieces, matrices, strict=True)], dim=0)
            mixed.append(of_degree if divisor is None else of_degree / divisor.view(-1, 1, 1))
        return join_components(mixed)


C = CBackend()
