"""Choice of the kernel implementation for a model."""

from __future__ import annotations

import logging
import os
from functools import cache

from mace.errors import UserError
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.compiler import CompilationError, NoCompilerError
from mace.model.compiled.builder import obstacle, sources
from mace.model.mace import MACE

_LOGGER = logging.getLogger(__name__)

VARIABLE = "MACE_KERNELS"
"""Environment variable that decides if the choice is ``auto``."""

CHOICES = ("auto", "torch", "c")

_ADVICE = "a C compiler makes them fast: install gcc or clang, or pip install 'mace-train[compiler]'"


def choose_kernels(model: MACE, wanted: str = "auto") -> str:
    """Set the kernels of a model: those requested, or compiled ones if possible.

    Args:
        model: The model, on its device and in its precision.
        wanted: ``torch``; ``c``, an error if impossible; or ``auto`` for ``c`` if possible and ``torch`` otherwise.
            The environment variable ``MACE_KERNELS`` takes the place of ``auto``.

    Returns:
        The kernels in use, ``torch`` or ``c``.

    Raises:
        UserError: If ``c`` is requested but not possible, or the choice is none of these.
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
    if device != "cpu":
        if wanted == "c":
            raise UserError(f"{source}=c runs on the CPU only, not on {device}; use {source}=torch there.")
        return TORCH.name
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
        _LOGGER.info("Convolution and contraction are compiled, the rest of the model runs in torch, as %s", reason)
    return C.name


@cache
def _warn(text: str) -> None:
    """Log a warning, but only once per process, as all models of a committee would give the same one."""
    _LOGGER.warning("%s", text)
