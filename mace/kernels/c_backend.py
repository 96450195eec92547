"""The inner loops in C, as autograd functions that can be differentiated twice."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mace.graphs.graph import Graph
from mace.kernels.backend import Backend, TabulatedRadial, blocks_of_atoms, blocks_of_rows, joined
from mace.kernels.c_source.contraction import LARGEST_NUMBER_OF_TERMS, ContractionTerms, contraction_source
from mace.kernels.c_source.convolution import ConvolutionLayout, convolution_source, tabulated_source
from mace.kernels.c_source.parts import lanes
from mace.kernels.compiler import CompilationError, compile_and_load, thread_pool
from mace.kernels.convolution import Convolution
from mace.kernels.gather import DirectedEdges, join_components, sum_to_pairs
from mace.kernels.passes import Pass, current_pass, heeding_purpose, keep_purpose
from mace.kernels.radial_table import RadialTable
from mace.kernels.symmetric_contraction import SymmetricContraction


@cache
def library(source: Callable[..., str], dtype: torch.dtype, *shape: Any) -> ctypes.CDLL:
    """Compile and load the source that a function generates for a shape and a precision."""
    return compile_and_load(source(*shape, dtype))


def _run(library: ctypes.CDLL, name: str, arrays: Sequence[Tensor], dimensions: Sequence[int], blocks: int) -> None:
    """Run a kernel on contiguous tensors, with torch's number of threads."""
    assert all(array.is_contiguous() for array in arrays)
    pointers = (ctypes.c_void_p * len(arrays))(*[array.data_ptr() for array in arrays])
    sizes = (ctypes.c_int64 * len(dimensions))(*dimensions)
    pool = thread_pool()
    getattr(library, name)(
        pointers,
        sizes,
        ctypes.c_int64(blocks),
        ctypes.c_int64(min(torch.get_num_threads(), blocks)),
        ctypes.c_void_p(pool.parallel),
        ctypes.c_void_p(pool.thread_number),
        ctypes.c_void_p(pool.team_size),
    )


def _padded(values: Tensor, n_lanes: int = 0) -> Tensor:
    """Pad the channels with zeros to a multiple of a number, that of a vector's lanes if zero, ``[..., channels]``."""
    missing = -values.shape[-1] % (n_lanes or lanes(values.dtype))
    return torch.nn.functional.pad(values, (0, missing)) if missing else values


def _unpadded(values: Tensor, n_channels: int) -> Tensor:
    """Remove the padding added by `_padded`."""
    return values if values.shape[-1] == n_channels else values[..., :n_channels]


def layout_of(convolution: Convolution) -> ConvolutionLayout:
    """Return the layout of a convolution's arrays."""
    return ConvolutionLayout(convolution.paths, convolution.l_in, convolution.l_max)


def terms_of(contraction: SymmetricContraction) -> ContractionTerms:
    """Return the terms of a contraction."""
    return ContractionTerms(contraction.l_max, contraction.l_out, contraction.correlation)


