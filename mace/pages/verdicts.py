"""Whether a run is healthy, in a few tiles and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mace.pages.run_facts import MeasuredStage, RunFacts, RunState
from mace.properties import COMPARED, PROPERTIES, Property
from mace.units import MILLI

Level = Literal["good", "note", "warning", "error", ""]

OVERFIT = 2.0
"""Ratio of validation to training error from which the model is said to know its training set too well."""

SPIKE = 100.0
"""Ratio of the largest to the median norm of gradients from which there are spikes."""

RISING = 3.0
"""Ratio of the last to the lowest validation loss from which the loss is said to rise."""

SHIFTED = 0.8
"""Ratio of the mean error of energies to their RMSE from which all are said to be shifted."""

STILL_FALLING = 0.9
"""If the lowest loss of the last fifth of the evaluations is below this share of the lowest before, more would help."""

_ERRORS = {f"rmse_{PROPERTIES[name].shown_suffix}": PROPERTIES[name] for name in COMPARED}


_LEVELS: dict[str, Level] = {"running": "note", "finished": "good", "stopped": "warning", "failed": "error"}


@dataclass(frozen=True)
class Tile:
    """A number to be seen first: its name, its value, a word more, and whether it is good."""

    name: str
    value: str
    detail: str = ""
    level: Level = ""


@dataclass(frozen=True)
class Verdict:
    """A sentence about the health of a run."""

    level: Level
    sentence: str


def tiles(facts: RunFacts, state: RunState) -> list[Tile]:
    """Choose the numbers to be seen first."""
    history, best = state.history, state.best_epochs
    done = f"{len(history.epochs)} of {facts.epochs} epochs"
    found = [Tile("state", state.condition, done, _LEVELS[state.condition])]
    if best:
        detail = f"stage one: {best['one']}" if {"one", "two"} <= best.keys() else ""
        found.append(Tile("best epoch", str(best["two" if "two" in best else "one"]), detail))
    found += _error_tiles(state)
    if ratios := list(overfit_ratios(state.stages)):
        row, _, _, ratio = max(ratios, key=lambda entry: entry[3])
        level: Level = "warning" if ratio > OVERFIT else "good"
        found.append(Tile("validation / training error", f"{ratio:.2f}", f"RMSE {row.symbol}", level))
    seconds = math.fsum(sums.working_seconds for sums in history.epochs.values())
    atoms = sum(sums.atoms for sums in history.epochs.values())
    if seconds and atoms:
        found.append(Tile("atoms per second", f"{atoms / seconds:,.0f}", f"{duration(seconds)} in steps"))
    elif seconds:
        found.append(Tile("time of steps", duration(seconds)))
    count = sum(warned.times for warned in state.warnings)
    found.append(Tile("warnings", str(count), "of the run, listed below" if count else "", "warning" if count else ""))
    return found


def verdicts(facts: RunFacts, state: RunState) -> list[Verdict]:
    """Judge a run; the first sentence says how it stands, the others what to look at."""
    found = [Verdict(_LEVELS[state.condition], state.sentence), *_of_history(facts, state), *_of_errors(state.stages)]
    count = sum(len(report.of_level("warning")) for report in facts.data.values())
    if count:
        plural = "" if count == 1 else "s"
        found.append(
            Verdict("note", f"The check of the data found {count} warning{plural}; they are listed under Data.")
        )
    return found


def overfit_ratios(stages: Sequence[MeasuredStage]) -> Iterator[tuple[Property, float, float, float]]:
    """Yield a property, its error in training and validation, and their ratio, for the last stage."""
    for stage in stages[-1:]:
        trained = stage.metrics_of("train")
        for head, valid in stage.metrics_of("valid").items():
            train = trained.get(head, {})
            for metric, row in _ERRORS.items():
                if train.get(metric) and valid.get(metric):
                    yield row, train[metric], valid[metric], valid[metric] / train[metric]


def _error_tiles(state: RunState) -> Iterator[Tile]:
    """Show errors of the test sets if there are some, else of the validation set."""
    shown: Mapping[str, Any]
    if state.stages:
        tests = state.stages[-1].test_metrics()
        shown = _largest(tests or state.stages[-1].metrics_of("valid"))
        name = f"worst of {len(tests)} test sets" if len(tests) > 1 else "test" if tests else "validation"
    else:
        records = [r for of_head in state.history.valid.values() for r in of_head.values() if r.get("loss") is not None]
        first = [r for r in state.history.initial.values() if r.get("loss") is not None]
        name = "validation, lowest loss"
        shown = min(records or first, key=lambda record: float(record["loss"]), default={})
    for metric, row in _ERRORS.items():
        if shown.get(metric) is not None:
            yield Tile(f"RMSE {row.symbol}, {name}", f"{shown[metric] / MILLI:.3g}", f"m{row.shown_unit}")


def _largest(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Take the largest of each error over several sets."""
    values_of = {m: [values[m] for values in sets.values() if values.get(m) is not None] for m in _ERRORS}
    return {m: max(values) for m, values in values_of.items() if values}


