r"""The convolution and its two derivatives in Triton; `mace.kernels.c_source.convolution` has the equations.

Programs run at the same time, so none may add to what belongs to another. One program does a receiver and a block of
channels where the results are the receiver's. Gradients by features are those of a sender: one program collects them
for row ``j`` from the row's own slots, as the reverse of slot ``s`` is the slot ``t`` of the edge from ``j`` to the
sender of ``s``. The gradient by the radial weights of a pair is the sum over both directions, which is taken by the
program that owns the first of the two slots. Programs beyond those of the rows set this gradient to zero for padding.
Without slots of pairs, each slot has radial weights of its own; then there is no sum, and padding stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import triton.language as tl

from mace.equivariant.coupling import coupling_coefficients
from mace.kernels.c_source.convolution import ConvolutionLayout, Place
from mace.kernels.triton_source.geometry import harmonics_width
from mace.kernels.triton_source.launching import LANES, DeviceKernel, KernelSequence, Number, load_text, number_type

LARGEST_GROUP = 16
"""Largest number of sums that a program of the forward kernel keeps in registers."""

LARGEST_LAUNCH = 160
"""Largest number of elements of an edge's matrices that one launch reads; longer code takes long to compile."""

ROWS_CLEARED = 32
"""Number of pairs that one program looks at for padding."""

_CAN_GATHER = hasattr(tl, "gather")
"""Whether threads can exchange numbers; not in Triton before 3.3."""

_INDICES = ("count", "sender", "pair", "reverse")
_DIMENSIONS = ("N", "K", "P", "C: tl.constexpr", "B: tl.constexpr", "n_nodes: tl.constexpr", "adds: tl.constexpr")


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


_OF_SLOT = {"i": "sender", "q": "pair", "t": "reverse"}


def _loop(names: str, body: Iterable[str]) -> list[str]:
    """Return a loop over the slots ``s`` of row ``j``, in which names stand for what the slot has in index arrays.

    Indices of the next slot are loaded before the work on one begins, as nothing can be loaded without them.
    """
    return [
        "n = tl.load(count + j).to(tl.int32)",
        *(f"next_{name} = tl.load({_OF_SLOT[name]} + j * K)" for name in names),
        "for k in range(0, n):",
        "    s = j * K + k",
        "    following = j * K + tl.minimum(k + 1, n - 1)",
        *(f"    {name} = next_{name}.to(tl.int64)" for name in names),
        *(f"    next_{name} = tl.load({_OF_SLOT[name]} + following)" for name in names),
        *_indented(body),
    ]


def _programs(dimensions: Sequence[Number], parts: int) -> tuple[int]:
    """Return the grid of kernels with so many programs for each row and block of channels."""
    return (int(dimensions[0]) * int(dimensions[4]) * parts,)