class _Convolution:
    """One layer's convolution on one graph."""

    def __init__(
        self,
        layout: ConvolutionLayout,
        graph: Graph,
        coupling: Tensor,
        n_channels: int,
        edges: DirectedEdges | None = None,
        n_nodes: int = 0,
    ) -> None:
        self.layout, self.graph, self.coupling = layout, graph, coupling
        self.rows: Graph | DirectedEdges = edges or graph
        self.library = library(tabulated_source if n_nodes else convolution_source, coupling.dtype, layout)
        self.n_channels = n_channels
        self.blocks = n_channels // lanes(coupling.dtype)
        n_rows, row_of_slot, reverse_of_slot = len(graph.pair_sender), graph.pair_of_slot, graph.reverse_of_slot
        if edges is not None:
            # each slot has its own radial weights, so no gradient is added to that of the reverse slot
            n_rows, row_of_slot = len(edges.slots), edges.of_slot
            reverse_of_slot = torch.full_like(row_of_slot, len(row_of_slot))
        self.dimensions = (graph.n_atoms, graph.max_neighbors, n_rows, n_channels, self.blocks, n_nodes, 0)
        self.indices = (graph.neighbor_count, graph.sender_of_slot, row_of_slot, reverse_of_slot)
        self.radial_shape = (n_rows, self.blocks, len(layout.paths), lanes(coupling.dtype))

    def run(self, name: str, arrays: Sequence[Tensor]) -> None:
        """Call a kernel."""
        _run(self.library, name, (*self.indices, *arrays), self.dimensions, self.blocks)

    def empty_results(self) -> list[Tensor]:
        """Allocate the results, by degree ``[atoms, 2 l + 1, paths, channels]``."""
        layout, n_atoms = self.layout, self.graph.n_atoms
        return [
            self.coupling.new_empty(n_atoms, 2 * l + 1, layout.n_paths(l), self.n_channels)
            for l in range(layout.l_max + 1)
        ]

    def zero_features(self) -> list[Tensor]:
        """Allocate zero gradients of the features."""
        return [self.coupling.new_zeros(self.graph.n_atoms, 2 * l + 1, self.n_channels) for l in self.layout.l_in]

    def zero_harmonics(self, harmonics: Tensor) -> Tensor:
        """Allocate zero gradients of the harmonics, one array per thread, with rows rounded up to whole vectors."""
        shares, width = min(torch.get_num_threads(), self.blocks), lanes(harmonics.dtype)
        return harmonics.new_zeros(shares, len(harmonics), -(-harmonics.shape[1] // width) * width)

    def empty_radial(self) -> Tensor:
        """Allocate the gradient of the radial weights; kernels write every pair except the padding."""
        return self.rows.clear_padding(self.coupling.new_empty(self.radial_shape))


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: _Convolution, harmonics: Tensor, radial: Tensor, *features: Tensor
    ) -> tuple[Tensor, ...]:
        keep_purpose(ctx)
        ctx.work = work
        ctx.save_for_backward(harmonics, radial, *features)
        results = work.empty_results()
        work.run("conv_forward", (harmonics @ work.coupling, radial, *features, *results))
        return tuple(results)

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        harmonics, radial, *features = ctx.saved_tensors
        contiguous = [c.contiguous() for c in cotangents]
        gradients = _ConvolveBackward.apply(ctx.work, len(features), harmonics, radial, *features, *contiguous)
        return (None, *gradients)


class _ConvolveBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: _Convolution, n_in: int, harmonics: Tensor, radial: Tensor, *others: Tensor
    ) -> tuple[Tensor | None, ...]:
        keep_purpose(ctx)
        ctx.work, ctx.n_in, ctx.kind = work, n_in, current_pass()
        ctx.save_for_backward(harmonics, radial, *others)
        gradient, gradients = work.empty_radial(), work.zero_features()
        inputs = (harmonics @ work.coupling, radial, *others, gradient, *gradients)
        if ctx.kind is Pass.PARAMETERS:
            work.run("conv_backward_parameters", inputs)
            return (None, gradient, *gradients)
        parts = work.zero_harmonics(harmonics)
        work.run("conv_backward_full", (*inputs, parts))
        return (parts.sum(0)[:, : harmonics.shape[1]], gradient, *gradients)

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        if current_pass() is not Pass.PARAMETERS:
            raise RuntimeError("second derivatives by the geometry need the torch kernels; choose them for this model")
        harmonics, radial, *others = ctx.saved_tensors
        work, n_in = ctx.work, ctx.n_in
        of_harmonics = torch.zeros_like(harmonics) if tangents[0] is None else tangents[0]
        rest = [
            torch.zeros_like(value) if tangent is None else tangent.contiguous()
            for tangent, value in zip(tangents[1:], (radial, *others[:n_in]), strict=True)
        ]
        results, gradient, gradients = work.empty_results(), work.empty_radial(), work.zero_features()
        coupling = work.coupling
        arrays = (harmonics @ coupling, radial, *others, of_harmonics @ coupling, *rest, *results, gradient, *gradients)
        work.run("conv_second", arrays)
        return (None, None, None, gradient, *gradients, *results)


