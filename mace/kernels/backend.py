"""The interface of the inner loops; its methods in torch define the results of all faster implementations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mace.graphs.graph import Graph
from mace.kernels.convolution import Convolution
from mace.kernels.gather import DirectedEdges, join_components, split_components
from mace.kernels.grouped import element_products
from mace.kernels.radial_table import RadialTable
from mace.kernels.symmetric_contraction import SymmetricContraction


class TabulatedRadial(NamedTuple):
    """Radial weights that are interpolated from a table when they are used.

    Attributes:
        table: The table, as returned by `Backend.prepare_table`.
        lengths: Lengths at which it is evaluated, in Angstrom, ``[pairs]``.
    """

    table: RadialTable
    lengths: Tensor


class Backend:
    """An implementation of the inner loops; this one uses torch, and others override what they do faster.

    To the model, features are ``[atoms, 2 l + 1, channels]``, with atoms sorted by element. Padding, blocks of channels
    and other memory layouts are internal to an implementation, as is what it reads from the tensors of a graph.

    Attributes:
        name: Its name on the command line.
        reads_tables_fast: Whether radial weights from a table are faster than those from a network.
        tf32: Whether programs may multiply matrices of float32 with TensorFloat-32.
    """

    name = "torch"
    reads_tables_fast = False
    tf32 = False

    def __deepcopy__(self, memo: dict[int, object]) -> Backend:
        """Return the back end itself: copies of a model share it."""
        return self

    def has_programs(self, device: torch.device) -> bool:
        """Return whether a model on a device may be evaluated by a program of compiled kernels instead."""
        return False

    def prepare(
        self,
        kernels: Collection[Convolution | SymmetricContraction],
        dtype: torch.dtype,
        tables: bool = False,
        sources: Collection[str] = (),
    ) -> None:
        """Do in advance what would otherwise take time at first use.

        Args:
            kernels: The convolutions and contractions that will be evaluated.
            dtype: The precision of the model.
            tables: Whether convolutions will read radial weights from tables.
            sources: Further sources to be compiled.

        Raises:
            mace.kernels.compiler.CompilationError: If the implementation cannot be used here.
        """

    def prepare_table(self, table: RadialTable) -> RadialTable:
        """Return a table in the layout that `convolve` reads fastest."""
        return table

    def radial(self, hidden: Tensor, weight: Tensor, n_paths: int) -> Tensor:
        """Evaluate the last layer of a radial network, in the layout that `convolve` needs.

        Args:
            hidden: The hidden layer before it, ``[rows, inputs]``.
            weight: Weights of the layer, ``[inputs, paths * channels]``.
            n_paths: Number of paths.

        Returns:
            The radial weights; their layout is internal to the implementation.
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
            convolution: The convolution, with its paths.
            features: By degree, ``[atoms, 2 l + 1, channels]``.
            radial: Radial weights as returned by `radial`, or a table.
            harmonics: Harmonics of the directed edge in each slot, ``[slots, (l_max + 1)^2]``.
            graph: The graph.
            edges: The directed edges, if radial weights belong to these and not to pairs.

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
        element_weights: Tensor | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor:
        """Mix the channels of every degree into the atomic basis, the input of `contract`.

        Args:
            rows: Features for each degree in increasing order, ``[atoms, 2 l + 1, inputs]``.
            weights: Matrix for each degree, ``[inputs, channels]``.
            graph: The graph.
            element_weights: Matrices of the elements to apply next, ``[degrees, elements, channels, channels]``.
            divisor: Divisor of the result for each atom, ``[atoms]``; None for none.

        Returns:
            ``[atoms, (l_max + 1)^2, channels]``.
        """
        # in memory [(l_max + 1)^2, atoms, channels], as the rows are
        values, components = [row.transpose(0, 1) for row in rows], [row.shape[1] for row in rows]
        if element_weights is not None and len({weight.shape for weight in weights}) == 1:
            of_elements = torch.stack(list(weights)).unsqueeze(1) @ element_weights
            mixed = element_products(join_components(values, dim=0), of_elements, components, graph)
        else:
            mixed = join_components([value @ weight for value, weight in zip(values, weights, strict=True)], dim=0)
            if element_weights is not None:
                mixed = element_products(mixed, element_weights, components, graph)
        return (mixed if divisor is None else mixed / divisor.unsqueeze(1)).transpose(0, 1)

    def multiply_by_element(self, rows: Sequence[Tensor], matrices: Tensor, graph: Graph) -> Sequence[Tensor]:
        """Multiply every atom's rows by the matrices of its element.

        Args:
            rows: For each degree, ``[atoms, 2 l + 1, inputs]``.
            matrices: ``[degrees, elements, inputs, outputs]``.
            graph: The graph.

        Returns:
            For each degree, ``[atoms, 2 l + 1, outputs]``.
        """
        components = [values.shape[1] for values in rows]
        joined_ = join_components([values.transpose(0, 1) for values in rows], dim=0)
        products = split_components(element_products(joined_, matrices, components, graph), components, dim=0)
        return [product.transpose(0, 1) for product in products]

    def contract(
        self,
        contraction: SymmetricContraction,
        atomic_basis: Tensor,
        weights: Mapping[tuple[int, int], Tensor],
        graph: Graph,
    ) -> dict[int, Tensor]:
        """Evaluate a symmetric contraction; see `mace.kernels.symmetric_contraction` for the equation.

        Args:
            contraction: The contraction.
            atomic_basis: The atomic basis, ``[atoms, (l_max + 1)^2, channels]``.
            weights: By degree and order, ``[elements, paths, channels]``, or ``[1, paths, channels]`` if shared by all.
            graph: The graph.

        Returns:
            By degree, ``[atoms, 2 l + 1, channels]``.
        """
        products = contraction(atomic_basis.permute(2, 1, 0), weights, *blocks_of_atoms(weights, graph))
        # in memory [2 l + 1, atoms, channels], as the products that follow need it
        return {degree: values.permute(1, 2, 0).contiguous().transpose(0, 1) for degree, values in products.items()}


def blocks_of_rows(
    rows: Sequence[Tensor], weights: Sequence[Tensor], element_weights: Tensor | None, graph: Graph
) -> Iterator[tuple[Sequence[Tensor], list[Tensor]]]:
    """Yield, for each degree, blocks of rows and their matrices: a single block, or one block per element."""
    matrices: Sequence[Tensor | None] = [None] * len(rows) if element_weights is None else element_weights.unbind(0)
    for values, weight, of_elements in zip(rows, weights, matrices, strict=True):
        if of_elements is None:
            yield (values,), [weight]
        else:  # unbind instead of indexing the parameter, whose derivative would fill zeros for each element
            chosen = of_elements.unbind(0)
            yield values.split(graph.element_counts), [weight @ chosen[element] for element in graph.elements_present]


def blocks_of_atoms(weights: Mapping[tuple[int, int], Tensor], graph: Graph) -> tuple[Tensor, tuple[int, ...]]:
    """Return which entries of a contraction's weights are used, and the number of atoms of each."""
    of_all = len(next(iter(weights.values()))) == 1
    if of_all:
        return graph.groups.index.new_zeros(1), (graph.n_atoms,)
    return graph.groups.index[: len(graph.elements_present)], graph.element_counts


def joined(pieces: list[Tensor], dim: int) -> Tensor:
    """Concatenate, without a copy if there is only one piece."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)


TORCH = Backend()
"""The reference implementation, for every device, differentiable any number of times."""
