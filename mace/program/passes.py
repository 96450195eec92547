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
from enum import Enum
from typing import Any

from mace.kernels.c_source.matrices import matrices_source
from mace.kernels.compiled import Kernel
from mace.program.products import Product
from mace.program.record import Array, Extent, Launch, Recorder
from mace.program.target import Target


class Pass(Enum):
    """What is computed of every array; see the module."""

    VALUE = "value"
    GRADIENT = "gradient"
    TANGENT = "tangent"
    ADJOINT = "adjoint"


class Tape(Recorder):
    """A recorder that knows, for every array, its companions in the passes.

    Args:
        target: Where the kernels will run, and in which precision.
        trained: Arrays of the parameters by which gradients will be recorded, and of what else they are wanted by.

    Attributes:
        varying: Arrays that depend on the geometry.
        learned: Arrays that depend on what is trained.
    """

    def __init__(self, target: Target, trained: Iterable[Array] = ()) -> None:
        super().__init__(target.dtype)
        self.target = target
        self.trained = frozenset(trained)
        self.lanes, self.bytes = target.lanes, target.dtype.itemsize
        self.varying: set[Array] = set()
        self.learned: set[Array] = set(self.trained)
        self._companions: dict[tuple[Pass, Array], Array] = {}
        self._written: set[Array] = set()
        self._gradients: dict[Array, Array] = {}
        self._scratch: dict[int, Array] = {}

    def new(self, name: str, rows: Extent | str, width: int) -> Array:
        """Create an array."""
        return Array(name, Extent(rows) if isinstance(rows, str) else rows, width, self.bytes)

    def kernel(self, name: str, source: Callable[..., str], *shape: Any) -> Kernel:
        """Return a kernel in the precision of the tape; see `Kernel`."""
        return Kernel(name, source, self.dtype, shape)

    def matrix_kernel(self, name: str) -> Kernel:
        """Return one of the kernels of `mace.kernels.c_source.matrices`."""
        return self.kernel(name, matrices_source)

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
            before = self.of(Pass.GRADIENT, array) if kind is Pass.ADJOINT and self.target.in_place else None
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
        self.launch_list(self.matrix_kernel("zeros"), [(array, array.length)])

    def scratch(self, width: int) -> Array:
        """Return an array whose numbers nobody needs after a launch."""
        if width not in self._scratch:
            self._scratch[width] = self.new("scratch", "one", width)
        return self._scratch[width]

    def adds_to_pairs(self, array: Array, slots_of_pair: Array) -> bool:
        """Do as `adds` for an array of pairs in which a kernel leaves out padding, whose rows become zero first."""
        before = self.adds(array)
        if not before and not self.target.clears_padding:
            self.launch(self.matrix_kernel("clear_padding"), [slots_of_pair, array], [array.width], array.rows)
        return before

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
            self.launch_list(self.matrix_kernel("products"), [product.words() for product in products])


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


def record(tape: Tape, blocks: Sequence[Block], gradient: bool) -> list[list[Launch]]:
    """Record the passes of some blocks, in the order in which they will run.

    Args:
        tape: The tape.
        blocks: The blocks, from the geometry to the energies.
        gradient: Whether the gradient by the geometry is computed; without it there is no tangent pass either.

    Returns:
        The launches of what depends on weights only; of the passes of value and gradient; of those of tangent and
        adjoint.
    """
    for block in blocks:
        tape.follow(block)
    sections = []

    def end_section() -> None:
        sections.append(tape.launches)
        tape.launches = []

    for block in blocks:
        block.prepare(tape)
    end_section()
    for block in blocks:
        block.value(tape)
    for block in reversed(blocks) if gradient else ():
        block.gradient(tape)
    end_section()
    for block in blocks if gradient and tape.trained else ():
        block.tangent(tape)
    for block in reversed(blocks) if tape.trained else ():
        block.adjoint(tape)
    end_section()
    return sections