class _ConvolveTabulated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: _Convolution, table: BlockedTable, harmonics: Tensor, lengths: Tensor, *features: Tensor
    ) -> tuple[Tensor, ...]:
        interval, factors = table.coefficients(lengths)
        ctx.work, ctx.tail = work, (table.rows, interval)
        ctx.save_for_backward(harmonics, factors, *features)
        results = work.empty_results()
        work.run("conv_forward_tabulated", (harmonics @ work.coupling, factors, *features, *results, *ctx.tail))
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        harmonics, factors, *features = ctx.saved_tensors
        work = ctx.work
        contiguous = [c.contiguous() for c in cotangents]
        gradients, parts = work.zero_features(), work.zero_harmonics(harmonics)
        inputs = (harmonics @ work.coupling, factors, *features, *contiguous)
        work.run("conv_backward_tabulated", (*inputs, *gradients, parts, *ctx.tail))
        of_harmonics = parts.sum(0)[:, : harmonics.shape[1]]
        # the first harmonic is constant; its place holds the gradient with respect to the length
        of_lengths = sum_to_pairs(of_harmonics[:, 0], work.graph)
        return (None, None, of_harmonics, of_lengths, *gradients)


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, terms: ContractionTerms, place: Tensor, features: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        keep_purpose(ctx)
        ctx.terms, ctx.place = terms, place
        ctx.save_for_backward(features, weights)
        n_atoms, _, n_channels = features.shape
        results = [features.new_empty(n_atoms, 2 * l + 1, n_channels) for l in terms.l_out]
        _run_contraction("contraction_forward", terms, (place, features, weights, *results))
        return tuple(results)

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        contiguous = [c.contiguous() for c in cotangents]
        of_weights = ctx.needs_input_grad[3] and current_pass() is not Pass.GEOMETRY
        gradients = _ContractBackward.apply(ctx.terms, ctx.place, of_weights, *ctx.saved_tensors, *contiguous)
        return (None, None, *gradients)


class _ContractBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: ContractionTerms,
        place: Tensor,
        of_weights: bool,
        features: Tensor,
        weights: Tensor,
        *cotangents: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.terms, ctx.place = terms, place
        ctx.save_for_backward(features, weights, *cotangents)
        gradient = torch.empty_like(features)
        arrays = (place, features, weights, *cotangents, gradient)
        if not of_weights:
            _run_contraction("contraction_backward_features", terms, arrays)
            return gradient, None
        weight_gradient = torch.zeros_like(weights)
        _run_contraction("contraction_backward_full", terms, (*arrays, weight_gradient))
        return gradient, weight_gradient

    @staticmethod
    def backward(ctx: Any, tangent: Tensor | None, of_weights: Tensor | None) -> tuple[Any, ...]:
        if of_weights is not None and bool(of_weights.any()):
            raise RuntimeError("second derivatives by the weights need the torch kernels; choose them for this model")
        features, weights, *cotangents = ctx.saved_tensors
        tangent = torch.zeros_like(features) if tangent is None else tangent.contiguous()
        results = [torch.empty_like(c) for c in cotangents]
        gradient, weight_gradient = torch.empty_like(features), torch.zeros_like(weights)
        arrays = (ctx.place, features, weights, *cotangents, tangent, *results, gradient, weight_gradient)
        _run_contraction("contraction_second", ctx.terms, arrays)
        return (None, None, None, gradient, weight_gradient, *results)


def _run_contraction(name: str, terms: ContractionTerms, arrays: Sequence[Tensor]) -> None:
    features = arrays[1]
    n_atoms, _, n_channels = features.shape
    blocks = n_channels // lanes(features.dtype)
    _run(library(contraction_source, features.dtype, terms), name, arrays, (n_atoms, n_channels, blocks, 0, 0), blocks)


