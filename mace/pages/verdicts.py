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
    """A sentence about the health of a run, or of one of its heads."""

    level: Level
    sentence: str
    head: str = ""


def tiles(facts: RunFacts, state: RunState) -> list[Tile]:
    """Choose the numbers to be seen first."""
    history, best = state.history, state.best_epochs
    done = f"{len(history.epochs)} of {facts.epochs} epochs"
    found = [Tile("state", state.condition, done, _LEVELS[state.condition])]
    if best:
        detail = f"stage one: {best['one']}" if {"one", "two"} <= best.keys() else ""
        if history.select_by is not None:
            by = "by all heads" if history.select_by == "all" else f"by head {history.select_by}"
            detail = ", ".join(filter(None, [detail, by]))
        found.append(Tile("best epoch", str(best["two" if "two" in best else "one"]), detail))
    found += _error_tiles(state)
    if ratios := list(overfit_ratios(state.stages)):
        worst = max(ratios, key=lambda entry: entry.ratio)
        level: Level = "warning" if worst.ratio > OVERFIT else "good"
        detail = f"RMSE {worst.row.symbol}{f', {worst.head}' if worst.head else ''}"
        found.append(Tile("validation / training error", f"{worst.ratio:.2f}", detail, level))
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


@dataclass(frozen=True)
class Overfit:
    """Errors of a property in training and validation; of one head, which has a name if there are others."""

    head: str
    row: Property
    train: float
    valid: float

    @property
    def ratio(self) -> float:
        """Error in validation over that in training."""
        return self.valid / self.train


def overfit_ratios(stages: Sequence[MeasuredStage]) -> Iterator[Overfit]:
    """Compare the errors of every head in training and validation, for the last stage."""
    for stage in stages[-1:]:
        trained = stage.metrics_of("train")
        for head, valid in stage.metrics_of("valid").items():
            train = trained.get(head, {})
            for metric, row in _ERRORS.items():
                if train.get(metric) and valid.get(metric):
                    yield Overfit(head if len(stage.heads) > 1 else "", row, train[metric], valid[metric])


def _error_tiles(state: RunState) -> Iterator[Tile]:
    """Show errors of the test sets if there are some, else of the validation set."""
    shown: Mapping[str, Any]
    if state.stages:
        tests, valid = state.stages[-1].test_metrics(), state.stages[-1].metrics_of("valid")
        shown, name = _largest(tests or valid), "test" if tests else "validation"
        if len(tests or valid) > 1:
            name = f"worst of {len(tests)} test sets" if tests else f"validation, worst of {len(valid)} heads"
        elif len(state.stages[-1].heads) > 1 and not tests:
            name = f"validation, {', '.join(valid)}"
    else:
        history = state.history
        losses = {epoch: loss for epoch, loss in history.validation_losses().items() if math.isfinite(loss)}
        best = min(losses, key=losses.__getitem__, default=None)
        of_heads = {head: records[best] for head, records in history.valid.items() if best in records}
        shown = _largest(of_heads or history.initial)
        name = "validation, lowest loss" + (f", worst of {len(history.heads)} heads" * (len(history.heads) > 1))
    for metric, row in _ERRORS.items():
        if shown.get(metric) is not None:
            yield Tile(f"RMSE {row.symbol}, {name}", f"{shown[metric] / MILLI:.3g}", f"m{row.shown_unit}")


def _largest(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Take the largest of each error over several sets."""
    values_of = {m: [values[m] for values in sets.values() if values.get(m) is not None] for m in _ERRORS}
    return {m: max(values) for m, values in values_of.items() if values}


def _present_losses(state: RunState, head: str | None = None) -> list[float]:
    """List the validation losses of the present stage, of a head or those that choose the best model."""
    history = state.history
    start = 0 if history.stage_two_start is None else state.stage_two_start or 0
    of_epochs = history.validation_losses(head)
    return [of_epochs[epoch] for epoch in sorted(of_epochs) if epoch >= start]


def _of_losses(losses: Sequence[float], head: str = "") -> Iterator[Verdict]:
    """Say whether the loss, of a head or of all, rises."""
    if len(losses) > 2 and losses[-1] > RISING * min(losses):
        whose = f"The validation loss{f' of head {head}' if head else ''}"
        yield Verdict(
            "error" if losses[-1] > 10.0 * min(losses) else "warning",
            f"{whose} rises: it is {losses[-1] / min(losses):.1f} times its lowest value.",
            head,
        )


def _of_history(facts: RunFacts, state: RunState) -> Iterator[Verdict]:
    history = state.history
    losses = _present_losses(state)
    if any(not math.isfinite(value) for value in losses):
        yield Verdict("error", "A validation loss was not a number: lower --lr, and look at the warnings.")
    losses = [value for value in losses if math.isfinite(value)]
    rising = list(_of_losses(losses))
    if not rising and len(history.heads) > 1:
        of_heads = {head: _present_losses(state, head) for head in history.heads}
        rising = [verdict for head, own in of_heads.items() for verdict in _of_losses(own, head)]
    yield from rising
    if not rising and len(losses) >= 10 and state.condition == "finished":
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
    for found in overfit_ratios(stages):
        if found.ratio > OVERFIT:
            numbers = f"{found.valid / MILLI:.3g} against {found.train / MILLI:.3g}"
            start = f"Head {found.head}: the" if found.head else "The"
            yield Verdict(
                "warning",
                f"{start} error of {found.row.plural or found.row.name} is {found.ratio:.1f} times larger in "
                f"validation than in training, {numbers}: more data, a smaller model or fewer epochs would narrow it.",
                found.head,
            )
    if not stages:
        return
    yield from _of_shifts(stages[-1])
    of_heads = stages[-1].metrics_of("valid")
    for name, values in stages[-1].test_metrics().items():
        valid_metrics = of_heads.get(stages[-1].head_of.get(name, "")) or _largest(of_heads)
        for metric, row in _ERRORS.items():
            if values.get(metric) and valid_metrics.get(metric) and values[metric] > 3.0 * valid_metrics[metric]:
                yield Verdict(
                    "note",
                    f"Test set {name}: the error of {row.plural or row.name} is "
                    f"{values[metric] / valid_metrics[metric]:.1f} times that of validation, so it lies outside of "
                    "what was learned.",
                )


def _of_shifts(stage: MeasuredStage) -> Iterator[Verdict]:
    """Say for which heads the errors of nearly all energies have one sign."""
    predictions = stage.predictions
    for errors in predictions.properties:
        if errors.name != "energy":
            continue
        for head in dict.fromkeys(predictions.heads):
            cells = [cell for cell in errors.cells if predictions.heads[cell.set] == head]
            count = sum(cell.count for cell in cells)
            if count < 2:
                continue
            shift = sum(cell.signed for cell in cells) / count
            if abs(shift) > SHIFTED * math.sqrt(sum(cell.squared for cell in cells) / count):
                side, size = "high" if shift > 0.0 else "low", abs(shift) / MILLI
                own, of_head = (head, f" of head {head}") if len(stage.heads) > 1 else ("", "")
                yield Verdict(
                    "warning",
                    f"Nearly all energies{of_head} are predicted too {side}, by {size:.3g} meV/atom on average: not "
                    "settled yet. Stage two (--swa), a larger --energy_weight or more epochs would help.",
                    own,
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
