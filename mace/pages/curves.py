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

TRAINING_COLOR, SELECTION_COLOR = 5, 8
"""Colors of the training loss and of the loss that chooses the best model, where one run is drawn."""

HEAD_COLORS = (0, 1, 2, 3, 4, 6, 7)
"""Colors of the heads of one run. Where several runs are drawn, each has its color, and each head its pattern."""

PATTERNS = 4
"""Number of patterns of lines; the first is solid."""

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
        pattern: Number of its pattern.
        head: The head it is of; empty if it is of all.
    """

    label: str
    color: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    steps: bool = False
    pattern: int = 0
    head: str = ""


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
                    "pattern": s.pattern,
                    "head": s.head,
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
    marks = []
    for run in runs:
        prefix, numbers = f"{run.name}: " if run.name else "", run.history.numbers()
        for start, stage in ((run.stage_two_start, "stage two"), (run.history.lbfgs_start, "L-BFGS")):
            if start is not None and numbers and numbers[0] < start <= numbers[-1]:
                marks.append((float(start), f"{prefix}{stage}"))
        if len(runs) == 1:
            marks += [(epoch + 1.0, f"{prefix}{word}") for epoch, word in run.best]
    heads = list(dict.fromkeys(head for run in runs for head in run.history.heads))
    losses = []
    for place, run in enumerate(runs):
        of_epochs, color = run.history.epochs, place if run.name else TRAINING_COLOR
        if of_epochs and len(of_epochs) < _FINE_EPOCHS:
            times, of_steps, _ = run.history.steps(MOST_POINTS)
            losses.append(_series(run, "training, as it went", color, times, of_steps, dashed=True))
        elif of_epochs:
            epochs = _thinned(sorted(of_epochs))
            x, means = [e + 1.0 for e in epochs], [of_epochs[epoch].mean_loss for epoch in epochs]
            losses.append(_series(run, "training, mean of the epoch", color, x, means, dashed=True))
        losses += _validation(run, place, heads, "loss")
        if not run.name and run.history.select_by == "all":
            epochs = _thinned(sorted(run.history.selection))
            of_all = [run.history.selection[epoch] for epoch in epochs]
            x = [epoch + 1.0 for epoch in epochs]
            losses.append(_series(run, "validation, all heads", SELECTION_COLOR, x, of_all))
    panels = [Panel("Loss", "", losses, marks, key="loss")]
    for measured in MEASURED:
        for measure in measured.measures:
            key, title = f"{measure}_{measured.suffix}", f"{MEASURES[measure]} of {measured.title}, validation"
            found = [s for place, run in enumerate(runs) for s in _validation(run, place, heads, key, measured.factor)]
            shown = [series for series in found if not all(map(math.isnan, series.y))]
            panels.append(Panel(title, measured.unit, shown, marks, measure, key))
    # learning rates as they were from the beginning of an epoch to its end
    rates = [
        replace(series, x=[series.x[0] - 1.0, *series.x], y=[series.y[0], *series.y], steps=True)
        for place, run in enumerate(runs)
        for series in _of_epochs(run, place, lambda sums: sums.rate)
    ]
    panels.append(Panel("Learning rate", "", rates, marks, key="lr"))
    norms = []
    for place, run in enumerate(runs):
        if len(run.history.epochs) < _FINE_EPOCHS:
            times, _, of_steps = run.history.steps(MOST_POINTS)
            norms += [_series(run, "", place, times, of_steps)] if np.isfinite(of_steps).any() else []
        else:
            norms += _of_epochs(run, place, lambda sums: sums.largest_norm or None)
    panels.append(Panel("Norm of the gradient, largest", "", norms, marks, key="grad_norm"))
    return [panel for panel in panels if any(len(series.x) for series in panel.series)]


def _validation(run: NamedRun, place: int, heads: Sequence[str], key: str, factor: float = 1.0) -> Iterable[Series]:
    """Draw what every evaluation found, by head; one after epoch n, counted from zero, is at the time n + 1.

    Args:
        run: The run.
        place: Its number.
        heads: The heads of all runs.
        key: Name of the error in the records.
        factor: To the unit that is shown.
    """
    history = run.history
    for head in history.heads:
        records = history.valid.get(head, {})
        epochs = _thinned(sorted(records))
        first = [history.initial[head]] if head in history.initial else []
        values = [_number(record.get(key)) * factor for record in [*first, *(records[e] for e in epochs)]]
        label = f"validation {head}" if len(history.heads) > 1 else "validation"
        number, x = heads.index(head), [0.0] * len(first) + [e + 1.0 for e in epochs]
        color = place if run.name else HEAD_COLORS[number % len(HEAD_COLORS)]
        series = _series(run, label, color, x, values)
        yield replace(series, pattern=number % PATTERNS if run.name else 0, head=head)


def _of_epochs(run: NamedRun, place: int, value: Callable[[EpochSums], float | None]) -> Iterable[Series]:
    """Draw a number of every epoch of a run."""
    epochs = _thinned(sorted(run.history.epochs))
    values = [_number(value(run.history.epochs[epoch])) for epoch in epochs]
    if not all(map(math.isnan, values)):
        yield _series(run, "", place, [e + 1.0 for e in epochs], values)


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
