"""The compiled libraries of a program, and the addresses of their kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from mace.kernels.c_source.matrices import matrices_source
from mace.kernels.compiler import compile_and_load


@cache
def library(source: Callable[..., str], dtype: torch.dtype, *shape: Any) -> ctypes.CDLL:
    """Compile and load the source that a function generates."""
    return compile_and_load(source(*shape, dtype))


def kernel(name: str, source: Callable[..., str], dtype: torch.dtype, *shape: Any) -> int:
    """Return the address of a kernel."""
    address = ctypes.cast(getattr(library(source, dtype, *shape), f"{name}_blocks"), ctypes.c_void_p).value
    assert address
    return address


def matrix_kernel(name: str, dtype: torch.dtype) -> int:
    """Return the address of one of the kernels of `mace.kernels.c_source.matrices`."""
    return kernel(name, matrices_source, dtype)
