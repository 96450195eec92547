"""Which implementation of the kernels a model uses; decided here, once, and told."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from mace.errors import UserError
from mace.kernels.compiler import CompilationError, NoCompilerError
from mace.kernels.convolution import convolution_paths
from mace.kernels.emit_contraction import ContractionTerms
from mace.kernels.native import compile_contraction, compile_convolution, compile_tabulated_convolution
from mace.model.mace import MACE

_LOGGER = logging.getLogger(__name__)

VARIABLE = "MACE_KERNELS"
"""Environment variable that decides where nothing else does."""

CHOICES = ("auto", "torch", "c")

_ADVICE = "a C compiler makes them fast: install gcc or clang, or pip install 'mace-train[compiler]'"


def choose_kernels(model: MACE, wanted: str = "auto") -> str:
    """Let a model use compiled kernels where that is possible.

    Args:
        model: The model, on its device and in its precision.
        wanted: ``torch``; ``c``, which must be possible then; or ``auto`` for ``c`` where it is possible. ``auto`` is
            overruled by the environment variable ``MACE_KERNELS``.

    Returns:
        ``torch`` or ``c``.

    Raises:
        UserError: If ``c`` is wanted and not possible, or the word is none of these.
    """
    source = "--kernels"
    if wanted == "auto" and os.environ.get(VARIABLE):
        wanted, source = os.environ[VARIABLE], VARIABLE
    if wanted not in CHOICES:
        raise UserError(f"{source}={wanted} is not one of {', '.join(CHOICES)}.")
    model.use_compiled_kernels(False)
    if wanted == "torch":
        return "torch"
    device = model.embedding.device.type
    if device != "cpu":
        if wanted == "c":
            raise UserError(f"{source}=c runs on the CPU only, not on {device}; use {source}=torch there.")
        return "torch"
    try:
        _compile(model)
    except CompilationError as error:
        missing = isinstance(error, NoCompilerError)
        if wanted == "c":
            advice = _ADVICE if missing else f"use {source}=torch"
            raise UserError(f"{source}=c is not possible, because {error}; {advice}.") from error
        advice = f"; {_ADVICE}" if missing else ""
        _warn(f"The kernels run in torch, several times slower than compiled ones, because {error}{advice}.")
        return "torch"
    model.use_compiled_kernels(True)
    return "c"


@cache
def _warn(text: str) -> None:
    """Log a warning, each only once in a process: a committee has many models, but the machine is one."""
    _LOGGER.warning("%s", text)


def _compile(model: MACE) -> None:
    """Compile all layers."""
    plan, jobs = model.plan, dict[tuple[object, ...], Callable[[], None]]()
    for layer in range(plan.n_layers):
        l_in = plan.l_of_messages(layer)
        paths = convolution_paths(l_in, plan.l_max)
        terms = ContractionTerms(plan.l_max, plan.l_out(layer), plan.correlation[layer])
        jobs[paths] = partial(compile_convolution, paths, l_in, plan.l_max, model.dtype)
        jobs[terms,] = partial(compile_contraction, terms, model.dtype)
    _run_all(jobs.values())


def compile_radial_tables(model: MACE) -> None:
    """Compile the convolutions that read radial weights from tables.

    Raises:
        CompilationError: If that is not possible here.
    """
    plan = model.plan
    _run_all(
        [
            partial(compile_tabulated_convolution, convolution_paths(l_in, plan.l_max), l_in, plan.l_max, model.dtype)
            for l_in in {plan.l_of_messages(layer) for layer in range(plan.n_layers)}
        ]
    )


def _run_all(jobs: Collection[Callable[[], None]]) -> None:
    """Run several jobs at a time; compilers are programs of their own."""
    with ThreadPoolExecutor(max_workers=min(len(jobs), os.cpu_count() or 1)) as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result()