def _programs_with_padding(dimensions: Sequence[Number]) -> tuple[int]:
    """Return the grid of kernels that also clear gradients of padding."""
    return ((int(dimensions[0]) + -(-int(dimensions[2]) // ROWS_CLEARED)) * int(dimensions[4]),)


class _Matrices:
    """The matrices of an edge, whose numbers are loaded where they are first used.

    All channels read the same number at once, so that what counts is how many loads there are: two numbers of float32
    come with one load, if they lie in whole words of 64 bits in every row.

    Args:
        name: Start of the names of the numbers.
        array: Array of the matrices.
        slot: Slot of the edge.
        size: How many numbers an edge has.
        dtype: The precision.
    """

    def __init__(self, name: str, array: str, slot: str, size: int, dtype: torch.dtype) -> None:
        self._name, self._loaded, self._in_pairs = name, set[int](), dtype == torch.float32 and size % 2 == 0
        place = f"{array} + {slot} * {size}"
        self.start = f"{name} = {place}"
        if self._in_pairs:
            self.start = f"{name} = ({place}).to(tl.pointer_type(tl.int64), bitcast=True)"

    def number(self, at: int) -> str:
        """Return the name of a number."""
        return f"{self._name}{at}"

    def load(self, numbers: Iterable[int]) -> list[str]:
        """Return the code that loads those numbers that have not been loaded."""
        code = []
        for at in numbers:
            if at in self._loaded:
                continue
            if not self._in_pairs:
                self._loaded.add(at)
                code.append(f"{self.number(at)} = tl.load({self._name} + {at})")
                continue
            low = at - at % 2
            self._loaded |= {low, low + 1}
            code += [
                f"both = tl.load({self._name} + {low // 2})",
                f"{self.number(low)} = both.to(tl.int32).to(tl.float32, bitcast=True)",
                f"{self.number(low + 1)} = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)",
            ]
        return code


@dataclass(frozen=True)
class _Writer:
    """Writes the kernels of a layout and a precision.

    Attributes:
        layout: The layout.
        places: The paths of one launch, which follow each other.
        dtype: The precision.
        tabulated: Whether radial weights are interpolated; then there is no gradient by them.
    """

    layout: ConvolutionLayout
    places: Sequence[Place]
    dtype: torch.dtype
    tabulated: bool

    def _named(self, prefix: str, results: bool = False) -> list[str]:
        """Return names of arrays, one for each degree of the features or results."""
        degrees = range(self.layout.l_max + 1) if results else self.layout.l_in
        return [f"{prefix}{degree}" for degree in degrees]

    def function(self, name: str, pointers: Sequence[str], body: Sequence[str]) -> str:
        """Return a kernel; `body` is the code of block ``b`` of row ``j``."""
        tail = ["table", "interval"] if self.tabulated else []
        arguments = ", ".join([*_INDICES, "G", "R", *self._named("x"), *pointers, *tail, *_DIMENSIONS])
        head = ['@triton.jit(do_not_specialize=["N", "K", "P"])', f"def {name}({arguments}):"]
        return "\n".join([*head, "    lane = tl.arange(0, LANES)", *_indented(body), ""])

    def _zeros(self, names: Iterable[str]) -> list[str]:
        return [f"{name} = tl.zeros([LANES], dtype={number_type(self.dtype)})" for name in names]

    def _rows(self, prefix: str, atom: str, place: str, results: bool = False) -> list[str]:
        """Locate an atom's features or results of each degree: pointers named by prefix, place and degree."""
        if not results:
            return [f"{prefix}{place}{l} = {prefix}{l} + {atom} * {2 * l + 1} * C + channel" for l in self.layout.l_in]
        return [
            f"{prefix}{place}{l} = {prefix}{l} + {atom} * {(2 * l + 1) * self.layout.n_paths(l)} * C + channel"
            for l in range(self.layout.l_max + 1)
        ]

    def _result(self, row: str, place: Place, m3: int) -> str:
        """Return the address of a sum of the row with the given pointers."""
        l3 = place.path.l3
        return f"{row}{l3} + {m3 * self.layout.n_paths(l3) + place.degree_slot} * C"

    def _weights_of_pair(self, prefixes: Sequence[str], derivative: bool = False) -> list[str]:
        """Locate the radial weights of the pair ``q``, in arrays of upper-case names."""
        size = len(self.layout.paths) * LANES
        if not self.tabulated:
            return [f"{prefix} = {prefix.upper()} + (q * B + b) * {size} + lane" for prefix in prefixes]
        node = "b * n_nodes + tl.load(interval + q).to(tl.int64)"
        return [
            f"r = table + ({node}) * {3 * size} + lane",
            *(f"w{k} = tl.load(R + q * 12 + {k})" for k in range(12 if derivative else 6)),
        ]

    def _weight(self, index: int, name: str, slope: str = "") -> list[str]:
        """Load the weight of a path and, with a table, its derivative by the length if a name for it is given."""
        if not self.tabulated:
            return [f"{name} = tl.load(r + {index * LANES})"]
        n_paths = len(self.layout.paths)
        code = [f"n{k} = tl.load(r + {(k * n_paths + index) * LANES})" for k in range(6)]
        code.append(f"{name} = " + " + ".join(f"w{k} * n{k}" for k in range(6)))
        if slope:
            code.append(f"{slope} = " + " + ".join(f"w{6 + k} * n{k}" for k in range(6)))
        return code

    def groups(self) -> list[list[Place]]:
        """Divide the paths among the programs of the forward kernel."""
        return _divided(self.places, lambda place: 2 * place.path.l3 + 1, LARGEST_GROUP)

    def sums(self, name: str, second: bool = False) -> str:
        """Return the kernel of the sums over neighbors.

        Args:
            name: Name of the function.
            second: Whether they are those of the second backward pass, where either the matrices or weights and
                features are replaced by their cotangents.
        """
        groups = self.groups()
        body = [
            f"part = tl.program_id(0) % {len(groups)}",
            f"b = (tl.program_id(0) // {len(groups)} % B).to(tl.int64)",
            f"j = (tl.program_id(0) // {len(groups)} // B).to(tl.int64)",
            "channel = b * LANES + lane",
        ]
        target = "gc" if second else "o"
        for number, group in enumerate(groups):
            body += [f"if part == {number}:", *_indented(self._sums_of_group(group, target, second))]
        pointers = [*self._named("o", True)] if not second else self._second_pointers()
        return self.function(name, pointers, body)

    def _sums_of_group(self, group: Sequence[Place], target: str, second: bool) -> list[str]:
        names = [(place, m3) for place in group for m3 in range(2 * place.path.l3 + 1)]
        code = self._zeros(f"a{place.sums + m3}" for place, m3 in names)
        used = {place.path.l1 for place in group}
        matrices = self._matrices("s", second)
        edge = [
            *(each.start for each in matrices),
            *self._weights_of_pair("rv" if second else "r"),
            *self._rows("x", "i", "i"),
        ]
        if second:
            edge += self._rows("u", "i", "i")
        for l1 in sorted(used):
            for m1 in range(2 * l1 + 1):
                edge += [f"{p}{l1}_{m1} = tl.load({p}i{l1} + {m1} * C)" for p in ("xu" if second else "x")]
        for place in group:
            edge += self._path_sums(place, matrices)
        code += _loop("iq", edge)
        code += self._rows(target, "j", "j", True)
        return code + [f"tl.store({self._result(f'{target}j', place, m3)}, a{place.sums + m3})" for place, m3 in names]

    def _matrices(self, slot: str, second: bool) -> list[_Matrices]:
        """Return the matrices of an edge and, in the second backward pass, their cotangents."""
        size = self.layout.n_coupling()
        return [_Matrices(array.lower(), array, slot, size, self.dtype) for array in ("GH" if second else "G")]

    def _path_sums(self, place: Place, matrices: Sequence[_Matrices]) -> list[str]:
        """Return the code that adds what one edge gives to the sums of a path."""
        path, n_in = place.path, 2 * place.path.l1 + 1
        code, second = self._weight(place.index, "w"), len(matrices) > 1
        if second:
            code.append(f"o = tl.load(v + {place.index * LANES})")
        for matrix in matrices:
            code += matrix.load(range(place.coupling, place.coupling + n_in * (2 * path.l3 + 1)))
        for m1 in range(n_in):
            code.append(f"z = w * x{path.l1}_{m1}")
            if second:
                code.append(f"y = o * x{path.l1}_{m1} + w * u{path.l1}_{m1}")
            for m3 in range(2 * path.l3 + 1):
                at = place.coupling + m3 * n_in + m1
                for matrix, factor in zip(matrices, "yz" if second else "z", strict=True):
                    code.append(f"a{place.sums + m3} += {matrix.number(at)} * {factor}")
        return code

    def _second_pointers(self) -> list[str]:
        return [
            *self._named("c", True),
            *("H", "V", *self._named("u")),
            *(*self._named("gc", True), "GR", *self._named("gx"), "slots"),
        ]

    def backward(self, name: str, with_harmonics: bool = False, second: bool = False) -> str:
        """Return the kernel of gradients by features, radial weights and harmonics.

        Args:
            name: Name of the function.
            with_harmonics: Whether that by the harmonics is among them.
            second: Whether they are those of the second backward pass, without harmonics.
        """
        if second:
            pointers = self._second_pointers()
        else:
            pointers = [*self._named("c", True), *([] if self.tabulated else ["GR"]), *self._named("gx")]
            pointers += ["gy"] if with_harmonics else []
            pointers += [] if self.tabulated else ["slots"]
        body = [
            "b = (tl.program_id(0) % B).to(tl.int64)",
            "j = (tl.program_id(0) // B).to(tl.int64)",
            "channel = b * LANES + lane",
        ]
        row = self._row_backward(with_harmonics, second)
        if self.tabulated:
            return self.function(name, pointers, [*body, *row])
        clear = [
            "if slots is not None:",
            "    first = (j - N) * ROWS",
            "    for q in range(first, tl.minimum(first + ROWS, P)):",
            "        if tl.load(slots + 2 * q) == tl.load(slots + 2 * q + 1):",
            f"            gr = GR + (q * B + b) * {len(self.layout.paths) * LANES} + lane",
            f"            for path in range({self.places[0].index}, {self.places[-1].index + 1}):",
            f"                tl.store(gr + path * LANES, tl.zeros([LANES], dtype={number_type(self.dtype)}))",
        ]
        clear = [line.replace("ROWS", str(ROWS_CLEARED)) for line in clear]
        body += ["if j < N:", *_indented(row), "elif not adds:", *_indented(clear)]
        return self.function(name, pointers, body)

    def _row_backward(self, with_harmonics: bool, second: bool) -> list[str]:
        """Return the code of a row, which goes through its slots ``s`` and their reverses ``t``."""
        operands = "xu" if second else "x"
        components = [(l1, m1) for l1 in self.layout.l_in for m1 in range(2 * l1 + 1)]
        code = [line for p in operands for line in self._rows(p, "j", "j")]
        code += [f"{p}{l1}_{m1} = tl.load({p}j{l1} + {m1} * C)" for p in operands for l1, m1 in components]
        code += self._zeros(f"f{l1}_{m1}" for l1, m1 in components)
        if not self.tabulated:
            code += self._rows("c", "j", "j", True)
        code += _loop("iqt", self._edge_backward(with_harmonics, second))
        for l1 in self.layout.l_in:
            lines = [f"gxj = gx{l1} + j * {2 * l1 + 1} * C + channel"]
            for m1 in range(2 * l1 + 1):
                lines.append(f"tl.store(gxj + {m1} * C, tl.load(gxj + {m1} * C) + f{l1}_{m1})")
            code += [f"if gx{l1} is not None:", *_indented(lines)]
        return code

    def _edge_backward(self, with_harmonics: bool, second: bool) -> list[str]:
        """Return the code of one slot of row ``j`` and its reverse."""
        n_harmonics, matrices = (self.layout.l_max + 1) ** 2, self._matrices("t", second)
        code = [] if self.tabulated else ["if slots is None:", "    q = tl.load(pair + t).to(tl.int64)"]
        code += [
            *(each.start for each in matrices),
            *self._weights_of_pair("rv" if second else "r", derivative=True),
            *self._rows("c", "i", "i", True),
        ]
        if with_harmonics:
            code += self._zeros(f"y_{m}" for m in range(n_harmonics))
        for place in self.places:
            code += self._path_backward(place, matrices, with_harmonics)
        if with_harmonics:
            code += self._store_harmonics(n_harmonics)
        if not self.tabulated:
            code += self._both_directions(second)
        return code

    def _path_backward(self, place: Place, matrices: Sequence[_Matrices], with_harmonics: bool) -> list[str]:
        """Return the code of one path for the edge in slot ``t``, from ``j`` to ``i``."""
        path, n_in = place.path, 2 * place.path.l1 + 1
        code = self._cotangents_of_path(place, "ci")
        code += self._weight(place.index, "w", "slope")
        if len(matrices) > 1:
            code.append(f"o = tl.load(v + {place.index * LANES})")
        code += self._direction(place, matrices)
        if self.tabulated:
            code.append(f"y_0 += e_{place.index} * slope")
        if with_harmonics and not (path.l2 == 0 and self.tabulated):
            block = coupling_coefficients(path.l1, path.l2, path.l3) * np.sqrt(2 * path.l3 + 1)
            for m1 in range(n_in):
                code.append(f"z = w * x{path.l1}_{m1}")
                for m3 in range(2 * path.l3 + 1):
                    nonzero = np.flatnonzero(block[m1, :, m3])
                    code += [f"zd = z * d{m3}"] if len(nonzero) else []
                    code += [f"y_{path.l2**2 + m2} += {float(block[m1, m2, m3])!r} * zd" for m2 in nonzero]
        return code

    def _direction(self, place: Place, matrices: Sequence[_Matrices], other: str = "") -> list[str]:
        """Return the code of the gradient ``e`` by a path's weight from one direction of a pair.

        Args:
            place: The path.
            matrices: The matrices of the edge.
            other: Added to the names of what is read, in the direction that comes second; in the first, the gradient by
                the weight is set, and that by features added to.
        """
        path, n_in, n_out = place.path, 2 * place.path.l1 + 1, 2 * place.path.l3 + 1
        code = [
            line for matrix in matrices for line in matrix.load(range(place.coupling, place.coupling + n_in * n_out))
        ]
        cotangents = [f"d{m3}" for m3 in range(n_out)]
        for m1 in range(n_in):
            of = f"{path.l1}_{m1}"
            for matrix, product in zip(matrices, "ml", strict=False):
                numbers = (matrix.number(place.coupling + m3 * n_in + m1) for m3 in range(n_out))
                code.append(f"{product} = " + " + ".join(map(" * ".join, zip(numbers, cotangents, strict=True))))
            terms, changes = [f"x{other}{of} * m"], ["w * m"]
            if len(matrices) > 1:
                terms, changes = [f"u{other}{of} * m", f"x{other}{of} * l"], ["o * m", "w * l"]
            if not other and m1 == 0:
                code.append(f"e_{place.index} = {terms.pop(0)}")
            code += [f"e_{place.index} += {term}" for term in terms]
            code += [] if other else [f"f{of} += {change}" for change in changes]
        return code

    def _both_directions(self, second: bool) -> list[str]:
        """Return the code that adds the other direction, from ``i`` to ``j`` in slot ``s``, and stores the sum."""
        matrices, operands = self._matrices("s", second), ("xu" if second else "x")
        code = [matrix.start for matrix in matrices]
        code += [line for p in operands for line in self._rows(p, "i", "i")]
        for l1 in self.layout.l_in:
            code += [f"{p}i{l1}_{m1} = tl.load({p}i{l1} + {m1} * C)" for p in operands for m1 in range(2 * l1 + 1)]
        code += self._weights_of_pair(["gr"])
        for place in self.places:
            # the row's cotangents are read for every edge, as too few programs would run if all kept them in registers
            code += self._cotangents_of_path(place, "cj")
            code += self._direction(place, matrices, "i")
            code += self._store_gradient(place)
        one = [*self._weights_of_pair(["gr"]), *(line for place in self.places for line in self._store_gradient(place))]
        return ["if slots is None:", *_indented(one), "elif t > s:", *_indented(code)]

    def _store_gradient(self, place: Place) -> list[str]:
        """Return the code that stores the gradient by a path's weight, or adds it."""
        at = f"gr + {place.index * LANES}"
        return ["if adds:", f"    e_{place.index} += tl.load({at})", f"tl.store({at}, e_{place.index})"]

    def _cotangents_of_path(self, place: Place, row: str) -> list[str]:
        """Return the code that loads the cotangents of a path's sums."""
        return [f"d{m3} = tl.load({self._result(row, place, m3)})" for m3 in range(2 * place.path.l3 + 1)]

    def _store_harmonics(self, n_harmonics: int) -> list[str]:
        """Return the code that adds the sums over channels to the share of the block."""
        width = harmonics_width(self.layout.l_max)
        code = [f"gyt = gy + (b * N * K + t) * {width} + lane"]
        for start in range(0, n_harmonics, LANES):
            names = [f"y_{m}" for m in range(start, min(start + LANES, n_harmonics))]
            code += _lane_sums(names)
            code.append(f"own = lane < {len(names)}")
            code.append(f"tl.store(gyt + {start}, tl.load(gyt + {start}, mask=own) + {names[0]}, mask=own)")
        return code


def _lane_sums(names: Sequence[str]) -> list[str]:
    """Return the code that sums each of some vectors over the lanes; each lane of the first becomes one sum, in order.

    Two vectors at a time are folded into one, in which each half of the lanes holds partial sums of one of them, so
    that threads exchange fewer numbers than if vectors were summed one by one.
    """
    if not _CAN_GATHER:
        terms = (f"tl.where(lane == {place}, tl.sum({name}, 0), 0.0)" for place, name in enumerate(names))
        return [f"{names[0]} = {' + '.join(terms)}"]
    code, bit = [], 1
    while bit < LANES:
        code += [f"odd = (lane & {bit}) != 0", f"partner = lane ^ {bit}"]
        for even, odd in itertools.zip_longest(names[::2], names[1::2]):
            kept, given = (
                (even, even) if odd is None else (f"tl.where(odd, {odd}, {even})", f"tl.where(odd, {even}, {odd})")
            )
            code.append(f"{even} = {kept} + tl.gather({given}, partner, 0)")
        names, bit = names[::2], 2 * bit
    return code


def _divided(places: Sequence[Place], size: Callable[[Place], int], largest: int) -> list[list[Place]]:
    """Divide the paths into groups whose sizes add up to no more than the largest, if not of one path."""
    groups: list[list[Place]] = [[]]
    for place in places:
        if groups[-1] and sum(map(size, [*groups[-1], place])) > largest:
            groups.append([])
        groups[-1].append(place)
    return groups


def _writers(layout: ConvolutionLayout, dtype: torch.dtype, tabulated: bool) -> list[_Writer]:
    """Return the writers of all launches of a kernel."""
    launches = _divided(layout.places(), lambda p: (2 * p.path.l3 + 1) * (2 * p.path.l1 + 1), LARGEST_LAUNCH)
    return [_Writer(layout, places, dtype, tabulated) for places in launches]


def _sums(name: str, writers: Sequence[_Writer], second: bool = False) -> tuple[DeviceKernel, ...]:
    """Return the launches of the sums over neighbors."""
    modules = [load_text(name, writer.sums(name, second)) for writer in writers]
    grids = [partial(_programs, parts=len(writer.groups())) for writer in writers]
    return tuple(DeviceKernel(vars(module)[name], grid) for module, grid in zip(modules, grids, strict=True))


def _backward(
    name: str, writers: Sequence[_Writer], with_harmonics: bool = False, second: bool = False
) -> tuple[DeviceKernel, ...]:
    """Return the launches of gradients; each adds those of its paths."""
    modules = [load_text(name, writer.backward(name, with_harmonics, second)) for writer in writers]
    grid = partial(_programs, parts=1) if writers[0].tabulated else _programs_with_padding
    return tuple(DeviceKernel(vars(module)[name], grid) for module in modules)


@cache
def convolution_kernels(layout: ConvolutionLayout, dtype: torch.dtype) -> dict[str, KernelSequence]:
    """Return the kernels of a layer's convolution; pointers of those of gradients end with ``slots_of_pair``."""
    writers = _writers(layout, dtype, tabulated=False)
    launches = {
        "conv_forward": _sums("conv_forward", writers),
        "conv_backward_full": _backward("conv_backward_full", writers, with_harmonics=True),
        "conv_backward_parameters": _backward("conv_backward_parameters", writers),
        "conv_second": (
            *_sums("conv_second_sums", writers, second=True),
            *_backward("conv_second_gradients", writers, second=True),
        ),
    }
    return {name: KernelSequence(kernels) for name, kernels in launches.items()}


@cache
def tabulated_kernels(layout: ConvolutionLayout, dtype: torch.dtype) -> dict[str, KernelSequence]:
    """Return the kernels of a layer's convolution with tabulated radial weights."""
    writers = _writers(layout, dtype, tabulated=True)
    forward, backward = "conv_forward_tabulated", "conv_backward_tabulated"
    return {
        forward: KernelSequence(_sums(forward, writers)),
        backward: KernelSequence(_backward(backward, writers, with_harmonics=True)),
    }
