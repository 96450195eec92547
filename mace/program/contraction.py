"""The symmetric contraction of a layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mace.kernels.c_source.contraction import ContractionTerms, contraction_source
from mace.kernels.c_source.matrices import EACH_GROUP
from mace.program.linear import Groups
from mace.program.passes import Block, Pass, Tape
from mace.program.products import Product
from mace.program.record import Array, Extent, Word


class Contract(Block):
    """A symmetric contraction; see `mace.kernels.c_source.contraction`.

    Args:
        terms: Its terms.
        weights: Parameters by degree and order, ``[elements or 1, paths, channels]``.
        tables: By degree and order, the coefficients of paths on terms, ``[terms, paths]``, and their transposes,
            arrays of the caller, with their numbers of terms and paths.
        features: The atomic basis, ``[atoms, (l_max + 1)^2, channels]`` in whole vectors.
        results: By degree, ``[atoms, 2 l + 1, channels]``.
        n_channels: Number of channels.
        width: The same in whole vectors.
        place: Place of each row's element among those present, an array of the caller.
        groups: The elements present, or a single group for all.
        n_groups: Their number.
    """

    def __init__(
        self,
        terms: ContractionTerms,
        weights: Mapping[tuple[int, int], Array],
        tables: Mapping[tuple[int, int], tuple[Array, Array, tuple[int, ...]]],
        features: Array,
        results: Sequence[Array],
        n_channels: int,
        width: int,
        place: Array,
        groups: Groups,
        n_groups: Extent,
    ) -> None:
        self.terms, self.weights, self.tables = terms, dict(weights), dict(tables)
        self.features, self.results = features, tuple(results)
        self.n_channels, self.width, self.place, self.groups = n_channels, width, place, groups
        self.n_groups, self._n_terms = n_groups, terms.n_terms()

    def reads(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.features, *self.weights.values()]

    def writes(self) -> Sequence[Array]:
        """See `Block`."""
        return self.results

    def prepare(self, tape: Tape) -> None:
        """Carry the weights of paths onto terms, ``[elements present, blocks of channels, terms, lanes]``."""
        self._carried = tape.new("weights of terms", self.n_groups, self._n_terms * self.width)
        if self.n_channels < self.width:
            tape.zero(self._carried)
        tape.adds(self._carried)
        products = []
        for key, first in self._first_terms().items():
            table, _, (n_terms, n_paths) = self.tables[key]
            products.append(
                Product(
                    rows=n_terms,
                    columns=self.n_channels,
                    depth=n_paths,
                    a=table.at(),
                    a_outer=n_paths,
                    b=self.weights[key].at(),
                    b_depth=self.n_channels,
                    b_vector=tape.lanes,
                    b_group=n_paths * self.n_channels,
                    b_by_index=True,
                    c=self._carried.at(first * tape.lanes),
                    c_outer=tape.lanes,
                    c_vector=self._n_terms * tape.lanes,
                    c_group=self._n_terms * self.width,
                    c_whole=True,
                    **self._each_element(),
                )
            )
        tape.products(products)

    def _first_terms(self) -> dict[tuple[int, int], int]:
        """Return the number of the first term of every degree and order."""
        counts = [n_terms for _, _, (n_terms, _) in self.tables.values()]
        return dict(zip(self.tables, itertools.accumulate([0, *counts]), strict=False))

    def _each_element(self) -> dict[str, Any]:
        starts, index = self.groups.starts, self.groups.index
        return {"grouping": EACH_GROUP, "groups": self.n_groups, "group_starts": starts, "group_index": index}

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        self._launch(tape, "contraction_forward", (*self._inputs(), *self.results))
        for array in self.results:
            tape.adds(array)

    def gradient(self, tape: Tape) -> None:
        """See `Block`."""
        given = [tape.written(Pass.GRADIENT, array) for array in self.results]
        target = tape.of(Pass.GRADIENT, self.features)
        self._launch(tape, "contraction_backward_features", (*self._inputs(), *given, target), tape.adds(target))

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        given = [tape.of(Pass.GRADIENT, array) for array in self.results]
        change = tape.written(Pass.TANGENT, self.features)
        results = [tape.of(Pass.TANGENT, array) for array in self.results]
        target, of_weights = (tape.of(Pass.ADJOINT, array) for array in (self.features, self._carried))
        arrays = (*self._inputs(), *given, change, *results, target, of_weights, *self._set_aside(tape))
        self._launch(tape, "contraction_second", arrays, tape.adds(target), clears=not tape.adds(of_weights))
        for array in results:
            tape.adds(array)

    def adjoint(self, tape: Tape) -> None:
        """See `Block`; the gradient by the weights of terms is that of both passes, carried back to paths."""
        target, of_weights = (tape.of(Pass.ADJOINT, array) for array in (self.features, self._carried))
        trained = [key for key in self.tables if self.weights[key] in tape.trained]
        if not trained and not tape.is_wanted(Pass.ADJOINT, self.features):
            return
        arrays = (*self._inputs(), *(tape.written(Pass.ADJOINT, array) for array in self.results), target)
        if not trained:
            self._launch(tape, "contraction_backward_features", arrays, tape.adds(target))
            return
        clears = not tape.adds(of_weights)
        arrays = (*arrays, of_weights, *self._set_aside(tape))
        self._launch(tape, "contraction_backward_full", arrays, tape.adds(target), clears)
        products, first_terms = [], self._first_terms()
        for key in trained:
            _, transposed, (n_terms, n_paths) = self.tables[key]
            products.append(
                Product(
                    rows=n_paths,
                    columns=self.n_channels,
                    depth=n_terms,
                    a=transposed.at(),
                    a_outer=n_terms,
                    b=of_weights.at(first_terms[key] * tape.lanes),
                    b_depth=tape.lanes,
                    b_vector=self._n_terms * tape.lanes,
                    b_group=self._n_terms * self.width,
                    c=tape.gradient_of(self.weights[key]).at(),
                    c_outer=self.n_channels,
                    c_vector=tape.lanes,
                    c_group=n_paths * self.n_channels,
                    c_by_index=True,
                    add=True,
                    **self._each_element(),
                )
            )
        tape.products(products)

    def _set_aside(self, tape: Tape) -> list[Array]:
        """Return the array for sums over chunks of rows, where kernels run in chunks."""
        width = tape.target.chunks_of_rows * self._n_terms * self.width
        return [tape.scratch(width)] if width else []

    def _inputs(self) -> tuple[Array, ...]:
        return self.place, self.features, self._carried

    def _launch(self, tape: Tape, name: str, arrays: Sequence[Array], adds: bool = False, clears: bool = False) -> None:
        blocks = self.width // tape.lanes
        which = tape.kernel(name, contraction_source, self.terms)
        sizes: list[Word] = [Extent("atoms"), self.width, blocks, int(adds), int(clears), self.n_groups]
        tape.launch(which, arrays, sizes, blocks)
