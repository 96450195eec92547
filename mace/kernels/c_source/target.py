"""The target of compiled kernels: the processor and the width of its vectors."""

from __future__ import annotations

import os
from functools import cache

import torch

TARGET_VARIABLE = "MACE_KERNEL_TARGET"
"""Environment variable for the compiler's ``-march``; ``native`` if unset, the compiler's default if empty."""

_BYTES_BY_TARGET = {"x86-64": 16, "x86-64-v2": 16, "x86-64-v3": 32, "x86-64-v4": 64}
_BYTES_BY_CAPABILITY = {"AVX512": 64, "AVX2": 32}


def target() -> str:
    """Return the processor to compile for, as named by compilers."""
    return os.environ.get(TARGET_VARIABLE, "native").strip()


def vector_bytes() -> int:
    """Return the width of the target's vectors: 64 bytes (AVX-512), 32 (AVX2) or 16 (SSE2, NEON, unknown).

    It affects only speed: compilers split vectors wider than registers, which makes compilation slow.
    """
    return _width(target())


@cache
def _width(name: str) -> int:
    known = _BYTES_BY_TARGET.get(name.replace("_", "-"))
    return known or _BYTES_BY_CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), 16)
