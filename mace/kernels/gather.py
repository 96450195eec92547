"""Maps between atoms, pairs and slots whose derivatives are equally cheap: gathers, splits and concatenations.

Every directed edge has a reverse, so the adjoint of taking the sender's row is summing, over an atom's own slots, the
rows of the reversed edges: a gather and a dense sum, never a scatter. Sums of rows that follow each other, as over the
atoms of each structure, have kernels on devices, where torch's operations add in any order (`device_sums`); without
them, those sums and nothing else may differ in the last bits from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace.graphs.graph import Graph
from mace.kernels import device_sums
from mace.kernels.device_sums import has_kernels


def gather_senders(values: Tensor, graph: Graph) -> Tensor:
    """Copy each sender's row to its slots.

    Rows of empty slots are arbitrary finite numbers; multiply them by radial weights, which are zero there.

    Args:
        values: Rows, ``[atoms, ...]``.
        graph: The graph.

    Returns:
        ``[slots, ...]``.
    """
    return _Move.apply(values, _senders_to_slots, graph)


def gather_pairs(values: Tensor, graph: Graph) -> Tensor:
    """Copy each pair's row to its two slots, ``[pairs, ...]`` to ``[slots, ...]``."""
    return _Move.apply(values, _pairs_to_slots, graph)


def sum_to_pairs(values: Tensor, graph: Graph) -> Tensor:
    """Add the rows of the two slots of every pair, zero for padding; the adjoint of `gather_pairs`."""
    return _Move.apply(values, _slots_to_pairs, graph)


def sum_slots(values: Tensor, graph: Graph) -> Tensor:
    """Sum over the slots of every atom, ``[slots, ...]`` to ``[atoms, ...]``."""
    return values.view(graph.n_atoms, graph.max_neighbors, *values.shape[1:]).sum(1)


@dataclass(frozen=True)
class DirectedEdges:
    """Numbering of directed edges: all pairs, then all pairs reversed, and one padding edge at the end.

    Attributes:
        of_slot: The edge of each slot; the last edge for empty slots, ``[slots]``.
        slots: The slot of each edge; arbitrary for padding, ``[edges]``.
        padding: Which edges are padding, if not the last one alone, as in a padded graph, ``[edges]``.
    """

    of_slot: Tensor
    slots: Tensor
    padding: Tensor | None = None

    def clear_padding(self, values: Tensor, dim: int = 0) -> Tensor:
        """Set what belongs to padding in a tensor of edges to zero, in place; see `mace.graphs.graph.Graph`."""
        if self.padding is None:
            values.select(dim, -1).zero_()
            return values
        return values.masked_fill_(self.padding.view(-1, *[1] * (values.dim() - dim - 1)), 0.0)


def directed_edges(graph: Graph) -> DirectedEdges:
    """Number the directed edges of a graph."""
    padding = graph.pair_sender.shape[0] - 1
    reversed_ = graph.sign_of_slot < 0
    edge = graph.pair_of_slot + padding * reversed_
    of_slot = torch.where(graph.pair_of_slot == padding, 2 * padding, edge)
    first, second = graph.slots_of_pair.unbind(1)
    both = None if graph.real is None else to_both_directions(graph.is_padding)
    return DirectedEdges(of_slot, torch.cat([first[:-1], second]), both)


def to_both_directions(values: Tensor) -> Tensor:
    """Repeat rows of pairs for both directions, except the padding, ``[pairs, ...]`` to ``[edges, ...]``."""
    return torch.cat([values[:-1], values])


def gather_edges(values: Tensor, edges: DirectedEdges) -> Tensor:
    """Copy each directed edge's row to its slot, ``[edges, ...]`` to ``[slots, ...]``."""
    return _Move.apply(values, _edges_to_slots, edges)


def take_edges(values: Tensor, edges: DirectedEdges) -> Tensor:
    """Copy the row of each directed edge's slot, zeros for padding; the adjoint of `gather_edges`."""
    return _Move.apply(values, _slots_to_edges, edges)


def restore_order(rows: Tensor, graph: Graph) -> Tensor:
    """Reorder rows sorted by element to the original order of the atoms, ``[atoms, ...]``."""
    return _Move.apply(rows, _rows_to_atoms, graph)


