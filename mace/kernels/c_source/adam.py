"""Generate C for a whole step of Adam: norm of the gradient, clipping, moments, parameters and their moving average."""

from __future__ import annotations

import torch

from mace.kernels.c_source.parts import TYPES, prelude
from mace.kernels.c_source.target import vector_bytes

COLUMNS = ("VALUE", "GRADIENT", "MEAN", "SQUARE", "LARGEST", "AVERAGE", "STEP", "GROUP")
"""What the table of tensors holds for each: addresses, zero for what does not exist, and the number of its group."""

RULES = ("RATE", "BETA_1", "BETA_2", "EPSILON", "DECAY", "SHRINK")
"""What the table of groups holds for each: learning rate, decay of both moments, the number added to the root, the
share of a parameter that is added to its gradient, and the factor on a parameter before it moves."""

NUMBERS = ("LIMIT", "WEIGHT", "NORM")
"""Largest norm of the gradient, weight of the parameters in their average, and the norm that is found."""


def adam_source(dtype: torch.dtype) -> str:
    """Return the source of a step.

    Tensors are divided into units of some thousand numbers, each within one tensor. All sums are in an order that
    depends on the units alone, so the result is the same with any number of threads. The arrays are: the table of
    tensors, the units (tensor, begin, end), the table of groups, the numbers, one sum for each unit, and space for four
    numbers for each tensor.
    """
    size, width = torch.finfo(dtype).bits // 8, vector_bytes() // 8
    names = {"COLUMNS": COLUMNS, "RULES": RULES, "NUMBERS": NUMBERS}
    constants = "".join(f"enum {{ {', '.join((*members, count))} }};\n" for count, members in names.items())
    moves = "".join(_move(name, largest) for name, largest in (("move", False), ("move_amsgrad", True)))
    return prelude(dtype) + constants + _PARTS.format(type=TYPES[dtype], size=size, width=width) + moves + _STEP


# GCC knows no square root of vectors, so loops with one are vectorized by the compiler, which the flags forbid for
# everything else. Where it does not do so, results are the same and the step is slower.
_PARTS = """\
#ifdef __clang__
#define PLAIN
#define EACH _Pragma("clang loop vectorize(enable)")
#else
#define PLAIN __attribute__((noinline, optimize("O2", "tree-loop-vectorize", "no-math-errno", "no-trapping-math")))
#define EACH _Pragma("GCC ivdep")
#endif
enum {{ CLIP, SLOWER, ROOT, TAKEN }};
#define DOUBLES {width}
typedef double D __attribute__((vector_size(8 * DOUBLES), aligned(8)));
typedef {type} H __attribute__((vector_size({size} * DOUBLES), aligned({size})));
typedef struct {{ int64_t tensor, begin, end; }} Unit;
#define DOUBLE(p) __builtin_convertvector(*(const H *)(p), D)
static double sum_of_squares(const T *g, int64_t n) {{
  D s[4];
  memset(s, 0, sizeof s);
  int64_t i = 0;
  for (; i + 4 * DOUBLES <= n; i += 4 * DOUBLES)
    for (int k = 0; k < 4; k++) {{ D x = DOUBLE(g + i + k * DOUBLES); s[k] += x * x; }}
  double total = 0;
  for (; i < n; i++) total += (double)g[i] * g[i];
  s[0] += s[1]; s[2] += s[3]; s[0] += s[2];
  for (int k = 0; k < DOUBLES; k++) total += s[0][k];
  return total;
}}
PLAIN static void follow(T *restrict a, const T *restrict v, T weight, int64_t n) {{
  EACH for (int64_t i = 0; i < n; i++) a[i] += weight * (v[i] - a[i]);
}}
"""


