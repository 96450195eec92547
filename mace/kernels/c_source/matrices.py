r"""C source of products of matrices and of activations, for any sizes.

A product is described by numbers in memory, so that one kernel runs a list of them: those of all degrees, and for each
element those of its atoms. Every product is :math:`C_{rn} \mathrel{(+)}= f_r \sum_k A_{rk} B_{kn}`; its rows may be
pairs ``(atom, component)``, its sum may run over components too, and its columns are stored in vectors.

Registers hold `ROWS` times ``columns()`` vectors of the result; the part of ``B`` that belongs to them is *packed*, its
vectors one after the other: weights once for all products with them, other operands where they are used.
"""

from __future__ import annotations

import torch

from mace.kernels.c_source.parts import lane_sums, lanes, prelude, shuffle
from mace.kernels.c_source.target import vector_bytes

ROWS = 6
"""Rows of a product that are computed together."""

PACKED, PLAIN, BY_ROWS = 0, 1, 2
"""How ``B`` is stored: packed; with contiguous columns; or transposed, so that a sum runs along contiguous numbers."""

NO_GROUPS, ROW_GROUPS, SUM_GROUPS, EACH_GROUP = 0, 1, 2, 3
"""Whether groups, such as the atoms of an element, divide the rows or the sum, or there is a product for each."""

FIELDS = (
    *("rows", "inner", "columns", "depth", "segments"),
    *("a", "a_outer", "a_inner", "a_depth", "a_segment"),
    *("b", "b_storage", "b_depth", "b_vector", "b_segment", "b_group", "b_by_index"),
    *("c", "c_outer", "c_inner", "c_vector", "c_group", "c_by_index", "c_whole"),
    *("add", "scale"),
    *("grouping", "groups", "group_starts", "group_index"),
)
"""The numbers that describe a product, in order.

Row ``r`` is component ``r % inner`` of atom ``r / inner``; it starts at ``a + atom * a_outer + component * a_inner``,
and its next number is ``a_depth`` away. The sum has ``segments`` parts of ``depth`` terms. Column ``n`` of row ``k`` of
``b`` lies at ``k * b_depth + n / L * b_vector + n % L`` (`PLAIN`) or ``n * b_depth + k`` (`BY_ROWS`). ``c_whole`` says
that whole vectors of the result may be written, and ``add`` that they are added to. ``scale`` is the bit pattern of a
double. Groups are given by ``group_starts`` (of ``groups`` and the end) and ``group_index`` (which matrix); operands
are ``b_group`` or ``c_group`` apart, by the group's index or by its place. Groups without rows are left out, and what
would be written for them stays as it is; without starts, none is without rows.
"""


def columns() -> int:
    """Return how many vectors of columns are computed together: with few registers, fewer."""
    return 4 if vector_bytes() == 64 else 2


def panel(dtype: torch.dtype) -> int:
    """Return the number of columns that are computed together."""
    return columns() * lanes(dtype)


def _micro(rows: int, vectors: int) -> str:
    """Return the loop over the sum for a few rows and vectors of the result."""
    grid = [(i, j) for i in range(rows) for j in range(vectors)]
    lines = [
        f"static void micro_{rows}_{vectors}(int64_t K, const T *const *a, int64_t da, const T *b, int64_t db,",
        "    int64_t vb, T *const *c, int64_t vc, T f, int add) {",
        "  V " + ", ".join(f"s{i}_{j} = {{0}}" for i, j in grid) + ";",
        "  const T " + ", ".join(f"*a{i} = a[{i}]" for i in range(rows)) + ";",
        "  for (int64_t k = 0, o = 0; k < K; k++, o += da, b += db) {",
        "    const V " + ", ".join(f"b{j} = LOAD(b + {j} * vb)" for j in range(vectors)) + ";",
    ]
    lines += [
        f"    {{ const T x = a{i}[o]; " + " ".join(f"s{i}_{j} += x * b{j};" for j in range(vectors)) + " }"
        for i in range(rows)
    ]
    lines.append("  }")
    for i in range(rows):
        old = ", ".join(f"o{j} = LOAD(c[{i}] + {j} * vc)" for j in range(vectors))
        new = " ".join(f"STORE(c[{i}] + {j} * vc, o{j} + f * s{i}_{j});" for j in range(vectors))
        put = " ".join(f"STORE(c[{i}] + {j} * vc, f * s{i}_{j});" for j in range(vectors))
        lines.append(f"  if (add) {{ const V {old}; {new} }} else {{ {put} }}")
    return "\n".join([*lines, "}"])


