"""What a model asks of the inner loops; the methods here, in torch, define what faster implementations must equal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mace.graphs.graph import Graph
from mace.kernels.convolution import Convolution
from mace.kernels.gather import DirectedEdges, join_components
from mace.kernels.radial_table import RadialTable
from mace.kernels.symmetric_contraction import SymmetricContraction


class TabulatedRadial(NamedTuple):
    """Radial weights that are read from a table where they are used.

    Attributes:
        table: The table, as `Backend.prepare_table` returned it.
        lengths: Where it is read, Angstrom, ``[pairs]``.
    """

    table: RadialTable
    lengths: Tensor


class Backend:
    """An implementation of the inner loops; this one is in torch, another one overrides what it does faster.

    Seen from the model, features are ``[atoms, 2 l + 1, channels]``, atoms in the order of their elements. Padding,
    blocks of channels and other orders in memory are an implementation's own affair, as is what it has to read from
    the tensors of a graph.

    Attributes:
        name: Its word on the command line.
        reads_tables_fast: Whether radial weights from a table cost less than those of a network.
    """

    name = "torch"
    reads_tables_fast = False

    def prepare(
        self, kernels: Collection[Convolution | SymmetricContraction], dtype: torch.dtype, tables: bool = False
    ) -> None:
        """Do now what would otherwise take time at the first use.

        Args:
            kernels: What will be evaluated.
            dtype: The precision of the model.
            tables: Whether convolutions will read radial weights from tables.

        Raises:
            mace.kernels.compiler.CompilationError: If the implementation cannot be used here.
        """

    def prepare_table(self, table: RadialTable) -> RadialTable:
        """Return a table as `convolve` reads it best."""
        return table

    def radial(self, hidden: Tensor, weight: Tensor, n_paths: int) -> Tensor:
        """Evaluate the last layer of a radial network, as `convolve` wants it.

        Args:
            hidden: The hidden layer before it, ``[rows, inputs]``.
            weight: ``[inputs, paths * channels]``.
            n_paths: Number of paths.

        Returns:
            The radial weights; what their axes mean is known to the implementation alone.
        """
        return (hidden @ weight).view(len(hidden), n_paths, -1)

    def convolve(
        self,
        convolution: Convolution,
        features: Mapping[int, Tensor],
        radial: Tensor | TabulatedRadial,
        harmonics: Tensor,
        graph: Graph,
        edges: DirectedEdges | None = None,
    ) -> dict[int, Tensor]:
        """Sum over neighbors; see `mace.kernels.convolution` for the equation.

        Args:
            convolution: Which paths there are.
            features: By degree, ``[atoms, 2 l + 1, channels]``.
            radial: What `radial` returned, or a table.
            harmonics: Harmonics of the directed edge in each slot, ``[slots, (l_max + 1)^2]``.
            graph: The graph.
            edges: The directed edges, if radial weights are theirs and not those of pairs.

        Returns:
            By resulting degree, ``[atoms, 2 l + 1, paths of the degree * channels]``.
        """
        weights = radial.table.evaluate(radial.lengths) if isinstance(radial, TabulatedRadial) else radial
        return convolution(features, weights, harmonics, graph, edges)

    def mix(
        self,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        graph: Graph,
        element_weights: Sequence[Tensor] | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor:
        """Mix the channels of every degree into the atomic basis, which `contract` takes.

        Args:
            rows: For each degree in rising order, ``[atoms, 2 l + 1, inputs]``.
            weights: For each, ``[inputs, channels]``.
            graph: The graph.
            element_weights: For each, matrices that follow for each element, ``[elements, channels, channels]``.
            divisor: What all is divided by, ``[atoms]``.

        Returns:
            ``[atoms, (l_max + 1)^2, channels]``.
        """
        # in memory [channels, (l_max + 1)^2, atoms]: so the products leave it, and so the contraction reads it
        mixed = []
        for pieces, matrices in blocks_of_rows(rows, weights, element_weights, graph):
            products = []
            for piece, matrix in zip(pieces, matrices, strict=True):
                flat = piece.transpose(0, 1).flatten(0, 1)
                products.append((matrix.t() @ flat.t()).view(-1, piece.shape[1], piece.shape[0]))
            of_degree = joined(products, dim=2)
            mixed.append(of_degree if divisor is None else of_degree / divisor)
        return join_components(mixed).permute(2, 1, 0)

    def multiply_by_element(self, rows: Tensor, matrices: Tensor, graph: Graph) -> Tensor:
        """Multiply every atom's rows by the matrix of its element.

        Args:
            rows: ``[atoms, 2 l + 1, inputs]``.
            matrices: ``[elements, inputs, outputs]``.
            graph: The graph.

        Returns:
            ``[atoms, 2 l + 1, outputs]``.
        """
        pieces, chosen = rows.split(graph.element_counts), matrices.unbind(0)
        return torch.cat([piece @ chosen[e] for piece, e in zip(pieces, graph.elements_present, strict=True)])

    def contract(
        self,
        contraction: SymmetricContraction,
        atomic_basis: Tensor,
        weights: Mapping[tuple[int, int], Tensor],
        graph: Graph,
    ) -> dict[int, Tensor]:
        """Evaluate a symmetric contraction; see `mace.kernels.symmetric_contraction` for the equation.

        Args:
            contraction: Which one.
            atomic_basis: ``[atoms, (l_max + 1)^2, channels]``.
            weights: By degree and order, ``[elements, paths, channels]``; or ``[1, paths, channels]`` for all elements.
            graph: The graph.

        Returns:
            By degree, ``[atoms, 2 l + 1, channels]``.
        """
        products = contraction(atomic_basis.permute(2, 1, 0), weights, *blocks_of_atoms(weights, graph))
        return {degree: values.permute(2, 1, 0) for degree, values in products.items()}


def blocks_of_rows(
    rows: Sequence[Tensor], weights: Sequence[Tensor], element_weights: Sequence[Tensor] | None, graph: Graph
) -> Iterator[tuple[Sequence[Tensor], list[Tensor]]]:
    """Yield, for each degree, blocks of rows and the matrix of each: one of all atoms, or one of each element."""
    none: Sequence[Tensor | None] = [None] * len(rows)
    for values, weight, of_elements in zip(rows, weights, element_weights or none, strict=True):
        if of_elements is None:
            yield (values,), [weight]
        else:  # matrices of each element, not views into the parameter, whose derivative fills zeros
            chosen = of_elements.unbind(0)
            yield values.split(graph.element_counts), [weight @ chosen[element] for element in graph.elements_present]


def blocks_of_atoms(weights: Mapping[tuple[int, int], Tensor], graph: Graph) -> tuple[Sequence[int], Sequence[int]]:
    """Return which elements of the weights of a contraction occur, and how many atoms there are of each."""
    of_all = len(next(iter(weights.values()))) == 1
    return ((0,), (graph.n_atoms,)) if of_all else (graph.elements_present, graph.element_counts)


def joined(pieces: list[Tensor], dim: int) -> Tensor:
    """Concatenate, without a copy if there is but one piece."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)


TORCH = Backend()
"""The implementation that defines the others, on every device and differentiable as often as wanted."""
