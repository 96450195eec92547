r"""C source of the convolution, its derivative, and the derivative of that.

All three come from one form, linear in each of its operands: features :math:`x` of the sender, radial weights :math:`R`
of the pair, the matrix :math:`G` of the edge (coefficients contracted with harmonics), and a cotangent :math:`g` of the
result,

.. math:: T = \sum_p \sum_{m_3 m_1} g_{p m_3} G_{p, m_3 m_1} R_p\, x_{m_1}.

Its derivative by :math:`g` is the convolution; those by :math:`x`, :math:`R` and, through :math:`G`, by the harmonics
are the backward pass; differentiating the sum of these, weighted with their own cotangents, gives the second backward
pass, where an operand is replaced by its cotangent once in each term.

Radial weights are either stored, one for every pair, or *tabulated*: interpolated where they are used, from the six
numbers of the interval the pair's length falls into (`mace.kernels.radial_table`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mace.equivariant.coupling import coupling_coefficients
from mace.kernels.c_source.parts import entry, lane_sums, lanes, prelude, shuffle
from mace.kernels.convolution import ConvolutionPath

LARGEST_GROUP = 18
"""Largest number of sums that the forward kernel keeps in registers at a time."""

TILE_BYTES = 1 << 18
"""Bytes of edges' matrices that are used for all blocks of channels before the next ones are read."""


@dataclass(frozen=True)
class Place:
    """Location of the numbers of a path in the arrays.

    Attributes:
        path: The path.
        index: Index of the path, the row of its radial weight.
        coupling: First element of its matrix ``[m3, m1]`` in G.
        degree_slot: Index of the path among those to the same degree.
        sums: Index of its first sum in the flat list of all ``(path, m3)``.
    """

    path: ConvolutionPath
    index: int
    coupling: int
    degree_slot: int
    sums: int


@dataclass(frozen=True)
class ConvolutionLayout:
    """The layout of all arrays of a convolution kernel.

    Attributes:
        paths: The paths in order.
        l_in: Degrees of the features, each in a separate array.
        l_max: Highest degree of harmonics and result; each degree of the result is in a separate array.
    """

    paths: tuple[ConvolutionPath, ...]
    l_in: tuple[int, ...]
    l_max: int

    def places(self) -> list[Place]:
        """Return the location of every path."""
        places, coupling, sums = [], 0, 0
        slots: dict[int, int] = {}
        for index, path in enumerate(self.paths):
            slot = slots.get(path.l3, 0)
            slots[path.l3] = slot + 1
            places.append(Place(path, index, coupling, slot, sums))
            coupling += (2 * path.l3 + 1) * (2 * path.l1 + 1)
            sums += 2 * path.l3 + 1
        return places

    def n_coupling(self) -> int:
        """Return how many numbers the matrices of an edge have, of all paths together."""
        return sum((2 * path.l3 + 1) * (2 * path.l1 + 1) for path in self.paths)

    def n_paths(self, l3: int) -> int:
        """Return the number of paths to a degree."""
        return sum(path.l3 == l3 for path in self.paths)


def _result(layout: ConvolutionLayout, place: Place, m3: int, base: int) -> str:
    """Return the address of a sum of atom ``i`` in ``[atoms, m3, paths of the degree, channels]``."""
    l3, n_paths = place.path.l3, layout.n_paths(place.path.l3)
    return f"p[{base + l3}] + ((i * {2 * l3 + 1} + {m3}) * {n_paths} + {place.degree_slot}) * C + b * L"


def _features(layout: ConvolutionLayout, l1: int, base: int, atom: str) -> str:
    """Return the address of an atom's features of a degree in ``[atoms, m1, channels]``."""
    return f"p[{base + layout.l_in.index(l1)}] + {atom} * {2 * l1 + 1} * C + b * L"


_DIMENSIONS = "  const int64_t N = d[0], K = d[1], P = d[2], C = d[3], B = d[4];\n"
_INDICES = (
    "  const int64_t *count = (const int64_t *)p[0], *sender = (const int64_t *)p[1],"
    " *pair = (const int64_t *)p[2], *reverse = (const int64_t *)p[3];\n"
)


def _kernel(name: str, layout: ConvolutionLayout, body: str) -> str:
    """Wrap code for one block of channels of receiver ``i`` in loops over tiles of atoms, blocks and receivers.

    Whoever runs the kernel goes through the blocks that it owns once for each tile, so that the matrices of the tile's
    edges are read from the cache; every sum is taken in the order in which it would be without tiles.
    """
    return f"""\
void {name}_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {{
{_DIMENSIONS}{_INDICES}
  const int64_t tile = 1 + {TILE_BYTES} / (K * {layout.n_coupling()} * sizeof(T));
  for (int64_t start = 0; start < N; start += tile)
  for (int64_t b = begin; b < end; b++)
  for (int64_t i = start; i < N && i < start + tile; i++) {{
{body}
  }}
}}
{entry(name)}"""


