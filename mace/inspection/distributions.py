"""How numbers are distributed, from all of them at once or from one part after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np


class _Addable(Protocol):
    """What is known of a part, to which that of a later part can be added."""

    def with_later(self: Added, later: Added) -> Added: ...


Added = TypeVar("Added", bound=_Addable)

BINS = 40
"""Bins of a histogram that is shown."""

_FINE_BINS = 512
"""Bins of a histogram that is added to, at most; so many that shown bins are divided well enough."""

_SMALLEST_BIN = 2.0**-40
"""Width of such a bin as a share of the largest number, at least."""


@dataclass(frozen=True)
class Distribution:
    """Numbers of one kind.

    Attributes:
        count: How many.
        smallest: The smallest one.
        mean: The mean.
        rms: Root of the mean square.
        largest: The largest one.
        edges: Edges of the histogram, ``BINS + 1`` rising numbers.
        counts: How many numbers lie in each bin, ``BINS``.
    """

    count: int
    smallest: float
    mean: float
    rms: float
    largest: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]


def distribution(values: np.ndarray) -> Distribution | None:
    """Describe numbers; those that are NaN do not count, and without any there is nothing to describe."""
    values = np.ravel(values)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, bins=BINS, range=_shown_range(low, high))
    return Distribution(
        count=len(values),
        smallest=low,
        mean=float(values.mean()),
        rms=float(np.sqrt(np.mean(values * values))),
        largest=high,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _shown_range(low: float, high: float) -> tuple[float, float]:
    size = max(abs(low), abs(high), 1.0)
    margin = 1.0e-6 * size if high - low < 1.0e-9 * size else 0.0  # equal numbers need some width to be drawn
    return low - margin, high + margin


@dataclass(frozen=True)
class Tally:
    """Numbers of one kind to which more can be added.

    The bins of its histogram have a power of two as width and begin at multiples of it, so that wider ones hold whole
    narrower ones: what parts add up to depends on their numbers alone.

    Attributes:
        shown: The numbers as they are shown; its histogram is empty if there were several parts.
        exponent: The binary logarithm of the width of a bin.
        first: The first bin begins at this multiple of the width.
        counts: How many numbers lie in each bin, up to the last that has any; empty if no histogram is kept.
    """

    shown: Distribution
    exponent: int
    first: int
    counts: tuple[int, ...]

    def with_later(self, later: Tally) -> Tally:
        """Add other numbers."""
        one, other = self.shown, later.shown
        count = one.count + other.count
        shown = Distribution(
            count=count,
            smallest=min(one.smallest, other.smallest),
            mean=(one.count * one.mean + other.count * other.mean) / count,
            rms=math.sqrt((one.count * one.rms**2 + other.count * other.rms**2) / count),
            largest=max(one.largest, other.largest),
            edges=(),
            counts=(),
        )
        if not self.counts or not later.counts:
            return Tally(shown, 0, 0, ())
        exponent = _exponent(shown.smallest, shown.largest)
        parts = [(tally, tally._places(exponent)) for tally in (self, later)]
        first = min(int(places[0]) for _, places in parts)
        counts = np.zeros(max(int(places[-1]) for _, places in parts) - first + 1, dtype=np.int64)
        for tally, places in parts:
            np.add.at(counts, places - first, tally.counts)
        return Tally(shown, exponent, first, tuple(counts.tolist()))

    def _places(self, exponent: int) -> np.ndarray:
        """Return in which of the wider bins each of its bins is."""
        places: np.ndarray = np.arange(self.first, self.first + len(self.counts)) >> (exponent - self.exponent)
        return places

    def without_histogram(self) -> Tally:
        """Leave out where the numbers are between the smallest and the largest."""
        return Tally(replace(self.shown, edges=(), counts=()), 0, 0, ())

    def distribution(self) -> Distribution:
        """Describe all numbers."""
        if self.shown.counts or not self.counts:
            return self.shown
        edges = np.linspace(*_shown_range(self.shown.smallest, self.shown.largest), BINS + 1)
        fine_edges = np.arange(self.first, self.first + len(self.counts) + 1) * 2.0**self.exponent
        below = np.interp(edges, fine_edges, np.concatenate([[0], np.cumsum(self.counts)]))
        below[0], below[-1] = 0, self.shown.count
        counts = np.diff(np.rint(below).astype(np.int64))
        return replace(self.shown, edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def tally(values: np.ndarray) -> Tally | None:
    """Describe numbers to which more are added later; see `distribution`."""
    shown = distribution(values)
    if shown is None:
        return None
    values = np.ravel(values)
    exponent = _exponent(shown.smallest, shown.largest)
    places = np.floor(values[np.isfinite(values)] * 2.0**-exponent).astype(np.int64)
    first = int(places.min())
    return Tally(shown, exponent, first, tuple(np.bincount(places - first).tolist()))


def _exponent(low: float, high: float) -> int:
    """Choose the width of bins; it never shrinks where the range grows."""
    size = max(abs(low), abs(high), np.finfo(np.float64).tiny / _SMALLEST_BIN)
    return math.ceil(math.log2(max((high - low) / (_FINE_BINS - 1), size * _SMALLEST_BIN)))


def together(one: Added | None, other: Added | None) -> Added | None:
    """Add up two parts, where there are two."""
    return one.with_later(other) if one is not None and other is not None else one or other
