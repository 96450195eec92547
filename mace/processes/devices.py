"""Choice of device, precision and number of threads."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from mace.errors import UserError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt (malloc.h); 32 MB is the largest threshold it takes."""
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def choose_device(name: str, precision: str) -> torch.device:
    """Return the named device after checking that it exists and supports the precision.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``xpu``.
        precision: ``float32`` or ``float64``.

    Raises:
        UserError: If the device does not exist or does not support the precision.
    """
    device = torch.device(name)
    if PRECISIONS[precision] == torch.float64 and widest(device) != torch.float64:
        raise UserError(f"--device={name} has no double precision; add --default_dtype=float32.")
    available: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "xpu": lambda: hasattr(torch, "xpu") and torch.xpu.is_available(),
    }
    if not available[device.type]():
        raise UserError(f"--device={name} is not available on this machine; use --device=cpu.")
    count = device_count(device.type)
    if (device.index or 0) >= count:
        raise UserError(f"--device={name}: this machine has {count} such device(s), numbered from 0.")
    return device


def device_count(kind: str) -> int:
    """Return how many devices of a kind this process sees."""
    found: Any = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None)}.get(kind)
    return int(found.device_count()) if found is not None else 1


def _module(device: torch.device) -> Any:
    """Return the module of torch for a device that does work in the order it is given, without being waited for."""
    return {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.mps}.get(device.type)


def using(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one of this thread inside a ``with`` block.

    Streams, events and page-locked memory belong to the current device where none is named, and kernels of others are
    launched on it. Every thread begins with the first device.
    """
    if device.type not in ("cuda", "xpu"):
        return nullcontext()
    current: AbstractContextManager[object] = _module(device).device(device)
    return current


def widest(device: torch.device) -> torch.dtype:
    """Return the precision in which a device adds up energies: float64, or float32 if it has no other."""
    return _widest(device.type, device.index)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to the precision in which its device adds up energies; see `widest`."""
    return tensor.to(widest(tensor.device))


@cache
def _widest(kind: str, index: int | None) -> torch.dtype:
    lacks_double = kind == "mps"
    if kind == "xpu" and (index or 0) < device_count("xpu"):  # as the small GPUs of Intel
        lacks_double = not getattr(torch.xpu.get_device_properties(index), "has_fp64", True)
    return torch.float32 if lacks_double else torch.float64


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all its work; a CPU always has."""
    if (module := _module(device)) is not None:
        module.synchronize(*(() if device.type == "mps" else (device,)))


def release_memory() -> None:
    """Return memory that torch keeps for later, though it is not in use, to the devices."""
    torch.cuda.empty_cache()  # does nothing where the device is not in use
    if hasattr(torch, "xpu"):
        torch.xpu.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def device_name(device: torch.device) -> str | None:
    """Return what the maker calls a device; None for CPUs and where torch does not tell."""
    return str(_module(device).get_device_name(device)) if device.type in ("cuda", "xpu") else None


def device_software(device: torch.device) -> str:
    """Return the version of what torch was built with for devices of this kind."""
    if device.type == "xpu":
        return f"SYCL {getattr(torch.version, 'xpu', None) or 'of an unknown version'}"
    return f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"


def device_identity(device: torch.device) -> str | None:
    """Return what tells a device from all others of its machine, whoever numbers them; None if torch does not tell."""
    if device.type not in ("cuda", "xpu"):
        return None
    properties = _module(device).get_device_properties(device)
    return next((str(found) for name in ("uuid", "pci_bus_id") if (found := getattr(properties, name, None))), None)


@contextmanager
def products_in(device: torch.device, tf32: bool) -> Iterator[list[str]]:
    """Choose, inside a ``with`` block, how NVIDIA's libraries multiply matrices of float32 for torch.

    Args:
        device: The device of this process; nothing is changed for others than CUDA.
        tf32: Whether to round factors to TensorFloat-32, with 10 bits of the 23 after the point. Otherwise this is
            switched off, whoever has switched it on.

    Yields:
        Sentences about what the environment says otherwise, for the log.
    """
    if device.type != "cuda":
        yield [f"--tf32 has no effect on --device={device}: only GPUs of NVIDIA have it"] if tf32 else []
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield overridden_products(tf32)
    finally:
        torch.set_float32_matmul_precision(before)


def rounding_of_products(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say that products of float32 are rounded to TensorFloat-32 on a device, if somebody has switched that on."""
    if device.type != "cuda" or dtype != torch.float32 or not torch.backends.cuda.matmul.allow_tf32:
        return None
    return (
        "Products of float32 are rounded to TensorFloat-32, 3 digits, as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE or the "
        "program that calls says; torch.set_float32_matmul_precision('highest') keeps 7"
    )


def overridden_products(tf32: bool, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Say what environment variables have to do with TensorFloat-32, in sentences.

    Args:
        tf32: Whether it is wanted.
        environment: Environment variables of the process.
    """
    notes = []
    if torch.version.hip is not None:
        return ["--tf32 has no effect: only GPUs of NVIDIA have it"] if tf32 else []
    name = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
    if environment.get(name) == "1" and not tf32:
        notes.append(f"{name}=1 has no effect here: float32 stays float32 without --tf32")
    name = "NVIDIA_TF32_OVERRIDE"
    if environment.get(name) == "0" and tf32:
        notes.append(f"--tf32 has no effect on the products of NVIDIA's libraries, as {name}=0 forbids it there")
    elif name in environment and environment[name] != "0" and not tf32:
        notes.append(
            f"{name}={environment[name]} is set: NVIDIA's libraries may multiply with TensorFloat-32, although --tf32 "
            "is not given; unset it for the precision of float32"
        )
    return notes


def set_threads(count: int | None) -> int:
    """Set the number of CPU threads if one is given, and return the number in use."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Let the C library keep the memory freed by a step for the next one, instead of returning it to the system.

    Every step allocates the same arrays again; getting them from the system takes about a twentieth of its time. The
    setting applies to the whole process, so only programs make it, never an import. It does not change the memory in
    use.

    Returns:
        Whether it was possible; only glibc supports it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 64 << 20}
    return all([set_option(option, value) for option, value in options.items()])


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes, of a CUDA or XPU device or else of this process."""
    if device.type in ("cuda", "xpu"):
        return int(_module(device).max_memory_allocated(device))
    import resource  # Windows has no such module

    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_PHRASES = (
    *("can't allocate memory", "not enough memory", "out of memory"),
    *("out_of_memory", "outofmemory", "alloc_failed", "status_memory_error"),
    *("out_of_device_memory", "out_of_host_memory", "error_out_of_resources"),
)
"""How it is said, in small letters: by torch on CPUs, on Windows and on accelerators, where it has no class for it, and
by Triton and NCCL; by CUDA, HIP and their libraries (cuBLAS, cuSOLVER, rocBLAS); by SYCL."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)
