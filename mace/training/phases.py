"""Timing of the phases of a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import torch

_LOGGER = logging.getLogger(__name__)

MUCH_WAITING = 0.1
"""Share of waiting for data in the time of a run above which a warning says what can be done."""

JUDGED_FROM = 30.0
"""Seconds of a run before which its waiting is not judged: compilers and caches are slow at first."""

PHASES = ("data", "forward", "backward", "graph", "communication", "optimizer")
"""Waiting for a batch and carrying it to the device; model and loss; gradient; all of these at once, and the update too
if it is among them, where they are repeated from a CUDA graph; summing gradients over processes; updating the
weights."""

COMPUTING = ("forward", "backward", "graph", "optimizer")
"""Phases that wait neither for data nor for other processes."""

Mark = Callable[[str], None]
"""A function that is called with the name of a phase when it ends."""


def unmarked(phase: str) -> None:
    """Do nothing: timing is off."""


class PhaseClock:
    """Measures the time of consecutive phases without waiting for an accelerator.

    On CUDA, times are measured on the device: how long it was busy with a phase or waiting for it to begin.

    Args:
        device: The device that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def mark(self, phase: str) -> None:
        """Record the end of a phase, which began when the previous one ended."""
        self._ends.append((phase, self._now()))

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase in the order of `PHASES`; an accelerator must have finished the work."""
        seconds: dict[str, float] = {}
        for (_, begin), (phase, end) in zip(self._ends, self._ends[1:], strict=False):
            # CUDA events measure milliseconds
            spent = end - begin if isinstance(end, float) else begin.elapsed_time(end) / 1000.0  # type: ignore
            seconds[phase] = seconds.get(phase, 0.0) + spent
        return {phase: seconds[phase] for phase in PHASES if phase in seconds}

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class WaitingTime:
    """How much of the time of steps and evaluations goes by while they wait for data; warns once if it is much.

    Args:
        workers: Number of threads that gather batches ahead.

    Attributes:
        waited: Seconds spent waiting, or gathering batches where no thread does that.
        total: Seconds of all steps and evaluations.
    """

    def __init__(self, workers: int) -> None:
        self.waited = self.total = 0.0
        self._workers, self._has_warned = workers, False

    @property
    def share(self) -> float:
        """The part of the time that was spent waiting, between zero and one."""
        return self.waited / self.total if self.total else 0.0

    def add_phases(self, phases: Mapping[str, float]) -> None:
        """Add the seconds of the phases of a step."""
        self.add(phases.get("data", 0.0), sum(phases.values()))

    def add(self, waited: float, total: float) -> None:
        """Add the seconds of some work, and those of them spent waiting."""
        self.waited, self.total = self.waited + waited, self.total + total
        if self._has_warned or self.total < JUDGED_FROM or self.share <= MUCH_WAITING:
            return
        self._has_warned = True
        more = f"more threads than --num_workers={self._workers}" if self._workers else "--num_workers=4"
        _LOGGER.warning(
            "%.0f %% of the time so far was spent waiting for data; %s, a faster disk or a set prepared with its "
            "neighbors (mace_prepare_data) makes that less",
            100.0 * self.share,
            more,
        )
