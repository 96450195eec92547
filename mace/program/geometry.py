"""The geometry: from the vectors of the pairs to radial basis and harmonics, and back to the vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mace.kernels.c_source.geometry import GRAPH_POINTERS, GeometryShape, geometry_source
from mace.program.passes import Block, Pass, Tape
from mace.program.record import Array, Extent

PAIRS = Extent("pairs", 1, 1)
"""The pairs with the padding."""


class Geometry(Block):
    """Lengths, radial basis and harmonics; see `mace.kernels.c_source.geometry`.

    Args:
        shape: What the kernels depend on.
        r_max: Cutoff in Angstrom.
        graph: Arrays of the graph: those of `GRAPH_POINTERS`, of which what is missing is null, and those from which
            the vectors follow, ``positions``, ``cell`` and ``pair_shift``.
        tape: The tape.
        n_nodes: Number of nodes of radial tables; zero for none.
        has_basis: Whether anything reads the radial basis.
        repulsion: Whether nuclear repulsion is computed too.

    Attributes:
        vectors: Vectors of the pairs in Angstrom, written to an array of the caller, ``[pairs, 3]``.
        of_vectors: The gradient by them, an array of the caller, ``[pairs, 3]``.
        changes: Their tangent, an array of the caller, ``[pairs, 3]``.
        basis: Radial basis, ``[pairs, basis]``.
        harmonics: Harmonics, ``[slots, harmonics]`` in whole vectors.
        coefficients: With tables, intervals and factors of the pairs.
        repulsion: Half the repulsion of the pairs of each row, ``[atoms]``, if wanted.
        weights: What energies are multiplied by in the sum, an array of the caller, ``[atoms]``; for repulsion only.
    """

    def __init__(
        self,
        shape: GeometryShape,
        r_max: float,
        graph: Mapping[str, Array],
        tape: Tape,
        n_nodes: int = 0,
        has_basis: bool = True,
        repulsion: bool = False,
    ) -> None:
        self.shape, self.graph, self.n_nodes, self._has_basis, self._r_max = shape, graph, n_nodes, has_basis, r_max
        self.vectors, self.of_vectors, self.changes, self.weights = (
            Array(name, bytes=tape.bytes, external=True)
            for name in ("vectors", "gradient by vectors", "change of vectors", "weights of energies")
        )
        self.lengths = tape.new("lengths", PAIRS, 1)
        self.basis = tape.new("radial basis", PAIRS, shape.num_radial_basis)
        self.harmonics = tape.new("harmonics", "slots", tape.target.harmonics_width(shape.l_max))
        tape.varying.add(self.vectors)
        shares = Array("gradient of harmonics", Extent("slots of shares"), self.harmonics.width, tape.bytes)
        tape.use_companion(Pass.GRADIENT, self.harmonics, shares)
        self.coefficients = Array("intervals", PAIRS, 1, 8, integers=True), tape.new("factors", PAIRS, 12)
        self.repulsion = tape.new("repulsion", "atoms", 1) if repulsion else None
        if repulsion:
            self._of_pairs, self._slopes = (tape.new(f"{what} of repulsion", PAIRS, 1) for what in ("halves", "slopes"))
            self._of_lengths = tape.new("gradient by lengths", PAIRS, 1)

    def reads(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.vectors]

    def writes(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.lengths, self.basis, self.harmonics, *self.coefficients]

    def prepare(self, tape: Tape) -> None:
        """See `Block`."""

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        positions = [self.graph[name] for name in ("positions", "cell", "pair_shift")]
        self._launch(tape, "pair_vectors", [*positions, self.vectors])
        basis = self.basis if self._has_basis else None
        self._launch(tape, "geometry_value", [self.vectors, self.lengths, basis, None, self.harmonics])
        if self.n_nodes:
            self._launch(tape, "radial_coefficients", [self.lengths, *self.coefficients], [self.n_nodes])
        if self.repulsion:
            self._launch(tape, "repulsion_value", [self.lengths, self._of_pairs, self._slopes])
            self._launch(tape, "repulsion_rows", [self._of_pairs, self.repulsion], units=Extent("atoms"))
        for array in (self.lengths, self.basis, self.harmonics):
            tape.adds(array)

    def gradient(self, tape: Tape) -> None:
        """See `Block`."""
        of_basis = tape.of(Pass.GRADIENT, self.basis)
        of_lengths = None
        if self.repulsion:
            of_lengths = self._of_lengths
            self._launch(tape, "repulsion_gradient", [self._slopes, self.weights, of_lengths])
        arrays = [
            self.vectors,
            of_lengths,
            of_basis if tape.is_written(of_basis) else None,
            None,
            self.of_vectors,
            tape.written(Pass.GRADIENT, self.harmonics),
        ]
        self._launch(tape, "geometry_gradient", arrays, [int(self.n_nodes > 0), 1, Extent("threads")])

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        changes = [tape.of(Pass.TANGENT, array) for array in (self.basis, self.harmonics)]
        basis, harmonics = changes
        self._launch(tape, "geometry_tangent", [self.vectors, self.changes, None, basis, None, harmonics])
        for array in changes:
            tape.adds(array)

    def adjoint(self, tape: Tape) -> None:
        """See `Block`; nothing here has weights."""

    def _launch(
        self,
        tape: Tape,
        name: str,
        arrays: Sequence[Array | None],
        dimensions: Sequence[int | Extent] = (),
        units: Extent = PAIRS,
    ) -> None:
        graph = [self.graph.get(which) for which in GRAPH_POINTERS]
        sizes = [Extent("atoms"), Extent("neighbors"), PAIRS, self._r_max, *dimensions]
        tape.launch(tape.kernel(name, geometry_source, self.shape), [*graph, *arrays], sizes, units)
