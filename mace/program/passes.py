r"""The passes over the blocks of a model, and the arrays each of them computes.

With energies :math:`E` of rows and their sum :math:`\bar E` weighted by given numbers, the passes compute, for every
array :math:`x` between the geometry and the energies,

* *value*: :math:`x` itself;
* *gradient*, from the energies back to the geometry: :math:`\partial \bar E / \partial x`;
* *tangent*, forward again: :math:`\dot x`, how ``x`` changes along given changes :math:`t` of the pair vectors, and
  the derivatives of :math:`S = \sum t\, \partial \bar E / \partial v` by weights and, where a block is not linear, by
  arrays;
* *adjoint*, back once more: the derivative of ``S`` plus a second weighted sum of energies by arrays and weights.

A loss of energies and forces is differentiated by the weights in this way: its derivatives by energies and forces are
the weights of the second sum and ``t``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from mace.kernels.c_source.parts import lanes
from mace.program.libraries import matrix_kernel
from mace.program.products import Product
from mace.program.record import Array, Extent, Recorder


class Pass(Enum):
    """What is computed of every array; see the module."""

    VALUE = "value"
    GRADIENT = "gradient"
    TANGENT = "tangent"
    ADJOINT = "adjoint"


class Tape(Recorder):
    """A recorder that knows, for every array, its companions in the passes.

    Args:
        dtype: Precision of the numbers.
        trained: Arrays of the parameters by which gradients will be recorded, and of what else they are wanted by.

    Attributes:
        varying: Arrays that depend on the geometry.
        learned: Arrays that depend on what is trained.
        on_device: Whether kernels run on a device, where some need more memory.
    """

    def __init__(self, dtype: torch.dtype, trained: Iterable[Array] = ()) -> None:
        super().__init__(dtype)
        self.trained = frozenset(trained)
        self.lanes, self.bytes = lanes(dtype), dtype.itemsize
        self.on_device = False
        self.varying: set[Array] = set()
        self.learned: set[Array] = set(self.trained)
        self._companions: dict[tuple[Pass, Array], Array] = {}
        self._written: set[Array] = set()
        self._gradients: dict[Array, Array] = {}

    def new(self, name: str, rows: Extent | str, width: int) -> Array:
        """Create an array."""
        return Array(name, Extent(rows) if isinstance(rows, str) else rows, width, self.bytes)

    def follow(self, block: Block) -> None:
        """Note on what the arrays that a block writes depend."""
        read = block.reads()
        for known in (self.varying, self.learned):
            if not known.isdisjoint(read):
                known.update(block.writes())

    def padded(self, width: int) -> int:
        """Round a width up to whole vectors."""
        return -(-width // self.lanes) * self.lanes

    def of(self, kind: Pass, array: Array) -> Array:
        """Return the companion of an array in a pass."""
        if kind is Pass.VALUE:
            return array
        key = kind, array
        if key not in self._companions:
            # a block's tangent pass reads gradients by its results and writes adjoints of its inputs; what gives these
            # has had its tangent pass before, so nobody needs the gradients by them any more
            before = self.of(Pass.GRADIENT, array) if kind is Pass.ADJOINT else None
            name = f"{kind.value} of {array.name}"
            self._companions[key] = Array(name, array.rows, array.width, array.bytes, in_place_of=before)
        return self._companions[key]

    def use_companion(self, kind: Pass, array: Array, companion: Array) -> None:
        """Use a given array as a companion."""
        self._companions[kind, array] = companion

    def is_wanted(self, kind: Pass, array: Array) -> bool:
        """Return whether the companion of an array in a backward pass leads to anything."""
        return array in (self.varying if kind is Pass.GRADIENT else self.learned)

    def adds(self, array: Array) -> bool:
        """Return whether an array has been written already, so that what comes must be added; note that it has."""
        before = self.is_written(array)
        self._written.add(array)
        return before

    def is_written(self, array: Array) -> bool:
        """Return whether an array has been written; the caller has written his own."""
        return array.external or array in self._written

    def zero(self, array: Array) -> None:
        """Set an array to zero, unless something was written to it."""
        if self.adds(array):
            return
        self.launch(matrix_kernel("zeros", self.dtype), [array], [array.length, Extent("threads")], Extent("threads"))

    def written(self, kind: Pass, array: Array) -> Array:
        """Return a companion that may be read: zero if nothing was written to it."""
        companion = self.of(kind, array)
        self.zero(companion)
        return companion

    def gradient_of(self, weight: Array) -> Array:
        """Return the array to which gradients by a weight are added; the caller owns it."""
        if weight not in self._gradients:
            self._gradients[weight] = Array(f"gradient of {weight.name}", bytes=self.bytes, external=True)
        return self._gradients[weight]

    def products(self, products: Sequence[Product]) -> None:
        """Record a list of products."""
        if products:
            self.launch_list(matrix_kernel("products", self.dtype), [product.words() for product in products])


class Block:
    """A part of a model, with the kernels of each pass."""

    @abstractmethod
    def reads(self) -> Sequence[Array]:
        """Return the arrays and parameters on which its results depend."""

    @abstractmethod
    def writes(self) -> Sequence[Array]:
        """Return the arrays of its results."""

    @abstractmethod
    def prepare(self, tape: Tape) -> None:
        """Record what depends on weights only and is needed by all passes."""

    @abstractmethod
    def value(self, tape: Tape) -> None:
        """Record the value."""

    @abstractmethod
    def gradient(self, tape: Tape) -> None:
        """Record the gradient by the inputs that vary with the geometry."""

    @abstractmethod
    def tangent(self, tape: Tape) -> None:
        """Record the tangent, and the derivatives of ``S``."""

    @abstractmethod
    def adjoint(self, tape: Tape) -> None:
        """Record the gradient by the inputs and by the weights."""


@dataclass(frozen=True)
class Sections:
    """Places of the launches of each pass in a recording: the first, and the one after the last."""

    prepare: tuple[int, int]
    value: tuple[int, int]
    gradient: tuple[int, int]
    tangent: tuple[int, int]
    adjoint: tuple[int, int]


def record(tape: Tape, blocks: Sequence[Block], gradient: bool) -> Sections:
    """Record the passes of some blocks, in the order in which they will run.

    Args:
        tape: The tape.
        blocks: The blocks, from the geometry to the energies.
        gradient: Whether the gradient by the geometry is computed; without it there is no tangent pass either.
    """
    marks = [0]
    for block in blocks:
        tape.follow(block)

    def section(run: Callable[[Block], None], wanted: bool, backward: bool = False) -> None:
        if wanted:
            for block in reversed(blocks) if backward else blocks:
                run(block)
        marks.append(tape.n_launches)

    section(lambda block: block.prepare(tape), True)
    section(lambda block: block.value(tape), True)
    section(lambda block: block.gradient(tape), gradient, backward=True)
    section(lambda block: block.tangent(tape), gradient and bool(tape.trained))
    section(lambda block: block.adjoint(tape), bool(tape.trained), backward=True)
    return Sections(*zip(marks[:-1], marks[1:], strict=True))
