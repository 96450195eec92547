"""The symmetric contraction and its derivatives in Triton; `mace.kernels.c_source.contraction` has the trees of terms.

A program goes through the trees for a few rows and a block of channels; everything is in registers, and each weight is
read once. Gradients by weights are sums over the rows of an element: too many for the registers of one program, and
with few elements too few to keep a device busy. So rows are cut into chunks, and a program adds up some of the terms
over one chunk. Sums of an element that began in an earlier chunk are set aside, and added afterwards in the order of
the chunks. How rows are cut depends on nothing but their number.

Beside the arrays and dimensions of the kernels in C, those with gradients by weights have one more array at the end,
for what is set aside, ``[CHUNKS_OF_ROWS, blocks of channels, terms, lanes]``, and all have the number of elements as a
last dimension. Elements without rows get gradients of zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl

from mace.kernels.c_source.contraction import CHUNKS_OF_ROWS, ContractionTerms, Node
from mace.kernels.triton_source.launching import LANES, DeviceKernel, KernelSequence, Number, load_text, number_type

ROWS_OF_A_PROGRAM = 4
"""Rows that a program goes through at once, one in each warp; they find the weights of their element in the cache."""
TERMS_OF_A_PART = {torch.float32: 64, torch.float64: 40}
"""Terms whose code is one function; the sums of their gradients by weights are in registers."""
SMALLEST_CHUNK = 8
"""Rows that are not cut any further."""
_CHUNKS, _SMALLEST = tl.constexpr(CHUNKS_OF_ROWS), tl.constexpr(SMALLEST_CHUNK)
COLUMNS, TOGETHER = tl.constexpr(512), tl.constexpr(8)
"""Numbers that a program adds up, and chunks whose sums it reads at once."""


@dataclass(frozen=True)
class _Piece:
    """Some of the terms of one component of the result.

    Attributes:
        degree: Degree of the result.
        m: Its component.
        tree: The terms.
        first: Whether no terms of the component come before.
    """

    degree: int
    m: int
    tree: Node
    first: bool


def _terms_of(node: Node, factors: tuple[int, ...] = ()) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the numbers of a tree's weights and their monomials, so that those with common factors are together."""
    if node.weight is not None:
        yield node.weight, factors
    for component, child in node.children.items():
        yield from _terms_of(child, (*factors, component))


def _tree_of(terms: Sequence[tuple[int, tuple[int, ...]]]) -> Node:
    root = Node()
    for weight, factors in terms:
        node = root
        for component in factors:
            node = node.children.setdefault(component, Node())
        node.weight = weight
    return root


def _pieces(terms: ContractionTerms, largest: int) -> list[_Piece]:
    """Cut the trees into pieces of a limited number of terms."""
    pieces = []
    for (degree, m), tree in terms.trees().items():
        every = list(_terms_of(tree))
        for start in range(0, max(len(every), 1), largest):
            pieces.append(_Piece(degree, m, _tree_of(every[start : start + largest]), start == 0))
    return pieces


