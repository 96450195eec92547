"""The addresses of the compiled kernels of a program."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from mace.kernels.c_backend import library
from mace.kernels.c_source.matrices import matrices_source


def kernel(name: str, source: Callable[..., str], dtype: torch.dtype, *shape: Any) -> int:
    """Return the address of a kernel."""
    address = ctypes.cast(getattr(library(source, dtype, *shape), f"{name}_blocks"), ctypes.c_void_p).value
    assert address
    return address


def matrix_kernel(name: str, dtype: torch.dtype) -> int:
    """Return the address of one of the kernels of `mace.kernels.c_source.matrices`."""
    return kernel(name, matrices_source, dtype)
