"""A thread that notices when another process of the run is gone and ends this one, whatever it is waiting for."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from mace.errors import plain

INTERVAL = 1.0
"""Seconds between two looks."""

MISSED = 25
"""Looks without a sign of life after which a process counts as gone. They are counted, not timed: a machine that sleeps
stops all processes, and none of them is gone."""

PATIENCE = 15.0
"""Seconds a process has to end by itself once it knows of an error, its files written."""

WRITING = 40
"""Times `PATIENCE` that it has if it is about to write files."""

_FAILED = "mace/failed"


class Watchdog(threading.Thread):
    """Shows the other processes that this one is alive, and checks that the next one is.

    Args:
        store: A separate connection to the store shared by all processes.
        rank: Rank of this process.
        size: Number of processes.

    Attributes:
        found: What is wrong with another process, once that is known: to wait for it any longer is in vain.
        left: Whether this process has left on purpose.
        writes: Whether this process is about to write files, which may take a while.
    """

    def __init__(self, store: TCPStore, rank: int, size: int) -> None:
        super().__init__(daemon=True, name="mace watchdog")
        self._store, self._rank, self._size = store, rank, size
        self._names = [f"process {rank}" for rank in range(size)]
        self._server = self._names[0]
        self._next = (rank + 1) % size
        self._told = threading.Event()
        self._beats = 0
        self._failure: str | None = None
        self.found, self.left, self.writes = Future[str](), False, False
        self._is_reached = True
        store.set_timeout(timedelta(seconds=10))
        store.set(f"mace/alive/{rank}", "0")

    def watch(self, names: Sequence[str], launcher: str | None) -> None:
        """Start watching.

        Args:
            names: Machine and process id of every process, for messages.
            launcher: Address of the launcher if it serves the store; otherwise the first process does.
        """
        self._names = [f"process {rank} ({name})" for rank, name in enumerate(names)]
        self._server = self._names[0] if launcher is None else f"the launcher at {launcher}"
        self.start()
        threading.Thread(target=self._watch_itself, daemon=True, name="mace watchdog of the store").start()

    def _watch_itself(self) -> None:
        """Notice when the store no longer answers, since a request to it may wait forever."""
        seen, missed = -1, 0
        while not self._told.wait(INTERVAL):
            missed = missed + 1 if self._beats == seen else 0
            seen = self._beats
            if missed >= MISSED:
                self._is_reached = False
                self._end(f"{self._server} has not answered for {MISSED * INTERVAL:.0f} s")

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
                self._is_reached = False
                if not self._told.is_set():
                    self._end(f"{self._server} has ended or cannot be reached")
                return
            missed = missed + 1 if sign == seen and sign != "left" else 0
            seen = sign
            if missed >= MISSED:
                self._report(f"{self._names[self._next]} has given no sign of life for {MISSED * INTERVAL:.0f} s", 2)

    def end(self, text: str, status: int) -> bool:
        """Tell the other processes of an error with which this one ends, so that it is not taken for lost.

        Args:
            text: One sentence without its final period.
            status: Exit status.

        Returns:
            Whether it is the first error reported.
        """
        try:
            if self._is_reached:
                self._store.set(f"mace/ended/{self._rank}", "")
        except RuntimeError:
            self._is_reached = False
        return self._report(f"{self._names[self._rank]}: {text}", status)

    def lost(self) -> str | None:
        """Find out what is wrong with the other processes; takes a few seconds if none has reported an error.

        Returns:
            The error reported by one of them, or the names of those that no longer respond; None if all is well or they
            were asked to end.
        """
        if self.found.done():
            return self.found.result()
        try:
            if self._store.check([_FAILED]):
                rank, status, text = self._store.get(_FAILED).decode().split(" ", 2)
                return text if int(rank) != self._rank and int(status) < 128 else None
            others = [rank for rank in range(self._size) if rank != self._rank]
            before = {rank: self._store.get(f"mace/alive/{rank}") for rank in others}
            time.sleep(2.5 * INTERVAL)
            gone = [
                self._names[rank]
                for rank in others
                if self._store.get(f"mace/alive/{rank}") == before[rank] != b"left"
                and not self._store.check([f"mace/ended/{rank}"])
            ]
        except RuntimeError:
            return f"{self._server} has ended or cannot be reached"
        return f"{' and '.join(gone)} {'has' if len(gone) == 1 else 'have'} ended without a word" if gone else None

    def stop(self) -> None:
        """Stop watching, as this process ends: a thread in a native call then would abort it."""
        self._told.set()
        if self.is_alive():
            self.join(timeout=3 * INTERVAL)  # longer only if the store does not answer

    def leave(self) -> None:
        """Stop watching, and tell the other processes that this one left on purpose."""
        self.left = True
        self._told.set()
        self.join(timeout=PATIENCE)
        try:
            self._store.set(f"mace/alive/{self._rank}", "left")
        except RuntimeError:  # the first process has left already
            return

    def _report(self, text: str, status: int) -> bool:
        """Report an error to all processes; return whether it is the first one."""
        entry = f"{self._rank} {status} {text}"
        try:
            if self._is_reached:
                return self._store.compare_set(_FAILED, "", entry).decode() == entry
        except RuntimeError:
            self._is_reached = False
        return self._failure is None  # gone with its server, the error of a process may be known already

    def _end(self, text: str | None = None) -> None:
        """End this process, after giving it time to end on its own: it explains it better, and writes its files."""
        status = 2
        if text is None:
            assert self._failure is not None
            _, told_status, text = self._failure.split(" ", 2)
            status = int(told_status)
        if status < 128:
            try:
                self.found.set_result(text)
            except InvalidStateError:  # found in another way too
                pass
        # the main thread may be waiting in native code, or for a file system that has gone as well
        for _ in range(WRITING):
            if self._told.wait(PATIENCE):
                return
            if not self.writes:
                break
        print(plain(f"process {self._rank} ended, because {text}."), file=sys.stderr, flush=True)
        os._exit(status)
