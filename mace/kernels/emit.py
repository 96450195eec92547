"""Parts common to all generated C files."""

from __future__ import annotations

import torch

from mace.kernels.target import vector_bytes

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
