"""Signals that stop a run: after the first one it finishes the step and saves, the second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from mace.errors import RunInterrupted

SIGNALS = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""What schedulers, Ctrl-C and a terminal that is closed send."""


AT_ONCE = 0.5
"""Seconds within which a further signal is taken for the same request in a process that a launcher has started:
schedulers send one to all processes of a job, and launchers among these pass it on."""


class Interruption:
    """Catches signals that ask the run to end.

    Signals are caught within a ``with`` block, and only in the main thread of a program, the only one to which Python
    delivers them. Outside of `patient`, the first signal raises `RunInterrupted` at once; inside, it only sets
    `requested`.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._time = 0.0
        self._patient, self._ignored = False, False
        self._before: dict[int, Any] = {}
        self.advice = "nothing was trained since the start of the program"

    @property
    def requested(self) -> bool:
        """Whether a signal has been received."""
        return self._signal is not None

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let the work inside a ``with`` block check `requested` itself, and stop at a point of its choice."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def ignore(self) -> None:
        """Ignore further signals, because the program is ending already and has yet to say why."""
        self._ignored = True

    def error(self, advice: str) -> RunInterrupted:
        """Return the exception to raise to end the program.

        Args:
            advice: How far the run has come and how to continue it.
        """
        number = self._signal or signal.SIGTERM
        return RunInterrupted(f"Stopped by {signal.Signals(number).name}: {advice}.", 128 + number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ignored:
            return
        if self._signal is not None:
            if "LOCAL_RANK" in os.environ and time.monotonic() - self._time < AT_ONCE:
                return
            os._exit(128 + number)
        self._signal, self._time = number, time.monotonic()
        if not self._patient:
            raise self.error(self.advice)

    def __enter__(self) -> Interruption:
        """Start catching the signals."""
        if threading.current_thread() is threading.main_thread():
            # under nohup, a program ignores the end of its terminal, and this must not change
            heeded = [n for n in SIGNALS if n in SIGNALS[:2] or signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
