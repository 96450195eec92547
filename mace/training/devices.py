"""Which device computes, in which precision, with how many threads."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from mace.errors import UserError

_LOGGER = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def choose_device(name: str, precision: str) -> torch.device:
    """Return a device that exists and can compute in the precision asked for.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``xpu``.
        precision: ``float32`` or ``float64``.

    Raises:
        UserError: If the device is not there or lacks the precision.
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
    """Set the number of CPU threads if one is given; return the number in use."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()
