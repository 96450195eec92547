r"""The convolution: features of neighbors, coupled with the spherical harmonics of the edges and summed.

.. math:: A_{i,p\,m_3,c} = \sum_j R_{p,c}(r_{ij}) \sum_{m_1 m_2} C^{(p)}_{m_3 m_1 m_2}\, x_{j,m_1,c}\, Y_{m_2}(r_{ij})

The coefficients are first contracted with the harmonics, which involves no channels; for each atom and path, one
product remains, of a small matrix ``[m3, neighbors * m1]`` with ``[neighbors * m1, channels]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mace.equivariant.coupling import coupling_coefficients
from mace.graphs.graph import Graph, carry
from mace.kernels.gather import DirectedEdges, sum_slots
from mace.kernels.passes import Pass, current_pass, heeding_purpose, keep_purpose


@dataclass(frozen=True)
class ConvolutionPath:
    """A coupling of features of degree ``l1`` with harmonics of degree ``l2`` to degree ``l3``."""

    l1: int
    l2: int
    l3: int


def convolution_paths(l_in: tuple[int, ...], l_max: int) -> tuple[ConvolutionPath, ...]:
    """List the paths of a layer in the order in which radial weights are stored.

    Args:
        l_in: Degrees of the atomic features, all of natural parity.
        l_max: Highest degree of the harmonics and of the result.

    Returns:
        Paths of natural parity, sorted by ``l3``, then ``l1``, then ``l2``.
    """
    paths = [
        ConvolutionPath(l1, l2, l3)
        for l1 in l_in
        for l2 in range(l_max + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, l_max) + 1)
        if (l1 + l2 + l3) % 2 == 0
    ]
    return tuple(sorted(paths, key=lambda path: path.l3))


def coupling_matrix(paths: tuple[ConvolutionPath, ...], l_max: int) -> np.ndarray:
    """Return the coefficients of all paths, ``[(l_max + 1)^2, sum over paths of (2 l3 + 1) (2 l1 + 1)]``.

    Each path is scaled so that its result has unit variance per component if features and weights do.
    """
    columns = []
    for path in paths:
        # [m1, m2, m3] -> rows m2, columns (m3, m1)
        block = coupling_coefficients(path.l1, path.l2, path.l3) * np.sqrt(2 * path.l3 + 1)
        rows = np.zeros(((l_max + 1) ** 2, (2 * path.l3 + 1) * (2 * path.l1 + 1)))
        rows[path.l2**2 : (path.l2 + 1) ** 2] = block.transpose(1, 2, 0).reshape(2 * path.l2 + 1, -1)
        columns.append(rows)
    return np.concatenate(columns, axis=1)


class Convolution(nn.Module):
    """The constants of a convolution, and its reference implementation in torch.

    Args:
        l_in: Degrees of the features, in increasing order.
        l_max: Highest degree of the harmonics and of the result.

    Attributes:
        paths: All coupling paths, in the order of the radial weights.
        coupling: The coefficients of all paths, see `coupling_matrix`.
        padded: The same with paths sorted by ``l1`` and ``2 l_max + 1`` components of the result for each, zero beyond
            those it has, ``[(l_max + 1)^2, sum over paths of (2 l_max + 1) (2 l1 + 1)]``.
        by_l1: The paths sorted by ``l1``.
        place: The place of each path in `by_l1`.
    """

    coupling: Tensor
    padded: Tensor
    by_l1: Tensor
    place: Tensor

    def __init__(self, l_in: tuple[int, ...], l_max: int) -> None:
        super().__init__()
        self.l_in, self.l_max, self.paths = l_in, l_max, convolution_paths(l_in, l_max)
        matrix, width = coupling_matrix(self.paths, l_max), 2 * l_max + 1
        columns = np.split(matrix, np.cumsum([(2 * p.l3 + 1) * (2 * p.l1 + 1) for p in self.paths]), axis=1)
        wide = [
            np.pad(c, ((0, 0), (0, width * (2 * p.l1 + 1) - c.shape[1])))
            for c, p in zip(columns, self.paths, strict=False)
        ]
        order = sorted(range(len(self.paths)), key=lambda place: self.paths[place].l1)
        self.n_paths = [sum(path.l1 == l1 for path in self.paths) for l1 in l_in]
        self.register_buffer("coupling", torch.as_tensor(matrix), persistent=False)
        self.register_buffer(
            "padded", torch.as_tensor(np.concatenate([wide[p] for p in order], axis=1)), persistent=False
        )
        self.register_buffer("by_l1", torch.tensor(order), persistent=False)
        self.register_buffer("place", torch.tensor(np.argsort(order)), persistent=False)

    def forward(
        self,
        features: Mapping[int, Tensor],
        radial: Tensor,
        harmonics: Tensor,
        graph: Graph,
        edges: DirectedEdges | None = None,
    ) -> dict[int, Tensor]:
        """Sum over neighbors; see the module for the equation.

        Args:
            features: By degree, ``[atoms, 2 l + 1, channels]``.
            radial: Radial weights of pairs, or of directed edges, zero for the padding, ``[rows, paths, channels]``.
            harmonics: Harmonics of the directed edge in each slot, ``[slots, (l_max + 1)^2]``.
            graph: The graph.
            edges: The directed edges, if the radial weights belong to these.

        Returns:
            By resulting degree, ``[atoms, 2 l + 1, paths of the degree * channels]``.
        """
        results = _Convolve.apply(_Slots(self, graph, edges), harmonics, radial, *(features[l] for l in self.l_in))
        return dict(enumerate(results))


@lru_cache(maxsize=8)
def _places(l3_by_l1: tuple[int, ...], l_max: int, n_atoms: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where results lie among ``[paths sorted by l1, atoms, 2 l_max + 1]``, and the reverse.

    Results lie one degree after the other, each ``[2 l + 1, atoms, paths of the degree]``; in the reverse, what is not
    among them has the place after the last.
    """
    padded = np.arange(len(l3_by_l1) * n_atoms * (2 * l_max + 1)).reshape(len(l3_by_l1), n_atoms, -1)
    l3 = np.array(l3_by_l1)
    places = np.concatenate([padded[l3 == l, :, : 2 * l + 1].transpose(2, 1, 0).ravel() for l in range(l_max + 1)])
    reverse = np.full(padded.size, len(places))
    reverse[places] = np.arange(len(places))
    return carry(torch.from_numpy(places), device, pinned=True), carry(torch.from_numpy(reverse), device, pinned=True)


