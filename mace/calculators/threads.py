"""A thread-safe calculator: each thread sees the results of its own structure."""

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
    """The structure and results visible to a thread: those of its own last calculation.

    A thread that has not calculated anything starts with those of the last calculation in any thread.
    """

    def __init__(self, latest: list[Calculated]) -> None:
        self.atoms, results, self.head = latest[0]  # read together, so that they are consistent
        self.results = dict(results)


class UsedByThreads:
    """Keeps ``atoms`` and ``results`` of an ASE calculator separate per thread, and computes for one at a time.

    ASE checks whether a structure has changed, calculates, and reads the results in separate steps; with common
    attributes, another thread could interfere between these steps.
    """

    def __init__(self, **of_ase: Any) -> None:
        """Start without results."""
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
        """Set the structure of this thread."""
        self._of_thread.atoms = atoms

    @property
    def results(self) -> dict[str, Any]:
        """The results of this thread's last calculation."""
        return self._of_thread.results

    @results.setter
    def results(self, results: dict[str, Any]) -> None:
        """Set the results of this thread."""
        self.keep(results, self._of_thread.head)

    def keep(self, results: dict[str, Any], head: str) -> None:
        """Store the results of `atoms` and the head they are for."""
        own = self._of_thread
        own.results, own.head = results, head
        self._latest[0] = (own.atoms, results, head)

    @property
    def head_of_results(self) -> str:
        """The head that `results` are for; any thread may have changed the calculator's head since."""
        return self._of_thread.head

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in vars(self).items() if k not in ("_of_thread", "_latest", "turn")}  # not to be copied
        return kept | {"calculated": (self.atoms, self.results, self.head_of_results)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare(state.pop("calculated"))
        vars(self).update(state)


def in_turn(method: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Decorate a method of a calculator so that only one thread at a time runs it."""

    @functools.wraps(method)
    def alone(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        calculator: Any = args[0]
        with calculator.turn:
            return method(*args, **kwargs)

    return alone