def forces_of_pairs(gradient: Tensor, graph: Graph) -> Tensor:
    """Distribute the gradient by the vector of each pair to its two atoms, as forces.

    Args:
        gradient: ``[pairs, 3]``.
        graph: The graph.

    Returns:
        The negative gradient by the positions, ``[atoms, 3]``.
    """
    return _Move.apply(gradient, _pairs_to_forces, graph)


def strain_of_pairs(gradient: Tensor, vectors: Tensor, graph: Graph) -> Tensor:
    """Differentiate the energy by a symmetric strain, which maps every vector ``v`` to ``(1 + strain) v``.

    Args:
        gradient: The energy's gradient by the vectors of the pairs, ``[pairs, 3]``; the result is differentiable by it.
        vectors: The vectors, ``[pairs, 3]``.
        graph: The graph.

    Returns:
        ``[structures, 3, 3]``.
    """
    if has_kernels(gradient):
        return _Move.apply(gradient, _pairs_to_strain, _StrainedPairs(graph, vectors))
    structure = graph.structure_of_atom.index_select(0, graph.pair_sender)
    return sum_segments(strains(gradient, vectors, graph), structure, graph.n_structures)


def strains(gradient: Tensor, vectors: Tensor, graph: Graph) -> Tensor:
    """Return what each pair contributes to `strain_of_pairs`, zero for padding, ``[pairs, 3, 3]``."""
    product = vectors.unsqueeze(2) * gradient.unsqueeze(1)
    return graph.clear_padding(0.5 * (product + product.transpose(1, 2)))


def sum_segments(values: Tensor, segments: Tensor, n_segments: int) -> Tensor:
    """Add up the rows of each segment, ``[rows, ...]`` to ``[segments, ...]``.

    Args:
        values: The rows.
        segments: The segment of each row, ``[rows]``, in rising order where there are kernels for it.
        n_segments: Number of segments.
    """
    if has_kernels(values):
        return _Move.apply(values, _rows_to_segments, _Segments(segments, n_segments))
    return values.new_zeros(n_segments, *values.shape[1:]).index_add(0, segments, values)


def spread_segments(values: Tensor, segments: Tensor) -> Tensor:
    """Copy the row of each segment to those that belong to it; the adjoint of `sum_segments`."""
    if has_kernels(values):
        return _Move.apply(values, _segments_to_rows, _Segments(segments, len(values)))
    return values.index_select(0, segments)


def join_components(pieces: Sequence[Tensor], dim: int = 1) -> Tensor:
    """Concatenate along a dimension; derivatives are splits or concatenations, without zero filling."""
    return pieces[0] if len(pieces) == 1 else _Join.apply(dim, *pieces)


def split_components(values: Tensor, sizes: Sequence[int], dim: int = 1) -> Sequence[Tensor]:
    """Split along a dimension; the adjoint of `join_components`."""
    return (values,) if len(sizes) == 1 else _Split.apply(dim, tuple(sizes), values)


@dataclass(frozen=True)
class _Segments:
    """The segment of each row, in rising order, ``[rows]``, and how many segments there are."""

    of_row: Tensor
    count: int


