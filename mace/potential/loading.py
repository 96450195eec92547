"""Lookup of devices, precisions and model files by the names that users give."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import torch

from mace.errors import UserError
from mace.processes.devices import PRECISIONS, choose_device

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of the given name, if this machine has it.

    Raises:
        UserError: If there is no such device.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError as error:  # raised by torch for names it cannot parse
        raise UserError(f"There is no device '{name}'; choose cpu, cuda, cuda:1, mps or xpu.") from error
    if kind not in _DEVICES:
        raise UserError(f"The device '{name}' is not supported; choose cpu, cuda, cuda:1, mps or xpu.")
    return choose_device(str(name), "float32")


def find_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """Return a precision given by name or as a dtype; None if none is given, which leaves a model as it is.

    Raises:
        UserError: If there is no such precision.
    """
    name = str(name or "").removeprefix("torch.")
    if name and name not in PRECISIONS:
        raise UserError(f"default_dtype is '{name}'; choose float32 or float64, or leave it empty.")
    return PRECISIONS[name] if name else None


def expand_models(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Expand names and patterns into model files; names of existing files are taken literally, and matches sorted.

    Raises:
        UserError: If a pattern matches nothing.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        name = str(path)
        if Path(name).exists() or not glob.has_magic(name):
            files.append(Path(name))
            continue
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(f"{name}: no model file matches this pattern, seen from {Path.cwd()}.")
        files.extend(Path(match) for match in matches)
    return files