def _move(name: str, largest: bool) -> str:
    """Return the loop that moves parameters; with AMSGrad, the largest square so far takes the place of the square."""
    square = "u[i] = u[i] >= y ? u[i] : y; y = u[i];" if largest else ""
    return f"""\
PLAIN static void {name}(T *restrict v, const T *restrict g, T *restrict m, T *restrict s, T *restrict u, int64_t n,
                         const double *rule, const double *of) {{
  const T clip = of[CLIP], decay = rule[DECAY], shrink = rule[SHRINK], epsilon = rule[EPSILON], rate = of[SLOWER];
  const T beta = rule[BETA_2], first = 1 - rule[BETA_1], second = 1 - rule[BETA_2], root = of[ROOT];
  EACH for (int64_t i = 0; i < n; i++) {{
    T x = g[i] * clip + v[i] * decay, w = m[i] + first * (x - m[i]), y = s[i] * beta + second * x * x;
    m[i] = w;
    s[i] = y;
    {square}
    y = sizeof(T) == 4 ? __builtin_sqrtf(y) : __builtin_sqrt(y);
    v[i] = v[i] * shrink - rate * w / (y * root + epsilon);
  }}
}}
"""


_STEP = """\
static void squares_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {
  const int64_t *table = (const int64_t *)p[0];
  const Unit *units = (const Unit *)p[1];
  double *sums = (double *)p[4];
  for (int64_t b = begin; b < end; b++) {
    const Unit u = units[b];
    const T *g = (const T *)table[u.tensor * COLUMNS + GRADIENT];
    sums[b] = g ? sum_of_squares(g + u.begin, u.end - u.begin) : 0;
  }
}
static void move_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {
  const Unit *units = (const Unit *)p[1];
  const T weight = ((const double *)p[3])[WEIGHT];
  for (int64_t b = begin; b < end; b++) {
    const Unit u = units[b];
    const int64_t *at = (const int64_t *)p[0] + u.tensor * COLUMNS, n = u.end - u.begin;
#define AT(column) ((T *)at[column] + u.begin)
    if (at[GRADIENT])
      (at[LARGEST] ? move_amsgrad : move)(AT(VALUE), AT(GRADIENT), AT(MEAN), AT(SQUARE), AT(LARGEST), n,
        (const double *)p[2] + at[GROUP] * RULES, (const double *)p[5] + u.tensor * TAKEN);
    if (at[AVERAGE]) follow(AT(AVERAGE), AT(VALUE), weight, n);
  }
}
static double power(double base, int64_t n) {
  double result = 1;
  for (; n > 0; n >>= 1, base *= base) if (n & 1) result *= base;
  return result;
}
static void settle(T *const *p, int64_t tensors, int64_t units) {
  double *numbers = (double *)p[3], square = 0;
  for (int64_t b = 0; b < units; b++) square += ((const double *)p[4])[b];
  const double norm = __builtin_sqrt(square), most = numbers[LIMIT] / (norm + 1e-6);
  numbers[NORM] = norm;
  for (int64_t t = 0; t < tensors; t++) {
    const int64_t *at = (const int64_t *)p[0] + t * COLUMNS;
    if (!at[GRADIENT]) continue;
    const double *rule = (const double *)p[2] + at[GROUP] * RULES;
    double *of = (double *)p[5] + t * TAKEN;
    const float steps = *(float *)at[STEP] += 1;
    of[CLIP] = most > 1 ? 1 : most;  /* not a number if that is what the norm is */
    of[SLOWER] = rule[RATE] / (1 - power(rule[BETA_1], steps));
    of[ROOT] = 1 / __builtin_sqrt(1 - power(rule[BETA_2], steps));
  }
}
void adam_step(T *const *p, const int64_t *d, int64_t blocks, int64_t threads, void *fork, void *number, void *team) {
  launch(squares_blocks, p, d, blocks, threads, (parallel *)fork, (count *)number, (count *)team);
  settle(p, d[0], blocks);
  launch(move_blocks, p, d, blocks, threads, (parallel *)fork, (count *)number, (count *)team);
}
"""