@dataclass(frozen=True)
class _Slots:
    """Maps between atoms, pairs and slots for one convolution on one graph; lists have one entry for each ``l1``."""

    convolution: Convolution
    graph: Graph
    edges: DirectedEdges | None

    def of_radial(self, radial: Tensor) -> Sequence[Tensor]:
        """Copy radial weights to the slots, ``[paths, slots, channels]``."""
        of_slot = self.graph.pair_of_slot if self.edges is None else self.edges.of_slot
        sorted_ = radial.transpose(0, 1).index_select(0, self.convolution.by_l1)
        return sorted_.index_select(1, of_slot).split(self.convolution.n_paths)

    def to_radial(self, of_slots: Sequence[Tensor]) -> Tensor:
        """Add the rows of the slots of each pair, zero for the padding; the adjoint of `of_radial`."""
        joined = torch.cat(list(of_slots)) if len(of_slots) > 1 else of_slots[0]
        if self.edges is None:
            both = joined.index_select(1, self.graph.slots_of_pair.flatten())
            rows = both.unflatten(1, (-1, 2)).sum(2)
        else:
            rows = joined.index_select(1, self.edges.slots)
        (self.edges or self.graph).clear_padding(rows, dim=1)
        return rows.transpose(0, 1).index_select(1, self.convolution.place)

    def of_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Copy the features of senders to the slots, ``[slots, 2 l1 + 1, channels]``."""
        return [values.index_select(0, self.graph.sender_of_slot) for values in features]

    def to_features(self, of_slots: Sequence[Tensor]) -> list[Tensor]:
        """Add the rows of all slots of a sender; the adjoint of `of_features` where empty slots have zero."""
        return [sum_slots(values.index_select(0, self.graph.reverse_of_slot), self.graph) for values in of_slots]

    def of_harmonics(self, harmonics: Tensor) -> list[Tensor]:
        """Contract the coefficients with the harmonics, ``[paths * atoms, m3, neighbors * m1]``."""
        graph, couplings = self.graph, (harmonics @ self.convolution.padded).split(self._widths(), dim=1)
        shapes = [(graph.n_atoms, graph.max_neighbors, n, -1, 2 * l + 1) for n, l in self._groups()]
        blocks = [values.view(shape).permute(2, 0, 3, 1, 4) for values, shape in zip(couplings, shapes, strict=True)]
        return [values.flatten(0, 1).flatten(2, 3) for values in blocks]

    def to_harmonics(self, couplings: Sequence[Tensor]) -> Tensor:
        """Return the gradient by the harmonics; the adjoint of `of_harmonics`."""
        graph, blocks = self.graph, []
        for values, (n, l) in zip(couplings, self._groups(), strict=True):
            shaped = values.view(n, graph.n_atoms, -1, graph.max_neighbors, 2 * l + 1)
            blocks.append(shaped.permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1))
        return (torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]) @ self.convolution.padded.t()

    def results(self, padded: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Arrange ``[paths * atoms, 2 l_max + 1, channels]`` as the results by degree."""
        places, _ = self._places()
        rows = (torch.cat(list(padded)) if len(padded) > 1 else padded[0]).flatten(0, 1).index_select(0, places)
        n_atoms, l_max, paths = self.graph.n_atoms, self.convolution.l_max, self.convolution.paths
        counts = [(2 * l + 1) * sum(path.l3 == l for path in paths) for l in range(l_max + 1)]
        by_degree = rows.split([n_atoms * count for count in counts])
        return tuple(
            r.view(2 * l + 1, n_atoms, c // (2 * l + 1) * r.shape[1]).transpose(0, 1)
            for l, (r, c) in enumerate(zip(by_degree, counts, strict=True))
        )

    def padded(self, results: Sequence[Tensor], n_channels: int) -> Sequence[Tensor]:
        """Arrange results by degree as in `results`, with zeros; its adjoint."""
        _, reverse = self._places()
        pieces = [values.transpose(0, 1).reshape(-1, n_channels) for values in results]
        rows = torch.cat([*pieces, pieces[0].new_zeros(1, n_channels)]).index_select(0, reverse)
        shaped = rows.unflatten(0, (-1, 2 * self.convolution.l_max + 1))
        return shaped.split([n * self.graph.n_atoms for n in self.convolution.n_paths])

    def _places(self) -> tuple[Tensor, Tensor]:
        convolution = self.convolution
        l3 = tuple(path.l3 for path in sorted(convolution.paths, key=lambda path: path.l1))
        return _places(l3, convolution.l_max, self.graph.n_atoms, self.graph.element.device)

    def _groups(self) -> list[tuple[int, int]]:
        return list(zip(self.convolution.n_paths, self.convolution.l_in, strict=True))

    def _widths(self) -> list[int]:
        return [n * (2 * self.convolution.l_max + 1) * (2 * l + 1) for n, l in self._groups()]

    def operands(self, harmonics: Tensor, radial: Tensor, features: Sequence[Tensor]) -> _Operands:
        """Gather everything in the slots."""
        r, x = self.of_radial(radial), self.of_features(features)
        return _Operands(self.of_harmonics(harmonics), r, x, [_times(a, b) for a, b in zip(r, x, strict=True)])

    def adjoints(self, operands: _Operands, cotangents: Sequence[Tensor]) -> _Adjoints:
        """Copy the gradient by the results to the slots."""
        a = self.padded(cotangents, operands.r[0].shape[-1])
        blocks = zip(operands.g, a, operands.u, strict=True)
        return _Adjoints(a, [torch.bmm(g.mT, b).view(u.shape) for g, b, u in blocks])

    def without_padding(self, radial: Tensor) -> Tensor:
        """Set the row of the padding to zero, where edges have other numbers there."""
        return radial if self.edges is None else torch.cat([radial[:-1], torch.zeros_like(radial[-1:])])

    def batches(self, messages: Sequence[Tensor]) -> list[Tensor]:
        """View ``[paths, slots, m1, channels]`` as ``[paths * atoms, neighbors * m1, channels]``."""
        n_atoms = self.graph.n_atoms
        return [m.view(len(m) * n_atoms, -1, m.shape[-1]) for m in messages]


class _Operands(NamedTuple):
    """What is in the slots, one entry for each ``l1``.

    Attributes:
        g: Coefficients contracted with harmonics, ``[paths * atoms, m3, neighbors * m1]``.
        r: Radial weights, ``[paths, slots, channels]``.
        x: Features, ``[slots, m1, channels]``.
        u: Messages, the products of the last two, ``[paths, slots, m1, channels]``.
    """

    g: Sequence[Tensor]
    r: Sequence[Tensor]
    x: Sequence[Tensor]
    u: Sequence[Tensor]


class _Adjoints(NamedTuple):
    """Gradients, one entry for each ``l1``.

    Attributes:
        a: By the results, ``[paths * atoms, m3, channels]``.
        v: By the messages, ``[paths, slots, m1, channels]``.
    """

    a: Sequence[Tensor]
    v: Sequence[Tensor]


def _times(radial: Tensor, features: Tensor) -> Tensor:
    return radial.unsqueeze(2) * features.unsqueeze(0)


def _total(*products: tuple[Tensor, Tensor | None]) -> Tensor:
    """Add products, without those whose second factor is None, which is not so for the first."""
    total, *others = ((a, b) for a, b in products if b is not None)
    result = total[0] * total[1]
    for a, b in others:
        result.addcmul_(a, b)
    return result


def _summed(values: Tensor, dim: int) -> Tensor:
    return values.squeeze(dim) if values.shape[dim] == 1 else values.sum(dim)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slots: _Slots, harmonics: Tensor, radial: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        operands = slots.operands(harmonics, radial, features)
        keep_purpose(ctx)
        ctx.slots, ctx.operands = slots, operands
        ctx.save_for_backward(harmonics, radial, *features)
        return slots.results([torch.bmm(g, u) for g, u in zip(operands.g, slots.batches(operands.u), strict=True)])

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_ConvolveBackward.apply(ctx.slots, ctx.operands, *ctx.saved_tensors, *cotangents)


class _ConvolveBackward(torch.autograd.Function):
    """The gradient; its own derivative is known to autograd."""

    @staticmethod
    def forward(ctx: Any, slots: _Slots, operands: _Operands, *arguments: Tensor) -> tuple[Tensor | None, ...]:
        keep_purpose(ctx)
        ctx.slots, ctx.operands = slots, operands
        ctx.save_for_backward(*arguments)
        ctx.set_materialize_grads(False)
        adjoints = slots.adjoints(operands, arguments[2 + len(operands.x) :])
        of_harmonics = None
        if current_pass() is not Pass.PARAMETERS:
            pairs = zip(adjoints.a, slots.batches(operands.u), strict=True)
            of_harmonics = slots.to_harmonics([torch.bmm(a, u.mT) for a, u in pairs])
        of_radial = slots.to_radial([_summed(v * x, 2) for v, x in zip(adjoints.v, operands.x, strict=True)])
        of_features = [_summed(v * r.unsqueeze(2), 0) for v, r in zip(adjoints.v, operands.r, strict=True)]
        return of_harmonics, of_radial, *slots.to_features(of_features)

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        slots, operands = ctx.slots, ctx.operands
        harmonics, radial, *others = ctx.saved_tensors
        n_in = len(operands.x)
        if torch.is_grad_enabled():  # anew, as functions of what they depend on
            operands = slots.operands(harmonics, radial, others[:n_in])
        # gradients by messages are large, so they are computed twice rather than kept
        adjoints = slots.adjoints(operands, others[n_in:])
        # features of the first layer do not depend on the geometry, so there may be no tangents of them
        dgs, drs = (
            gather(torch.zeros_like(value) if tangent is None else tangent)
            for gather, tangent, value in (
                (slots.of_harmonics, tangents[0], harmonics),
                (lambda t: slots.of_radial(slots.without_padding(t)), tangents[1], radial),
            )
        )
        dxs = [None if t is None else slots.of_features([t])[0] for t in tangents[2:]]
        sums, of_radial, of_features, of_couplings = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
        everything = current_pass() is not Pass.PARAMETERS
        for g, r, x, u, a, v, dg, dr, dx in zip(*operands, *adjoints, dgs, drs, dxs, strict=True):
            r, dr = r.unsqueeze(2), dr.unsqueeze(2)
            u, du = slots.batches([u, _total((x, dr), (r, dx))])
            dv = torch.bmm(dg.mT, a).view(v.shape)
            sums.append(torch.bmm(dg, u).baddbmm_(g, du))
            of_radial.append(_summed(_total((x, dv), (v, dx)), 2))
            of_features.append(_summed(_total((r, dv), (v, dr)), 0))
            if everything:
                of_couplings.append(torch.bmm(a, du.mT))
        of_harmonics = slots.to_harmonics(of_couplings) if everything else None
        of_arguments = slots.to_radial(of_radial), *slots.to_features(of_features), *slots.results(sums)
        return None, None, of_harmonics, *of_arguments
