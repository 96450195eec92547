"""Comparing the kernels of a device with those in torch, on the machine at hand, before they are believed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.assembly import graph_of_structures
from mace.graphs.graph import Graph
from mace.kernels.backend import TORCH
from mace.model.kernel_choice import is_explicit
from mace.model.mace import MACE
from mace.model.prediction import Prediction, predict
from mace.potential.radial_tables import disordered_structure
from mace.processes.devices import is_out_of_memory, synchronize

_LOGGER = logging.getLogger(__name__)

TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Largest deviation allowed, relative to the largest number of its kind."""

TOLERANCE_OF_TF32 = 2e-2

REPETITIONS = 3
"""How often work is timed; the shortest time counts."""


def tolerance(model: MACE) -> float:
    """Return the largest deviation that is allowed in the precision of a model."""
    return TOLERANCE_OF_TF32 if model.tf32 and model.dtype == torch.float32 else TOLERANCES[model.dtype]


@dataclass(frozen=True)
class Verdict:
    """How two ways to compute the same compare.

    Attributes:
        deviations: Largest deviation by kind of number, relative to the largest of the kind.
        allowed: Largest deviation allowed.
        fast: Seconds of the way that is to be faster.
        plain: Seconds of the other one.
        error: Why the first one failed; None if it did not.
    """

    deviations: Mapping[str, float]
    allowed: float
    fast: float = 0.0
    plain: float = 0.0
    error: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether the first one runs, and gives what the other one gives."""
        return self.error is None and max(self.deviations.values(), default=0.0) <= self.allowed

    @property
    def worst(self) -> str:
        """The kind of number that deviates most."""
        return max(self.deviations, key=lambda name: self.deviations[name], default="nothing")

    @property
    def times(self) -> str:
        """Both times in words."""
        return f"{1000.0 * self.fast:.3g} ms instead of {1000.0 * self.plain:.3g}"

    def __str__(self) -> str:
        """Say what is wrong."""
        if self.error is not None:
            return f"they fail ({self.error})"
        return (
            f"their {self.worst} deviate by {self.deviations[self.worst]:.1e} of the largest, where "
            f"{self.allowed:.0e} is allowed"
        )


def deviation(found: Tensor, expected: Tensor) -> float:
    """Return the largest deviation relative to the largest number; infinite if other numbers are not finite."""
    expected, found = expected.detach().cpu().double(), found.detach().cpu().double()
    is_finite = expected.isfinite()
    if not torch.equal(is_finite, found.isfinite()):
        return float("inf")
    expected, found = expected[is_finite], found[is_finite]
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-300)


def shortest_time(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes, once all is loaded that it needs."""
    seconds = float("inf")
    for repetition in range(REPETITIONS + 1):
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        if repetition:
            seconds = min(seconds, time.perf_counter() - begin)
    return seconds


