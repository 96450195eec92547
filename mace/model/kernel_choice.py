"""Choice of the kernel implementation for a model."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

from mace.errors import UserError
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.compiler import CompilationError, NoCompilerError
from mace.kernels.triton_backend import DEVICES, TRITON, TRITON_TF32, has_triton
from mace.model.compiled.builder import obstacle, sources
from mace.model.mace import MACE

_LOGGER = logging.getLogger(__name__)

VARIABLE = "MACE_KERNELS"
"""Environment variable that decides if the choice is ``auto``."""

CHOICES = ("auto", "torch", "c", "triton")

_IN_PART = "Convolution and contraction are compiled, the rest of the model runs in torch, as %s"
_ADVICE = "a C compiler makes them fast: install gcc or clang, or pip install 'mace-train[compiler]'"


def choose_kernels(model: MACE, wanted: str = "auto") -> str:
    """Set the kernels of a model: those requested, or compiled ones if possible.

    Args:
        model: The model, on its device and in its precision.
        wanted: ``torch``; ``c`` or ``triton``, an error if impossible; or ``auto`` for ``c`` on a CPU and ``triton`` on
            a GPU if possible, and ``torch`` otherwise. The environment variable ``MACE_KERNELS`` takes the place of
            ``auto``.

    Returns:
        The kernels in use, ``torch``, ``c`` or ``triton``.

    Raises:
        UserError: If ``c`` or ``triton`` is requested but not possible, or the choice is none of these.
    """
    source = "--kernels"
    if wanted == "auto" and os.environ.get(VARIABLE):
        wanted, source = os.environ[VARIABLE], VARIABLE
    if wanted not in CHOICES:
        raise UserError(f"{source}={wanted} is not one of {', '.join(CHOICES)}.")
    model.use_backend(TORCH)
    if wanted == "torch":
        return TORCH.name
    device = model.embedding.device.type
    if wanted == "triton" or (wanted == "auto" and device != "cpu"):
        return _choose_triton(model, wanted, source)
    if device != "cpu":
        raise UserError(f"{source}=c runs on the CPU only, not on {device}; use {source}=torch there.")
    try:
        C.prepare(model.kernels(), model.dtype, sources=sources(model))
    except CompilationError as error:
        missing = isinstance(error, NoCompilerError)
        if wanted == "c":
            advice = _ADVICE if missing else f"use {source}=torch"
            raise UserError(f"{source}=c is not possible, because {error}; {advice}.") from error
        advice = f"; {_ADVICE}" if missing else ""
        _warn(f"The kernels run in torch, several times slower than compiled ones, because {error}{advice}.")
        return TORCH.name
    model.use_backend(C)
    if reason := obstacle(model.plan):
        _LOGGER.info(_IN_PART, reason)
    return C.name


def _choose_triton(model: MACE, wanted: str, source: str) -> str:
    """Set kernels in Triton, or leave those in torch and say why."""
    device = model.embedding.device
    backend, reason = TRITON_TF32 if model.tf32 and model.dtype == torch.float32 else TRITON, obstacle(model.plan)
    if device.type not in DEVICES and not backend.has_programs(device):
        why, way_out = f"Triton has no kernels for {device.type}", f"use {source}=auto"
    elif not has_triton():
        why, way_out = "the package triton is not installed", "pip install triton makes that possible"
    else:
        model.use_backend(backend)
        if reason:
            _LOGGER.info(_IN_PART, reason)
        return backend.name
    if wanted == "triton":
        raise UserError(f"{source}=triton is not possible, because {why}; {way_out}.")
    if device.type in DEVICES:
        advice = f"; {way_out}" if not has_triton() else ""
        _warn(f"The kernels run in torch, several times slower than those in Triton, because {why}{advice}.")
    return TORCH.name


@cache
def _warn(text: str) -> None:
    """Log a warning, but only once per process, as all models of a committee would give the same one."""
    _LOGGER.warning("%s", text)


def is_explicit(wanted: str, name: str) -> bool:
    """Return whether kernels were asked for by their name, as a setting or in the environment."""
    return name in (wanted, os.environ.get(VARIABLE) if wanted == "auto" else wanted)