@dataclass(frozen=True)
class _StrainedPairs:
    """The pairs of a graph and their vectors."""

    graph: Graph
    vectors: Tensor


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dim: int, *pieces: Tensor) -> Tensor:
        ctx.dim, ctx.sizes = dim, [piece.shape[dim] for piece in pieces]
        return torch.cat(pieces, dim=dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *split_components(gradient, ctx.sizes, ctx.dim)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dim: int, sizes: tuple[int, ...], values: Tensor) -> tuple[Tensor, ...]:
        ctx.dim = dim
        return values.split(sizes, dim=dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, join_components(gradients, ctx.dim)


class _Move(torch.autograd.Function):
    """A linear map of rows; its derivative is its adjoint from `_ADJOINT`, which is also such a map."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, move: _RowMap, indices: Any) -> Tensor:
        ctx.move, ctx.indices = move, indices
        return move(values, indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Move.apply(gradient, _ADJOINT[ctx.move], ctx.indices), None, None


def _senders_to_slots(values: Tensor, graph: Graph) -> Tensor:
    return values.index_select(0, graph.sender_of_slot)


def _slots_to_senders(values: Tensor, graph: Graph) -> Tensor:
    return sum_slots(values.index_select(0, graph.reverse_of_slot), graph)


def _pairs_to_slots(values: Tensor, graph: Graph) -> Tensor:
    return values.index_select(0, graph.pair_of_slot)


def _slots_to_pairs(values: Tensor, graph: Graph) -> Tensor:
    first, second = graph.slots_of_pair.unbind(1)
    total = values.index_select(0, first)
    total += values.index_select(0, second)
    return graph.clear_padding(total)


def _edges_to_slots(values: Tensor, edges: DirectedEdges) -> Tensor:
    return values.index_select(0, edges.of_slot)


def _real_edges_to_slots(values: Tensor, edges: DirectedEdges) -> Tensor:
    # an empty slot has no edge, so its content must not contribute
    padded = torch.cat([values[:-1], torch.zeros_like(values[-1:])])
    return padded.index_select(0, edges.of_slot)


def _slots_to_edges(values: Tensor, edges: DirectedEdges) -> Tensor:
    return edges.clear_padding(values.index_select(0, edges.slots))


def _rows_to_atoms(values: Tensor, graph: Graph) -> Tensor:
    return values.index_select(0, graph.row_of_atom)


def _atoms_to_rows(values: Tensor, graph: Graph) -> Tensor:
    return values.index_select(0, graph.atoms_by_element)


def _pairs_to_forces(values: Tensor, graph: Graph) -> Tensor:
    if has_kernels(values):
        return device_sums.forces(values, graph)
    signs = graph.sign_of_slot.to(values.dtype).view(graph.n_atoms, 1, graph.max_neighbors)
    of_slot = values.index_select(0, graph.pair_of_slot).view(graph.n_atoms, graph.max_neighbors, 3)
    # one operation for products, sums and the sign of forces; the first argument is not read
    rows = torch.baddbmm(values.new_empty(1), signs, of_slot, beta=0, alpha=-1)
    return rows.squeeze(1).index_select(0, graph.row_of_atom)


def _forces_to_pairs(values: Tensor, graph: Graph) -> Tensor:
    if has_kernels(values):
        return device_sums.of_forces(values, graph)
    # both atoms of the padding are the same
    return values.index_select(0, graph.pair_sender) - values.index_select(0, graph.pair_receiver)


def _pairs_to_strain(values: Tensor, pairs: _StrainedPairs) -> Tensor:
    return device_sums.strain(values, pairs.vectors, pairs.graph)


def _strain_to_pairs(values: Tensor, pairs: _StrainedPairs) -> Tensor:
    return device_sums.of_strain(values, pairs.vectors, pairs.graph)


def _rows_to_segments(values: Tensor, segments: _Segments) -> Tensor:
    return device_sums.segment_sum(values, segments.of_row, segments.count)


def _segments_to_rows(values: Tensor, segments: _Segments) -> Tensor:
    return values.index_select(0, segments.of_row)


_RowMap = Callable[[Tensor, Any], Tensor]

_ADJOINT: dict[_RowMap, _RowMap] = {
    _senders_to_slots: _slots_to_senders,
    _slots_to_senders: _senders_to_slots,
    _pairs_to_slots: _slots_to_pairs,
    _slots_to_pairs: _pairs_to_slots,
    _edges_to_slots: _slots_to_edges,
    _real_edges_to_slots: _slots_to_edges,
    _slots_to_edges: _real_edges_to_slots,
    _pairs_to_forces: _forces_to_pairs,
    _forces_to_pairs: _pairs_to_forces,
    _pairs_to_strain: _strain_to_pairs,
    _strain_to_pairs: _pairs_to_strain,
    _rows_to_segments: _segments_to_rows,
    _segments_to_rows: _rows_to_segments,
    _rows_to_atoms: _atoms_to_rows,
    _atoms_to_rows: _rows_to_atoms,
}