def _dots(n_lanes: int) -> str:
    """Return the sums of a row with as many rows of ``B`` as a vector has lanes, where both are contiguous."""
    sums, total = lane_sums([f"s{j}" for j in range(n_lanes)], n_lanes)
    body = "\n".join(
        [
            "  V " + ", ".join(f"s{j} = {{0}}" for j in range(n_lanes)) + ";",
            "  int64_t k = 0;",
            "  for (; k + L <= K; k += L) {",
            "    const V x = LOAD(a + k);",
            *(f"    s{j} += x * LOAD(b + {j} * db + k);" for j in range(n_lanes)),
            "  }",
            "  if (k < K) {",
            "    const V x = part(a + k, K - k);",
            *(f"    s{j} += x * part(b + {j} * db + k, K - k);" for j in range(n_lanes)),
            "  }",
            *sums,
            f"  return {total};",
        ]
    )
    return f"static V dots(int64_t K, const T *a, const T *b, int64_t db) {{\n{body}\n}}"


_DRIVER = r"""
typedef struct { int64_t FIELDS_; } Product;
static double number(int64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
static V part(const T *p, int64_t n) { V v = {0}; memcpy(&v, p, (n < L ? n : L) * sizeof(T)); return v; }

/* Copies rows k0 to k1 of B, PANEL columns from n0 on, to vectors one after the other. */
static void pack(const Product *q, const T *B, int64_t k0, int64_t k1, int64_t n0, int64_t vectors, T *to) {
  for (int64_t k = k0; k < k1; k++) {
    const T *row = B + k * q->b_depth + n0 / L * q->b_vector;
    for (int64_t j = 0; j < vectors; j++, to += L) {
      const int64_t left = q->columns - n0 - j * L;
      STORE(to, left >= L ? LOAD(row + j * q->b_vector) : part(row + j * q->b_vector, left));
    }
  }
}

/* One range of rows and one panel of columns; atoms are counted from the first of the group. */
static void tile(const Product *q, const T *A, const T *B, T *C, int64_t r0, int64_t r1, int64_t n0, int64_t K) {
  T packed[DEPTH * PANEL] __attribute__((aligned(64))), tail[ROWS * PANEL] __attribute__((aligned(64)));
  const T scale = (T)number(q->scale);
  const int64_t left = q->columns - n0, vectors = left >= PANEL ? PANEL / L : (left + L - 1) / L;
  const int partial = !q->c_whole && left < vectors * L;
  const int direct = q->b_storage == PLAIN && r1 - r0 <= ROWS && left >= vectors * L;
  int add = q->add != 0;
  C += n0 / L * q->c_vector;
  for (int64_t s = 0; s < q->segments; s++)
  for (int64_t k0 = 0; k0 < K || (k0 == 0 && s == 0); k0 += DEPTH, add = 1) {
    const int64_t k1 = K - k0 < DEPTH ? K : k0 + DEPTH;
    const T *b = packed; int64_t db = vectors * L, vb = L;
    if (q->b_storage == PACKED) { b = B + n0 * K + k0 * PANEL; db = PANEL; }
    else if (direct) {
      b = B + s * q->b_segment + k0 * q->b_depth + n0 / L * q->b_vector;
      db = q->b_depth; vb = q->b_vector;
    }
    else pack(q, B + s * q->b_segment, k0, k1, n0, vectors, packed);
    const T *a0 = A + s * q->a_segment + k0 * q->a_depth;
    for (int64_t r = r0, i = r0 / q->inner, m = r0 % q->inner; r < r1; r += ROWS) {
      const T *a[ROWS]; T *c[ROWS], *to[ROWS];
      const int64_t n = r1 - r < ROWS ? r1 - r : ROWS;
      for (int64_t x = 0; x < n; x++) {
        a[x] = a0 + i * q->a_outer + m * q->a_inner;
        c[x] = C + i * q->c_outer + m * q->c_inner;
        to[x] = partial ? tail + x * PANEL : c[x];
        if (++m == q->inner) { m = 0; i++; }
      }
      MICRO[n][vectors](k1 - k0, a, q->a_depth, b, db, vb, to, partial ? L : q->c_vector, scale, partial ? 0 : add);
      if (partial)
        for (int64_t x = 0; x < n; x++)
          for (int64_t j = 0; j < left; j++) {
            T *at = c[x] + j / L * q->c_vector + j % L;
            *at = add ? *at + tail[x * PANEL + j] : tail[x * PANEL + j];
          }
    }
  }
}

/* The same where B is transposed: sums of two contiguous rows. */
static void tile_by_rows(const Product *q, const T *A, const T *B, T *C, int64_t r0, int64_t r1, int64_t n0,
                         int64_t K) {
  const T f = (T)number(q->scale);
  const int64_t last = q->columns - n0 < PANEL ? q->columns : n0 + PANEL;
  T copy[L * DEPTH] __attribute__((aligned(64)));
  for (int64_t n = n0; n < last; n += L) {
    const int64_t left = q->columns - n;
    const T *b = B + n * q->b_depth; int64_t db = q->b_depth;
    if (left < L && K <= DEPTH) {
      memset(copy, 0, sizeof copy);
      for (int64_t j = 0; j < left; j++) memcpy(copy + j * DEPTH, b + j * db, K * sizeof(T));
      b = copy; db = DEPTH;
    }
    for (int64_t r = r0, i = r0 / q->inner, m = r0 % q->inner; r < r1; r++) {
      const T *a = A + i * q->a_outer + m * q->a_inner;
      T *c = C + i * q->c_outer + m * q->c_inner + n / L * q->c_vector;
      if (left >= L || K <= DEPTH) {
        V sum = f * dots(K, a, b, db);
        if (left >= L || q->c_whole) STORE(c, q->add ? LOAD(c) + sum : sum);
        else for (int64_t j = 0; j < left; j++) c[j] = q->add ? c[j] + sum[j] : sum[j];
      } else for (int64_t j = 0; j < L; j++) {
        T sum = 0;
        if (j >= left) { if (q->c_whole && !q->add) c[j] = 0; continue; }
        for (int64_t k = 0; k < K; k++) sum += a[k] * b[j * db + k];
        c[j] = q->add ? c[j] + f * sum : f * sum;
      }
      if (++m == q->inner) { m = 0; i++; }
    }
  }
}

/* Goes through the tiles of all products; those of one share are computed, or with share < 0 their cost is added up. */
static int64_t tiles(const Product *q, int64_t n, int64_t share, int64_t shares, int64_t total) {
  int64_t cost = 0;
  for (int64_t x = 0; x < n; x++, q++) {
    const int64_t groups = q->grouping ? q->groups : 1;
    const int64_t *starts = (const int64_t *)q->group_starts, *index = (const int64_t *)q->group_index;
    for (int64_t g = 0; g < groups; g++) {
      if (q->grouping && starts && starts[g] == starts[g + 1]) continue;
      const int64_t start = q->grouping == ROW_GROUPS || q->grouping == SUM_GROUPS ? starts[g] : 0;
      const int64_t rows = q->grouping == ROW_GROUPS ? (starts[g + 1] - start) * q->inner : q->rows;
      const int64_t depth = q->grouping == SUM_GROUPS ? starts[g + 1] - start : q->depth;
      const int64_t of_b = q->grouping ? (q->b_by_index ? index[g] : g) * q->b_group : 0;
      const int64_t of_c = q->grouping ? (q->c_by_index ? index[g] : g) * q->c_group : 0;
      const int64_t at_a = q->grouping == ROW_GROUPS ? start * q->a_outer : start * q->a_depth;
      const int64_t at_b = q->grouping == SUM_GROUPS ? start * q->b_depth : 0;
      const int64_t at_c = q->grouping == ROW_GROUPS ? start * q->c_outer : 0;
      const int64_t terms = depth * q->segments + 1;
      for (int64_t n0 = 0; n0 < q->columns; n0 += PANEL)
      for (int64_t r0 = 0; r0 < rows; r0 += CHUNK) {
        const int64_t r1 = rows - r0 < CHUNK ? rows : r0 + CHUNK;
        const int mine = share >= 0 && (__int128)cost * shares / (total + 1) == share;
        cost += (r1 - r0) * terms;
        if (!mine) continue;
        (q->b_storage == BY_ROWS ? tile_by_rows : tile)(q, (const T *)q->a + at_a, (const T *)q->b + of_b + at_b,
            (T *)q->c + of_c + at_c, r0, r1, n0, depth);
      }
    }
  }
  return cost;
}

/* Pointers: a list of products. Dimensions: how many, shares. Units: shares. */
void products_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {
  const int64_t total = tiles((const Product *)p[0], d[0], -1, d[1], 0);
  for (int64_t t = begin; t < end; t++) tiles((const Product *)p[0], d[0], t, d[1], total);
}

/* Packs matrices. Pointers: a list of source, result, rows, columns, distances of rows and columns in the source, and
   rows of the result's panels. Dimensions: how many, shares. Units: shares. */
typedef struct { const T *from; T *to; int64_t rows, columns, row, column, depth; } Packed;
void packing_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {
  int64_t number = 0;
  for (int64_t x = 0; x < d[0]; x++) {
    const Packed *w = (const Packed *)p[0] + x;
    for (int64_t n0 = 0; n0 < w->columns; n0 += PANEL, number++) {
      if (number % d[1] < begin || number % d[1] >= end) continue;
      const int64_t left = w->columns - n0 < PANEL ? w->columns - n0 : PANEL;
      T *to = w->to + n0 * w->depth;
      if (left < PANEL) memset(to, 0, w->rows * PANEL * sizeof(T));
      const T *from = w->from + n0 * w->column;
      if (w->column == 1)
        for (int64_t k = 0; k < w->rows; k++) memcpy(to + k * PANEL, from + k * w->row, left * sizeof(T));
      else
        for (int64_t j = 0; j < left; j++)
          for (int64_t k = 0; k < w->rows; k++) to[k * PANEL + j] = from[k * w->row + j * w->column];
    }
  }
}

/* Sets numbers to zero. Pointers: a list of arrays and their lengths. Dimensions: how many, shares. Units: shares. */
typedef struct { T *numbers; int64_t count; } Cleared;
void zeros_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {
  for (int64_t x = 0; x < d[0]; x++) {
    const Cleared *c = (const Cleared *)p[0] + x;
    const int64_t first = c->count * begin / d[1], last = c->count * end / d[1];
    memset(c->numbers + first, 0, (last - first) * sizeof(T));
  }
}

/* Sets rows of pairs that are padding, those whose two slots are the same, to zero. Pointers: slots_of_pair, integers,
   the numbers. Dimensions: width of a row. Units: pairs. */
void clear_padding_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {
  const int64_t *slots = (const int64_t *)p[0];
  for (int64_t q = begin; q < end; q++)
    if (slots[2 * q] == slots[2 * q + 1]) memset(p[1] + q * d[0], 0, d[0] * sizeof(T));
}
"""


