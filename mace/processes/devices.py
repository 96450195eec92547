"""Choice of device, precision and number of threads."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

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
    if device.type == "mps" and precision == "float64":
        raise UserError("--device=mps has no double precision; add --default_dtype=float32.")
    available: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "xpu": lambda: hasattr(torch, "xpu") and torch.xpu.is_available(),
    }
    if not available[device.type]():
        raise UserError(f"--device={name} is not available on this machine; use --device=cpu.")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise UserError(f"--device={name}: this machine has {count} such device(s), numbered from 0.")
    return device


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
    """Return the peak memory in bytes, of a CUDA device or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has no such module

    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_PHRASES = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch says it on CPUs, on Windows, and on accelerators, where it has no class for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)
