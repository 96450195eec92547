"""A calculator that several threads may use: each sees the results of its own structure."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ase import Atoms

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
Calculated = tuple["Atoms | None", dict[str, Any], str]
"""A structure, its results, and the head they are for."""


class _OfThread(threading.local):
    """The structure and the results that one thread sees: those of its own last calculation.

    A thread that has not calculated anything begins with those of the last calculation of any.
    """

    def __init__(self, latest: list[Calculated]) -> None:
        self.atoms, results, self.head = latest[0]  # together, so that they belong to each other
        self.results = dict(results)


class UsedByThreads:
    """Keeps ``atoms`` and ``results`` of an ASE calculator apart for each thread, and computes for one at a time.

    ASE asks whether a structure has changed, has it calculated, and takes the results, in separate steps; with one
    place for all threads another one could come between them.
    """

    def __init__(self, **of_ase: Any) -> None:
        """Begin without results."""
        self._prepare((None, {}, ""))
        super().__init__(**of_ase)

    def _prepare(self, latest: Calculated) -> None:
        self._latest, self.turn = [latest], threading.RLock()
        self._of_thread = _OfThread(self._latest)

    @property
    def atoms(self) -> Atoms | None:
        """The structure of this thread's last calculation."""
        return self._of_thread.atoms

    @atoms.setter
    def atoms(self, atoms: Atoms | None) -> None:
        """Take another structure for this thread."""
        self._of_thread.atoms = atoms

    @property
    def results(self) -> dict[str, Any]:
        """The results of this thread's last calculation."""
        return self._of_thread.results

    @results.setter
    def results(self, results: dict[str, Any]) -> None:
        """Keep other results for this thread."""
        self.keep(results, self._of_thread.head)

    def keep(self, results: dict[str, Any], head: str) -> None:
        """Keep the results of `atoms`, and tell of which head they are."""
        own = self._of_thread
        own.results, own.head = results, head
        self._latest[0] = (own.atoms, results, head)

    @property
    def head_of_results(self) -> str:
        """The head that `results` are for; that of the calculator may have been changed since, by any thread."""
        return self._of_thread.head

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in vars(self).items() if k not in ("_of_thread", "_latest", "turn")}  # not to be copied
        return kept | {"calculated": (self.atoms, self.results, self.head_of_results)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare(state.pop("calculated"))
        vars(self).update(state)


def in_turn(method: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Let one thread at a time into a method of a calculator."""

    @functools.wraps(method)
    def alone(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        calculator: Any = args[0]
        with calculator.turn:
            return method(*args, **kwargs)

    return alone
