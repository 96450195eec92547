"""Learning curves of one or several runs as panels that a page can draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mace.properties import PREDICTED, PROPERTIES
from mace.reporting.history import EpochSums, RunHistory
from mace.units import MILLI

MOST_POINTS = 600
"""Points of a curve; of longer ones, every so many evaluations are drawn."""

TRAINING_COLOR = 5
"""Color of the training loss where one run is drawn; of several, each has its own."""

_FINE_EPOCHS = 30
"""Runs with fewer epochs have their training loss drawn step by step."""


@dataclass(frozen=True)
class Measured:
    """An error that has a panel: the end of its name among the metrics, what it is called, and its unit.

    Attributes:
        suffix: As in ``rmse_<suffix>``.
        title: In words.
        unit: Unit shown.
        factor: To that unit.
        measures: Which of ``rmse``, ``mae`` and ``q95`` exist.
    """

    suffix: str
    title: str
    unit: str
    factor: float = 1.0 / MILLI
    measures: tuple[str, ...] = ("rmse", "mae", "q95")


MEASURED = tuple(
    Measured(
        row.shown_suffix,
        row.name,
        f"m{row.shown_unit}",
        measures=("rmse", "mae") if row.extensive else ("rmse", "mae", "q95"),
    )
    for row in map(PROPERTIES.__getitem__, PREDICTED)
)
"""Errors that have a panel of their own."""

MEASURES = {"rmse": "RMSE", "mae": "MAE", "q95": "95th percentile"}
"""How errors are added up."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: Its name.
        color: Number of its color.
        x: Epochs.
        y: Values; NaN where there is none.
        dashed: Whether it is drawn in dashes.
        steps: Whether a value holds until the next point, from the one before.
    """

    label: str
    color: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Panel:
    """A drawing with a common axis of epochs.

    Attributes:
        title: What is drawn.
        unit: Unit of the vertical axis; empty if it has none.
        series: The curves.
        marks: Epochs with a word at a vertical line.
        measure: Key of `MEASURES` if the panel is one of several to choose from.
        key: What the records call it.
    """

    title: str
    unit: str
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = ()
    measure: str = ""
    key: str = ""

    def as_document(self) -> dict[str, Any]:
        """Turn into what JSON can hold, with as many digits as can be seen."""
        return {
            "title": self.title,
            "unit": self.unit,
            "measure": self.measure,
            "marks": [[round(x, 3), word] for x, word in self.marks],
            "series": [
                {
                    "label": s.label,
                    "color": s.color,
                    "dashed": s.dashed,
                    "steps": s.steps,
                    "x": [round(float(x), 3) for x in s.x],
                    "y": [float(f"{y:.5g}") if math.isfinite(y) else None for y in s.y],
                }
                for s in self.series
            ],
        }


@dataclass(frozen=True)
class NamedRun:
    """A run to be drawn.

    Attributes:
        name: Its name; empty if it is the only one.
        history: Its course.
        stage_two_start: First epoch of stage two, if known.
        best: Epochs with the lowest validation loss, with a word each.
    """

    name: str
    history: RunHistory
    stage_two_start: int | None = None
    best: Sequence[tuple[int, str]] = field(default=())


def draw_panels(runs: Sequence[NamedRun]) -> list[Panel]:
    """Make the panels of one or several runs: loss, errors, learning rate, gradient."""
    marks = _marks(runs)
    losses = [s for place, run in enumerate(runs) for s in _losses(run, place)]
    panels = [Panel("Loss", "", losses, marks, key="loss")]
    for measured in MEASURED:
        for measure in measured.measures:
            series = [s for place, run in enumerate(runs) for s in _errors(run, place, measured, measure)]
            if series:
                title = f"{MEASURES[measure]} of {measured.title}, validation"
                panels.append(Panel(title, measured.unit, series, marks, measure, f"{measure}_{measured.suffix}"))
    panels.append(Panel("Learning rate", "", list(_rates(runs)), marks, key="lr"))
    panels.append(Panel("Norm of the gradient, largest", "", list(_norms(runs)), marks, key="grad_norm"))
    return [panel for panel in panels if any(len(series.x) for series in panel.series)]


def _marks(runs: Sequence[NamedRun]) -> list[tuple[float, str]]:
    marks = []
    for run in runs:
        prefix = f"{run.name}: " if run.name else ""
        numbers = run.history.numbers()
        start = run.stage_two_start
        if start is not None and numbers and numbers[0] < start <= numbers[-1]:
            marks.append((float(start), f"{prefix}stage two"))
        if len(runs) == 1:
            marks += [(epoch + 1.0, f"{prefix}{word}") for epoch, word in run.best]
    return marks


def _losses(run: NamedRun, place: int) -> Iterable[Series]:
    history, heads = run.history, len(run.history.valid)
    if history.epochs and len(history.epochs) < _FINE_EPOCHS:
        times, losses_of_steps, _ = history.steps(MOST_POINTS)
        color = _training_color(run, place)
        yield _series(run, "training, as it went", color, times, losses_of_steps, dashed=True)
    elif history.epochs:
        epochs = _thinned(sorted(history.epochs))
        color = _training_color(run, place)
        means = [history.epochs[epoch].mean_loss for epoch in epochs]
        yield _series(run, "training, mean of the epoch", color, [e + 1.0 for e in epochs], means, dashed=True)
    for number, (head, x, records) in enumerate(_evaluations(history)):
        losses = [_number(record.get("loss")) for record in records]
        yield _series(run, f"validation {head}" if heads > 1 else "validation", place + number, x, losses)


def _training_color(run: NamedRun, place: int) -> int:
    return place if run.name else TRAINING_COLOR


def _errors(run: NamedRun, place: int, measured: Measured, measure: str) -> Iterable[Series]:
    metric = f"{measure}_{measured.suffix}"
    for number, (head, x, records) in enumerate(_evaluations(run.history)):
        values = [_number(record.get(metric)) * measured.factor for record in records]
        if not all(map(math.isnan, values)):
            label = f"validation {head}" if len(run.history.valid) > 1 else "validation"
            yield _series(run, label, place + number, x, values)


def _evaluations(history: RunHistory) -> Iterable[tuple[str, list[float], list[dict[str, Any]]]]:
    """Yield head, times and records; an evaluation after epoch n, counted from zero, is at the time n + 1."""
    heads = list(dict.fromkeys([*history.initial, *history.valid]))
    for head in heads:
        records = history.valid.get(head, {})
        epochs = _thinned(sorted(records))
        first = [history.initial[head]] if head in history.initial else []
        yield head, [0.0] * len(first) + [e + 1.0 for e in epochs], first + [records[e] for e in epochs]


def _of_epochs(runs: Sequence[NamedRun], value: Callable[[EpochSums], float | None]) -> Iterable[Series]:
    for place, run in enumerate(runs):
        epochs = _thinned(sorted(run.history.epochs))
        values = [_number(value(run.history.epochs[epoch])) for epoch in epochs]
        if not all(map(math.isnan, values)):
            yield _series(run, "", place, [e + 1.0 for e in epochs], values)


def _rates(runs: Sequence[NamedRun]) -> Iterable[Series]:
    """Draw learning rates as they were from the beginning of an epoch to its end."""
    for series in _of_epochs(runs, lambda sums: sums.rate):
        yield replace(series, x=[series.x[0] - 1.0, *series.x], y=[series.y[0], *series.y], steps=True)


def _norms(runs: Sequence[NamedRun]) -> Iterable[Series]:
    for place, run in enumerate(runs):
        if len(run.history.epochs) < _FINE_EPOCHS:
            x, _, norms = run.history.steps(MOST_POINTS)
            if np.isfinite(norms).any():
                yield _series(run, "", place, x, norms)
        else:
            yield from _of_epochs([run], lambda sums: sums.largest_norm or None)


def _series(
    run: NamedRun, what: str, color: int, x: Iterable[float], y: Iterable[float], dashed: bool = False
) -> Series:
    label = ": ".join(part for part in (run.name, what) if part)
    return Series(label, color, list(x), list(y), dashed)


def _thinned(epochs: list[int]) -> list[int]:
    """Keep the last of every so many epochs."""
    every = -(-len(epochs) // MOST_POINTS)
    return epochs[(len(epochs) - 1) % every :: every] if epochs else []


def _number(value: float | None) -> float:
    return math.nan if value is None else value
