"""The machine-readable history of a run: one JSON object per line in ``results/<name>_run-<seed>_train.txt``."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, SupportsFloat

from mace.errors import UserError
from mace.files.durable import free_name, synchronize, write_durably
from mace.reporting.history import RunHistory

_LOGGER = logging.getLogger(__name__)
_NAMED_LINES = 2


def results_path(directory: Path | str, name: str, seed: int) -> Path:
    """Return the path of the history of the run called ``name`` with ``seed``."""
    return Path(directory) / f"{name}_run-{seed}_train.txt"


class Follower(Protocol):
    """An object that receives every record; its methods must not fail."""

    def begin(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Get all records so far, at the beginning and when some of them were taken back."""

    def take(self, record: Mapping[str, Any]) -> None:
        """Get a new record."""


class RecordWriter:
    """Append records to a JSON-lines file; each line is on disk for readers as soon as it is written.

    Numbers that are not finite become ``null``, so that every line is valid JSON. A line cut short by an earlier,
    killed run is closed first and never joined to a new one. When the disk is full, lines wait in memory until there is
    room; a warning says so.

    Args:
        path: The file; it and its folder are created if needed. None to write nothing.

    Raises:
        UserError: If the file cannot be opened.
    """

    def __init__(self, path: Path | str | None) -> None:
        """Open the file for appending."""
        self._waiting: list[bytes] = []
        self._warned = False
        self._file: BinaryIO | None = None
        self._size = 0
        self._follower: Follower | None = None
        if path is None:
            return
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer: what a failing disk did not take must not linger in one
            self._file = self.path.open("a+b", buffering=0)
            self._size = self.path.stat().st_size
            ends_cleanly = self._size == 0 or os.pread(self._file.fileno(), 1, self._size - 1) == b"\n"
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.path}: the history of the run cannot be opened ({reason}).") from error
        if not ends_cleanly:
            self._append(b"\n")

    def step(
        self,
        *,
        loss: SupportsFloat,
        seconds: float,
        epoch: int,
        learning_rate: SupportsFloat | None = None,
        gradient_norm: SupportsFloat | None = None,
        n_atoms: int | None = None,
        phases: Mapping[str, float] | None = None,
        stage_two: bool = False,
        evaluations: int | None = None,
    ) -> None:
        """Record one optimizer step.

        Args:
            loss: Loss of the batch; a tensor is converted, which waits for its device.
            seconds: Wall time of the step.
            epoch: Epoch, counted from zero.
            learning_rate: Written as ``lr`` if given.
            gradient_norm: Norm of the gradient before clipping, written as ``grad_norm`` if given.
            n_atoms: Atoms of the batch, written as ``atoms`` if given.
            phases: Seconds of each phase of the step, written as ``time_<phase>``, to the microsecond.
            stage_two: Whether the step belongs to stage two; written as ``stage`` then.
            evaluations: How often an iteration of L-BFGS evaluated the loss; no other step has this number.
        """
        record: dict[str, Any] = {"loss": loss, "time": seconds, "mode": "opt", "epoch": epoch}
        if learning_rate is not None:
            record["lr"] = learning_rate
        if gradient_norm is not None:
            record["grad_norm"] = gradient_norm
        if n_atoms is not None:
            record["atoms"] = n_atoms
        record |= {f"time_{phase}": round(value, 6) for phase, value in (phases or {}).items()}
        if stage_two:
            record["stage"] = "two"
        if evaluations is not None:
            record["evaluations"] = evaluations
        self._write(record)

    def evaluation(
        self,
        *,
        loss: SupportsFloat,
        metrics: Mapping[str, SupportsFloat],
        seconds: float,
        epoch: int | None,
        head: str,
    ) -> None:
        """Record the errors of one head on its validation set.

        Args:
            loss: Validation loss of the head.
            metrics: What `mace.reporting.metrics.ErrorAccumulator.result` returns.
            seconds: Wall time of the evaluation.
            epoch: Epoch, counted from zero; ``None`` before the first step.
            head: Name of the head.
        """
        self._write({"loss": loss, **metrics, "time": seconds, "mode": "eval", "epoch": epoch, "head": head})

    def selection(self, *, loss: SupportsFloat, epoch: int | None, by: str) -> None:
        """Record the loss that chooses the best model, where it is not that of the only head.

        Args:
            loss: The loss.
            epoch: As in `evaluation`.
            by: The rule, a value of ``--select_by``.
        """
        self._write({"loss": loss, "mode": "selection", "epoch": epoch, "head": by})

    def follow(self, follower: Follower) -> None:
        """Tell somebody all records, those so far and those to come; without a file there is nothing to tell."""
        if self._file is not None:
            self._follower = follower
            follower.begin(self._history())

    def _history(self) -> Iterator[dict[str, Any]]:
        """Yield all records so far."""
        yield from read_records(self.path)
        yield from (json.loads(line) for line in self._waiting if line.strip())

    @property
    def position(self) -> int:
        """Size of the file in bytes, with the lines that still wait."""
        return self._size + sum(len(line) for line in self._waiting)

    def synchronize(self) -> None:
        """Put all lines on the disk; a file that somebody removed or replaced is written anew, with a warning.

        Raises:
            OSError: If that is not possible.
        """
        if self._file is not None:
            self._look_after_file(self._file)
            self._write_waiting()
            synchronize(self._file.fileno())

    def _look_after_file(self, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        if found.st_size < self._size:
            _LOGGER.warning("%s was cut off while the run goes on; lines are missing", self.path)
            self._size = found.st_size
        try:
            if os.path.samestat(os.stat(self.path), found):
                return
            target = free_name(self.path.parent, f"{self.path.stem}_rejected-", self.path.suffix)
            _LOGGER.warning("%s was replaced while the run goes on; what is there now moves to %s", self.path, target)
            os.replace(self.path, target)
        except (FileNotFoundError, NotADirectoryError):
            _LOGGER.warning("%s is gone while the run goes on; it is written anew", self.path)
        try:
            lines = os.pread(file.fileno(), self._size, 0)
        except OSError as error:  # as network file systems answer
            _LOGGER.warning("%s: its lines cannot be read any more (%s)", self.path, error.strerror or error)
            lines = b""
        write_durably(self.path, lines)
        self._file, self._size = self.path.open("a+b", buffering=0), len(lines)
        file.close()

    def go_back(self, position: int) -> None:
        """Forget the lines beyond a position: they will be written once more.

        Args:
            position: In bytes; a file that is shorter is left as it is, with a warning.
        """
        if self._file is None:
            return
        if self.position < position:
            _LOGGER.warning("%s: records are missing; %d of %d bytes are there.", self.path, self.position, position)
            return
        while self._waiting and self.position > position:
            self._waiting.pop()
        if self._size > position:
            self._file.truncate(position)
            self._size = position
        if self._follower is not None:
            self._follower.begin(self._history())

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> RecordWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        plain = {key: _plain(value) for key, value in record.items()}
        self._append(json.dumps(plain, allow_nan=False).encode() + b"\n")
        if self._follower is not None:
            self._follower.take(plain)

    def _append(self, line: bytes) -> None:
        self._waiting.append(line)
        try:
            self._write_waiting()
        except OSError as error:
            if not self._warned:
                _LOGGER.warning("%s: lines wait for the disk (%s); training goes on.", self.path, error.strerror)
            self._warned = True
        else:
            self._warned = False

    def _write_waiting(self) -> None:
        """Write what waits, line by line; a line of which only a part found room is taken back."""
        assert self._file is not None
        while self._waiting:
            line = self._waiting[0]
            if self._file.write(line) != len(line):
                self._file.truncate(self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += len(line)
            del self._waiting[0]


class RecordFollower:
    """Gather the history of a run from its file while that grows.

    Args:
        path: The file that `RecordWriter` writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._history = RunHistory()

    def update(self, anew: bool = False) -> RunHistory:
        """Read what is new.

        Args:
            anew: Read everything again, because lines were taken back since the last time.

        Returns:
            The history; the same object every time, but for reading anew.
        """
        with self._path.open("rb") as file:
            if anew or file.seek(0, os.SEEK_END) < self._position:
                self._position, self._history = 0, RunHistory()
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._position += len(line)
                record = _record_of(line)
                if record is not None:
                    self._history.add(record)
        return self._history


def _record_of(line: str | bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, None if it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read_records(path: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file in order.

    A line that is not a JSON object, as a killed run can leave behind, is skipped with a warning that names it; where
    there are many, they are counted.

    Args:
        path: The file that `RecordWriter` wrote.
    """
    skipped = 0
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = _record_of(line)
            if record is not None:
                yield record
                continue
            skipped += 1
            if skipped <= _NAMED_LINES:
                _LOGGER.warning("%s: line %d is not a complete record; it is left out.", path, number)
    if skipped > _NAMED_LINES:
        _LOGGER.warning("%s: %d lines in all are not complete records.", path, skipped)


def _plain(value: Any) -> str | int | float | None:
    """Turn numpy and torch scalars into plain numbers and what is not finite into ``None``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    detach = getattr(value, "detach", None)  # a loss may still carry its gradient
    number = float(value if detach is None else detach())
    return number if math.isfinite(number) else None
