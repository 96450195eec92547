"""A thread that notices when another process of the run is gone and ends this one, whatever it is waiting for."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from mace.errors import plain

INTERVAL = 1.0
"""Seconds between two looks."""

MISSED = 25
"""Looks without a sign of life after which a process counts as gone. They are counted, not timed: a machine that sleeps
stops all processes, and none of them is gone."""

PATIENCE = 8.0
"""Seconds a process has to end by itself once it knows of an error."""

_FAILED = "mace/failed"


class Watchdog(threading.Thread):
    """Shows the other processes that this one is alive, and checks that the next one is.

    Args:
        store: A separate connection to the store shared by all processes.
        rank: Rank of this process.
        size: Number of processes.
        name: Machine and process id, for messages.
    """

    def __init__(self, store: TCPStore, rank: int, size: int, name: str) -> None:
        super().__init__(daemon=True, name="mace watchdog")
        self._store, self._rank, self._size = store, rank, size
        self._next = (rank + 1) % size
        self._told = threading.Event()
        self._beats = 0
        self._failure: str | None = None
        self.left = False
        store.set_timeout(timedelta(seconds=10))
        store.set(f"mace/name/{rank}", name)
        store.set(f"mace/alive/{rank}", "0")

    def start(self) -> None:
        """Start watching."""
        super().start()
        threading.Thread(target=self._watch_itself, daemon=True, name="mace watchdog of the store").start()

    def _watch_itself(self) -> None:
        """Notice when the store no longer answers, since a request to it may wait forever."""
        seen, missed = -1, 0
        while not self._told.wait(INTERVAL):
            missed = missed + 1 if self._beats == seen else 0
            seen = self._beats
            if missed >= MISSED:
                self._end("process 0 does not answer")

    def run(self) -> None:
        """Watch until told to stop."""
        seen, missed = "", 0
        while not self._told.wait(INTERVAL):
            self._beats += 1
            try:
                self._store.set(f"mace/alive/{self._rank}", str(self._beats))
                if self._store.check([_FAILED]):
                    self._failure = self._store.get(_FAILED).decode()
                    self._end()
                    return
                sign = self._store.get(f"mace/alive/{self._next}").decode()
            except RuntimeError:
                if not self._told.is_set():
                    self._end("process 0 has ended or cannot be reached")
                return
            missed = missed + 1 if sign == seen and sign != "left" else 0
            seen = sign
            if missed >= MISSED:
                name = self._store.get(f"mace/name/{self._next}").decode()
                self.report(f"process {self._next} ({name}) has given no sign of life for {MISSED * INTERVAL:.0f} s", 2)

    def report(self, text: str, status: int) -> bool:
        """Report an error to all processes.

        Args:
            text: One sentence without its final period.
            status: Exit status.

        Returns:
            Whether it is the first error reported.
        """
        entry = f"{self._rank} {status} {text}"
        try:
            return self._store.compare_set(_FAILED, "", entry).decode() == entry
        except RuntimeError:  # the store is gone with the first process, whose error may already be known
            return self._failure is None

    def end(self) -> None:
        """Tell the other processes that this one is ending and not lost."""
        try:
            self._store.set(f"mace/ended/{self._rank}", "")
        except RuntimeError:  # the store is gone with the first process
            return

    def lost(self) -> str | None:
        """Find out what is wrong with the other processes; takes a few seconds if none has reported an error.

        Returns:
            The error reported by one of them, or the names of those that no longer respond; None if all is well or they
            were asked to end.
        """
        try:
            if self._store.check([_FAILED]):
                rank, status, text = self._store.get(_FAILED).decode().split(" ", 2)
                return text if int(rank) != self._rank and int(status) < 128 else None
            others = [rank for rank in range(self._size) if rank != self._rank]
            before = {rank: self._store.get(f"mace/alive/{rank}") for rank in others}
            time.sleep(2.5 * INTERVAL)
            gone = [
                f"process {rank} ({self._store.get(f'mace/name/{rank}').decode()})"
                for rank in others
                if self._store.get(f"mace/alive/{rank}") == before[rank] != b"left"
                and not self._store.check([f"mace/ended/{rank}"])
            ]
        except RuntimeError:
            return "process 0 has ended or cannot be reached"
        return f"{' and '.join(gone)} {'has' if len(gone) == 1 else 'have'} ended without a word" if gone else None

    def stop(self) -> None:
        """Stop watching, as this process ends: a thread in a native call then would abort it."""
        self._told.set()
        if self.is_alive():
            self.join(timeout=PATIENCE)

    def leave(self) -> None:
        """Stop watching, and tell the other processes that this one left on purpose."""
        self.left = True
        self._told.set()
        self.join()
        try:
            self._store.set(f"mace/alive/{self._rank}", "left")
        except RuntimeError:  # the first process has left already
            return

    def _end(self, text: str | None = None) -> None:
        """End this process, after waiting for it to end on its own."""
        status, reporter = 2, None
        if text is None:
            assert self._failure is not None
            entry = self._failure.split(" ", 2)
            reporter, status, text = int(entry[0]), int(entry[1]), entry[2]
        # the main thread may already know and explain it better; it may also wait for the lost process forever
        if self._told.wait(PATIENCE):
            return
        if reporter != self._rank:
            print(plain(f"process {self._rank} ended, because {text}."), file=sys.stderr, flush=True)
        os._exit(status)
