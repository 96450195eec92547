"""Progress of long jobs: a live bar on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from types import TracebackType
from typing import SupportsFloat, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mace.errors import UserError

_LOGGER = logging.getLogger(__name__)
_Item = TypeVar("_Item")

MODES = ("auto", "bar", "lines", "off")
"""``auto`` is ``bar`` on a terminal and ``lines`` elsewhere."""

_BAR_INTERVAL = 0.5
"""Seconds between two drawings of a bar: reading the loss waits for the accelerator, so it must stay rare."""

_RATE_MEMORY = 60.0
"""Seconds after which a batch counts for a third (1/e) in the number of atoms per second."""

_MOST_ERRORS = 4
"""Heads whose errors are shown."""

_SIZES = ((1.0e9, " G"), (1.0e6, " M"), (1.0e3, " k"))


class TrainingProgress:
    """Shows epoch, batch, loss, last validation errors, atoms per second and remaining time of a training run.

    On a terminal this is a live bar below the log lines written to the same console; elsewhere one log line every
    ``interval`` seconds. The loss is only read when something is shown, so a step never waits for the accelerator.

    Args:
        console: The console that log lines are written to.
        mode: One of `MODES`.
        interval: Seconds between two lines where there is no bar.
        errors_in_words: Returns the text shown for the validation errors.
        clock: Returns the seconds since some fixed time.

    Raises:
        UserError: If the mode is unknown.
    """

    def __init__(
        self,
        console: Console,
        mode: str = "auto",
        interval: float = 30.0,
        errors_in_words: Callable[[Mapping[str, float]], str] = lambda metrics: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is shown before `start`."""
        self.mode = resolve_mode(mode, console)
        self._console = console
        self._errors_in_words = errors_in_words
        self._clock = clock
        self._interval = _BAR_INTERVAL if self.mode == "bar" else interval
        self._live: Live | None = None
        self._started = False
        self._errors: dict[str, str] = {}

    def start(self, total_epochs: int, batches_per_epoch: int, first_epoch: int = 0) -> None:
        """Start the display.

        Args:
            total_epochs: Number of epochs of the whole run, including those before a restart.
            batches_per_epoch: Optimizer steps in an epoch.
            first_epoch: Epoch with which this process starts, counted from zero.
        """
        self._total_epochs, self._batches_per_epoch = total_epochs, batches_per_epoch
        self._epoch, self._batches_done = first_epoch, 0
        self._loss: SupportsFloat | None = None
        self._first_step: float | None = None
        self._steps = 0
        self._atoms, self._seconds = 0.0, 0.0
        self._other_work: _Counter | None = None
        self._previous_step = self._last_shown = self._clock()
        self._unshown = False
        self._started = True
        if self.mode == "bar":
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self._draw()

    def begin_epoch(self, batches: int) -> None:
        """Say how many optimizer steps an epoch has, where that is not the same for all."""
        self._require_start()
        self._batches_per_epoch = batches

    def step(self, epoch: int, batch: int, loss: SupportsFloat | None, n_atoms: int) -> None:
        """Count one optimizer step.

        Args:
            epoch: Epoch, counted from zero.
            batch: Batch in the epoch, counted from zero.
            loss: Loss of the batch; a tensor stays where it is until something is shown. None if it is not known.
            n_atoms: Atoms in the batch.
        """
        self._require_start()
        if self.mode == "off":
            return
        now = self._clock()
        if self._first_step is None:
            # The first step includes compilation and warm-up and would spoil every estimate.
            self._first_step = now
        else:
            self._steps += 1
            seconds = now - self._previous_step
            keep = math.exp(-seconds / _RATE_MEMORY)
            self._atoms, self._seconds = keep * self._atoms + n_atoms, keep * self._seconds + seconds
        self._previous_step = now
        self._epoch, self._batches_done = epoch, batch + 1
        detach = getattr(loss, "detach", None)  # otherwise the autograd graph of the batch would be kept alive
        self._loss = loss if detach is None else detach()
        self._unshown = True
        if now - self._last_shown >= self._interval:
            self._show()

    def evaluated(self, metrics: Mapping[str, float], head: str = "") -> None:
        """Show these validation errors from now on; the time since the last step is not counted as training.

        Args:
            metrics: The errors.
            head: Whose they are; those of several are shown beside each other. Empty if there is only one.
        """
        self._require_start()
        self._errors[head] = self._errors_in_words(metrics)
        self._previous_step = self._clock()
        if self.mode == "bar":
            self._draw()

    def track(self, items: Iterable[_Item], description: str, total: int | None = None) -> Iterator[_Item]:
        """Yield the items and show how many are done, below the training bar while there is one.

        Args:
            items: The items to work through.
            description: The work in a few words, for example ``Evaluating valid_Default``.
            total: Number of items; by default the length of ``items``, if it has one.
        """
        if self._live is None:
            yield from track(items, description, total, console=self._console, mode=self.mode, clock=self._clock)
            return
        self._other_work = _Counter(description, _length(items, total), self._clock)
        self._draw()
        try:
            yield from _counted(items, self._other_work, self._draw, _BAR_INTERVAL)
        finally:
            self._other_work = None
            self._draw()

    def finish(self) -> None:
        """Remove the bar, or write the last line; calling it twice does no harm."""
        if self.mode == "lines" and self._started and self._unshown:
            self._show()
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._started = False

    def __enter__(self) -> TrainingProgress:
        """Return the object itself; `start` still has to be called."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the terminal, whatever happened."""
        self.finish()

    def line(self) -> str:
        """Return everything known in one line, as written where there is no bar."""
        self._require_start()
        facts = [self._epoch_text(), f"batch {self._batches_done}/{self._batches_per_epoch}", *self._state_facts()]
        return "Progress: " + ", ".join([*facts, self._rate_text(), f"ETA {self._remaining_text()}"])

    def _require_start(self) -> None:
        if not self._started:
            raise RuntimeError("TrainingProgress.start must be called first.")

    def _show(self) -> None:
        self._last_shown, self._unshown = self._clock(), False
        if self.mode == "bar":
            self._draw()
        else:
            _LOGGER.info("%s", self.line())

    def _draw(self) -> None:
        if self._live is None:
            return
        row = _row(
            Text(self._epoch_text(), style="bold"),
            ProgressBar(total=max(self._batches_per_epoch, 1), completed=self._batches_done, width=24),
            Text(f"{self._batches_done}/{self._batches_per_epoch}", style="green"),
            Text(self._rate_text(), style="magenta"),
            Text(f"ETA {self._remaining_text()}", style="cyan"),
        )
        rows: list[RenderableType] = [row]
        facts = self._state_facts()
        if facts:
            rows.append(Text(", ".join(facts), no_wrap=True, overflow="ellipsis"))
        if self._other_work is not None:
            rows.append(self._other_work.row())
        self._live.update(Group(*rows), refresh=True)

    def _epoch_text(self) -> str:
        return f"epoch {self._epoch} ({self._epoch + 1} of {self._total_epochs})"

    def _state_facts(self) -> list[str]:
        loss = [] if self._loss is None else [f"loss={float(self._loss):.6g}"]
        errors = [f"{head}: {words}" if head else words for head, words in self._errors.items() if words]
        hidden = [f"and {len(errors) - _MOST_ERRORS} more heads"] if len(errors) > _MOST_ERRORS else []
        shown = "; ".join([*errors[:_MOST_ERRORS], *hidden])
        return [*loss, *([shown] if shown else [])]

    def _rate_text(self) -> str:
        if self._seconds <= 0.0:
            return "? atoms/s"
        rate = self._atoms / self._seconds
        size, letter = next((pair for pair in _SIZES if rate >= pair[0]), (1.0, ""))
        return f"{rate / size:.3g}{letter} atoms/s"

    def _remaining_text(self) -> str:
        """Remaining time if training does not stop early; includes validation, as far as seen."""
        if self._first_step is None or self._steps == 0:
            return "?"
        seconds_per_batch = (self._clock() - self._first_step) / self._steps
        batches = (self._total_epochs - self._epoch) * self._batches_per_epoch - self._batches_done
        return _duration(seconds_per_batch * max(batches, 0))