def _edges(code: list[str]) -> str:
    """Wrap code for one edge of receiver ``i`` in a loop over them."""
    body = "\n".join(code)
    return f"""\
    for (int64_t s = i * K; s < i * K + count[i]; s++) {{
      const int64_t j = sender[s], q = pair[s];
{body}
    }}"""


@dataclass(frozen=True)
class _Radial:
    """Location of the radial weights of the pair ``q`` in a kernel.

    Attributes:
        n_paths: Number of paths.
        table: Index of the pointer to the table, followed by that to the intervals; None if weights are stored. The
            sixth pointer is that of the weights or, with a table, of the interpolation coefficients.
    """

    n_paths: int
    table: int | None = None

    def pointer(self) -> str:
        """Return the code that locates the pair's weights."""
        if self.table is None:
            return f"const T *r = p[5] + (q * B + b) * {self.n_paths} * L;"
        node = f"b * d[5] + ((const int64_t *)p[{self.table + 1}])[q]"
        return f"const T *w = p[5] + q * 12, *r = p[{self.table}] + ({node}) * {3 * self.n_paths} * L;"

    def value(self, index: int, derivative: bool = False) -> str:
        """Return the expression for a path's weight or, with a table, for its derivative by the length."""
        if self.table is None:
            return f"LOAD(r + {index} * L)"
        first = 6 if derivative else 0
        return " + ".join(f"w[{first + k}] * LOAD(r + {k * self.n_paths + index} * L)" for k in range(6))


def emit_forward(layout: ConvolutionLayout, tabulated: bool = False) -> str:
    """Return the kernel of the convolution.

    Pointers: 4 index arrays, G, R, then features by degree, then results by degree; if tabulated, coefficients
    instead of R, and table and intervals at the end.
    """
    n_in = len(layout.l_in)
    radial = _Radial(len(layout.paths), 6 + n_in + layout.l_max + 1 if tabulated else None)
    name = "conv_forward_tabulated" if tabulated else "conv_forward"
    groups: list[list[Place]] = [[]]
    for place in layout.places():
        if sum(2 * other.path.l3 + 1 for other in groups[-1]) + 2 * place.path.l3 + 1 > LARGEST_GROUP and groups[-1]:
            groups.append([])
        groups[-1].append(place)
    code = []
    for group in groups:
        names = [(place, m3) for place in group for m3 in range(2 * place.path.l3 + 1)]
        code.append("    {\n    V " + ", ".join(f"a{pl.sums + m} = {{0}}" for pl, m in names) + ";")
        edge = [f"      const T *g = p[4] + s * {layout.n_coupling()}; {radial.pointer()}"]
        for l1 in sorted({place.path.l1 for place in group}):
            edge.append(f"      const T *x{l1} = {_features(layout, l1, 6, 'j')};")
        for place in group:
            path = place.path
            edge.append(f"      {{ const V w{place.index} = {radial.value(place.index)};")
            for m1 in range(2 * path.l1 + 1):
                edge.append(f"      {{ const V z = w{place.index} * LOAD(x{path.l1} + {m1} * C);")
                for m3 in range(2 * path.l3 + 1):
                    edge.append(f"      a{place.sums + m3} += g[{place.coupling + m3 * (2 * path.l1 + 1) + m1}] * z;")
                edge.append("      }")
            edge.append("      }")
        code.append(_edges(edge))
        code += [f"    STORE({_result(layout, place, m, 6 + n_in)}, a{place.sums + m});" for place, m in names]
        code.append("    }")
    return _kernel(name, layout, "\n".join(code))


def _load_cotangents(layout: ConvolutionLayout, base: int) -> str:
    """Copy the cotangents of the results of atom ``i`` to a contiguous array."""
    lines = [f"    V c[{sum(2 * path.l3 + 1 for path in layout.paths)}];"]
    for place in layout.places():
        for m3 in range(2 * place.path.l3 + 1):
            lines.append(f"    c[{place.sums + m3}] = LOAD({_result(layout, place, m3, base)});")
    return "\n".join(lines)