def _exponential(dtype: torch.dtype) -> str:
    """Return the exponential of a vector, by a Taylor polynomial between halves of log 2, exact to rounding."""
    single = dtype == torch.float32
    integer, bits, magic, order = (
        ("uint32_t", 23, "12582912.0f", 7) if single else ("uint64_t", 52, "6755399441055744.0", 13)
    )
    largest = "88.0f" if single else "708.0"
    high, low = (
        ("0.693145751953125f", "1.42860682030941723212e-6f")
        if single
        else ("0.69314718036912381649", "1.9082149292705877e-10")
    )
    terms, factorial = [], 1.0
    for power in range(order + 1):
        factorial *= max(power, 1)
        terms.append(f"(T){1.0 / factorial!r}")
    horner = terms[-1]
    for term in reversed(terms[:-1]):
        horner = f"({term} + r * {horner})"
    return f"""\
typedef {integer} U __attribute__((vector_size({vector_bytes()})));
static inline V exponential(V x) {{
  const V most = (V){{0}} + (T){largest};
  U m = (U)(x > most); x = (V)((m & (U)most) | (~m & (U)x));
  m = (U)(x < -most); x = (V)((m & (U)-most) | (~m & (U)x));
  const V t = x * (T)1.4426950408889634 + (T){magic}, k = t - (T){magic};
  const V r = (x - k * (T){high}) - k * (T){low};
  return (V)((U){horner} + ((U)t << {bits}));
}}
"""


