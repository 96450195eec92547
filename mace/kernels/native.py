"""The compiled kernels as functions that autograd can differentiate twice."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mace.graphs.graph import Graph
from mace.kernels.compiler import CompilationError, compile_and_load, thread_pool
from mace.kernels.convolution import ConvolutionPath
from mace.kernels.emit import lanes
from mace.kernels.emit_contraction import LARGEST_NUMBER_OF_TERMS, ContractionTerms, contraction_source
from mace.kernels.emit_convolution import ConvolutionLayout, convolution_source, tabulated_source
from mace.kernels.gather import DirectedEdges, sum_to_pairs
from mace.kernels.passes import Pass, current_pass
from mace.kernels.radial_table import RadialTable


class _Library:
    """A compiled file and how to call what is in it."""

    def __init__(self, source: str) -> None:
        self._library = compile_and_load(source)

    def call(self, name: str, arrays: Sequence[Tensor], dimensions: Sequence[int], blocks: int) -> None:
        """Run a kernel on contiguous tensors, with torch's number of threads."""
        assert all(array.is_contiguous() for array in arrays)
        pointers = (ctypes.c_void_p * len(arrays))(*[array.data_ptr() for array in arrays])
        sizes = (ctypes.c_int64 * len(dimensions))(*dimensions)
        pool = thread_pool()
        getattr(self._library, name)(
            pointers,
            sizes,
            ctypes.c_int64(blocks),
            ctypes.c_int64(min(torch.get_num_threads(), blocks)),
            ctypes.c_void_p(pool.parallel),
            ctypes.c_void_p(pool.thread_number),
            ctypes.c_void_p(pool.team_size),
        )


@cache
def _convolution_library(layout: ConvolutionLayout, dtype: torch.dtype) -> _Library:
    return _Library(convolution_source(layout, dtype))


@cache
def _tabulated_library(layout: ConvolutionLayout, dtype: torch.dtype) -> _Library:
    return _Library(tabulated_source(layout, dtype))


@cache
def _contraction_library(terms: ContractionTerms, dtype: torch.dtype) -> _Library:
    return _Library(contraction_source(terms, dtype))


def compile_convolution(
    paths: tuple[ConvolutionPath, ...], l_in: tuple[int, ...], l_max: int, dtype: torch.dtype
) -> None:
    """Compile a layer's convolution now rather than at its first use.

    Raises:
        CompilationError: If that is not possible here.
    """
    _convolution_library(ConvolutionLayout(paths, l_in, l_max), dtype)


def compile_tabulated_convolution(
    paths: tuple[ConvolutionPath, ...], l_in: tuple[int, ...], l_max: int, dtype: torch.dtype
) -> None:
    """Compile a layer's convolution with tabulated radial weights now rather than at its first use.

    Raises:
        CompilationError: If that is not possible here.
    """
    _tabulated_library(ConvolutionLayout(paths, l_in, l_max), dtype)


def compile_contraction(terms: ContractionTerms, dtype: torch.dtype) -> None:
    """Compile a symmetric contraction now rather than at its first use.

    Raises:
        CompilationError: If that is not possible here.
    """
    if terms.n_terms() > LARGEST_NUMBER_OF_TERMS:
        raise CompilationError(
            f"its symmetric contraction has {terms.n_terms()} terms, more than the {LARGEST_NUMBER_OF_TERMS} that are "
            "compiled in reasonable time"
        )
    _contraction_library(terms, dtype)


