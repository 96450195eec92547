"""Parts common to all generated C files."""

from __future__ import annotations

import torch

from mace.kernels.c_source.target import vector_bytes

TYPES = {torch.float32: "float", torch.float64: "double"}


def lanes(dtype: torch.dtype) -> int:
    """Return the number of channels in one vector."""
    return vector_bytes() // (4 if dtype == torch.float32 else 8)


def prelude(dtype: torch.dtype) -> str:
    """Return type definitions, and a loop over blocks of channels that is divided among threads.

    Every kernel has the signature of ``kernel``; share ``t`` of ``n`` is a contiguous range of blocks, so no two
    threads write the same data, and the result does not depend on their order. The runtime may grant fewer threads than
    requested, so each thread continues with further shares until all are done.
    """
    return f"""\
#include <stdint.h>
#include <string.h>
typedef {TYPES[dtype]} T;
typedef T V __attribute__((vector_size({vector_bytes()}), aligned({vector_bytes() // lanes(dtype)})));
#define L {lanes(dtype)}
#define LOAD(p) (*(const V *)(p))
#define STORE(p, v) (*(V *)(p) = (v))
typedef void kernel(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread);
typedef void parallel(void (*)(void *), void *, unsigned, unsigned);
typedef int count(void);
typedef struct {{ kernel *run; T *const *p; const int64_t *d; int64_t blocks, shares; count *number, *team; }} Job;
static void share(void *job) {{
  const Job *j = job;
  for (int64_t t = j->number(), n = j->team(); t < j->shares; t += n)
    j->run(j->p, j->d, j->blocks * t / j->shares, j->blocks * (t + 1) / j->shares, t);
}}
static void launch(kernel *run, T *const *p, const int64_t *d, int64_t blocks, int64_t threads, parallel *fork,
                   count *number, count *team) {{
  if (!fork || threads <= 1) {{ run(p, d, 0, blocks, 0); return; }}
  Job job = {{run, p, d, blocks, threads, number, team}};
  fork(share, &job, (unsigned)threads, 0);
}}
"""


def entry(name: str) -> str:
    """Return the exported function that launches the kernel ``<name>_blocks``."""
    return f"""\
void {name}(T *const *p, const int64_t *d, int64_t blocks, int64_t threads, void *fork, void *number, void *team) {{
  launch({name}_blocks, p, d, blocks, threads, (parallel *)fork, (count *)number, (count *)team);
}}
"""


def lane_sums(names: list[str | None], n_lanes: int) -> tuple[list[str], str]:
    """Sum the lanes of each of `n_lanes` vectors; the sums become the lanes of one vector.

    Two vectors at a time are folded into one, in which each half holds partial sums of one of them; None stands for a
    vector of zeros.

    Returns:
        The code, and the expression for the result.
    """
    code: list[str] = []
    level, items = 0, list(names)
    while len(items) > 1:
        segment = n_lanes >> level  # lanes that each of the vector's sums still occupies
        starts = range(0, n_lanes, segment)
        low = [
            at + k
            for vector in (0, n_lanes)
            for start in starts
            for at in [vector + start]
            for k in range(segment // 2)
        ]
        high = [lane + segment // 2 for lane in low]
        folded: list[str | None] = []
        for number in range(0, len(items), 2):
            a, b = items[number], items[number + 1]
            if a is None and b is None:
                folded.append(None)
                continue
            name = f"{names[0]}_{level}_{number // 2}"
            pair = f"{a or '(V){0}'}, {b or '(V){0}'}"
            lows, highs = ", ".join(map(str, low)), ", ".join(map(str, high))
            code.append(f"      const V {name} = SHUFFLE({pair}, {lows}) + SHUFFLE({pair}, {highs});")
            folded.append(name)
        level, items = level + 1, folded
    return code, items[0] or "(V){0}"


def shuffle(dtype: torch.dtype) -> str:
    """Return the macro that selects lanes from two vectors, for old and new compilers."""
    integer = "int32_t" if dtype == torch.float32 else "int64_t"
    return f"""\
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef {integer} I __attribute__((vector_size({vector_bytes()})));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (I){{__VA_ARGS__}})
#endif
"""


def launcher_source() -> str:
    """Return the C file of ``run_all``, which runs a list of kernels, all in one parallel region.

    A launch consists of four numbers: the kernel's address, those of its pointers and of its dimensions, and the number
    of its units. Every kernel starts when the one before it has ended in all threads.
    """
    return """\
#include <stdint.h>
typedef void kernel(void *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread);
typedef void parallel(void (*)(void *), void *, unsigned, unsigned);
typedef int count(void);
typedef void wait(void);
typedef struct { kernel *run; void *const *p; const int64_t *d; int64_t units; } Launch;
typedef struct { const Launch *launches; int64_t n, threads; count *number, *team; wait *barrier; } Job;
static void share(void *job) {
  const Job *j = job;
  const int64_t number = j->number ? j->number() : 0, team = j->team ? j->team() : 1;
  for (int64_t x = 0; x < j->n; x++) {
    const Launch *l = j->launches + x;
    const int64_t shares = j->threads < l->units ? j->threads : l->units;
    for (int64_t t = number; t < shares; t += team)
      l->run(l->p, l->d, l->units * t / shares, l->units * (t + 1) / shares, t);
    if (j->barrier) j->barrier();
  }
}
void run_all(const void *launches, int64_t n, int64_t threads, void *fork, void *number, void *team, void *barrier) {
  Job job = {launches, n, threads, (count *)number, (count *)team, (wait *)barrier};
  if (!fork || threads <= 1) { job.number = job.team = 0; job.barrier = 0; share(&job); return; }
  ((parallel *)fork)(share, &job, (unsigned)threads, 0);
}
"""