class ReadingProgress:
    """Shows how many structures were read from a file; called after each, see `mace.structures.reading.Progress`.

    Args:
        progress: The display to use.
    """

    def __init__(self, progress: TrainingProgress) -> None:
        """Set up; nothing is shown before the first structure."""
        self._progress = progress
        self._file = ""
        self._counter: Iterator[int] = iter(())

    def __call__(self, file: str, count: int) -> None:
        """Count one structure."""
        if file != self._file:
            self.close()
            self._file = file
            self._counter = self._progress.track(itertools.count(), f"Reading {file}")
        next(self._counter)

    def close(self) -> None:
        """Remove the display."""
        if isinstance(self._counter, Generator):
            self._counter.close()
        self._file = ""


def track(
    items: Iterable[_Item],
    description: str,
    total: int | None = None,
    *,
    console: Console | None = None,
    mode: str = "auto",
    interval: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    rate: Callable[[float], str] = lambda per_second: "",
    size: Callable[[_Item], int] = lambda item: 1,
) -> Iterator[_Item]:
    """Yield the items and show how many are done; work within a training run uses `TrainingProgress.track`.

    Args:
        items: The items to work through.
        description: The work in a few words, for example ``Reading train.xyz``.
        total: Number of items; by default the length of ``items``, if it has one.
        console: The console that log lines are written to; without one, nothing is shown.
        mode: One of `MODES`.
        interval: Seconds between two log lines where there is no bar; work that takes less time writes none.
        clock: Returns the seconds since some fixed time.
        rate: Describes the speed in words, given the items per second.
        size: As how many an item counts.

    Raises:
        UserError: If the mode is unknown.
    """
    shown_as = resolve_mode(mode, console) if console is not None else "off"
    if shown_as == "off":
        return iter(items)
    counter = _Counter(description, _length(items, total), clock, rate)
    if shown_as == "bar":
        return _with_bar(items, counter, console, size)
    return _counted(items, counter, lambda: _LOGGER.info("%s", counter.line()), interval, size)