def in_short(error: BaseException) -> str:
    """Return an error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")


def compare(
    fast: Callable[[], Mapping[str, Tensor]],
    plain: Callable[[], Mapping[str, Tensor]],
    allowed: float,
    device: torch.device,
) -> Verdict | None:
    """Compare and time two ways to compute the same.

    Args:
        fast: The way that is to be faster; returns tensors by kind of number.
        plain: The other one.
        allowed: Largest deviation allowed.
        device: Where both run.

    Returns:
        The verdict; None if memory does not suffice for a comparison.
    """
    try:
        expected = {name: value.detach().clone() for name, value in plain().items()}
        try:
            found = fast()
        except Exception as error:  # a compiler, a driver, a kernel
            if is_out_of_memory(error):
                raise
            _LOGGER.debug("The kernels fail", exc_info=error)
            return Verdict({}, allowed, error=in_short(error))
        deviations = {name: deviation(found[name], value) for name, value in expected.items()}
        return Verdict(deviations, allowed, shortest_time(fast, device), shortest_time(plain, device))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def differs(found: Prediction, expected: Prediction, allowed: float) -> str | None:
    """Say what is different in two predictions of a model, or return None if nothing is."""
    deviations = {name: deviation(v, vars(expected)[name]) for name, v in vars(found).items() if v is not None}
    verdict = Verdict(deviations, allowed)
    return None if verdict.is_right else str(verdict)


@contextmanager
def on_plain_kernels(model: MACE) -> Iterator[MACE]:
    """Give what the kernels of a model are compared with, inside a ``with`` block.

    On a device with kernels of its own these are the same model's in torch; otherwise a copy of the model on the CPU.
    """
    if model.backend.name != TORCH.name:
        with model.plain_kernels():
            yield model
    else:
        yield deepcopy(model).to("cpu")


def of_prediction(model: MACE, graph: Graph) -> dict[str, Tensor]:
    """Return what a model predicts that kernels compute."""
    found = predict(model, graph)
    values = {"forces": found.forces, "dipoles": found.atomic_dipoles}
    if found.atomic_energies is not None and found.reference_energies is not None:
        values["energies"] = found.atomic_energies - found.reference_energies
    return {name: value for name, value in values.items() if value is not None}


def plain_prediction(model: MACE, graph: Graph) -> dict[str, Tensor]:
    """Return the same by the kernels that others are compared with."""
    with on_plain_kernels(model) as plain:
        return of_prediction(plain, graph.to(plain.embedding.device))


def is_doubted(device: torch.device) -> bool:
    """Return whether kernels on a device are compared before they are believed: those on CPUs are tested everywhere."""
    return device.type not in ("cpu", "meta")


_CHECKED: dict[object, tuple[str | None, bool]] = {}
"""What was found wrong in this process, None for nothing, and whether torch is faster, by kind of model."""


def check_kernels(model: MACE, wanted: str = "auto") -> str:
    """Compare the kernels of a model on a device, once in a process for each kind; use torch if they are wrong.

    Args:
        model: The model, with its kernels chosen.
        wanted: What was asked for; see `mace.model.kernel_choice.choose_kernels`.

    Returns:
        The kernels in use from here on.

    Raises:
        UserError: If ``triton`` was asked for, and its kernels are wrong or fail.
    """
    device = model.embedding.device
    if not is_doubted(device):
        return model.backend.name
    key = model.plan, device, model.dtype, model.backend
    if key not in _CHECKED:
        plan = model.plan
        structure = disordered_structure(model)
        graph = graph_of_structures([structure], ElementTable(plan.atomic_numbers), plan.r_max, plan.head_names)
        graph = graph.to(device)
        verdict = compare(
            lambda: of_prediction(model, graph), lambda: plain_prediction(model, graph), tolerance(model), device
        )
        wrong = None if verdict is None or verdict.is_right else str(verdict)
        _CHECKED[key] = wrong, verdict is not None and verdict.fast > verdict.plain
        if verdict is not None and wrong is None:
            deviates = max(verdict.deviations.values(), default=0.0)
            _LOGGER.info(
                "Kernels on %s: a test structure deviates by %.1e between %s and %s; it takes %s",
                *(device, deviates, *_compared(model), verdict.times),
            )
    wrong, is_slower = _CHECKED[key]
    if wrong is not None:
        fall_back(model, wrong, wanted)
    elif is_slower and not is_explicit(wanted, model.backend.name):
        model.use_backend(TORCH)
    return model.backend.name


def _compared(model: MACE) -> tuple[str, str]:
    name = model.backend.name
    return (
        ("torch there", "torch on the CPU")
        if model.backend.name == TORCH.name
        else (f"kernels in {name}", "those in torch")
    )


def fall_back(model: MACE, wrong: str, wanted: str) -> None:
    """Let a model use torch instead of kernels that are wrong, and say so.

    Raises:
        UserError: If the kernels were asked for by name.
    """
    name, device = model.backend.name, model.embedding.device
    if model.backend.name == TORCH.name:
        _LOGGER.warning("On %s, torch computes something else than on the CPU: %s; do not trust results", device, wrong)
        return
    if is_explicit(wanted, name):
        raise UserError(f"--kernels={name} is not possible on this {device}, because {wrong}; use --kernels=torch.")
    _LOGGER.warning(
        "The kernels run in torch, several times slower, because those in %s cannot be used on this %s: %s "
        "(--kernels=auto)",
        name.capitalize(),
        device,
        wrong,
    )
    model.use_backend(TORCH)
