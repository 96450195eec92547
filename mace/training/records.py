"""The machine-readable history of a run: one JSON object per line in ``results/<name>_run-<seed>_train.txt``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat, TextIO

_LOGGER = logging.getLogger(__name__)


def results_path(directory: Path | str, name: str, seed: int) -> Path:
    """Return where the history of the run called ``name`` with ``seed`` lies."""
    return Path(directory) / f"{name}_run-{seed}_train.txt"


class RecordWriter:
    """Append records to a JSON-lines file; each line is on disk for readers as soon as it is written.

    Numbers that are not finite become ``null``, so that every line is valid JSON. A line cut short by an earlier,
    killed run is closed first and never joined to a new one.

    Args:
        path: The file; it and its folder are created if needed.
    """

    def __init__(self, path: Path | str) -> None:
        """Open the file for appending."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ends_cleanly = _ends_with_newline(self.path)
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        if not ends_cleanly:
            self._file.write("\n")

    def step(
        self, *, loss: SupportsFloat, seconds: float, epoch: int, learning_rate: SupportsFloat | None = None
    ) -> None:
        """Record one optimizer step.

        Args:
            loss: Loss of the batch; a tensor is converted, which waits for its device.
            seconds: Wall time of the step.
            epoch: Epoch, counted from zero.
            learning_rate: Written as ``lr`` if given.
        """
        record: dict[str, Any] = {"loss": loss, "time": seconds, "mode": "opt", "epoch": epoch}
        if learning_rate is not None:
            record["lr"] = learning_rate
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
            metrics: What `mace.training.metrics.ErrorAccumulator.result` returns.
            seconds: Wall time of the evaluation.
            epoch: Epoch, counted from zero; ``None`` before the first step.
            head: Name of the head.
        """
        self._write({"loss": loss, **metrics, "time": seconds, "mode": "eval", "epoch": epoch, "head": head})

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
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
        plain = {key: _plain(value) for key, value in record.items()}
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()


def read_records(path: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file in order.

    A line that is not a JSON object, as a killed run can leave behind, is skipped with a warning that names it.

    Args:
        path: The file that `RecordWriter` wrote.
    """
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if isinstance(record, dict):
                yield record
            else:
                _LOGGER.warning("%s: line %d is not a complete record; it is left out.", path, number)


def _plain(value: Any) -> str | int | float | None:
    """Turn numpy and torch scalars into plain numbers and what is not finite into ``None``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    detach = getattr(value, "detach", None)  # a loss may still carry its gradient
    number = float(value if detach is None else detach())
    return number if math.isfinite(number) else None


def _ends_with_newline(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
