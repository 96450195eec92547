"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

PHASES = ("data", "forward", "backward", "communication", "optimizer")
"""Gathering a batch, the model and its loss, the gradient, adding up those of several processes, moving the weights."""

Mark = Callable[[str], None]
"""Called at the end of a phase with its name."""


def unmarked(phase: str) -> None:
    """Take no time."""


class PhaseClock:
    """Take the time of phases that follow each other, without waiting for an accelerator.

    On CUDA the times are those of the device: how long it was busy with a phase or waited for it to begin.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._ends: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def mark(self, phase: str) -> None:
        """Note the end of a phase, which began with the end of the one before."""
        self._ends.append((phase, self._now()))

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase in the order of `PHASES`; on an accelerator, the work must be done."""
        seconds: dict[str, float] = {}
        for (_, begin), (phase, end) in zip(self._ends, self._ends[1:], strict=False):
            # of a device in milliseconds
            spent = end - begin if isinstance(end, float) else begin.elapsed_time(end) / 1000.0  # type: ignore
            seconds[phase] = seconds.get(phase, 0.0) + spent
        return {phase: seconds[phase] for phase in PHASES if phase in seconds}

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
