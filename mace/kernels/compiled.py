"""Convolution and contraction by compiled kernels, as autograd functions that can be differentiated twice.

A kernel has the same name, arrays and dimensions wherever it runs. Back ends differ in how they run it, and in how many
channels are in a block.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mace.graphs.graph import Graph
from mace.kernels.backend import Backend, TabulatedRadial
from mace.kernels.c_source.contraction import ContractionTerms, contraction_source
from mace.kernels.c_source.convolution import ConvolutionLayout, convolution_source, tabulated_source
from mace.kernels.convolution import Convolution
from mace.kernels.gather import DirectedEdges, sum_to_pairs
from mace.kernels.passes import Pass, current_pass, heeding_purpose, keep_purpose
from mace.kernels.radial_table import RadialTable
from mace.kernels.symmetric_contraction import SymmetricContraction


@dataclass(frozen=True)
class Kernel:
    """A kernel, by its name and by what generates its source in C; on a device, one of the same name takes its place.

    Attributes:
        name: Its name.
        source: The function that returns the C file.
        dtype: Precision of the numbers.
        shape: Arguments of the function before the precision.
    """

    name: str
    source: Callable[..., str]
    dtype: torch.dtype
    shape: tuple[Any, ...] = ()


class CompiledBackend(Backend):
    """Compiled kernels for convolution and contraction.

    Channels are padded with zeros to whole blocks and stored block by block.

    Attributes:
        chunks_of_rows: Into how many chunks rows are cut whose products are summed by element; zero if they are not.
        clears_padding: Whether convolutions set gradients by radial weights of padding to zero.
    """

    reads_tables_fast = True
    chunks_of_rows = 0
    clears_padding = False

    @abstractmethod
    def lanes(self, dtype: torch.dtype) -> int:
        """Return the number of channels in a block."""

    @abstractmethod
    def harmonics_width(self, l_max: int, dtype: torch.dtype) -> int:
        """Return the length of a row of gradients of the harmonics up to a degree."""

    @abstractmethod
    def shares(self, blocks: int) -> int:
        """Return how many arrays of gradients of the harmonics kernels write for a number of blocks of channels."""

    @abstractmethod
    def run(self, kernel: Kernel, arrays: Sequence[Tensor | None], dimensions: Sequence[int], blocks: int) -> None:
        """Run a kernel.

        Args:
            kernel: The kernel.
            arrays: Its arrays, contiguous; None for a null pointer.
            dimensions: Its dimensions.
            blocks: Number of blocks of channels.
        """

    def prepare_table(self, table: RadialTable) -> RadialTable:
        """See `Backend`."""
        return BlockedTable.of(table, self.lanes(table.values.dtype))

    def radial(self, hidden: Tensor, weight: Tensor, n_paths: int) -> Tensor:
        """See `Backend`; ``[rows, blocks of channels, paths, lanes]``."""
        n_lanes = self.lanes(weight.dtype)
        blocked = _padded(weight.unflatten(1, (n_paths, -1)), n_lanes).unflatten(2, (-1, n_lanes))
        return (hidden @ blocked.transpose(1, 2).flatten(1)).view(-1, blocked.shape[2], n_paths, n_lanes)

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
        layout, coupling = layout_of(convolution), convolution.coupling
        n_channels, n_lanes = features[convolution.l_in[0]].shape[-1], self.lanes(coupling.dtype)
        # tensors saved for second derivatives must be known to autograd, so copies are made out here
        given = [_padded(features[degree], n_lanes).contiguous() for degree in convolution.l_in]
        width, harmonics = given[0].shape[-1], harmonics.contiguous()
        if isinstance(radial, TabulatedRadial):
            table = radial.table
            assert isinstance(table, BlockedTable), "tables are prepared before"
            work = _Convolution(self, layout, graph, coupling, width, n_nodes=len(table.values))
            results = _ConvolveTabulated.apply(work, table, harmonics, radial.lengths.contiguous(), *given)
        else:
            work = _Convolution(self, layout, graph, coupling, width, edges)
            results = _Convolve.apply(work, harmonics, radial.contiguous(), *given)
        return {degree: _unpadded(values, n_channels).flatten(2) for degree, values in enumerate(results)}

    def contract(
        self,
        contraction: SymmetricContraction,
        atomic_basis: Tensor,
        weights: Mapping[tuple[int, int], Tensor],
        graph: Graph,
    ) -> dict[int, Tensor]:
        """See `Backend`."""
        terms, groups, n_channels = terms_of(contraction), graph.groups, atomic_basis.shape[2]
        tables, n_lanes = tables_of(terms, atomic_basis.dtype, atomic_basis.device), self.lanes(atomic_basis.dtype)
        of_all = len(next(iter(weights.values()))) == 1
        carried = [
            tables[key] @ (weight if of_all else weight.index_select(0, groups.index))
            for key, weight in weights.items()
            if key in tables
        ]
        # blocks of channels come first, as a kernel loops over all terms of one block
        blocked = _padded(torch.cat(carried, dim=1), n_lanes).unflatten(2, (-1, n_lanes)).transpose(1, 2).contiguous()
        work = _Contraction(self, terms, torch.zeros_like(groups.place) if of_all else groups.place)
        results = _Contract.apply(work, _padded(atomic_basis, n_lanes).contiguous(), blocked)
        return {l: _unpadded(values, n_channels) for l, values in zip(terms.l_out, results, strict=True)}


def layout_of(convolution: Convolution) -> ConvolutionLayout:
    """Return the layout of a convolution's arrays."""
    return ConvolutionLayout(convolution.paths, convolution.l_in, convolution.l_max)


