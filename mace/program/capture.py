"""What programs do otherwise while work of a device is captured, to be repeated later without the program.

During a capture nothing is computed, and nothing may be copied to the device: what is copied then is copied again, from
the same place, at every repetition. So what does not change between repetitions is copied once, after the capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor


class Capture:
    """What the repetitions of captured work read besides what is computed in it.

    Args:
        rehearsal: Whether the work is done at once, before it is captured, with memory that nobody else uses.

    Attributes:
        kept: What has to exist as long as the work is repeated.
    """

    def __init__(self, rehearsal: bool = False) -> None:
        self.rehearsal = rehearsal
        self.kept: list[object] = []
        self._late: list[tuple[Tensor, Tensor]] = []

    def copied_later(self, words: np.ndarray, device: torch.device) -> Tensor:
        """Return memory on a device that will hold some words once the capture has ended."""
        there = torch.empty(len(words), dtype=torch.int64, device=device)
        self._late.append((there, torch.from_numpy(words.copy())))
        self.kept.append(there)
        return there

    def finish(self) -> None:
        """Copy what was to be copied later."""
        for there, words in self._late:
            there.copy_(words)
        self._late.clear()


_CURRENT: ContextVar[Capture | None] = ContextVar("capture", default=None)


def current_capture() -> Capture | None:
    """Return the capture that goes on in this thread, if one does."""
    return _CURRENT.get()


@contextmanager
def capturing(capture: Capture) -> Iterator[None]:
    """Say inside a ``with`` block that the work of this thread is captured."""
    token = _CURRENT.set(capture)
    try:
        yield
    finally:
        _CURRENT.reset(token)


class DeviceWords:
    """Words that kernels on a device read, copied there whenever they have changed.

    They go through page-locked memory in turns, so that nobody waits for the device before the words change again.

    Args:
        count: Number of words.
        device: The device.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._count, self._device = count, device
        # backward passes run in threads that know nothing of the capture in which this was made
        self._made_in = current_capture()
        self._there: Tensor | None = None
        self._here: list[tuple[Tensor, torch.cuda.Event]] = []
        self._turn = 0

    def copied(self, words: np.ndarray) -> Tensor:
        """Return the words on the device, where they come in the order of the current stream."""
        capture = self._made_in or current_capture()
        if capture is not None and not capture.rehearsal and self._device.type == "cuda":
            return capture.copied_later(words, self._device)
        if self._there is None:
            self._there = torch.empty(self._count, dtype=torch.int64, device=self._device)
        values = torch.from_numpy(words)
        if self._device.type != "cuda":
            return self._there.copy_(values)
        if not self._here:
            pinned = [torch.empty(self._count, dtype=torch.int64, pin_memory=True) for _ in range(_TURNS)]
            self._here = [(each, torch.cuda.Event()) for each in pinned]
        here, copied = self._here[self._turn]
        self._turn = (self._turn + 1) % _TURNS
        copied.synchronize()
        here.copy_(values)
        self._there.copy_(here, non_blocking=True)
        copied.record()
        return self._there


_TURNS = 4
