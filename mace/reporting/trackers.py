"""Trackers, which receive the results of each step and each evaluation in addition to the JSON lines.

A tracker gets the very records of the JSON lines, whatever is in them, with the number of gradient updates made so far.
It stands outside of the training: what fails in it costs one warning and the tracker, never the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from mace.errors import RunInterrupted, UserError
from mace.structures.configuration import DEFAULT_HEAD

_LOGGER = logging.getLogger(__name__)

Record = Mapping[str, Any]
"""A line of the history: texts, numbers, and None for what is not finite."""

_NOT_SCALARS = ("mode", "head", "epoch")


class Tracker(Protocol):
    """The interface of a tracker; every method may fail."""

    name: str

    def begin(self, history: Sequence[Record], update: int) -> None:
        """Start, or be taken back to an earlier place.

        Args:
            history: All records so far; what was told beyond them is void.
            update: Gradient updates so far.
        """

    def take(self, record: Record, update: int) -> None:
        """Take in a record.

        Args:
            record: As in the JSON lines.
            update: Gradient updates so far, that of the record included.
        """

    def finish(self, completed: bool) -> None:
        """End; ``completed`` tells whether the run came to its end."""


class Trackers:
    """All trackers of a run; follows a `mace.reporting.records.RecordWriter`.

    Args:
        trackers: Those that are wanted.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)
        self._update = 0
        self._begun = False

    def begin(self, history: Iterable[Record]) -> None:
        """Start all trackers, or take them back to the end of a history."""
        if not self._trackers:
            return
        records = list(history)
        self._update = sum(record.get("mode") == "opt" for record in records)
        self._tell(lambda tracker: tracker.begin(records, self._update))
        self._begun = True

    def take(self, record: Record) -> None:
        """Hand on a record."""
        self._update += record.get("mode") == "opt"
        self._tell(lambda tracker: tracker.take(record, self._update))

    def _tell(self, action: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as error:  # libraries of others may raise whatever they like
                if isinstance(error, RunInterrupted) or (isinstance(error, UserError) and not self._begun):
                    raise  # at the beginning something can still be done
                self._trackers.remove(tracker)
                reason = (str(error).splitlines() or [""])[0] or type(error).__name__
                _LOGGER.warning(
                    "%s failed (%s); training goes on without it, and the JSON lines still have everything",
                    tracker.name,
                    reason,
                )

    def __enter__(self) -> Trackers:
        """Return the trackers themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of them."""
        self._tell(lambda tracker: tracker.finish(completed=error is None))


def scalars(record: Record) -> dict[str, float]:
    """Return all numbers of a record under the names in which trackers sort them.

    These begin with ``train/`` or ``valid/``, or ``valid/<head>/`` of several heads and ``selection/`` for the loss
    that chooses the best model.

    >>> scalars({"mode": "opt", "epoch": 3, "loss": 0.5, "lr": None})
    {'train/loss': 0.5, 'epoch': 3}
    """
    group = {"opt": "train", "selection": "selection"}.get(str(record.get("mode")), "valid")
    if record.get("mode") == "eval" and record.get("head") not in (None, DEFAULT_HEAD):
        group += f"/{record['head']}"
    found = {f"{group}/{key}": value for key, value in record.items() if key not in _NOT_SCALARS and is_number(value)}
    return found | ({"epoch": record["epoch"]} if is_number(record.get("epoch")) else {})


def is_number(value: Any) -> bool:
    """Return whether a value of a record is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