_ACTIVATION = r"""
/* SiLU. Pointers: z, its sigmoid s, then, by kernel: value -> s, h; gradient g -> g h'(z); tangent u, g -> u h'(z),
   g u h''(z); adjoint g -> g h'(z), added. Dimensions: count (whole vectors), shares. Units: shares. */
#define SILU(NAME, SIGMOID, BODY)                                                                    \
void silu_##NAME##_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) { \
  const int64_t n = d[0] / L;                                                                        \
  for (int64_t x = n * begin / d[1] * L; x < n * end / d[1] * L; x += L) {                             \
    const V z = LOAD(p[0] + x), s = SIGMOID;                                                         \
    BODY                                                                                             \
  }                                                                                                  \
}
#define SLOPE (s * ((T)1 + z * ((T)1 - s)))
SILU(value, (T)1 / ((T)1 + exponential(-z)), STORE(p[1] + x, s); STORE(p[2] + x, z * s);)
SILU(gradient, LOAD(p[1] + x), STORE(p[3] + x, LOAD(p[2] + x) * SLOPE);)
SILU(tangent, LOAD(p[1] + x), const V u = LOAD(p[2] + x); STORE(p[4] + x, u * SLOPE);
     STORE(p[5] + x, LOAD(p[3] + x) * u * s * ((T)1 - s) * ((T)2 + z * ((T)1 - (T)2 * s)));)
SILU(adjoint, LOAD(p[1] + x), STORE(p[3] + x, LOAD(p[3] + x) + LOAD(p[2] + x) * SLOPE);)
"""