def emit_backward(layout: ConvolutionLayout, n_lanes: int, with_harmonics: bool, tabulated: bool = False) -> str:
    """Return the kernel of the backward pass.

    Pointers: 4 index arrays, G, R, features, cotangents of results, then gradients of R, features and harmonics.

    The gradient of the harmonics has one array per thread, to be summed afterwards: ``[threads, slots, harmonics]``,
    the harmonics rounded up to whole vectors.
    Gradients of features and harmonics must be zero on entry; those of features may be null. At the end are the slots
    of the pairs, from which kernels on a device see which pairs are padding. If they are null, each slot has radial
    weights of its own, and no gradient by those of padding is written.

    If tabulated: coefficients instead of R, no gradient of R, table and intervals at the end, and the gradient by
    the length in the place of that of the first harmonic, which is constant.
    """
    n_in, n_out = len(layout.l_in), layout.l_max + 1
    n_harmonics = (layout.l_max + 1) ** 2
    cotangents, gradients = 6 + n_in, 6 + n_in + n_out + (not tabulated)
    slots = gradients + n_in + with_harmonics
    radial = _Radial(len(layout.paths), gradients + n_in + 1 if tabulated else None)
    code = [f"      const T *g = p[4] + s * {layout.n_coupling()}; {radial.pointer()}"]
    if not tabulated:
        code += [
            f"      T *gr = p[{gradients - 1}] + (q * B + b) * {len(layout.paths)} * L;",
            f"      const int first = (!p[{slots}] || reverse[s] > s) && !d[6];",
        ]
    if with_harmonics:
        code.append("      V " + ", ".join(f"y{m} = {{0}}" for m in range(n_harmonics)) + ";")
    for l1 in layout.l_in:
        code.append(f"      const T *x{l1} = {_features(layout, l1, 6, 'j')};")
        code.append(f"      T *gx{l1} = {_features(layout, l1, gradients, 'j')};")
        code.append(f"      const int wanted{l1} = p[{gradients + layout.l_in.index(l1)}] != 0;")
        for m1 in range(2 * l1 + 1):
            code.append(f"      V f{l1}_{m1} = {{0}}; if (wanted{l1}) f{l1}_{m1} = LOAD(gx{l1} + {m1} * C);")
    for place in layout.places():
        code += _path_backward(place, radial, with_harmonics)
    for l1 in layout.l_in:
        stores = " ".join(f"STORE(gx{l1} + {m1} * C, f{l1}_{m1});" for m1 in range(2 * l1 + 1))
        code.append(f"      if (wanted{l1}) {{ {stores} }}")
    if with_harmonics:
        width = -(-n_harmonics // n_lanes) * n_lanes
        code.append(f"      T *gy = p[{gradients + n_in}] + (thread * N * K + s) * {width};")
        for start in range(0, n_harmonics, n_lanes):
            names = [f"y{m}" if m < n_harmonics else None for m in range(start, start + n_lanes)]
            lines, total = lane_sums(names, n_lanes)
            code += [*lines, f"      STORE(gy + {start}, LOAD(gy + {start}) + {total});"]
    name = "conv_backward_full" if with_harmonics else "conv_backward_parameters"
    if tabulated:
        name = "conv_backward_tabulated"
    return _kernel(name, layout, f"{_load_cotangents(layout, cotangents)}\n{_edges(code)}")


def _path_backward(place: Place, radial: _Radial, with_harmonics: bool) -> list[str]:
    """Return the code of one path in the backward pass."""
    path, n_in = place.path, 2 * place.path.l1 + 1
    code = ["      {", f"      const V v = {radial.value(place.index)}; V h = {{0}};"]
    for m1 in range(n_in):
        dots = [f"g[{place.coupling + m3 * n_in + m1}] * c[{place.sums + m3}]" for m3 in range(2 * path.l3 + 1)]
        code.append(f"      {{ const V t = {' + '.join(dots)}; const V x = LOAD(x{path.l1} + {m1} * C);")
        code.append(f"      h += x * t; f{path.l1}_{m1} += v * t; }}")
    if with_harmonics and not (path.l2 == 0 and radial.table is not None):
        block = coupling_coefficients(path.l1, path.l2, path.l3) * np.sqrt(2 * path.l3 + 1)
        for m1 in range(n_in):
            if not np.any(block[m1]):
                continue
            code.append(f"      {{ const V z = v * LOAD(x{path.l1} + {m1} * C);")
            for m3 in range(2 * path.l3 + 1):
                nonzero = np.flatnonzero(block[m1, :, m3])
                if len(nonzero) == 0:
                    continue
                code.append(f"      {{ const V u = z * c[{place.sums + m3}];")
                code += [f"      y{path.l2**2 + m2} += (T){float(block[m1, m2, m3])!r} * u;" for m2 in nonzero]
                code.append("      }")
            code.append("      }")
    if radial.table is not None:
        code.append(f"      y0 += h * ({radial.value(place.index, derivative=True)});")
    else:
        code.append(f"      if (!first) h += LOAD(gr + {place.index} * L);")
        code.append(f"      STORE(gr + {place.index} * L, h);")
    code.append("      }")
    return code


def emit_second(layout: ConvolutionLayout) -> str:
    """Return the kernel of the second backward pass.

    Pointers: 4 index arrays, G, R, features, cotangents of results, then the cotangents of what the backward pass gave
    (H, which is G made of the harmonics' cotangent, then those of R and of the features), then gradients of the
    cotangents, of R and of the features, then the slots of the pairs as in the backward pass. Gradients of features
    must be zero on entry.
    """
    n_in, n_out = len(layout.l_in), layout.l_max + 1
    cotangents = 6 + n_in
    other = cotangents + n_out  # H, cotangent of R, cotangents of features
    gradients = other + 2 + n_in  # of cotangents, then of R, then of features
    n_sums = sum(2 * path.l3 + 1 for path in layout.paths)
    n_paths = len(layout.paths)
    before = _load_cotangents(layout, cotangents) + f"\n    V a[{n_sums}]; memset(a, 0, sizeof a);"
    code = [
        f"      const T *g = p[4] + s * {layout.n_coupling()}, *h = p[{other}] + s * {layout.n_coupling()};",
        f"      const T *r = p[5] + (q * B + b) * {n_paths} * L, *v = p[{other + 1}] + (q * B + b) * {n_paths} * L;",
        f"      T *gr = p[{gradients + n_out}] + (q * B + b) * {n_paths} * L;",
        f"      const int first = (!p[{gradients + n_out + 1 + n_in}] || reverse[s] > s) && !d[6];",
    ]
    for l1 in layout.l_in:
        code.append(f"      const T *x{l1} = {_features(layout, l1, 6, 'j')};")
        code.append(f"      const T *u{l1} = {_features(layout, l1, other + 2, 'j')};")
        code.append(f"      T *gx{l1} = {_features(layout, l1, gradients + n_out + 1, 'j')};")
        for m1 in range(2 * l1 + 1):
            code.append(f"      V f{l1}_{m1} = LOAD(gx{l1} + {m1} * C);")
    for place in layout.places():
        code += _path_second(place)
    for l1 in layout.l_in:
        code += [f"      STORE(gx{l1} + {m1} * C, f{l1}_{m1});" for m1 in range(2 * l1 + 1)]
    after = "\n".join(
        f"    STORE({_result(layout, place, m3, gradients)}, a[{place.sums + m3}]);"
        for place in layout.places()
        for m3 in range(2 * place.path.l3 + 1)
    )
    return _kernel("conv_second", layout, f"{before}\n{_edges(code)}\n{after}")


def _path_second(place: Place) -> list[str]:
    """Return the code of one path in the second backward pass."""
    path, n_in, n_out = place.path, 2 * place.path.l1 + 1, 2 * place.path.l3 + 1
    code = ["      {", f"      const V w = LOAD(r + {place.index} * L), o = LOAD(v + {place.index} * L); V k = {{0}};"]
    code.append("      V " + ", ".join(f"e{m3} = a[{place.sums + m3}]" for m3 in range(n_out)) + ";")
    for m1 in range(n_in):
        code.append(f"      {{ const V x = LOAD(x{path.l1} + {m1} * C), u = LOAD(u{path.l1} + {m1} * C);")
        code.append("      const V z = w * x, n = o * x + w * u; V t = {0}, y = {0};")
        for m3 in range(n_out):
            at = place.coupling + m3 * n_in + m1
            code.append(f"      e{m3} += g[{at}] * n + h[{at}] * z;")
            code.append(f"      t += g[{at}] * c[{place.sums + m3}]; y += h[{at}] * c[{place.sums + m3}];")
        code.append(f"      k += u * t + x * y; f{path.l1}_{m1} += o * t + w * y; }}")
    code += [f"      a[{place.sums + m3}] = e{m3};" for m3 in range(n_out)]
    code.append(f"      if (!first) k += LOAD(gr + {place.index} * L);")
    code.append(f"      STORE(gr + {place.index} * L, k);")
    code.append("      }")
    return code


def convolution_source(layout: ConvolutionLayout, dtype: torch.dtype) -> str:
    """Return the C file of a layer's convolution."""
    return "\n".join(
        [
            prelude(dtype),
            shuffle(dtype),
            emit_forward(layout),
            emit_backward(layout, lanes(dtype), with_harmonics=True),
            emit_backward(layout, lanes(dtype), with_harmonics=False),
            emit_second(layout),
        ]
    )


def tabulated_source(layout: ConvolutionLayout, dtype: torch.dtype) -> str:
    """Return the C file of a layer's convolution with tabulated radial weights, differentiable by the geometry."""
    return "\n".join(
        [
            prelude(dtype),
            shuffle(dtype),
            emit_forward(layout, tabulated=True),
            emit_backward(layout, lanes(dtype), with_harmonics=True, tabulated=True),
        ]
    )
