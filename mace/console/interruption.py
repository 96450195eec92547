"""Signals that ask a run to end: the first one lets it finish the step and save, the second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from mace.errors import RunInterrupted

SIGNALS = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""What schedulers, Ctrl-C and a terminal that is closed send."""


class Interruption:
    """Whether a signal has asked the run to end.

    Within a ``with`` block the signals are caught, in the main thread of a program only: Python delivers them nowhere
    else. Outside of `patient` the first one raises `RunInterrupted` at once, inside it only sets `requested`.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._patient = False
        self._before: dict[int, Any] = {}
        self.advice = "nothing was trained since the start of the program"

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let the work inside a ``with`` block look for `requested` by itself, and end at a place of its choice."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def error(self, advice: str) -> RunInterrupted:
        """Return what to raise to end the program.

        Args:
            advice: Where the run is and how to go on.
        """
        number = self._signal or signal.SIGTERM
        return RunInterrupted(f"Stopped by {signal.Signals(number).name}: {advice}.", 128 + number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        if not self._patient:
            raise self.error(self.advice)

    def __enter__(self) -> Interruption:
        """Begin to catch the signals."""
        if threading.current_thread() is threading.main_thread():
            # nohup lets a program ignore the end of its terminal, and so it stays
            heeded = [n for n in SIGNALS if n in SIGNALS[:2] or signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the signals to those who had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
