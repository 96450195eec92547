"""Pictures of a run: learning curves and parity plots, drawn without a display and without global state."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace.errors import UserError
from mace.pages.curves import MEASURED, Panel
from mace.properties import PREDICTED, PROPERTIES
from mace.reporting.history import RunHistory
from mace.reporting.records import read_records
from mace.reporting.set_errors import MOST_VALUES, WORST_VALUES, PropertyTally, chosen_values
from mace.units import MILLI

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which people with any color vision can tell apart.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#8A6D3B", "black")
_PATTERNS: tuple[Any, ...] = ("-", ":", "-.", (0, (9, 3)))
_SET_COLORS = {"train": "#999999", "valid": "#E69F00"}
_GRID = "#DDDDDD"
_GRAY = "#666666"
_DOTS_PER_INCH = 150
_MOST_NAMED, _LONGEST_NAME = 6, 24


_MATHTEXT = str.maketrans({"/": " / ", "\u00b7": " ", "\u00b2": "$^2$", "\u00b3": "$^3$"})

_AXES = {
    "energy": ("energy per atom", "eV / atom"),
    "interaction_energy": ("energy minus E0 per atom", "eV / atom"),
    **{
        name: (PROPERTIES[name].title.lower().removesuffix("s"), PROPERTIES[name].unit.translate(_MATHTEXT))
        for name in PREDICTED[1:]
    },
}
"""Name and unit of the values in a parity plot; errors are in thousandths of the unit."""


def plot_learning_curves(results_path: Path | str, output_path: Path | str, stage_two_epoch: int | None = None) -> None:
    """Draw loss, validation errors and learning rate against the epoch as a PNG.

    Epochs are numbered as in the log. The evaluation before the first step is left out. Where a run was resumed, the
    later record of an epoch replaces the earlier one.

    Args:
        results_path: JSON-lines file of the run.
        output_path: The PNG; its folder is created.
        stage_two_epoch: First epoch of stage two, which a vertical line marks.

    Raises:
        UserError: If the file has no record of an epoch.
    """
    _load_matplotlib()
    history = RunHistory.of(read_records(results_path))
    if not history.numbers():
        raise UserError(f"{results_path} has no record of an epoch, so there are no learning curves to draw.")
    # the loss first, then what was measured: name in the records, title of the axis, factor
    drawn = [("loss", "loss", 1.0)]
    for m in MEASURED:
        if history.has_metric(f"rmse_{m.suffix}"):
            drawn.append((f"rmse_{m.suffix}", f"RMSE {m.title} ({m.unit.translate(_MATHTEXT)})", m.factor))
    rates = {epoch: sums.rate for epoch, sums in sorted(history.epochs.items()) if sums.rate is not None}
    figure, axes = _panels(len(drawn) + bool(rates))
    if history.epochs:
        means = {epoch: history.epochs[epoch].mean_loss for epoch in sorted(history.epochs)}
        _line(axes[0], means, "train (mean of epoch)", "black")
    for axis, (key, title, factor) in zip(axes, drawn, strict=False):
        for place, (head, records) in enumerate(history.valid.items()):
            label = "valid" if len(history.valid) == 1 else f"valid {head}"
            values = {e: records[e][key] * factor for e in sorted(records) if records[e].get(key) is not None}
            if key == "loss":
                values = {epoch: values.get(epoch, math.nan) for epoch in sorted(records)}
            elif values:
                label += f": best {min(values.values()):.3g}, last {list(values.values())[-1]:.3g}"
            if values:
                _line(axis, values, label, _COLORS[place % (len(_COLORS) - 1)])  # black is the training loss
        axis.set_ylabel(title)
        axis.legend(frameon=False, fontsize=8)
    if rates:
        axes[-1].plot(list(rates), list(rates.values()), color="black", linewidth=1.4, drawstyle="steps-mid")
        axes[-1].set_ylabel("learning rate")
    for axis in axes:
        _finish_learning_axis(axis, history.numbers(), {"stage two": stage_two_epoch, "L-BFGS": history.lbfgs_start})
    _save(figure, output_path)


def plot_panels(panels: Sequence[Panel], output_path: Path | str, linear: bool = False) -> None:
    """Draw panels of one or several runs as a picture, of the kind that the ending of its name says.

    Args:
        panels: What to draw, one at least.
        output_path: The picture; its folder is created.
        linear: Whether vertical axes are linear; otherwise they are logarithmic where numbers are positive.
    """
    _load_matplotlib()
    from matplotlib.ticker import MaxNLocator

    figure, axes = _panels(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for series in panel.series:
            color, style = _COLORS[series.color % len(_COLORS)], "--" if series.dashed else _PATTERNS[series.pattern]
            label = series.label or panel.title
            drawn = "steps-pre" if series.steps else "default"
            axis.plot(series.x, series.y, color=color, linestyle=style, linewidth=1.2, label=label, drawstyle=drawn)
        values = np.concatenate([np.asarray(series.y, dtype=float) for series in panel.series])
        if not linear and (values[np.isfinite(values)] > 0.0).any():
            axis.set_yscale("log")
        for x, word in panel.marks:
            axis.axvline(x, color=_GRAY, linestyle=":", linewidth=0.8)
            axis.text(x, 1.01, word, transform=axis.get_xaxis_transform(), fontsize=6, color=_GRAY, ha="center")
        axis.set_xlabel("epochs done")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel(f"{panel.title} ({panel.unit})" if panel.unit else panel.title, fontsize=8)
        if len(panel.series) > 1:
            axis.legend(frameon=False, fontsize=7)
        _tidy(axis)
    _save(figure, output_path)


@dataclass(frozen=True)
class ParityPoints:
    """Labels and predictions to draw, and what is known of all the values that they stand for.

    Attributes:
        reference: ``[points]``.
        prediction: ``[points]``.
        count: Number of all values.
        rmse: Root-mean-square error of all values.
        lowest: The lowest label or prediction of all.
        highest: The highest.
    """

    reference: np.ndarray
    prediction: np.ndarray
    count: int
    rmse: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, reference: np.ndarray, prediction: np.ndarray) -> ParityPoints:
        """Choose what is drawn of all values, one at least."""
        reference, prediction = np.ravel(reference), np.ravel(prediction)
        error = prediction - reference
        shown, both = _points_to_draw(np.abs(error)), (reference, prediction)
        low, high = float(min(v.min() for v in both)), float(max(v.max() for v in both))
        rmse = float(np.sqrt(np.mean(np.square(error))))
        return cls(reference[shown], prediction[shown], len(error), rmse, low, high)

    @classmethod
    def chosen(cls, tallies: Sequence[PropertyTally], interaction: bool = False) -> ParityPoints:
        """Choose what is drawn of a property in some sets.

        Args:
            tallies: Errors of the property in each set.
            interaction: Whether energies are drawn without E0s.
        """
        values, _ = chosen_values(tallies, MOST_VALUES, WORST_VALUES)
        reference, limits = values["reference" if interaction else "whole"], np.stack([t.limits for t in tallies])
        limits = limits[:, 0 if interaction else 1]
        cells = [cell for tally in tallies for cell in tally.cells.values()]
        count = sum(cell.count for cell in cells)
        rmse = float(np.sqrt(sum(cell.squared for cell in cells) / count))
        lowest, highest = float(limits[:, 0].min()), float(limits[:, 1].max())
        return cls(reference, reference + values["error"], count, rmse, lowest, highest)


def plot_parity(
    data: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray] | ParityPoints]],
    output_path: Path | str,
    title: str,
) -> None:
    """Draw predictions against labels, and the errors below, one column per property, as a PNG.

    Root-mean-square errors in the legend are over all values; of a set with very many values, only the worst and a
    random choice of the others are drawn, and the legend says so.

    Args:
        data: ``data[set name][property] = (reference, prediction)``, arrays of the same shape with what is labeled,
            in eV, Angstrom and e*Angstrom; energies, with the E0s or without (``interaction_energy``), are per atom.
            Of many values the points may be chosen already.
        output_path: The PNG; its folder is created.
        title: Heading of the picture.

    Raises:
        ValueError: If a property is unknown, shapes differ, or there is nothing to draw.
    """
    _load_matplotlib()
    for set_name, sets in data.items():
        for name, values in sets.items():
            if name not in _AXES:
                raise ValueError(f"There is no parity plot of '{name}'; choose from {', '.join(_AXES)}.")
            if isinstance(values, tuple) and np.shape(values[0]) != np.shape(values[1]):
                shapes = f"{np.shape(values[0])} and {np.shape(values[1])}"
                raise ValueError(f"{set_name}: labels and predictions of {name} have shapes {shapes}.")
    points: dict[str, dict[str, ParityPoints]] = {name: {} for name in _AXES}
    for set_name, sets in data.items():
        for name, values in sets.items():
            if isinstance(values, ParityPoints):
                points[name][set_name] = values
            elif np.size(values[0]):
                points[name][set_name] = ParityPoints.of(*values)
    properties = [name for name in points if points[name]]
    if not properties:
        raise ValueError("There are no labels and predictions to draw.")
    figure = _figure(4.4 * len(properties) + 0.2, 6.6)
    grid = figure.subplots(2, len(properties), squeeze=False, sharex="col", gridspec_kw={"height_ratios": (2.4, 1.0)})
    for column, name in enumerate(properties):
        _draw_parity(grid[0, column], grid[1, column], *_AXES[name], points[name])
    figure.suptitle(title)
    _save(figure, output_path)


def _finish_learning_axis(axis: Axes, epochs: list[int], first_epochs: Mapping[str, int | None]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.set_xlabel("epoch")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    # Powers of ten alone would leave a short range with hardly a number on it.
    within_a_decade = (1.0, 2.0, 3.0, 5.0) if high < 30.0 * low else (1.0, 2.0, 5.0) if high < 1000.0 * low else (1.0,)
    axis.yaxis.set_major_locator(LogLocator(base=10.0, subs=within_a_decade, numticks=30))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    margin = 0.02 * max(epochs[-1] - epochs[0], 1)
    axis.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    _tidy(axis)
    for stage, first in first_epochs.items():
        if first is not None and epochs[0] < first <= epochs[-1]:
            axis.axvline(first - 0.5, color=_GRAY, linestyle="--", linewidth=1.0)
            # Above the frame, where no curve can be.
            place = axis.get_xaxis_transform()
            axis.text(first - 0.5, 1.01, stage, transform=place, fontsize=8, color=_GRAY, ha="center")


def _draw_parity(parity: Axes, errors: Axes, name: str, unit: str, of_sets: Mapping[str, ParityPoints]) -> None:
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    origin, low, high = _frame_of(min(p.lowest for p in of_sets.values()), max(p.highest for p in of_sets.values()))
    others = [set_name for set_name in of_sets if set_name.split("_")[0] not in _SET_COLORS]
    palette = [color for color in _COLORS if color not in _SET_COLORS.values()]
    for place, (set_name, points) in enumerate(of_sets.items()):
        error = (points.prediction - points.reference) * (1.0 / MILLI)
        count = f"{points.count}" if len(error) == points.count else f"{len(error)} of {points.count} drawn"
        kind = set_name.split("_")[0]
        color = _SET_COLORS[kind] if kind in _SET_COLORS else palette[others.index(set_name) % len(palette)]
        # Small sets lie above large ones, which would hide them.
        order = 2.0 + 1.0 / points.count
        # large enough to be seen alone, small enough for thousands
        size = float(np.clip(400.0 / math.sqrt(len(error)), 3.0, 18.0))
        style: dict[str, Any] = {"s": size, "color": color, "alpha": 0.6, "linewidths": 0.0, "zorder": order}
        fits = len(set_name) <= _LONGEST_NAME
        name_of_set = set_name if fits else f"{set_name[: _LONGEST_NAME - 3]}..."
        label = f"{name_of_set}: RMSE {points.rmse / MILLI:.3g} m{unit} ({count})"
        if place == _MOST_NAMED and len(of_sets) > _MOST_NAMED + 1:
            label = f"and {len(of_sets) - _MOST_NAMED} more"
        parity.scatter(
            points.reference - origin,
            points.prediction - origin,
            label=label if place <= _MOST_NAMED else "_left out",
            **style,
        )
        errors.scatter(points.reference - origin, error, **style)
    parity.plot((low, high), (low, high), color="#444444", linewidth=0.8, zorder=1)
    parity.set_xlim(low, high)
    parity.set_ylim(low, high)
    errors.axhline(0.0, color="#444444", linewidth=0.8, zorder=1)
    if origin != 0.0:
        name = f"{name} {'-' if origin > 0.0 else '+'} {abs(origin):.12g}"
    parity.set_ylabel(f"predicted {name} ({unit})")
    errors.set_ylabel(f"error (m{unit})")
    errors.set_xlabel(f"reference {name} ({unit})")
    for axis in (parity.xaxis, parity.yaxis, errors.xaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
    legend = parity.legend(frameon=False, fontsize=7, loc="upper left", handletextpad=0.2, borderaxespad=0.2)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set(alpha=1.0, sizes=[18.0])
    _tidy(parity)
    _tidy(errors)


def _frame_of(low: float, high: float) -> tuple[float, float, float]:
    """Choose what a parity plot shows.

    Args:
        low: The lowest label or prediction.
        high: The highest.

    Returns:
        What is subtracted from all values, zero unless they differ by little of what they are; and the limits then.
    """
    span = max(high - low, 1e-6)  # a single structure has none
    origin = float(f"{low:.0f}") if max(abs(low), abs(high)) > 100.0 * span and abs(low) >= 100.0 else 0.0
    return origin, low - origin - 0.05 * span, high - origin + 0.05 * span


def _points_to_draw(absolute_error: np.ndarray) -> np.ndarray:
    """Choose the values to draw: all, or the worst and a reproducible random choice of the others."""
    if len(absolute_error) <= MOST_VALUES:
        return np.arange(len(absolute_error))
    by_error = np.argsort(absolute_error)
    others = np.random.default_rng(0).permutation(by_error[:-WORST_VALUES])[: MOST_VALUES - WORST_VALUES]
    return np.concatenate([others, by_error[-WORST_VALUES:]])


def _line(axis: Axes, values: Mapping[int, float], label: str, color: str) -> None:
    """Draw values by epoch, with points where there are not too many."""
    style: dict[str, Any] = {"linewidth": 1.4, "marker": "o" if len(values) <= 40 else "", "markersize": 3.0}
    axis.plot(list(values), list(values.values()), label=label, color=color, **style)


def _tidy(axis: Axes) -> None:
    axis.grid(True, color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(labelsize=8)


def _load_matplotlib() -> None:
    """Import matplotlib without the backend that MPLBACKEND names.

    Files are drawn without a backend; a notebook names one that other environments lack, which ends the import.
    """
    if "matplotlib" in sys.modules:
        return
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(n_panels: int) -> tuple[Figure, list[Axes]]:
    columns = 2 if n_panels == 4 else min(n_panels, 3)
    rows = math.ceil(n_panels / columns)
    figure = _figure(4.6 * columns, 3.3 * rows)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(n_panels)]


def _save(figure: Figure, output_path: Path | str) -> None:
    Path(output_path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output_path)
