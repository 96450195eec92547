r"""Division of an atom's sums by a learned density.

The density of atom ``i`` is :math:`\rho_i = \sum_j \tanh(q_{ij}^2)` over its neighbors, and its features are multiplied by
:math:`f_i = 1 / (1 + \rho_i)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mace.kernels.emit import prelude
from mace.program.libraries import kernel
from mace.program.passes import Block, Pass, Tape
from mace.program.record import Array, Extent

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


class Density(Block):
    """The factor of each row.

    Args:
        inputs: ``q`` of the pairs.
        factors: ``f`` of the rows.
        neighbor_count: Array of the graph; see `mace.graphs.graph.Graph`, as for the others.
        pair_of_slot: See there.
        pairs: The arrays ``pair_sender``, ``pair_receiver`` and ``row_of_atom``.
    """

    def __init__(
        self, inputs: Array, factors: Array, neighbor_count: Array, pair_of_slot: Array, pairs: Sequence[Array]
    ) -> None:
        self.inputs, self.factors, self._slots, self._pairs = inputs, factors, (neighbor_count, pair_of_slot), pairs

    def prepare(self, tape: Tape) -> None:
        """See `Block`."""

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        self._rows(tape, "density_value", self.inputs, self.factors)
        tape.adds(self.factors)

    def gradient(self, tape: Tape) -> None:
        """See `Block`."""
        target = tape.of(Pass.GRADIENT, self.inputs)
        tape.adds(target)
        self._of_pairs(tape, "density_gradient", tape.written(Pass.GRADIENT, self.factors), target)

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        change, result = tape.written(Pass.TANGENT, self.inputs), tape.of(Pass.TANGENT, self.factors)
        self._rows(tape, "density_tangent", self.inputs, change, self.factors, result)
        tape.adds(result)
        target = tape.of(Pass.ADJOINT, self.inputs)
        tape.adds(target)
        self._of_pairs(tape, "density_second", tape.of(Pass.GRADIENT, self.factors), change, result, target)

    def adjoint(self, tape: Tape) -> None:
        """See `Block`."""
        target = tape.of(Pass.ADJOINT, self.inputs)
        name = "density_adjoint" if tape.adds(target) else "density_gradient"
        self._of_pairs(tape, name, tape.written(Pass.ADJOINT, self.factors), target)

    def _rows(self, tape: Tape, name: str, *arrays: Array) -> None:
        address = kernel(name, density_source, tape.dtype)
        tape.launch(address, [*self._slots, *arrays], [Extent("neighbors")], Extent("atoms"))

    def _of_pairs(self, tape: Tape, name: str, *arrays: Array) -> None:
        address = kernel(name, density_source, tape.dtype)
        tape.launch(address, [*self._pairs, self.inputs, self.factors, *arrays], [], Extent("pairs"))


class Scaled(Block):
    """Features times a factor for each row.

    Args:
        factors: ``f`` of the rows.
        source: The features, in whole vectors.
        target: The product.
    """

    def __init__(self, factors: Array, source: Array, target: Array) -> None:
        self.factors, self.source, self.target = factors, source, target

    def prepare(self, tape: Tape) -> None:
        """See `Block`."""

    def value(self, tape: Tape) -> None:
        """See `Block`."""
        self._launch(tape, "scaled_value", self.target)
        tape.adds(self.target)

    def gradient(self, tape: Tape) -> None:
        """See `Block`."""
        self._launch(tape, "scaled_gradient", tape.written(Pass.GRADIENT, self.target), *self._set(tape, Pass.GRADIENT))

    def tangent(self, tape: Tape) -> None:
        """See `Block`."""
        changes = [tape.written(Pass.TANGENT, array) for array in (self.source, self.factors)]
        result, given = tape.of(Pass.TANGENT, self.target), tape.of(Pass.GRADIENT, self.target)
        self._launch(tape, "scaled_second", given, *changes, result, *self._set(tape, Pass.ADJOINT))
        tape.adds(result)

    def adjoint(self, tape: Tape) -> None:
        """See `Block`."""
        targets = [tape.of(Pass.ADJOINT, array) for array in (self.source, self.factors)]
        name = "scaled_adjoint" if tape.is_written(targets[0]) else "scaled_gradient"
        for array in targets:
            tape.adds(array)
        self._launch(tape, name, tape.written(Pass.ADJOINT, self.target), *targets)

    def _set(self, tape: Tape, kind: Pass) -> list[Array]:
        companions = [tape.of(kind, array) for array in (self.source, self.factors)]
        for companion in companions:
            assert not tape.adds(companion), "nothing else reads these"
        return companions

    def _launch(self, tape: Tape, name: str, *arrays: Array) -> None:
        address = kernel(name, density_source, tape.dtype)
        tape.launch(address, [self.factors, self.source, *arrays], [self.source.width], Extent("atoms"))