def resolve_mode(mode: str, console: Console) -> str:
    """Return ``bar``, ``lines`` or ``off`` for one of `MODES`.

    Raises:
        UserError: If there is no such mode.
    """
    if mode not in MODES:
        raise UserError(f"--progress must be one of {', '.join(MODES)}, not '{mode}'.")
    if mode != "auto":
        return mode
    if not console.is_terminal or console.is_dumb_terminal:
        return "lines"
    # with FORCE_COLOR rich treats a file as a terminal, but a bar in a file is unreadable
    is_file = console.file is sys.stdout and not sys.stdout.isatty()
    return "lines" if is_file else "bar"


class _Counter:
    """Number of items done, out of a total that may be unknown."""

    def __init__(
        self,
        description: str,
        total: int | None,
        clock: Callable[[], float],
        rate: Callable[[float], str] = lambda per_second: "",
    ) -> None:
        self.description, self.total, self.clock, self.rate = description, total, clock, rate
        self.done, self.began = 0, clock()

    def text(self) -> str:
        return f"{self.done} done" if self.total is None else f"{self.done}/{self.total}"

    def remaining_text(self) -> str:
        if self.total is None or self.done == 0:
            return "?"
        return _duration((self.clock() - self.began) / self.done * max(self.total - self.done, 0))

    def rate_text(self) -> str:
        seconds = self.clock() - self.began
        return self.rate(self.done / seconds) if self.done and seconds > 0.0 else ""

    def line(self) -> str:
        parts = [self.description, self.text(), self.rate_text(), f"ETA {self.remaining_text()}"]
        return f"Progress: {', '.join(part for part in parts if part)}"

    def row(self) -> RenderableType:
        return _row(
            Text(self.description, style="bold"),
            ProgressBar(total=self.total, completed=self.done, width=24, pulse=self.total is None),
            Text(self.text(), style="green"),
            Text(self.rate_text()),
            Text(f"ETA {self.remaining_text()}", style="cyan"),
        )


def _counted(
    items: Iterable[_Item],
    counter: _Counter,
    show: Callable[[], None],
    interval: float,
    size: Callable[[_Item], int] = lambda item: 1,
) -> Iterator[_Item]:
    """Yield the items and count them, calling ``show`` every ``interval`` seconds."""
    last_shown = counter.clock()
    for item in items:
        yield item
        counter.done += size(item)
        if counter.clock() - last_shown >= interval:
            show()
            last_shown = counter.clock()


def _with_bar(
    items: Iterable[_Item], counter: _Counter, console: Console | None, size: Callable[[_Item], int]
) -> Iterator[_Item]:
    with Live(counter.row(), console=console, auto_refresh=False, transient=True) as live:
        yield from _counted(items, counter, lambda: live.update(counter.row(), refresh=True), _BAR_INTERVAL, size)


def _row(*cells: RenderableType) -> Table:
    row = Table.grid(padding=(0, 1))
    for _ in cells:
        row.add_column(no_wrap=True)
    row.add_row(*cells)
    return row


def _length(items: Iterable[object], total: int | None) -> int | None:
    if total is not None:
        return total
    return len(items) if isinstance(items, Sized) else None


def _duration(seconds: float) -> str:
    """Write a duration as ``1 d 02:03:04`` or ``02:03:04``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour:02d}:{minute:02d}:{second:02d}"
    return f"{days} d {clock}" if days else clock
