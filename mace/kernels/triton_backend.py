"""Kernels in Triton, for graphics processors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mace.kernels.c_source.contraction import CHUNKS_OF_ROWS, contraction_source
from mace.kernels.c_source.convolution import convolution_source, tabulated_source
from mace.kernels.c_source.density import density_source
from mace.kernels.c_source.geometry import geometry_source
from mace.kernels.c_source.matrices import matrices_source
from mace.kernels.compiled import CompiledBackend, Kernel

if TYPE_CHECKING:
    from mace.kernels.triton_source.launching import DeviceKernel, KernelSequence

DEVICES = ("cuda", "xpu")
"""Kinds of devices that Triton compiles for; those of AMD are called cuda as well."""

_FAMILIES: dict[Callable[..., str], tuple[str, str]] = {
    convolution_source: ("convolution", "convolution_kernels"),
    tabulated_source: ("convolution", "tabulated_kernels"),
    contraction_source: ("contraction", "contraction_kernels"),
    geometry_source: ("geometry", "geometry_kernels"),
    density_source: ("density", "density_kernels"),
}
"""By what generates kernels in C, the module and the function that return those in Triton."""


def device_kernel(kernel: Kernel, tf32: bool) -> DeviceKernel | KernelSequence:
    """Return the kernel in Triton of the same name.

    Args:
        kernel: The kernel.
        tf32: Whether products of matrices may be computed with TensorFloat-32.
    """
    if kernel.source is matrices_source:
        family = source_module("activations").activation_kernels(kernel.dtype)
        if kernel.name not in family:
            family = source_module("matrices").matrices_kernels(kernel.dtype, tf32)
    else:
        module, function = _FAMILIES[kernel.source]
        family = getattr(source_module(module), function)(*kernel.shape, kernel.dtype)
    found: DeviceKernel | KernelSequence = family[kernel.name]
    return found


def source_module(name: str) -> Any:
    """Import a module of kernels, which imports Triton, which not everyone has."""
    return import_module(f"mace.kernels.triton_source.{name}")


class TritonBackend(CompiledBackend):
    """Kernels in Triton, compiled on first use; a block of channels has one for each thread of a warp.

    Args:
        tf32: See `Backend`.
    """

    name = "triton"
    chunks_of_rows = CHUNKS_OF_ROWS
    clears_padding = True

    def __init__(self, tf32: bool = False) -> None:
        self.tf32 = tf32

    def has_programs(self, device: torch.device) -> bool:
        """See `Backend`."""
        return device.type in DEVICES or (device.type == "cpu" and is_interpreted())

    def lanes(self, dtype: torch.dtype) -> int:
        """See `CompiledBackend`."""
        found: int = source_module("launching").LANES
        return found

    def harmonics_width(self, l_max: int, dtype: torch.dtype) -> int:
        """See `CompiledBackend`."""
        found: int = source_module("geometry").harmonics_width(l_max)
        return found

    def shares(self, blocks: int) -> int:
        """See `CompiledBackend`; one for each block."""
        return blocks

    def run(self, kernel: Kernel, arrays: Sequence[Tensor | None], dimensions: Sequence[int], blocks: int) -> None:
        """See `CompiledBackend`."""
        assert all(array is None or array.is_contiguous() for array in arrays)
        device_kernel(kernel, self.tf32).run(arrays, dimensions)


def is_interpreted() -> bool:
    """Return whether Triton interprets its kernels on the numbers in this machine's memory, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1" and has_triton()


@cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


TRITON, TRITON_TF32 = TritonBackend(), TritonBackend(tf32=True)
"""The back end, and the one that multiplies float32 matrices with TensorFloat-32."""
