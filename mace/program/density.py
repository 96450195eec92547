r"""Division of an atom's sums by a learned density.

The density of atom ``i`` is :math:`\rho_i = \sum_j \tanh(q_{ij}^2)` over its neighbors, and its features are multiplied
by :math:`f_i = 1 / (1 + \rho_i)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mace.kernels.c_source.density import density_source
from mace.program.passes import Block, Pass, Tape
from mace.program.record import Array, Extent


class Density(Block):
    """The factor of each row.

    Args:
        inputs: ``q`` of the pairs.
        factors: ``f`` of the rows.
        neighbor_count: Array of the graph; see `mace.graphs.graph.Graph`, as for the others.
        pair_of_slot: See there.
        pairs: The arrays ``pair_sender``, ``pair_receiver`` and ``row_of_atom``.
    """

    def __init__(
        self, inputs: Array, factors: Array, neighbor_count: Array, pair_of_slot: Array, pairs: Sequence[Array]
    ) -> None:
        self.inputs, self.factors, self._slots, self._pairs = inputs, factors, (neighbor_count, pair_of_slot), pairs

    def reads(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.inputs]

    def writes(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.factors]

    def prepare(self, tape: Tape) -> None:
        """See `Block`."""

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        self._rows(tape, "density_value", self.inputs, self.factors)
        tape.adds(self.factors)

    def gradient(self, tape: Tape) -> None:
        """See `Block`."""
        target = tape.of(Pass.GRADIENT, self.inputs)
        tape.adds(target)
        self._of_pairs(tape, "density_gradient", tape.written(Pass.GRADIENT, self.factors), target)

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        change, result = tape.written(Pass.TANGENT, self.inputs), tape.of(Pass.TANGENT, self.factors)
        self._rows(tape, "density_tangent", self.inputs, change, self.factors, result)
        tape.adds(result)
        target = tape.of(Pass.ADJOINT, self.inputs)
        tape.adds(target)
        self._of_pairs(tape, "density_second", tape.of(Pass.GRADIENT, self.factors), change, result, target)

    def adjoint(self, tape: Tape) -> None:
        """See `Block`."""
        if not tape.is_wanted(Pass.ADJOINT, self.inputs):
            return
        target = tape.of(Pass.ADJOINT, self.inputs)
        name = "density_adjoint" if tape.adds(target) else "density_gradient"
        self._of_pairs(tape, name, tape.written(Pass.ADJOINT, self.factors), target)

    def _rows(self, tape: Tape, name: str, *arrays: Array) -> None:
        which = tape.kernel(name, density_source)
        tape.launch(which, [*self._slots, *arrays], [Extent("neighbors"), Extent("atoms")], Extent("atoms"))

    def _of_pairs(self, tape: Tape, name: str, *arrays: Array) -> None:
        which = tape.kernel(name, density_source)
        tape.launch(which, [*self._pairs, self.inputs, self.factors, *arrays], [Extent("pairs")], Extent("pairs"))


class Scaled(Block):
    """Features times a factor for each row.

    Args:
        factors: ``f`` of the rows.
        source: The features, in whole vectors.
        target: The product.
    """

    def __init__(self, factors: Array, source: Array, target: Array) -> None:
        self.factors, self.source, self.target = factors, source, target

    def reads(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.factors, self.source]

    def writes(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.target]

    def prepare(self, tape: Tape) -> None:
        """See `Block`."""

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        self._launch(tape, "scaled_value", self.target)
        tape.adds(self.target)

    def gradient(self, tape: Tape) -> None:
        """See `Block`."""
        self._launch(tape, "scaled_gradient", tape.written(Pass.GRADIENT, self.target), *self._set(tape, Pass.GRADIENT))

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        changes = [tape.written(Pass.TANGENT, array) for array in (self.source, self.factors)]
        result, given = tape.of(Pass.TANGENT, self.target), tape.of(Pass.GRADIENT, self.target)
        self._launch(tape, "scaled_second", given, *changes, result, *self._set(tape, Pass.ADJOINT))
        tape.adds(result)

    def adjoint(self, tape: Tape) -> None:
        """See `Block`."""
        if not tape.is_wanted(Pass.ADJOINT, self.target):
            return
        targets = [tape.of(Pass.ADJOINT, array) for array in (self.source, self.factors)]
        name = "scaled_adjoint" if tape.is_written(targets[0]) else "scaled_gradient"
        for array in targets:
            tape.adds(array)
        self._launch(tape, name, tape.written(Pass.ADJOINT, self.target), *targets)

    def _set(self, tape: Tape, kind: Pass) -> list[Array]:
        companions = [tape.of(kind, array) for array in (self.source, self.factors)]
        for companion in companions:
            assert not tape.adds(companion), "nothing else reads these"
        return companions

    def _launch(self, tape: Tape, name: str, *arrays: Array) -> None:
        which = tape.kernel(name, density_source)
        tape.launch(which, [self.factors, self.source, *arrays], [self.source.width, Extent("atoms")], Extent("atoms"))