@cache
def tables_of(terms: ContractionTerms, dtype: torch.dtype) -> dict[tuple[int, int], Tensor]:
    """Return, by degree and order, the matrix that maps weights of paths to weights of terms, ``[terms, paths]``."""
    return {key: torch.as_tensor(table, device="cpu").to(dtype) for key, table in terms.tables().items()}


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


@dataclass(frozen=True)
class BlockedTable(RadialTable):
    """A radial table that is also stored in the layout of the kernels.

    Attributes:
        rows: The values, ``[blocks of channels, nodes, 3, paths, lanes]``.
    """

    rows: Tensor

    @classmethod
    def of(cls, table: RadialTable, n_lanes: int) -> BlockedTable:
        """Lay out a table."""
        padded = _padded(table.values, n_lanes)
        rows = padded.unflatten(3, (-1, n_lanes)).permute(3, 0, 1, 2, 4).contiguous()
        return cls(table.values, table.r_max, rows)


class CBackend(Backend):
    """Kernels in C, compiled on first use, for the CPU only.

    Channels are padded with zeros to whole vectors and stored in blocks of one vector.
    """

    name = "c"
    reads_tables_fast = True

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

    def prepare_table(self, table: RadialTable) -> RadialTable:
        """See `Backend`."""
        return BlockedTable.of(table, lanes(table.values.dtype))

    def radial(self, hidden: Tensor, weight: Tensor, n_paths: int) -> Tensor:
        """See `Backend`; ``[rows, blocks of channels, paths, lanes]``."""
        blocked = _padded(weight.unflatten(1, (n_paths, -1))).unflatten(2, (-1, lanes(weight.dtype)))
        return (hidden @ blocked.transpose(1, 2).flatten(1)).view(-1, blocked.shape[2], n_paths, blocked.shape[3])

    def convolve(
        self,
        convolution: Convolution,
        features: Mapping[int, Tensor],
        radial: Tensor | TabulatedRadial,
        harmonics: Tensor,
        graph: Graph,
        edges: DirectedEdges | None = None,
    ) -> dict[int, Tensor]:
        """See `Backend`; with a table, differentiable once, with respect to geometry."""
        n_channels = features[convolution.l_in[0]].shape[-1]
        # tensors saved for second derivatives must be known to autograd, so copies are made out here
        given = [_padded(features[degree]).contiguous() for degree in convolution.l_in]
        width, harmonics = given[0].shape[-1], harmonics.contiguous()
        layout, coupling = layout_of(convolution), convolution.coupling
        if isinstance(radial, TabulatedRadial):
            table = radial.table
            assert isinstance(table, BlockedTable), "tables are prepared before"
            work = _Convolution(layout, graph, coupling, width, n_nodes=len(table.values))
            results = _ConvolveTabulated.apply(work, table, harmonics, radial.lengths.contiguous(), *given)
        else:
            work = _Convolution(layout, graph, coupling, width, edges)
            results = _Convolve.apply(work, harmonics, radial.contiguous(), *given)
        return {degree: _unpadded(values, n_channels).flatten(2) for degree, values in enumerate(results)}

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

    def contract(
        self,
        contraction: SymmetricContraction,
        atomic_basis: Tensor,
        weights: Mapping[tuple[int, int], Tensor],
        graph: Graph,
    ) -> dict[int, Tensor]:
        """See `Backend`."""
        terms, (present, _), place = terms_of(contraction), blocks_of_atoms(weights, graph), graph.groups.place
        if len(present) == 1:
            place = torch.zeros_like(place)
        tables = tables_of(terms, atomic_basis.dtype)
        carried = [tables[key] @ weight.index_select(0, present) for key, weight in weights.items() if key in tables]
        # blocks of channels come first, as a kernel loops over all terms of one block
        blocked = _padded(torch.cat(carried, dim=1)).unflatten(2, (-1, lanes(atomic_basis.dtype))).transpose(1, 2)
        results = _Contract.apply(terms, place, _padded(atomic_basis).contiguous(), blocked.contiguous())
        n_channels = atomic_basis.shape[2]
        return {l: _unpadded(values, n_channels) for l, values in zip(terms.l_out, results, strict=True)}


C = CBackend()
