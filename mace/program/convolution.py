"""The convolution of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mace.kernels.c_source.convolution import ConvolutionLayout, convolution_source, tabulated_source
from mace.kernels.c_source.matrices import PACKED, PLAIN
from mace.program.linear import Weight, packed
from mace.program.passes import Block, Pass, Tape
from mace.program.products import Product
from mace.program.record import Array, Extent, Word


@dataclass(frozen=True)
class Edges:
    """Arrays of the graph that convolutions read; see `mace.graphs.graph.Graph`."""

    neighbor_count: Array
    sender_of_slot: Array
    pair_of_slot: Array
    reverse_of_slot: Array
    slots_of_pair: Array

    def all(self) -> tuple[Array, ...]:
        """Return those of slots, with which kernels begin; those of gradients by radial weights end with the other."""
        return self.neighbor_count, self.sender_of_slot, self.pair_of_slot, self.reverse_of_slot


class Convolve(Block):
    """A convolution; see `mace.kernels.c_source.convolution`.

    Args:
        layout: Its paths.
        coupling: Its coefficients, ``[harmonics, sum over paths of (2 l3 + 1) (2 l1 + 1)]``, an array of the caller.
        n_coupling: Number of columns of the coefficients.
        harmonics: Harmonics of the slots.
        radial: Radial weights of the pairs, as `RadialOutput` writes them.
        features: By degree of ``layout.l_in``, ``[atoms, 2 l + 1, channels]`` in whole vectors.
        results: By degree, ``[atoms, 2 l + 1, paths, channels]``.
        width: Number of channels, in whole vectors.
        edges: Arrays of the graph.
    """

    def __init__(
        self,
        layout: ConvolutionLayout,
        coupling: Array,
        n_coupling: int,
        harmonics: Array,
        radial: Array,
        features: Sequence[Array],
        results: Sequence[Array],
        width: int,
        edges: Edges,
    ) -> None:
        self.layout, self.coupling, self.n_coupling = layout, coupling, n_coupling
        self.harmonics, self.radial, self.features, self.results = harmonics, radial, tuple(features), tuple(results)
        self.width, self.edges = width, edges

    def reads(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.harmonics, self.radial, *self.features]

    def writes(self) -> Sequence[Array]:
        """See `Block`."""
        return self.results

    def prepare(self, tape: Tape) -> None:
        """Pack the coefficients, where matrices are packed."""
        self._coefficients: dict[str, Any] = {
            "b": self.coupling.at(),
            "b_storage": PLAIN,
            "b_depth": self.n_coupling,
            "b_vector": tape.lanes,
        }
        if tape.target.most_packed:
            weight = Weight(self.coupling, (self.layout.l_max + 1) ** 2, self.n_coupling)
            array, packing = packed(tape, weight, 1, transposed=False)
            tape.launch_list(tape.matrix_kernel("packing"), packing)
            self._coefficients = {"b": array.at(), "b_storage": PACKED}
        self._matrices = tape.new("coupling of edges", "slots", self.n_coupling)

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        self._couple(tape, Pass.VALUE)
        self._launch(tape, "conv_forward", (*self._inputs(), *self.results))
        for array in self.results:
            tape.adds(array)

    def gradient(self, tape: Tape) -> None:
        """See `Block`; gradients of the harmonics are one array for each share, added to by all layers."""
        of_features = self._gradients_of_features(tape, Pass.GRADIENT)
        of_radial, of_harmonics = tape.of(Pass.GRADIENT, self.radial), tape.written(Pass.GRADIENT, self.harmonics)
        adds = tape.adds_to_pairs(of_radial, self.edges.slots_of_pair)
        given = [tape.written(Pass.GRADIENT, array) for array in self.results]
        arrays = (*self._inputs(), *given, of_radial, *of_features, of_harmonics, self.edges.slots_of_pair)
        self._launch(tape, "conv_backward_full", arrays, adds)

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        self._couple(tape, Pass.TANGENT)
        matrices = tape.of(Pass.TANGENT, self._matrices)
        changes = [tape.written(Pass.TANGENT, array) for array in (self.radial, *self.features)]
        results = [tape.of(Pass.TANGENT, array) for array in self.results]
        of_radial = tape.of(Pass.ADJOINT, self.radial)
        adds = tape.adds_to_pairs(of_radial, self.edges.slots_of_pair)
        of_features = [tape.written(Pass.ADJOINT, array) for array in self.features]
        given = [tape.of(Pass.GRADIENT, array) for array in self.results]
        gradients = (*results, of_radial, *of_features, self.edges.slots_of_pair)
        self._launch(tape, "conv_second", (*self._inputs(), *given, matrices, *changes, *gradients), adds)
        for array in results:
            tape.adds(array)

    def adjoint(self, tape: Tape) -> None:
        """See `Block`."""
        if not any(tape.is_wanted(Pass.ADJOINT, array) for array in (self.radial, *self.features)):
            return
        of_features = self._gradients_of_features(tape, Pass.ADJOINT)
        of_radial = tape.of(Pass.ADJOINT, self.radial)
        adds = tape.adds_to_pairs(of_radial, self.edges.slots_of_pair)
        given = [tape.written(Pass.ADJOINT, array) for array in self.results]
        arrays = (*self._inputs(), *given, of_radial, *of_features, self.edges.slots_of_pair)
        self._launch(tape, "conv_backward_parameters", arrays, adds)

    def _gradients_of_features(self, tape: Tape, kind: Pass) -> list[Array | None]:
        """Return the arrays to which gradients of the features are added; None where they lead to nothing."""
        return [tape.written(kind, array) if tape.is_wanted(kind, array) else None for array in self.features]

    def _inputs(self) -> tuple[Array, ...]:
        return (*self.edges.all(), self._matrices, self.radial, *self.features)

    def _couple(self, tape: Tape, kind: Pass) -> None:
        """Contract the coefficients with the harmonics of every slot."""
        matrices = tape.of(kind, self._matrices)
        tape.adds(matrices)
        tape.products(
            [
                Product(
                    rows=Extent("slots"),
                    columns=self.n_coupling,
                    depth=(self.layout.l_max + 1) ** 2,
                    a=tape.written(kind, self.harmonics).at(),
                    a_outer=self.harmonics.width,
                    **self._coefficients,
                    c=matrices.at(),
                    c_outer=self.n_coupling,
                    c_vector=tape.lanes,
                )
            ]
        )

    def _launch(
        self, tape: Tape, name: str, arrays: Sequence[Array | None], adds: bool = False, n_nodes: int = 0
    ) -> None:
        blocks = self.width // tape.lanes
        sizes: list[Word] = [Extent("atoms"), Extent("neighbors"), Extent("pairs"), self.width, blocks]
        source = tabulated_source if n_nodes else convolution_source
        tape.launch(tape.kernel(name, source, self.layout), arrays, [*sizes, n_nodes, int(adds)], blocks)


class ConvolveTabulated(Convolve):
    """A convolution that reads radial weights from a table, for evaluation only.

    Args:
        table: The table in the layout of the kernels, an array of the caller.
        n_nodes: Number of its nodes.
        intervals: Interval of every pair, from the geometry.
        of_convolve: Arguments of `Convolve`; the radial weights are the interpolation factors of the pairs.
    """

    def __init__(self, table: Array, n_nodes: int, intervals: Array, *of_convolve: Any) -> None:
        super().__init__(*of_convolve)
        self._n_nodes, self._tail = n_nodes, (table, intervals)

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        self._couple(tape, Pass.VALUE)
        arrays = (*self._inputs(), *self.results, *self._tail)
        self._launch(tape, "conv_forward_tabulated", arrays, n_nodes=self._n_nodes)
        for array in self.results:
            tape.adds(array)

    def gradient(self, tape: Tape) -> None:
        """See `Block`; the gradient by lengths is in the place of the first harmonic."""
        of_features = self._gradients_of_features(tape, Pass.GRADIENT)
        of_harmonics = tape.written(Pass.GRADIENT, self.harmonics)
        given = [tape.written(Pass.GRADIENT, array) for array in self.results]
        arrays = (*self._inputs(), *given, *of_features, of_harmonics, *self._tail)
        self._launch(tape, "conv_backward_tabulated", arrays, n_nodes=self._n_nodes)