def matrices_source(dtype: torch.dtype) -> str:
    """Return the C file."""
    fields = "int64_t " + ", ".join(FIELDS)
    n_vectors = columns()
    micro = [_micro(rows, vectors) for rows in range(1, ROWS + 1) for vectors in range(1, n_vectors + 1)]
    table = ",\n".join(
        "  {0, " + ", ".join(f"micro_{rows}_{vectors}" for vectors in range(1, n_vectors + 1)) + "}"
        for rows in range(1, ROWS + 1)
    )
    return "\n".join(
        [
            prelude(dtype),
            shuffle(dtype),
            f"#define ROWS {ROWS}\n#define PANEL {panel(dtype)}\n#define DEPTH 256\n#define CHUNK 96",
            f"enum {{ PACKED = {PACKED}, PLAIN = {PLAIN}, BY_ROWS = {BY_ROWS} }};",
            f"enum {{ ROW_GROUPS = {ROW_GROUPS}, SUM_GROUPS = {SUM_GROUPS}, EACH_GROUP = {EACH_GROUP} }};",
            *micro,
            "typedef void Micro(int64_t, const T *const *, int64_t, const T *, int64_t, int64_t, T *const *, int64_t,"
            " T, int);",
            f"static Micro *const MICRO[ROWS + 1][{n_vectors + 1}] = {{ {{0}},\n{table} }};",
            "static V part(const T *p, int64_t n);",
            _dots(lanes(dtype)),
            _DRIVER.replace("int64_t FIELDS_", fields),
            _exponential(dtype),
            _ACTIVATION,
        ]
    )