def padded_channels(n_channels: int, dtype: torch.dtype) -> int:
    """Return the number of channels rounded up to whole vectors."""
    width = lanes(dtype)
    return -(-n_channels // width) * width


def pad_channels(values: Tensor) -> Tensor:
    """Append zero channels up to whole vectors, ``[..., channels]``."""
    missing = padded_channels(values.shape[-1], values.dtype) - values.shape[-1]
    return torch.nn.functional.pad(values, (0, missing)) if missing else values


def unpad_channels(values: Tensor, n_channels: int) -> Tensor:
    """Leave out what `pad_channels` appended."""
    return values if values.shape[-1] == n_channels else values[..., :n_channels]


class _Convolution:
    """One layer's convolution on one graph."""

    def __init__(
        self,
        layout: ConvolutionLayout,
        graph: Graph,
        coupling: Tensor,
        n_channels: int,
        tabulated: bool = False,
        edges: DirectedEdges | None = None,
    ) -> None:
        self.layout, self.graph, self.coupling = layout, graph, coupling
        self.library = (_tabulated_library if tabulated else _convolution_library)(layout, coupling.dtype)
        self.n_channels = n_channels
        self.blocks = n_channels // lanes(coupling.dtype)
        n_rows, row_of_slot, reverse_of_slot = len(graph.pair_sender), graph.pair_of_slot, graph.reverse_of_slot
        if edges is not None:
            # each slot has radial weights of its own: none finds that its reverse has been there before
            n_rows, row_of_slot = len(edges.slots), edges.of_slot
            reverse_of_slot = torch.full_like(row_of_slot, len(row_of_slot))
        self.dimensions: tuple[int, ...] = (graph.n_atoms, graph.max_neighbors, n_rows, n_channels, self.blocks)
        self.indices = (graph.neighbor_count, graph.sender_of_slot, row_of_slot, reverse_of_slot)
        self.radial_shape = (n_rows, self.blocks, len(layout.paths), lanes(coupling.dtype))

    def run(self, name: str, arrays: Sequence[Tensor]) -> None:
        """Call a kernel."""
        self.library.call(name, (*self.indices, *arrays), self.dimensions, self.blocks)

    def empty_results(self) -> list[Tensor]:
        """Allocate the results, by degree ``[atoms, 2 l + 1, paths, channels]``."""
        layout, n_atoms = self.layout, self.graph.n_atoms
        return [
            self.coupling.new_empty(n_atoms, 2 * l + 1, layout.n_paths(l), self.n_channels)
            for l in range(layout.l_max + 1)
        ]

    def zero_features(self) -> list[Tensor]:
        """Allocate gradients of the features."""
        return [self.coupling.new_zeros(self.graph.n_atoms, 2 * l + 1, self.n_channels) for l in self.layout.l_in]

    def zero_harmonics(self, harmonics: Tensor) -> Tensor:
        """Allocate gradients of the harmonics, one array for each share of the work, rows rounded up to vectors."""
        shares = min(torch.get_num_threads(), self.blocks)
        return harmonics.new_zeros(shares, len(harmonics), padded_channels(harmonics.shape[1], harmonics.dtype))

    def empty_radial(self) -> Tensor:
        """Allocate a gradient of the radial weights; every pair but the padding is written by the kernels."""
        radial = self.coupling.new_empty(self.radial_shape)
        radial[-1] = 0.0
        return radial


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: _Convolution, harmonics: Tensor, radial: Tensor, *features: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.work = work
        ctx.save_for_backward(harmonics, radial, *features)
        results = work.empty_results()
        work.run("conv_forward", (harmonics @ work.coupling, radial, *features, *results))
        return tuple(results)

    @staticmethod
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


def convolve_native(
    features: dict[int, Tensor],
    radial: Tensor,
    harmonics: Tensor,
    coupling: Tensor,
    paths: tuple[ConvolutionPath, ...],
    graph: Graph,
    edges: DirectedEdges | None = None,
) -> dict[int, Tensor]:
    """Do what `mace.kernels.convolution.convolve` does.

    Args:
        features: By degree, ``[atoms, 2 l + 1, channels]``, channels padded to whole vectors.
        radial: Radial weights of pairs, or of directed edges, by blocks of channels, ``[rows, blocks, paths, lanes]``.
        harmonics: ``[slots, (l_max + 1)^2]``.
        coupling: The coupling matrix of the paths.
        paths: The paths.
        graph: The graph, on the CPU.
        edges: The directed edges, if the weights are theirs.

    Returns:
        By degree, ``[atoms, 2 l + 1, paths of the degree, channels]``.
    """
    l_in = tuple(sorted(features))
    layout = ConvolutionLayout(paths, l_in, int(harmonics.shape[1] ** 0.5) - 1)
    work = _Convolution(layout, graph, coupling, features[l_in[0]].shape[-1], edges=edges)
    # what is saved for a second derivative must be what autograd knows, so copies are made out here
    contiguous = [values.contiguous() for values in (harmonics, radial, *(features[l] for l in l_in))]
    results = _Convolve.apply(work, *contiguous)
    return dict(enumerate(results))


class _ConvolveTabulated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        work: _Convolution,
        rows: Tensor,
        table: RadialTable,
        harmonics: Tensor,
        lengths: Tensor,
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        interval, factors = table.coefficients(lengths)
        ctx.work, ctx.tail = work, (rows, interval)
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
        # the first harmonic is constant; in its place stands the gradient by the length
        of_lengths = sum_to_pairs(of_harmonics[:, 0], work.graph)
        return (None, None, None, of_harmonics, of_lengths, *gradients)


def blocked_table(table: RadialTable) -> Tensor:
    """Bring a table into the layout of the kernels, ``[blocks of channels, nodes, 3, paths, lanes]``."""
    padded = pad_channels(table.values)
    return padded.unflatten(3, (-1, lanes(padded.dtype))).permute(3, 0, 1, 2, 4).contiguous()


def convolve_tabulated(
    features: dict[int, Tensor],
    lengths: Tensor,
    table: RadialTable,
    rows: Tensor,
    harmonics: Tensor,
    coupling: Tensor,
    paths: tuple[ConvolutionPath, ...],
    graph: Graph,
) -> dict[int, Tensor]:
    """Do what `convolve_native` does, with radial weights from a table; differentiable once, by the geometry.

    Args:
        features: By degree, ``[atoms, 2 l + 1, channels]``, channels padded to whole vectors.
        lengths: Angstrom, ``[pairs]``.
        table: The radial weights.
        rows: `blocked_table` of it.
        harmonics: ``[slots, (l_max + 1)^2]``.
        coupling: The coupling matrix of the paths.
        paths: The paths.
        graph: The graph, on the CPU.

    Returns:
        By degree, ``[atoms, 2 l + 1, paths of the degree, channels]``.
    """
    l_in = tuple(sorted(features))
    layout = ConvolutionLayout(paths, l_in, int(harmonics.shape[1] ** 0.5) - 1)
    work = _Convolution(layout, graph, coupling, features[l_in[0]].shape[-1], tabulated=True)
    work.dimensions = (*work.dimensions, len(table.values))
    contiguous = [values.contiguous() for values in (harmonics, lengths, *(features[l] for l in l_in))]
    return dict(enumerate(_ConvolveTabulated.apply(work, rows, table, *contiguous)))


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, terms: ContractionTerms, place: Tensor, features: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.terms, ctx.place = terms, place
        ctx.save_for_backward(features, weights)
        n_atoms, _, n_channels = features.shape
        results = [features.new_empty(n_atoms, 2 * l + 1, n_channels) for l in terms.l_out]
        _run_contraction("contraction_forward", terms, (place, features, weights, *results))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        contiguous = [c.contiguous() for c in cotangents]
        gradients = _ContractBackward.apply(ctx.terms, ctx.place, *ctx.saved_tensors, *contiguous)
        return (None, None, *gradients)


class _ContractBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, terms: ContractionTerms, place: Tensor, features: Tensor, weights: Tensor, *cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.terms, ctx.place = terms, place
        ctx.save_for_backward(features, weights, *cotangents)
        gradient = torch.empty_like(features)
        if current_pass() is Pass.GEOMETRY:
            arrays = (place, features, weights, *cotangents, gradient)
            _run_contraction("contraction_backward_features", terms, arrays)
            return gradient, None
        of_weights = torch.zeros_like(weights)
        arrays = (place, features, weights, *cotangents, gradient, of_weights)
        _run_contraction("contraction_backward_full", terms, arrays)
        return gradient, of_weights

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
        return (None, None, gradient, weight_gradient, *results)


def _run_contraction(name: str, terms: ContractionTerms, arrays: Sequence[Tensor]) -> None:
    features = arrays[1]
    n_atoms, _, n_channels = features.shape
    blocks = n_channels // lanes(features.dtype)
    _contraction_library(terms, features.dtype).call(name, arrays, (n_atoms, n_channels, blocks), blocks)


def contract_native(terms: ContractionTerms, place: Tensor, features: Tensor, weights: Tensor) -> dict[int, Tensor]:
    """Evaluate a symmetric contraction.

    Args:
        terms: Its terms.
        place: Of each atom's element among those in ``weights``, ``[atoms]``.
        features: ``[atoms, (l_max + 1)^2, channels]``, channels padded to whole vectors.
        weights: Weights carried onto terms, ``[elements, terms, channels]``.

    Returns:
        By degree, ``[atoms, 2 l + 1, channels]``.
    """
    # blocks of channels first: a kernel walks through all terms of one block
    blocked = weights.unflatten(2, (-1, lanes(weights.dtype))).transpose(1, 2).contiguous()
    results = _Contract.apply(terms, place, features.contiguous(), blocked)
    return dict(zip(terms.l_out, results, strict=True))