def _of_history(facts: RunFacts, state: RunState) -> Iterator[Verdict]:
    history = state.history
    # of the present stage, of all heads together
    start = 0 if history.stage_two_start is None else state.stage_two_start or 0
    of_epochs = history.validation_losses()
    losses = [of_epochs[epoch] for epoch in sorted(of_epochs) if epoch >= start]
    if any(not math.isfinite(value) for value in losses):
        yield Verdict("error", "A validation loss was not a number: lower --lr, and look at the warnings.")
    losses = [value for value in losses if math.isfinite(value)]
    if len(losses) > 2 and losses[-1] > RISING * min(losses):
        yield Verdict(
            "error" if losses[-1] > 10.0 * min(losses) else "warning",
            f"The validation loss rises: it is {losses[-1] / min(losses):.1f} times its lowest value.",
        )
    elif len(losses) >= 10 and state.condition == "finished":
        late = max(len(losses) // 5, 1)
        if min(losses[-late:]) < STILL_FALLING * min(losses[:-late]):
            yield Verdict(
                "note", "The validation loss was still falling at the end: more epochs would lower the errors further."
            )
    norms = [sums.largest_norm for sums in history.epochs.values() if sums.norms]
    means = [sums.mean_norm for sums in history.epochs.values() if sums.norms]
    late_norms = slice(len(norms) // 5, None)  # the first epochs are steep in every run
    typical = float(np.median(means[late_norms])) if len(norms) >= 5 else 0.0
    if typical > 0.0 and max(norms[late_norms]) > SPIKE * typical:
        yield Verdict(
            "warning",
            f"The gradient has spikes up to {max(norms[late_norms]) / typical:.0f} times its usual length: look for "
            "wrong labels among the worst structures, or lower --clip_grad.",
        )
    if state.times_back:
        yield Verdict(
            "warning", f"The run went back {state.times_back} times because something was not a finite number."
        )
    if state.stage_two_start is not None and state.stage_two_start >= facts.epochs:
        yield Verdict("warning", f"Stage two was to begin at epoch {state.stage_two_start}, which is not reached.")


def _of_errors(stages: Sequence[MeasuredStage]) -> Iterator[Verdict]:
    for row, train, valid, ratio in overfit_ratios(stages):
        if ratio > OVERFIT:
            numbers = f"{valid / MILLI:.3g} against {train / MILLI:.3g}"
            yield Verdict(
                "warning",
                f"The error of {row.plural or row.name} is {ratio:.1f} times larger in validation than in training, "
                f"{numbers}: more data, a smaller model or fewer epochs would narrow it.",
            )
    if not stages:
        return
    for errors in stages[-1].predictions.properties:
        count = sum(cell.count for cell in errors.cells)
        shift = sum(cell.signed for cell in errors.cells) / count
        rmse = math.sqrt(sum(cell.squared for cell in errors.cells) / count)
        if errors.name == "energy" and count > 1 and abs(shift) > SHIFTED * rmse:
            side, size = "high" if shift > 0.0 else "low", abs(shift) / MILLI
            yield Verdict(
                "warning",
                f"Nearly all energies are predicted too {side}, by {size:.3g} meV/atom on average: not settled yet. "
                "Stage two (--swa), a larger --energy_weight or more epochs would help.",
            )
    valid_metrics = _largest(stages[-1].metrics_of("valid"))
    for name, values in stages[-1].test_metrics().items():
        for metric, row in _ERRORS.items():
            if values.get(metric) and valid_metrics.get(metric) and values[metric] > 3.0 * valid_metrics[metric]:
                yield Verdict(
                    "note",
                    f"Test set {name}: the error of {row.plural or row.name} is "
                    f"{values[metric] / valid_metrics[metric]:.1f} times that of validation, so it lies outside of "
                    "what was learned.",
                )


def duration(seconds: float) -> str:
    """Write a time in the largest units that say it well.

    >>> duration(0.034), duration(4.21), duration(42.3), duration(4000), duration(200000)
    ('34 ms', '4.2 s', '42 s', '1 h 07 min', '2 d 7 h')
    """
    if seconds < 1.0:
        return f"{1000.0 * seconds:.0f} ms"
    if seconds < 10.0:
        return f"{seconds:.1f} s"
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
