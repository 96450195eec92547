r"""C source of what depends on the geometry alone: vectors of pairs, radial functions, harmonics; forces and strain.

`mace.model.radial`, `mace.equivariant.spherical_harmonics` and `mace.graphs.graph.pair_vectors` define the numbers.
Here, each pair is evaluated in double precision and rounded once at the end, with both of its slots. What is known of a
pair is its length :math:`r` and its direction :math:`u = v / r`, whose tangents are

.. math:: \dot r = u \cdot \dot v, \qquad \dot u = (\dot v - u\, \dot r) / r,

and the gradient is the adjoint of that.

The kernels are ``pair_vectors``, ``geometry_value``, ``geometry_gradient``, ``geometry_tangent``,
``radial_coefficients``, ``forces_value``, ``forces_adjoint``, ``strain_value``, ``strain_adjoint``,
``repulsion_value``, ``repulsion_rows`` and ``repulsion_gradient``. All get the same pointers first, in the order of
`GRAPH_POINTERS`, and the same dimensions, those of `GRAPH_DIMENSIONS`; their own arrays and dimensions follow. Arrays
of ``T`` have the precision of the model; indices are 64-bit integers. An array that is said to be optional may be a
null pointer. Units of work are single pairs, atoms or structures, so that any division among threads gives the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mace.equivariant.spherical_harmonics import harmonic_polynomials
from mace.kernels.c_source.parts import entry, lanes, prelude
from mace.kernels.c_source.radial import radial_functions
from mace.kernels.radial_table import HERMITE, SHORTEST

GRAPH_POINTERS = (
    *("neighbor_count", "slots_of_pair", "pair_sender", "pair_receiver", "structure_of_atom", "element"),
    *("pair_of_slot", "sign_of_slot", "row_of_atom", "radii", "charges"),
)
"""The first pointers of every kernel: nine tensors of `mace.graphs.graph.Graph` by name, ``sign_of_slot`` as float64;
then two arrays of float64, one number per element: covalent radii in Angstrom, which may be null if neither a transform
of the distance nor the repulsion is used, and atomic numbers, which may be null without the repulsion."""

GRAPH_DIMENSIONS = ("atoms", "slots per atom", "pairs", "cutoff")
"""The first dimensions of every kernel; the cutoff is a double, bit by bit. Padding is among the pairs: those whose two
slots are the same."""

_OWN = len(GRAPH_POINTERS)
_TYPES = dict.fromkeys(GRAPH_POINTERS, "int64_t") | dict.fromkeys(("sign_of_slot", "radii", "charges"), "double")
_GRAPH = "  const int64_t N = d[0], K = d[1], P = d[2]; double r_max; memcpy(&r_max, d + 3, 8);\n" + "".join(
    f"  const {_TYPES[name]} *{name} = (const {_TYPES[name]} *)p[{place}];\n"
    for place, name in enumerate(GRAPH_POINTERS)
)


@dataclass(frozen=True)
class GeometryShape:
    """What the source depends on besides the precision; all attributes are those of the plan of the same name.

    Attributes:
        l_max: Highest degree of the harmonics.
        radial_type: Kind of radial basis.
        num_radial_basis: Number of radial functions.
        num_cutoff_basis: Exponent of the cutoff polynomial.
        distance_transform: Transformation of distances before the radial basis.
        cutoff_after_network: Whether the envelope is handed out instead of being a factor of the basis.
    """

    l_max: int
    radial_type: Literal["bessel", "gaussian", "chebyshev"] = "bessel"
    num_radial_basis: int = 8
    num_cutoff_basis: int = 5
    distance_transform: Literal["None", "Agnesi", "Soft"] = "None"
    cutoff_after_network: bool = False

    @property
    def n_harmonics(self) -> int:
        """Number of harmonics of all degrees."""
        return (self.l_max + 1) ** 2


def harmonics_width(l_max: int, dtype: torch.dtype) -> int:
    """Return the number of harmonics rounded up to whole vectors, the length of a slot's row."""
    return -(-((l_max + 1) ** 2) // lanes(dtype)) * lanes(dtype)


def geometry_source(shape: GeometryShape, dtype: torch.dtype) -> str:
    """Return the C file of all kernels in this module."""
    parts = (
        prelude(dtype),
        "#include <math.h>",
        f"#define WIDTH {harmonics_width(shape.l_max, dtype)}",
        f"enum {{ BASIS = {shape.num_radial_basis}, HARMONICS = {shape.n_harmonics} }};",
        radial_functions(
            shape.radial_type, shape.num_cutoff_basis, shape.distance_transform, shape.cutoff_after_network
        ),
        _harmonics(shape.l_max),
        _PLACES,
        emit_pair_vectors(),
        emit_value(),
        emit_gradient(),
        emit_tangent(),
        emit_radial_coefficients(),
        emit_forces(),
        emit_strain(),
        emit_repulsion(),
    )
    return "\n".join(parts)


def _kernel(name: str, body: str) -> str:
    return f"""\
void {name}_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {{
{_GRAPH}{body}}}
{entry(name)}"""


def monomials(degree: int) -> Iterator[tuple[str, int, str | None]]:
    """Yield all products of components of the direction from degree one on, as expressions of harmonics name them.

    Each has a name, the number of a component, and the name of the product that is multiplied by this component, None
    for one.
    """
    for total in range(1, degree + 1):
        for x in range(total + 1):
            for y in range(total - x + 1):
                powers = [x, y, total - x - y]
                axis = next(axis for axis in range(3) if powers[axis])
                lower = _lowered(powers, axis)
                yield _name(powers), axis, _name(lower) if any(lower) else None


def harmonic_expressions(l_max: int) -> Iterator[tuple[str, list[str | None]]]:
    """Yield expressions for each harmonic and for its derivatives by the components, None where it is zero.

    They are sums of products with `monomials`, to which ``m000``, which is one, belongs as well.
    """
    for l in range(l_max + 1):
        for polynomial in harmonic_polynomials(l):
            slopes: list[str | None] = []
            for axis in range(3):
                terms = [
                    f"{factor * powers[axis]!r} * {_name(_lowered(powers, axis))}"
                    for powers, factor in polynomial.items()
                    if powers[axis]
                ]
                slopes.append(" + ".join(terms) or None)
            yield " + ".join(f"{factor!r} * {_name(powers)}" for powers, factor in polynomial.items()), slopes


def _lowered(powers: Sequence[int], axis: int) -> list[int]:
    return [power - (place == axis) for place, power in enumerate(powers)]


def _name(powers: Sequence[int]) -> str:
    return "m" + "".join(map(str, powers))


def _definitions(degree: int) -> list[str]:
    """Return definitions of the monomials of ``u``."""
    names = [f"  const double {name} = u[{axis}] * {lower or 'm000'};" for name, axis, lower in monomials(degree)]
    return ["  const double m000 = 1.0;", *names]


def _harmonics(l_max: int) -> str:
    """Return functions for the harmonics of a unit vector, and for their derivatives by its components."""
    values, slopes = [], []
    for n, (value, of_components) in enumerate(harmonic_expressions(l_max)):
        values.append(f"  y[{n}] = {value};")
        slopes += [f"  s[{n}][{axis}] = {slope or '0.0'};" for axis, slope in enumerate(of_components)]
    return "\n".join(
        [
            "static inline void harmonics(const double *u, double *y) {",
            *_definitions(l_max),
            *values,
            "}",
            "static inline void harmonic_slopes(const double *u, double (*s)[3]) {",
            *_definitions(max(l_max - 1, 0)),
            *slopes,
            "}",
            "static const double inversion[HARMONICS] = {"
            + ", ".join("-1.0" if l % 2 else "1.0" for l in range(l_max + 1) for _ in range(2 * l + 1))
            + "};\n",
        ]
    )


_PLACES = """\
static inline int is_padding(const int64_t *slots_of_pair, int64_t q) {
  return slots_of_pair[2 * q] == slots_of_pair[2 * q + 1];
}
static inline double direction(const T *v, double *u) {
  const double r = sqrt((double)v[0] * v[0] + (double)v[1] * v[1] + (double)v[2] * v[2]);
  for (int k = 0; k < 3; k++) u[k] = v[k] / r;
  return r;
}
static inline double dot(const double *a, const double *b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
static inline double sum_of_radii(const double *radii, const int64_t *element, int64_t i, int64_t j) {
  return radii ? radii[element[i]] + radii[element[j]] : 0.0;
}
// the other direction of an edge has odd harmonics of opposite sign
static inline void write_slots(T *rows, const int64_t *slots, const double *y) {
  T *a = rows + slots[0] * WIDTH, *b = rows + slots[1] * WIDTH;
  for (int m = 0; m < HARMONICS; m++) a[m] = y[m], b[m] = inversion[m] * y[m];
  for (int m = HARMONICS; m < WIDTH; m++) a[m] = b[m] = 0;
}
static inline void clear_empty_slots(T *rows, const int64_t *count, int64_t K, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i++)
    memset(rows + (i * K + count[i]) * WIDTH, 0, (K - count[i]) * WIDTH * sizeof(T));
}
"""
"""Functions that several kernels use."""


def emit_pair_vectors() -> str:
    """Return the kernel ``pair_vectors``; units are pairs.

    Pointers: positions, float64, ``[atoms, 3]``; cell, float64, ``[structures, 3, 3]``; pair_shift, integers,
    ``[pairs, 3]``; then the vectors, ``[pairs, 3]``, in which that of the padding is as long as the cutoff.
    """
    return _kernel(
        "pair_vectors",
        f"""\
  const double *positions = (const double *)p[{_OWN}], *cell = (const double *)p[{_OWN + 1}];
  const int64_t *shift = (const int64_t *)p[{_OWN + 2}];
  for (int64_t q = begin; q < end; q++) {{
    T *v = p[{_OWN + 3}] + 3 * q;
    if (is_padding(slots_of_pair, q)) {{ v[0] = v[2] = 0, v[1] = r_max; continue; }}
    const int64_t i = pair_sender[q], j = pair_receiver[q], *n = shift + 3 * q;
    const double *box = cell + 9 * structure_of_atom[i];
    for (int k = 0; k < 3; k++) {{
      const double translation = n[0] * box[k] + n[1] * box[3 + k] + n[2] * box[6 + k];
      v[k] = positions[3 * j + k] - positions[3 * i + k] + translation;
    }}
  }}
""",
    )


def emit_value() -> str:
    """Return the kernel ``geometry_value``; units are pairs.

    Pointers: vectors, ``[pairs, 3]``; then the results: lengths, ``[pairs]``; basis, optional, ``[pairs, basis]``;
    envelope, optional, ``[pairs]``; harmonics, ``[slots, width]``, see `harmonics_width`. Every number of the results
    is written; empty slots are zero, and so is the padding of harmonics.
    """
    return _kernel(
        "geometry_value",
        f"""\
  T *lengths = p[{_OWN + 1}], *of_basis = p[{_OWN + 2}], *of_envelope = p[{_OWN + 3}], *rows = p[{_OWN + 4}];
  clear_empty_slots(rows, neighbor_count, K, N * begin / P, N * end / P);
  for (int64_t q = begin; q < end; q++) {{
    double u[3], y[HARMONICS], b[BASIS], slope[BASIS], e, e_slope;
    const double r = direction(p[{_OWN}] + 3 * q, u);
    lengths[q] = r;
    if (of_basis || of_envelope) {{
      radial(r, r_max, sum_of_radii(radii, element, pair_sender[q], pair_receiver[q]), b, slope, &e, &e_slope);
      if (of_basis) for (int k = 0; k < BASIS; k++) of_basis[q * BASIS + k] = b[k];
      if (of_envelope) of_envelope[q] = e;
    }}
    if (is_padding(slots_of_pair, q)) continue;
    harmonics(u, y);
    write_slots(rows, slots_of_pair + 2 * q, y);
  }}
""",
    )


def emit_tangent() -> str:
    """Return the kernel ``geometry_tangent``; units are pairs.

    Pointers: vectors and their tangents, ``[pairs, 3]``; then the tangents of what ``geometry_value`` gives, of which
    lengths, too, are optional here. All are zero for the padding and for empty slots.
    """
    return _kernel(
        "geometry_tangent",
        f"""\
  T *lengths = p[{_OWN + 2}], *of_basis = p[{_OWN + 3}], *of_envelope = p[{_OWN + 4}], *rows = p[{_OWN + 5}];
  clear_empty_slots(rows, neighbor_count, K, N * begin / P, N * end / P);
  for (int64_t q = begin; q < end; q++) {{
    double u[3], s[HARMONICS][3], y[HARMONICS], b[BASIS], slope[BASIS], e, e_slope;
    const T *t = p[{_OWN + 1}] + 3 * q;
    const double r = direction(p[{_OWN}] + 3 * q, u), v[3] = {{t[0], t[1], t[2]}};
    const double along = is_padding(slots_of_pair, q) ? 0 : dot(u, v);
    if (lengths) lengths[q] = along;
    if (of_basis || of_envelope) {{
      radial(r, r_max, sum_of_radii(radii, element, pair_sender[q], pair_receiver[q]), b, slope, &e, &e_slope);
      if (of_basis) for (int k = 0; k < BASIS; k++) of_basis[q * BASIS + k] = slope[k] * along;
      if (of_envelope) of_envelope[q] = e_slope * along;
    }}
    if (is_padding(slots_of_pair, q)) continue;
    const double turn[3] = {{(v[0] - u[0] * along) / r, (v[1] - u[1] * along) / r, (v[2] - u[2] * along) / r}};
    harmonic_slopes(u, s);
    for (int m = 0; m < HARMONICS; m++) y[m] = dot(s[m], turn);
    write_slots(rows, slots_of_pair + 2 * q, y);
  }}
""",
    )


def emit_gradient() -> str:
    """Return the kernel ``geometry_gradient``, the adjoint of ``geometry_tangent``; units are pairs.

    Pointers: vectors, ``[pairs, 3]``; cotangents of lengths, basis and envelope, all optional; the gradient, to be
    written, ``[pairs, 3]``, zero for the padding; then any number of arrays, ``[shares, slots, width]``, whose sum over
    all arrays and shares, in their order, is the cotangent of the harmonics.

    Dimensions: whether the places of the first harmonic, which is constant, hold cotangents of the length of the pair,
    to be added to those given; the number of arrays; and the number of shares of each.
    """
    return _kernel(
        "geometry_gradient",
        f"""\
  const T *lengths = p[{_OWN + 1}], *of_basis = p[{_OWN + 2}], *of_envelope = p[{_OWN + 3}];
  for (int64_t q = begin; q < end; q++) {{
    T *g = p[{_OWN + 4}] + 3 * q;
    if (is_padding(slots_of_pair, q)) {{ g[0] = g[1] = g[2] = 0; continue; }}
    double u[3], s[HARMONICS][3], b[BASIS], slope[BASIS], e, e_slope;
    const double r = direction(p[{_OWN}] + 3 * q, u);
    double along = lengths ? lengths[q] : 0.0;
    if (of_basis || of_envelope) {{
      radial(r, r_max, sum_of_radii(radii, element, pair_sender[q], pair_receiver[q]), b, slope, &e, &e_slope);
      if (of_basis) for (int k = 0; k < BASIS; k++) along += slope[k] * of_basis[q * BASIS + k];
      if (of_envelope) along += e_slope * of_envelope[q];
    }}
    V sums[2][WIDTH / L];
    memset(sums, 0, sizeof sums);
    for (int64_t a = 0; a < d[5]; a++)
      for (int64_t share = 0; share < d[6 + a]; share++)
        for (int k = 0; k < 2; k++) {{
          const T *row = p[{_OWN + 5} + a] + (share * N * K + slots_of_pair[2 * q + k]) * WIDTH;
          for (int m = 0; m < WIDTH / L; m++) sums[k][m] += LOAD(row + m * L);
        }}
    T y[2][WIDTH];
    memcpy(y, sums, sizeof y);
    if (d[4]) along += (double)y[0][0] + y[1][0];
    double turn[3] = {{0.0, 0.0, 0.0}};
    harmonic_slopes(u, s);
    for (int m = 1; m < HARMONICS; m++) {{
      const double of_pair = y[0][m] + inversion[m] * y[1][m];
      for (int k = 0; k < 3; k++) turn[k] += of_pair * s[m][k];
    }}
    const double radial_part = dot(u, turn);
    for (int k = 0; k < 3; k++) g[k] = along * u[k] + (turn[k] - radial_part * u[k]) / r;
  }}
""",
    )


def emit_radial_coefficients() -> str:
    """Return the kernel ``radial_coefficients``, see `mace.kernels.radial_table.RadialTable`; units are pairs.

    Pointers: lengths, ``[pairs]``; then the results: intervals, integers, ``[pairs]``, and factors, ``[pairs, 12]``.

    Dimensions: the number of nodes.
    """
    rows = ", ".join("{" + ", ".join(map(repr, row)) + "}" for row in HERMITE)
    return _kernel(
        "radial_coefficients",
        f"""\
  static const double hermite[6][6] = {{{rows}}};
  const double step = (r_max - {SHORTEST}) / (d[4] - 1);
  for (int64_t q = begin; q < end; q++) {{
    const T length = p[{_OWN}][q];
    T *factors = p[{_OWN + 2}] + 12 * q;
    const double place = (length - {SHORTEST}) / step, last = d[4] - 2;
    // a length that is no number must not become an index
    const double interval = place > 0.0 ? (place < last ? floor(place) : last) : 0.0, t = place - interval;
    ((int64_t *)p[{_OWN + 1}])[q] = interval;
    const int within = length < (T)r_max;
    for (int k = 0; k < 6; k++) {{
      const double *h = hermite[k];
      const double value = h[0] + t * (h[1] + t * (h[2] + t * (h[3] + t * (h[4] + t * h[5]))));
      const double slope = h[1] + t * (2 * h[2] + t * (3 * h[3] + t * (4 * h[4] + t * 5 * h[5])));
      factors[k] = within * value;
      factors[6 + k] = within * slope / step;
    }}
  }}
""",
    )


def emit_forces() -> str:
    """Return the kernels ``forces_value``, with atoms as units, and ``forces_adjoint``, with pairs as units.

    Pointers of the first: the energy's gradient by the vectors of the pairs, ``[pairs, 3]``; then the forces,
    ``[atoms, 3]``. Each atom gets the gradients of its slots, never that of the padding.

    Pointers of the second: the cotangent of the forces, optional, ``[atoms, 3]``; then that of the gradient, to be
    written, ``[pairs, 3]``, zero for the padding, and everywhere if no cotangent is given.
    """
    value = f"""\
  const T *gradient = p[{_OWN}];
  for (int64_t i = begin; i < end; i++) {{
    double sum[3] = {{0.0, 0.0, 0.0}};
    const int64_t row = row_of_atom[i];
    for (int64_t s = row * K; s < row * K + neighbor_count[row]; s++)
      for (int k = 0; k < 3; k++) sum[k] -= sign_of_slot[s] * gradient[3 * pair_of_slot[s] + k];
    for (int k = 0; k < 3; k++) p[{_OWN + 1}][3 * i + k] = sum[k];
  }}
"""
    adjoint = f"""\
  const T *forces = p[{_OWN}];
  for (int64_t q = begin; q < end; q++) {{
    const int64_t i = pair_sender[q], j = pair_receiver[q];
    for (int k = 0; k < 3; k++)
      p[{_OWN + 1}][3 * q + k] = forces && !is_padding(slots_of_pair, q) ? forces[3 * i + k] - forces[3 * j + k] : 0;
  }}
"""
    return _kernel("forces_value", value) + _kernel("forces_adjoint", adjoint)


def emit_strain() -> str:
    """Return the kernels ``strain_value``, with structures as units, and ``strain_adjoint``, with pairs as units.

    Pointers of the first: vectors, and the energy's gradient by them, ``[pairs, 3]``; then the energy's derivative by a
    symmetric strain, ``[structures, 3, 3]``. Stress is that divided by the volume, and virials have the opposite sign.

    Pointers of the second: vectors, ``[pairs, 3]``; the cotangent of the derivative, ``[structures, 3, 3]``, symmetric
    or not; then the cotangent of the gradient, to which its part is added, ``[pairs, 3]``.
    """
    # the pairs of a structure are those of the slots in the direction of their pair
    value = f"""\
  for (int64_t c = begin; c < end; c++) {{
    double sum[9] = {{0.0}};
    int64_t low = 0, high = N;
    while (low < high) {{  // the first atom of the structure
      const int64_t middle = (low + high) / 2;
      if (structure_of_atom[middle] < c) low = middle + 1; else high = middle;
    }}
    for (int64_t i = low; i < N && structure_of_atom[i] == c; i++) {{
      const int64_t row = row_of_atom[i];
      for (int64_t s = row * K; s < row * K + neighbor_count[row]; s++) {{
        if (sign_of_slot[s] < 0.0) continue;
        const T *v = p[{_OWN}] + 3 * pair_of_slot[s], *g = p[{_OWN + 1}] + 3 * pair_of_slot[s];
        for (int k = 0; k < 9; k++)
          sum[k] += 0.5 * ((double)v[k / 3] * g[k % 3] + (double)v[k % 3] * g[k / 3]);
      }}
    }}
    for (int k = 0; k < 9; k++) p[{_OWN + 2}][9 * c + k] = sum[k];
  }}
"""
    adjoint = f"""\
  for (int64_t q = begin; q < end; q++) {{
    if (is_padding(slots_of_pair, q)) continue;
    const T *v = p[{_OWN}] + 3 * q, *c = p[{_OWN + 1}] + 9 * structure_of_atom[pair_sender[q]];
    for (int k = 0; k < 3; k++) {{
      double sum = 0.0;
      for (int n = 0; n < 3; n++) sum += 0.5 * ((double)c[3 * n + k] + c[3 * k + n]) * v[n];
      p[{_OWN + 2}][3 * q + k] += sum;
    }}
  }}
"""
    return _kernel("strain_value", value) + _kernel("strain_adjoint", adjoint)


def emit_repulsion() -> str:
    """Return three kernels for `mace.model.radial.NuclearRepulsion`, which has no parameters.

    ``repulsion_value``, with pairs as units: pointers are lengths, ``[pairs]``, and the results: half the repulsion of
    each pair in eV, zero for the padding, and its derivative by the length, ``[pairs]``.

    ``repulsion_rows``, with rows as units: pointers are the halves, and the energy of each row, to be written,
    ``[atoms]``.

    ``repulsion_gradient``, with pairs as units: pointers are the derivatives, the cotangents of the energies of the
    rows, and those of the lengths, to be written, ``[pairs]``.
    """
    value = f"""\
  for (int64_t q = begin; q < end; q++) {{
    const int64_t i = pair_sender[q], j = pair_receiver[q];
    double slope;
    p[{_OWN + 1}][q] = repulsion(
        p[{_OWN}][q], r_max, charges[element[i]], charges[element[j]], sum_of_radii(radii, element, i, j), &slope);
    p[{_OWN + 2}][q] = slope;
  }}
"""
    rows = f"""\
  for (int64_t i = begin; i < end; i++) {{
    double sum = 0.0;
    for (int64_t s = i * K; s < i * K + neighbor_count[i]; s++) sum += p[{_OWN}][pair_of_slot[s]];
    p[{_OWN + 1}][i] = sum;
  }}
"""
    gradient = f"""\
  const T *cotangents = p[{_OWN + 1}];
  for (int64_t q = begin; q < end; q++) {{
    const T both = cotangents[row_of_atom[pair_sender[q]]] + cotangents[row_of_atom[pair_receiver[q]]];
    p[{_OWN + 2}][q] = is_padding(slots_of_pair, q) ? 0 : p[{_OWN}][q] * both;
  }}
"""
    names = {"repulsion_value": value, "repulsion_rows": rows, "repulsion_gradient": gradient}
    return "".join(_kernel(name, body) for name, body in names.items())
