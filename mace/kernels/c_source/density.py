"""C source of the division of an atom's sums by a learned density; `mace.program.density` has the equations.

The last dimension, the number of rows or pairs, is for kernels on a device.
"""

from __future__ import annotations

import torch

from mace.kernels.c_source.parts import prelude

_SOURCE = r"""
#include <math.h>
/* Kernels of rows. Pointers: neighbor_count, pair_of_slot, then arrays; dimensions: slots per row. */
#define ROWS(NAME, BODY)                                                                                \
void NAME##_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {          \
  const int64_t *count = (const int64_t *)p[0], *pair = (const int64_t *)p[1];                           \
  for (int64_t i = begin; i < end; i++) { BODY }                                                         \
}
#define SUM(TERM) double sum = 0; for (int64_t x = i * d[0]; x < i * d[0] + count[i]; x++) {              \
    const double q = p[2][pair[x]], s = tanh(q * q); (void)s; sum += TERM; }
/* q -> f */
ROWS(density_value, SUM(s) p[3][i] = 1 / (1 + sum);)
/* q, its tangent, f -> tangent of f */
ROWS(density_tangent, SUM(2 * q * (1 - s * s) * p[3][pair[x]]) p[5][i] = -sum * p[4][i] * p[4][i];)

/* Kernels of pairs. Pointers: pair_sender, pair_receiver, row_of_atom, q, f, its gradient, then arrays. */
#define PAIRS(NAME, OF_ROW, RESULT)                                                                     \
void NAME##_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {          \
  const int64_t *sender = (const int64_t *)p[0], *receiver = (const int64_t *)p[1], *row = (const int64_t *)p[2]; \
  for (int64_t x = begin; x < end; x++) {                                                                \
    const double q = p[3][x], s = tanh(q * q), slope = 2 * q * (1 - s * s);                              \
    double a = 0, b = 0;                                                                                 \
    for (int k = 0; k < 2; k++) {                                                                        \
      const int64_t i = row[k ? receiver[x] : sender[x]];                                                \
      const double f = p[4][i], c = p[5][i];                                                             \
      a -= c * f * f; OF_ROW                                                                             \
    }                                                                                                    \
    RESULT                                                                                               \
  }                                                                                                      \
}
/* -> gradient by q */
PAIRS(density_gradient, , p[6][x] = a * slope;)
/* added to gradient by q */
PAIRS(density_adjoint, , p[6][x] += a * slope;)
/* tangent of q, tangent of f -> gradient by q of the tangent of f times its gradient */
PAIRS(density_second, b -= 2 * c * f * p[7][i];,
      p[8][x] = a * (2 * (1 - s * s) - 4 * q * s * slope) * p[6][x] + b * slope;)

/* Kernels of rows of features, of width d[0], which is a number of whole vectors. Pointers: f, u, then arrays. */
#define FEATURES(NAME, BODY, RESULT)                                                                    \
void NAME##_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {          \
  for (int64_t i = begin; i < end; i++) {                                                                \
    const T f = p[0][i];                                                                                 \
    V sum = {0};                                                                                         \
    for (int64_t x = i * d[0]; x < (i + 1) * d[0]; x += L) { const V u = LOAD(p[1] + x); (void)u; (void)f; BODY } \
    T total = 0;                                                                                         \
    for (int k = 0; k < L; k++) total += sum[k];                                                         \
    RESULT                                                                                               \
  }                                                                                                      \
}
/* -> f u */
FEATURES(scaled_value, STORE(p[2] + x, f * u);,)
/* gradient by f u -> gradients by u and f */
FEATURES(scaled_gradient, const V g = LOAD(p[2] + x); STORE(p[3] + x, f * g); sum += g * u;, p[4][i] = total;)
/* the same, added */
FEATURES(scaled_adjoint, const V g = LOAD(p[2] + x); STORE(p[3] + x, LOAD(p[3] + x) + f * g); sum += g * u;,
         p[4][i] += total;)
/* gradient by f u, tangents of u and f -> tangent of f u, gradients by u and f of the two's product */
FEATURES(scaled_second, const V g = LOAD(p[2] + x); const V v = LOAD(p[3] + x);
         STORE(p[5] + x, f * v + p[4][i] * u); STORE(p[6] + x, p[4][i] * g); sum += g * v;, p[7][i] = total;)
"""


def density_source(dtype: torch.dtype) -> str:
    """Return the C file of the density's kernels."""
    return prelude(dtype) + _SOURCE
