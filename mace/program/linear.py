"""Linear maps and activations, the blocks of which networks consist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mace.kernels.c_source.matrices import BY_ROWS, PACKED, PLAIN, ROW_GROUPS, SUM_GROUPS
from mace.program.passes import Block, Pass, Tape
from mace.program.products import Product
from mace.program.record import Array, Extent, Pointer


@dataclass(frozen=True)
class View:
    """Rows of numbers in an array: of every atom, pair or slot, and of every component.

    Attributes:
        array: The array.
        width: Numbers per row.
        outer: Distance between atoms, pairs or slots.
        inner: Distance between components.
        n_inner: Number of components.
        offset: Place of the first number.
        vector: Distance between vectors of a row; None where they follow each other.
        padded: Whether rows are rounded up to whole vectors, with zeros.
    """

    array: Array
    width: int
    outer: int
    inner: int = 0
    n_inner: int = 1
    offset: int = 0
    vector: int | None = None
    padded: bool = True

    def at(self, array: Array) -> Pointer:
        """Return the place of the first number in a companion of the array."""
        return array.at(self.offset)


@dataclass(frozen=True)
class Weight:
    """A matrix ``[inputs, outputs]``, or one for each element, in a parameter.

    Attributes:
        array: The parameter.
        n_in: Number of inputs.
        n_out: Number of outputs.
        offset: Place of the first number.
        row: Distance between rows.
        group: Distance between the matrices of elements.
    """

    array: Array
    n_in: int
    n_out: int
    offset: int = 0
    row: int = 0
    group: int = 0

    @property
    def distance(self) -> int:
        """Distance between rows."""
        return self.row or self.n_out


@dataclass(frozen=True)
class Groups:
    """The elements: where the rows of each that is present begin, the number of its matrix, and how many there are."""

    starts: Array
    index: Array
    n_elements: int


@dataclass(frozen=True)
class Map:
    """A linear map from one view to another, times a factor."""

    source: View
    target: View
    weight: Weight
    scale: float = 1.0


class Linear(Block):
    """Linear maps, such as those of all degrees; no two have the same source or target.

    Args:
        maps: The maps.
        rows: What their rows belong to: ``atoms``, ``pairs`` or ``slots``.
        groups: The elements, if each has matrices of its own.
        adds: Whether results are added to what another block has written.
        partial: Whether other blocks read or write other parts of the same arrays.
    """

    def __init__(
        self,
        maps: Sequence[Map],
        rows: str,
        groups: Groups | None = None,
        adds: bool = False,
        partial: bool = False,
    ) -> None:
        self.maps, self.rows, self.groups, self.adds, self.partial = tuple(maps), rows, groups, adds, partial
        self._forward: dict[Map, Array] = {}
        self._backward: dict[Map, Array] = {}

    def reads(self) -> Sequence[Array]:
        """See `Block`."""
        return [array for entry in self.maps for array in (entry.source.array, entry.weight.array)]

    def writes(self) -> Sequence[Array]:
        """See `Block`."""
        return [entry.target.array for entry in self.maps]

    def prepare(self, tape: Tape) -> None:
        """Pack the matrices, unless there are too many, those of as many elements."""
        n_matrices = self.groups.n_elements if self.groups else 1
        if n_matrices > tape.target.most_packed:
            return
        records = []
        for entry in self.maps:
            w = entry.weight
            self._forward[entry], packing = packed(tape, w, n_matrices, transposed=False)
            records += packing
            if any(tape.is_wanted(kind, entry.source.array) for kind in (Pass.GRADIENT, Pass.ADJOINT)):
                self._backward[entry], packing = packed(tape, w, n_matrices, transposed=True)
                records += packing
        tape.launch_list(tape.matrix_kernel("packing"), records)

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        tape.products(self._forwards(tape, Pass.VALUE))

    def gradient(self, tape: Tape) -> None:
        """See `Block`."""
        tape.products(self._backwards(tape, Pass.GRADIENT))

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        of_weights = self._gradients_of_weights(tape, Pass.TANGENT, Pass.GRADIENT)
        tape.products(self._forwards(tape, Pass.TANGENT) + of_weights)

    def adjoint(self, tape: Tape) -> None:
        """See `Block`."""
        of_weights = self._gradients_of_weights(tape, Pass.VALUE, Pass.ADJOINT)
        tape.products(self._backwards(tape, Pass.ADJOINT) + of_weights)

    def _forwards(self, tape: Tape, kind: Pass) -> list[Product]:
        products = []
        for entry in self.maps:
            x, y, w = entry.source, entry.target, entry.weight
            if kind is Pass.TANGENT and x.array not in tape.varying:
                continue
            target = tape.of(kind, y.array)
            if self.partial:
                tape.zero(target)
            products.append(
                Product(
                    **_rows(self.rows, x, y, tape, tape.written(kind, x.array), target),
                    **self._matrix(w, self._forward.get(entry), PLAIN, tape.lanes),
                    columns=w.n_out,
                    depth=w.n_in,
                    add=self.adds and tape.is_written(target),
                    scale=entry.scale,
                )
            )
        for entry in self.maps:
            if kind is Pass.VALUE or entry.source.array in tape.varying:
                tape.adds(tape.of(kind, entry.target.array))
        return products

    def _backwards(self, tape: Tape, kind: Pass) -> list[Product]:
        products = []
        maps = [entry for entry in self.maps if tape.is_wanted(kind, entry.source.array)]
        # several maps may come from different parts of an array
        adds = {}
        for target in dict.fromkeys(tape.of(kind, entry.source.array) for entry in maps):
            if self.partial:
                tape.zero(target)
            adds[target] = tape.adds(target)
        for entry in maps:
            x, y, w = entry.source, entry.target, entry.weight
            given, target = tape.written(kind, y.array), tape.of(kind, x.array)
            products.append(
                Product(
                    **_rows(self.rows, y, x, tape, given, target),
                    **self._matrix(w, self._backward.get(entry), BY_ROWS, tape.lanes),
                    columns=w.n_in,
                    depth=w.n_out,
                    add=adds[target],
                    scale=entry.scale,
                )
            )
        return products

    def _matrix(self, w: Weight, packed_matrix: Array | None, storage: int, lanes: int) -> dict[str, Any]:
        """Return the fields of a product that say where its matrix lies: packed, or as it is in the parameter."""
        grouping: dict[str, Any] = {}
        if self.groups is not None:
            starts, index = self.groups.starts, self.groups.index
            grouping = {"grouping": ROW_GROUPS, "group_starts": starts, "group_index": index, "b_by_index": True}
        if packed_matrix is not None:
            n_matrices = self.groups.n_elements if self.groups else 1
            return grouping | {
                "b": packed_matrix.at(),
                "b_storage": PACKED,
                "b_group": packed_matrix.width // n_matrices,
            }
        return grouping | {
            "b": w.array.at(w.offset),
            "b_storage": storage,
            "b_depth": w.distance,
            "b_vector": lanes,
            "b_group": w.group,
        }

    def _gradients_of_weights(self, tape: Tape, of_source: Pass, of_target: Pass) -> list[Product]:
        """Return the products of source and target, summed over the rows."""
        products = []
        for entry in self.maps:
            x, y, w = entry.source, entry.target, entry.weight
            if w.array not in tape.trained or (of_source is Pass.TANGENT and x.array not in tape.varying):
                continue
            groups: dict[str, Any] = {}
            if self.groups:
                groups = {
                    "grouping": SUM_GROUPS,
                    "group_starts": self.groups.starts,
                    "group_index": self.groups.index,
                    "c_group": w.group,
                    "c_by_index": True,
                }
            products.append(
                Product(
                    rows=w.n_in,
                    columns=w.n_out,
                    depth=Extent(self.rows),
                    segments=x.n_inner,
                    a=x.at(tape.written(of_source, x.array)),
                    a_outer=1,
                    a_depth=x.outer,
                    a_segment=x.inner,
                    b=y.at(tape.written(of_target, y.array)),
                    b_depth=y.outer,
                    b_vector=y.vector or tape.lanes,
                    b_segment=y.inner,
                    c=tape.gradient_of(w.array).at(w.offset),
                    c_outer=w.distance,
                    c_vector=tape.lanes,
                    add=True,
                    scale=entry.scale,
                    **groups,
                )
            )
        return products


def _rows(rows: str, x: View, y: View, tape: Tape, a: Array, c: Array) -> dict[str, Any]:
    """Return the fields of a product that say where the rows of source and target lie."""
    return {
        "rows": Extent(rows, x.n_inner),
        "inner": x.n_inner,
        "a": x.at(a),
        "a_outer": x.outer,
        "a_inner": x.inner,
        "c": y.at(c),
        "c_outer": y.outer,
        "c_inner": y.inner,
        "c_vector": y.vector or tape.lanes,
        "c_whole": y.padded,
    }


def packed(tape: Tape, w: Weight, n_matrices: int, transposed: bool) -> tuple[Array, list[tuple[Pointer | int, ...]]]:
    """Return the array of packed matrices, and the records for packing them."""
    n_in, n_out = (w.n_out, w.n_in) if transposed else (w.n_in, w.n_out)
    panel = tape.target.panel
    size = n_in * -(-n_out // panel) * panel
    array = Array(f"packed {w.array.name}", Extent("one"), n_matrices * size, tape.bytes)
    row, column = (1, w.distance) if transposed else (w.distance, 1)
    return array, [
        (w.array.at(w.offset + number * w.group), array.at(number * size), n_in, n_out, row, column, n_in)
        for number in range(n_matrices)
    ]


class RadialOutput(Linear):
    """The last layer of a radial network: a linear map for each path, from one source to one target.

    Its target lies ``[pairs, blocks of channels, paths, lanes]``, as convolutions read it.

    Args:
        source: The hidden layer.
        target: The radial weights.
        weight: The parameter, ``[inputs, paths * channels]``.
        n_inputs: Width of the hidden layer.
        n_paths: Number of paths.
        n_channels: Number of channels.
        scale: A factor on the results.
        lanes: Channels of a vector.
    """

    def __init__(
        self,
        source: View,
        target: Array,
        weight: Array,
        n_inputs: int,
        n_paths: int,
        n_channels: int,
        scale: float,
        lanes: int,
    ) -> None:
        n_blocks = -(-n_channels // lanes)
        self._shape = n_paths, n_channels, n_blocks, lanes
        maps = []
        for path in range(n_paths):
            view = View(
                target,
                n_channels,
                outer=target.width,
                offset=path * lanes,
                vector=n_paths * lanes,
            )
            w = Weight(weight, n_inputs, n_channels, offset=path * n_channels, row=n_paths * n_channels)
            maps.append(Map(source, view, w, scale))
        super().__init__(maps, "pairs")

    def prepare(self, tape: Tape) -> None:
        """Pack the matrices of the paths, and the transpose of all of them in the order of the target."""
        records = []
        for entry in self.maps if tape.target.most_packed else ():
            self._forward[entry], packing = packed(tape, entry.weight, 1, transposed=False)
            records += packing
        n_paths, n_channels, n_blocks, n_lanes = self._shape
        w = self.maps[0].weight
        depth, panel = n_blocks * n_paths * n_lanes, tape.target.panel
        width = -(-w.n_in // panel) * panel
        self._transposed = Array(f"packed {w.array.name}", Extent("one"), depth * width, tape.bytes)
        if n_channels % n_lanes:
            tape.zero(self._transposed)
        for path in range(n_paths):
            for block in range(n_blocks):
                filled = min(n_lanes, n_channels - block * n_lanes)
                source = w.array.at(path * n_channels + block * n_lanes)
                place = self._transposed.at((block * n_paths + path) * n_lanes * panel)
                records.append((source, place, filled, w.n_in, 1, w.distance, depth))
        tape.launch_list(tape.matrix_kernel("packing"), records)

    def _backwards(self, tape: Tape, kind: Pass) -> list[Product]:
        x, y, w = self.maps[0].source, self.maps[0].target, self.maps[0].weight
        target = tape.of(kind, x.array)
        if not tape.is_wanted(kind, x.array):
            return []
        return [
            Product(
                rows=Extent(self.rows),
                columns=w.n_in,
                depth=y.array.width,
                a=tape.written(kind, y.array).at(),
                a_outer=y.array.width,
                b=self._transposed.at(),
                b_storage=PACKED,
                c=x.at(target),
                c_outer=x.outer,
                c_vector=tape.lanes,
                c_whole=x.padded,
                add=tape.adds(target),
                scale=self.maps[0].scale,
            )
        ]


class Silu(Block):
    """The activation of a hidden layer, without a factor.

    Args:
        source: Its input, in rows of whole vectors.
        target: Its output.
    """

    def __init__(self, source: Array, target: Array) -> None:
        self.source, self.target = source, target

    def reads(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.source]

    def writes(self) -> Sequence[Array]:
        """See `Block`."""
        return [self.target]

    def prepare(self, tape: Tape) -> None:
        """See `Block`."""

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        tape.adds(self.target)
        self._sigmoid = tape.new(f"sigmoid of {self.source.name}", self.source.rows, self.source.width)
        self._launch(tape, "silu_value", self.target)

    def gradient(self, tape: Tape) -> None:
        """See `Block`."""
        self._launch(
            tape,
            "silu_gradient",
            tape.written(Pass.GRADIENT, self.target),
            self._set(tape, Pass.GRADIENT, self.source),
        )

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        self._launch(
            tape,
            "silu_tangent",
            tape.written(Pass.TANGENT, self.source),
            tape.written(Pass.GRADIENT, self.target),
            self._set(tape, Pass.TANGENT, self.target),
            self._set(tape, Pass.ADJOINT, self.source),
        )

    def adjoint(self, tape: Tape) -> None:
        """See `Block`."""
        if not tape.is_wanted(Pass.ADJOINT, self.source):
            return
        given, result = tape.written(Pass.ADJOINT, self.target), tape.of(Pass.ADJOINT, self.source)
        # what the tangent pass has left there is added to
        name = "silu_adjoint" if tape.adds(result) else "silu_gradient"
        self._launch(tape, name, given, result)

    def _set(self, tape: Tape, kind: Pass, array: Array) -> Array:
        companion = tape.of(kind, array)
        assert not tape.adds(companion), "an activation is the only reader of its input"
        return companion

    def _launch(self, tape: Tape, name: str, *arrays: Array) -> None:
        arrays = (self.source, self._sigmoid, *arrays)
        sizes = [self.source.length, Extent("threads")]
        tape.launch(tape.matrix_kernel(name), arrays, sizes, Extent("threads"))