class _Code:
    """Straight-line code; names without a value are sums without summands, and products with them are left out."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._known: set[str] = set()

    def set(self, name: str, value: str) -> None:
        """Let a name stand for a value."""
        self.lines.append(f"{name} = {value}")
        self._known.add(name)

    def know(self, name: str) -> None:
        """Note that a name has a value."""
        self._known.add(name)

    def start(self, name: str, weight: int | None = None) -> None:
        """Begin a sum, with a weight if there is one."""
        self._known.discard(name)
        if weight is not None:
            self.set(name, f"tl.load(W + {weight} * LANES)")

    def add(self, name: str, *products: tuple[str, str]) -> None:
        """Add products to a sum."""
        for factor, other in products:
            if {factor, other} <= self._known:
                self.set(name, f"tl.fma({factor}, {other}, {name})" if name in self._known else f"{factor} * {other}")

    def value_of(self, name: str) -> str:
        """Return a sum, which may have no summands."""
        return name if name in self._known else "zero"


def _value(code: _Code, node: Node, depth: int) -> None:
    """Compute the value of a node, ``s<depth>``."""
    code.start(f"s{depth}", node.weight)
    for c, child in node.children.items():
        _value(code, child, depth + 1)
        code.add(f"s{depth}", (f"A{c}", f"s{depth + 1}"))


def _reverse(code: _Code, node: Node, depth: int) -> None:
    """Compute the value ``s<depth>`` and the gradients below a node, given the adjoint ``t<depth>``."""
    n = depth + 1
    code.start(f"s{depth}", node.weight)
    for c, child in node.children.items():
        if child.children:
            code.set(f"t{n}", f"t{depth} * A{c}")
        _reverse(code, child, n)
        code.add(f"a{c}", (f"t{depth}", f"s{n}"))
        if depth:
            code.add(f"s{depth}", (f"A{c}", f"s{n}"))


def _second(code: _Code, node: Node, depth: int) -> None:
    """Compute value ``s<depth>`` and tangent ``d<depth>``, given adjoints ``t<depth>`` and ``e<depth>``."""
    n = depth + 1
    code.start(f"s{depth}", node.weight)
    code.start(f"d{depth}")
    for c, child in node.children.items():
        if child.children:
            _adjoints(code, depth, c)
        _second(code, child, n)
        code.add(f"a{c}", (f"t{depth}", f"s{n}"), (f"e{depth}", f"d{n}"))
        code.add(f"d{depth}", (f"u{c}", f"s{n}"), (f"A{c}", f"d{n}"))
        if depth:
            code.add(f"s{depth}", (f"A{c}", f"s{n}"))


def _adjoints(code: _Code, depth: int, c: int) -> None:
    """Pass the adjoints of a node, one of which may be zero, to its child."""
    for name in ("t", "e"):
        code.start(f"{name}{depth + 1}")
    code.add(f"t{depth + 1}", (f"t{depth}", f"A{c}"), (f"e{depth}", f"u{c}"))
    code.add(f"e{depth + 1}", (f"e{depth}", f"A{c}"))


def _sums(code: _Code, node: Node, depth: int) -> None:
    """Add to the gradients by weights ``g<weight>``, given adjoints ``t<depth>`` and ``e<depth>``."""
    for c, child in node.children.items():
        if child.weight is not None:
            code.add(f"g{child.weight}", (f"t{depth}", f"A{c}"), (f"e{depth}", f"u{c}"))
        if child.children:
            _adjoints(code, depth, c)
            _sums(code, child, depth + 1)


def _indented(lines: Sequence[str], levels: int) -> list[str]:
    return ["    " * levels + line for line in lines]


_WITH_GRADIENTS = ("gradient", "of_weights", "aside")
_CHUNK = (
    "chunk, block = tl.program_id(0).to(tl.int64), tl.program_id(1)",
    "channel = block * LANES + tl.arange(0, LANES)",
    "length = length_of_chunks(n_rows)",
    "begin = chunk * length",
    "end = tl.minimum(begin + length, n_rows)",
    "before = tl.load(place + begin - 1, mask=begin > 0, other=-1).to(tl.int64)",
    "at = begin",
    "while at < end:",
)
_SIZES = "n_rows, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, adds, clears, n_groups"


@dataclass(frozen=True)
class _Writer:
    """Writes functions of the kernels of a contraction.

    Attributes:
        terms: Its terms.
        dtype: Precision.
    """

    terms: ContractionTerms
    dtype: torch.dtype

    @property
    def pieces(self) -> list[_Piece]:
        """The terms in pieces, each for the code of one part."""
        return _pieces(self.terms, TERMS_OF_A_PART[self.dtype])

    def arrays(self, kind: str) -> list[str]:
        """Return the names of a kernel's arrays."""
        results = [f"r{degree}" for degree in self.terms.l_out]
        more: dict[str, Sequence[str]] = {
            "forward": (),
            "backward_features": _WITH_GRADIENTS[:1],
            "backward_full": _WITH_GRADIENTS,
            "second": ("tangent", *(f"of_{name}" for name in results), *_WITH_GRADIENTS),
        }
        return ["place", "features", "weights", *results, *more[kind]]

    def kernel(self, kind: str, name: str, parts: Sequence[Sequence[str]], choices: Sequence[int] | None) -> object:
        """Return a function of a kernel's arrays and dimensions that runs parts.

        Parts are functions that are not made one, and so may only share what is in memory: some passes of Triton take
        a time that grows with the cube of a function's length.

        Args:
            kind: Kind of the kernel.
            name: Its name.
            parts: The code of the parts.
            choices: For each part, which program along the third axis of the grid runs it; None for all of them.
        """
        arrays = ", ".join(self.arrays(kind))
        lines = ["from mace.kernels.triton_source.contraction import length_of_chunks"]
        for number, part in enumerate(parts):
            lines += ["@triton.jit(noinline=True)", f"def part_{number}({arrays}, {_SIZES}):", *_indented(part, 1)]
        lines += [
            '@triton.jit(do_not_specialize=["n_rows", "adds", "clears", "n_groups"])',
            f"def {name}({arrays}, {_SIZES}):",
        ]
        for number in range(len(parts)):
            condition = f"if tl.program_id(2) == {choices[number]}: " if choices else ""
            call = f"part_{number}({arrays}, n_rows, WIDTH, BLOCKS, adds, clears, n_groups)"
            # what a part has stored may be read by other threads in the next one
            lines.append(f"    {condition}{call}; tl.debug_barrier()")
        return vars(load_text(name, "\n".join(lines)))[name]

    def _load_components(self, code: _Code, piece: _Piece, second: bool) -> list[int]:
        """Load those components of the features, and of their tangent, that a piece needs; return which these are."""
        used = sorted({c for _, factors in _terms_of(piece.tree) for c in factors})
        for name, array in (("A", "features"), ("u", "tangent"))[: 2 if second else 1]:
            for c in used:
                code.set(f"{name}{c}", f"tl.load({array} + here + {c} * WIDTH)")
        return used

    def _tile(self) -> list[str]:
        """Return code for the places of a tile of rows and channels; the last row takes the place of those beyond."""
        rows = ROWS_OF_A_PROGRAM
        return [
            f"row = tl.program_id(0).to(tl.int64) * {rows} + tl.arange(0, {rows})[:, None]",
            "at, inside = tl.minimum(row, n_rows - 1), row < n_rows",
            "block, lane = tl.program_id(1), tl.arange(0, LANES)[None, :]",
            "channel = block * LANES + lane",
            f"here = at * ({self.terms.n_components} * WIDTH) + channel",
            "of_element = tl.load(place + at).to(tl.int64) * BLOCKS + block",
            f"W = weights + of_element * ({self.terms.n_terms()} * LANES) + lane",
            f"zero = tl.zeros([{rows}, LANES], {number_type(self.dtype)})",
        ]

    def _store(self, code: _Code, piece: _Piece, array: str, value: str) -> None:
        """Store a component of the result, or add to what a part before has stored."""
        place = _place(piece, array)
        before = "" if piece.first else f"tl.load({place}) + "
        code.lines.append(f"tl.store({place}, {before}{code.value_of(value)}, mask=inside)")

    def forward(self) -> DeviceKernel:
        """Return the kernel of results, each component in a program of its own."""
        parts, choices = [], []
        for piece in self.pieces:
            code = _Code()
            self._load_components(code, piece, second=False)
            _value(code, piece.tree, 0)
            self._store(code, piece, f"r{piece.degree}", "s0")
            parts.append([*self._tile(), *code.lines])
            choices.append(sum(before.first for before in self.pieces[: len(parts)]) - 1)
        function = self.kernel("forward", "contraction_forward", parts, choices)
        return DeviceKernel(function, lambda d: (*_tiles(d), choices[-1] + 1), warps=ROWS_OF_A_PROGRAM)

    def features(self, kind: str) -> DeviceKernel:
        """Return the kernel of gradients of features, and of results of the second derivative."""
        second, parts = kind == "second", []
        for number, piece in enumerate(self.pieces):
            code = _Code()
            used = self._load_components(code, piece, second)
            components = used if number else range(self.terms.n_components)
            load = [f"a{c} = tl.load(gradient + here + {c} * WIDTH)" for c in components]
            zero = [f"a{c} = zero" for c in components]
            code.lines += load if number else ["if adds != 0:", *_indented(load, 1), "else:", *_indented(zero, 1)]
            for c in components:
                code.know(f"a{c}")
            code.set("e0" if second else "t0", f"tl.load({_place(piece, f'r{piece.degree}')})")
            (_second if second else _reverse)(code, piece.tree, 0)
            if second:
                self._store(code, piece, f"of_r{piece.degree}", "d0")
            code.lines += [f"tl.store(gradient + here + {c} * WIDTH, a{c}, mask=inside)" for c in components]
            parts.append([*self._tile(), *code.lines])
        function = self.kernel(kind, f"contraction_{kind}", parts, None)
        return DeviceKernel(function, _tiles, warps=ROWS_OF_A_PROGRAM)

    def weights(self, kind: str) -> DeviceKernel:
        """Return the kernel that adds up gradients by weights over the rows of a chunk, each piece in a program."""
        parts = [[*_CHUNK, *_indented(self._sums_of_element(kind, piece), 1)] for piece in self.pieces]
        function = self.kernel(kind, f"contraction_{kind}_weights", parts, range(len(parts)))
        return DeviceKernel(function, lambda d: (number_of_chunks(int(d[0])), int(d[2]), len(parts)))

    def _sums_of_element(self, kind: str, piece: _Piece) -> list[str]:
        """Return code for the rows of one element, beginning with ``at``, which it advances."""
        size = f"({self.terms.n_terms()} * LANES)"
        numbers = [weight for weight, _ in _terms_of(piece.tree)]
        code = _Code()
        self._load_components(code, piece, kind == "second")
        code.set("e0" if kind == "second" else "t0", f"tl.load({_place(piece, f'r{piece.degree}')})")
        for weight in numbers:
            code.know(f"g{weight}")
        _sums(code, piece.tree, 0)
        return [
            "group = tl.load(place + at).to(tl.int64)",
            *(f"g{weight} = tl.zeros([LANES], {number_type(self.dtype)})" for weight in numbers),
            "same = at < end",
            "while same:",
            *_indented([f"here = at * ({self.terms.n_components} * WIDTH) + channel", *code.lines], 1),
            "    at += 1",
            "    same = tl.load(place + at, mask=at < end, other=-1).to(tl.int64) == group",
            "if group == before:",
            f"    first = aside + (chunk * BLOCKS + block) * {size}",
            "else:",
            f"    first = of_weights + (group * BLOCKS + block) * {size}",
            "target = first + tl.arange(0, LANES)",  # another name, as Triton before 3.5 lets none change its shape
            "kept = (group != before).to(tl.int32) * (1 - clears)",
            "old = tl.zeros([LANES], tl.int32) + kept > 0",
            *(f"g{weight} += tl.load(target + {weight} * LANES, mask=old, other=0.0)" for weight in numbers),
            *(f"tl.store(target + {weight} * LANES, g{weight})" for weight in numbers),
        ]

    def sums(self, kind: str) -> DeviceKernel:
        """Return the launch that adds what was set aside."""
        size = self.terms.n_terms() * LANES
        name = f"contraction_{kind}_sums"
        lines = [
            "from mace.kernels.triton_source.contraction import add_sums",
            '@triton.jit(do_not_specialize=["n_rows", "adds", "clears", "n_groups"])',
            f"def {name}({', '.join(self.arrays(kind))}, {_SIZES}):",
            f"    add_sums(place, of_weights, aside, n_rows, {size}, BLOCKS, clears)",
        ]
        function = vars(load_text(name, "\n".join(lines)))[name]
        return DeviceKernel(function, lambda d: (int(d[5]), int(d[2]), -(-size // COLUMNS.value)), warps=4)


def _place(piece: _Piece, array: str) -> str:
    return f"{array} + (at * {2 * piece.degree + 1} + {piece.m}) * WIDTH + channel"


def _tiles(dimensions: Sequence[Number]) -> tuple[int, ...]:
    """Return the grid of tiles of rows and blocks of channels."""
    return -(-int(dimensions[0]) // ROWS_OF_A_PROGRAM), int(dimensions[2])


def number_of_chunks(n_rows: int) -> int:
    """Return into how many chunks rows are cut."""
    length = max(SMALLEST_CHUNK, -(-n_rows // CHUNKS_OF_ROWS))
    return -(-n_rows // length)


@triton.jit
def length_of_chunks(n_rows):  # type: ignore[no-untyped-def]
    """Return how many rows a chunk has; see `number_of_chunks`."""
    return tl.maximum(_SMALLEST, tl.cdiv(n_rows, _CHUNKS))


@triton.jit
def first_row(place, n_rows, group):  # type: ignore[no-untyped-def]
    """Return the number of rows that belong to the groups before one."""
    first = n_rows * 0
    left = n_rows
    while left > 0:
        stride = tl.cdiv(left, 256)
        last = (tl.arange(0, 256) + 1) * stride - 1
        lower = tl.load(place + first + last, mask=last < left, other=group).to(tl.int64) < group
        passed = tl.sum(lower.to(tl.int32), 0) * stride
        first += passed
        left = tl.minimum(stride - 1, left - passed)
    return first


@triton.jit  # type: ignore[untyped-decorator]
def add_sums(  # type: ignore[no-untyped-def]
    place, of_weights, aside, n_rows, SIZE: tl.constexpr, BLOCKS: tl.constexpr, clears
):
    """Add to the sums of an element those that were set aside, in the order of chunks; clear those without rows."""
    group, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin, end = first_row(place, n_rows, group), first_row(place, n_rows, group + 1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    target = of_weights + (group * BLOCKS + block) * SIZE + column
    if begin == end:
        if clears != 0:
            tl.store(target, tl.zeros([COLUMNS], of_weights.dtype.element_ty), mask=column < SIZE)
    else:
        length = length_of_chunks(n_rows)
        chunk, last = begin // length + 1, (end - 1) // length
        if chunk <= last:
            sums = tl.zeros([TOGETHER, COLUMNS], of_weights.dtype.element_ty)
            while chunk <= last:
                which = (chunk + tl.arange(0, TOGETHER)).to(tl.int64)[:, None]
                source = aside + (which * BLOCKS + block) * SIZE + column[None, :]
                sums += tl.load(source, mask=(which <= last) & (column[None, :] < SIZE), other=0.0)
                chunk += TOGETHER
            total = tl.load(target, mask=column < SIZE, other=0.0) + tl.sum(sums, 0)
            tl.store(target, total, mask=column < SIZE)


@cache
def contraction_kernels(terms: ContractionTerms, dtype: torch.dtype) -> dict[str, KernelSequence]:
    """Return the kernels of a symmetric contraction.

    Args:
        terms: Its terms.
        dtype: Precision.
    """
    writer = _Writer(terms, dtype)
    features = writer.features("backward_features")
    # the same for all that differentiate by features, which has to be compiled once
    first = replace(features, n_pointers=len(writer.arrays("backward_features")))
    second = writer.features("second")
    return {
        "contraction_forward": KernelSequence((writer.forward(),)),
        "contraction_backward_features": KernelSequence((features,)),
        "contraction_backward_full": KernelSequence(
            (first, writer.weights("backward_full"), writer.sums("backward_full"))
        ),
        "contraction_second": KernelSequence((second, writer.weights("second"), writer.sums("second"))),
    }