def terms_of(contraction: SymmetricContraction) -> ContractionTerms:
    """Return the terms of a contraction."""
    return ContractionTerms(contraction.l_max, contraction.l_out, contraction.correlation)


_HOST = torch.device("cpu")


@cache
def tables_of(
    terms: ContractionTerms, dtype: torch.dtype, device: torch.device = _HOST
) -> dict[tuple[int, int], Tensor]:
    """Return, by degree and order, the matrix that maps weights of paths to weights of terms, ``[terms, paths]``."""
    return {key: torch.as_tensor(table, device=_HOST).to(device, dtype) for key, table in terms.tables().items()}


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


def _padded(values: Tensor, n_lanes: int) -> Tensor:
    """Pad the channels with zeros to whole blocks, ``[..., channels]``."""
    missing = -values.shape[-1] % n_lanes
    return torch.nn.functional.pad(values, (0, missing)) if missing else values


def _unpadded(values: Tensor, n_channels: int) -> Tensor:
    """Remove the padding added by `_padded`."""
    return values if values.shape[-1] == n_channels else values[..., :n_channels]


class _Convolution:
    """One layer's convolution on one graph."""

    def __init__(
        self,
        backend: CompiledBackend,
        layout: ConvolutionLayout,
        graph: Graph,
        coupling: Tensor,
        n_channels: int,
        edges: DirectedEdges | None = None,
        n_nodes: int = 0,
    ) -> None:
        self.backend, self.layout, self.graph, self.coupling = backend, layout, graph, coupling
        self.rows: Graph | DirectedEdges = edges or graph
        self.source = tabulated_source if n_nodes else convolution_source
        n_lanes = backend.lanes(coupling.dtype)
        self.n_channels, self.blocks = n_channels, n_channels // n_lanes
        n_rows, row_of_slot = len(graph.pair_sender), graph.pair_of_slot
        self.slots: Tensor | None = graph.slots_of_pair
        if edges is not None:
            n_rows, row_of_slot, self.slots = len(edges.slots), edges.of_slot, None
        self.dimensions = (graph.n_atoms, graph.max_neighbors, n_rows, n_channels, self.blocks, n_nodes, 0)
        self.indices = (graph.neighbor_count, graph.sender_of_slot, row_of_slot, graph.reverse_of_slot)
        self.radial_shape = (n_rows, self.blocks, len(layout.paths), n_lanes)

    def run(self, name: str, arrays: Sequence[Tensor | None]) -> None:
        """Call a kernel."""
        kernel = Kernel(name, self.source, self.coupling.dtype, (self.layout,))
        self.backend.run(kernel, (*self.indices, *arrays), self.dimensions, self.blocks)

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
        """Allocate zero gradients of the harmonics, one array for each share of the blocks."""
        width = self.backend.harmonics_width(self.layout.l_max, harmonics.dtype)
        return harmonics.new_zeros(self.backend.shares(self.blocks), len(harmonics), width)

    def empty_radial(self) -> Tensor:
        """Allocate the gradient of the radial weights; kernels write what is not padding, and some clear that."""
        gradient = self.coupling.new_empty(self.radial_shape)
        return gradient if self.slots is not None and self.backend.clears_padding else self.rows.clear_padding(gradient)


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
            work.run("conv_backward_parameters", (*inputs, work.slots))
            return (None, gradient, *gradients)
        parts = work.zero_harmonics(harmonics)
        work.run("conv_backward_full", (*inputs, parts, work.slots))
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
        given = (harmonics @ work.coupling, radial, *others, of_harmonics @ work.coupling, *rest)
        work.run("conv_second", (*given, *results, gradient, *gradients, work.slots))
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


