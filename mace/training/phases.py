"""Timing of the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

PHASES = ("data", "forward", "backward", "communication", "optimizer")
"""Assembling a batch; model and loss; gradient; summing gradients over processes; updating the weights."""

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
        self._on_device = device.type == "cuda"
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
        if not self._on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