@dataclass(frozen=True)
class _Contraction:
    """One layer's contraction on one graph.

    Attributes:
        backend: What runs its kernels.
        terms: Its terms.
        place: Place of each row's weights among all, ``[atoms]``.
    """

    backend: CompiledBackend
    terms: ContractionTerms
    place: Tensor

    def run(self, name: str, features: Tensor, weights: Tensor, *others: Tensor) -> None:
        """Call a kernel; weights are ``[elements, blocks of channels, terms, lanes]``."""
        kernel = Kernel(name, contraction_source, features.dtype, (self.terms,))
        n_atoms, _, n_channels = features.shape
        n_elements, blocks, *_ = weights.shape
        sizes = (n_atoms, n_channels, blocks, 0, 0, n_elements)
        self.backend.run(kernel, (self.place, features, weights, *others), sizes, blocks)

    def set_aside(self, weights: Tensor) -> list[Tensor]:
        """Allocate the array for sums over chunks of rows, where kernels run in chunks."""
        n_chunks = self.backend.chunks_of_rows
        return [weights.new_empty(n_chunks, *weights.shape[1:])] if n_chunks else []


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Contraction, features: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        keep_purpose(ctx)
        ctx.work = work
        ctx.save_for_backward(features, weights)
        n_atoms, _, n_channels = features.shape
        results = [features.new_empty(n_atoms, 2 * l + 1, n_channels) for l in work.terms.l_out]
        work.run("contraction_forward", features, weights, *results)
        return tuple(results)

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        contiguous = [c.contiguous() for c in cotangents]
        of_weights = ctx.needs_input_grad[2] and current_pass() is not Pass.GEOMETRY
        return (None, *_ContractBackward.apply(ctx.work, of_weights, *ctx.saved_tensors, *contiguous))


class _ContractBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: _Contraction, of_weights: bool, features: Tensor, weights: Tensor, *cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.work = work
        ctx.save_for_backward(features, weights, *cotangents)
        ctx.set_materialize_grads(False)
        gradient = torch.empty_like(features)
        if not of_weights:
            work.run("contraction_backward_features", features, weights, *cotangents, gradient)
            return gradient, None
        results = gradient, torch.zeros_like(weights)
        work.run("contraction_backward_full", features, weights, *cotangents, *results, *work.set_aside(weights))
        return results

    @staticmethod
    def backward(ctx: Any, tangent: Tensor | None, of_weights: Tensor | None) -> tuple[Any, ...]:
        if of_weights is not None:
            raise RuntimeError("second derivatives by the weights need the torch kernels; choose them for this model")
        features, weights, *cotangents = ctx.saved_tensors
        tangent = torch.zeros_like(features) if tangent is None else tangent.contiguous()
        results = [torch.empty_like(c) for c in cotangents]
        gradients = torch.empty_like(features), torch.zeros_like(weights)
        arrays = (*cotangents, tangent, *results, *gradients, *ctx.work.set_aside(weights))
        ctx.work.run("contraction_second", features, weights, *arrays)
        return (None, None, *gradients, *results)
