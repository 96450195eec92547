"""How numbers are spread: the numbers themselves while they are few, then counts in bins of equal relative width."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_MANTISSA = 52
_SIGN = np.int64(1) << 63


class Spread:
    """Numbers of which percentiles and histograms can be had, in memory that does not grow with them.

    Until they are counted, all numbers are kept and everything is exact. The bins are the numbers that share sign,
    exponent and the first digits of their mantissa, so that their relative width is the same for numbers of any size.

    Args:
        digits: Binary digits of the mantissa: bins are at most ``2 ** -digits`` of their numbers wide.
        kept: How many numbers may be kept before they are counted; None to count only by `settle`.

    Example:
        >>> spread = Spread(digits=12, kept=100)
        >>> for start in range(0, 1000, 50):
        ...     spread.add(np.arange(start, start + 50.0))
        >>> round(percentile([spread], 95.0))
        949
    """

    def __init__(self, digits: int, kept: int | None = None) -> None:
        self._digits, self._kept, self.n_kept = digits, kept, 0
        self._values = list[np.ndarray]()
        self._bins, self._counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Add numbers, in an array of any shape."""
        self._values.append(values.ravel())
        self.n_kept += values.size
        if self._kept is not None and self.n_kept > self._kept:
            self.settle()

    def settle(self) -> None:
        """Count the numbers that are kept, from now on all of them."""
        if self._values:
            values = np.concatenate(self._values, dtype=np.float64) + 0.0  # no negative zeros
            self._values, self.n_kept = [], 0
            self._count(*np.unique(values.view(np.int64) >> (_MANTISSA - self._digits), return_counts=True))

    def merge(self, other: Spread) -> None:
        """Add the numbers of another one with as many digits."""
        for values in other._values:
            self.add(values)
        if len(other._bins):
            self.settle()
            self._count(other._bins, other._counts)

    def _count(self, bins: np.ndarray, counts: np.ndarray) -> None:
        if len(self._bins):
            bins, place = np.unique(np.concatenate([self._bins, bins]), return_inverse=True)
            counts = np.bincount(place.ravel(), np.concatenate([self._counts, counts])).astype(np.int64)
        self._bins, self._counts = bins, counts

    @property
    def is_exact(self) -> bool:
        """Whether all numbers are kept."""
        return not len(self._bins)

    @property
    def values(self) -> np.ndarray:
        """The numbers that are kept."""
        return np.concatenate(self._values) if self._values else np.zeros(0)

    def intervals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the lower and upper ends of the bins, rising, and how many numbers each holds, those kept included."""
        whole = Spread(self._digits)
        whole.merge(self)
        whole.settle()
        shift = _MANTISSA - self._digits
        magnitude, negative = (whole._bins << shift) & ~_SIGN, whole._bins < 0
        nearer = np.nan_to_num(magnitude.view(np.float64), nan=np.inf)
        farther = np.nan_to_num((magnitude + (np.int64(1) << shift)).view(np.float64), nan=np.inf)
        low, high = np.where(negative, -farther, nearer), np.where(negative, -nearer, farther)
        order = np.argsort(low, kind="stable")
        return low[order], high[order], whole._counts[order]

    def histogram(self, limit: float, bins: int) -> np.ndarray:
        """Count the numbers in bins of equal width between ``-limit`` and ``limit``; the outermost hold all beyond.

        Where numbers were counted already, those of a bin are taken to lie evenly in it.

        Returns:
            Integers, ``[bins]``, that add up to how many numbers there are.
        """
        if self.is_exact:
            places = np.nan_to_num((self.values + limit) / (2.0 * limit) * bins, nan=bins)
            return np.bincount(np.clip(places, 0, bins - 1).astype(np.int64), minlength=bins)
        low, high, counts = self.intervals()
        ends = np.stack([low, high], axis=1).ravel()
        below = np.stack([np.cumsum(counts) - counts, np.cumsum(counts)], axis=1).ravel()
        edges = limit * (2.0 * np.arange(1, bins) / bins - 1.0)
        inner = np.rint(np.interp(edges, np.clip(ends, -1.0e300, 1.0e300), below)).astype(np.int64)
        return np.diff(np.concatenate([[0], inner, [counts.sum()]]))


def percentile(spreads: Iterable[Spread], percent: float) -> float:
    """Return a percentile of the sizes of the numbers of several spreads together, without their signs."""
    spreads = list(spreads)
    if all(spread.is_exact for spread in spreads):
        return float(np.percentile(np.abs(np.concatenate([spread.values for spread in spreads])), percent))
    low, high, counts = (np.concatenate(column) for column in zip(*(s.intervals() for s in spreads), strict=True))
    nearer, first, place = np.unique(np.minimum(np.abs(low), np.abs(high)), return_index=True, return_inverse=True)
    farther, counts = np.maximum(np.abs(low), np.abs(high))[first], np.bincount(place.ravel(), counts)
    rank = percent / 100.0 * (counts.sum() - 1)
    found = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
    if not np.isfinite(farther[found]):
        return float(nearer[found])
    # the numbers of a bin are taken to lie evenly in it
    share = min((rank - counts[:found].sum() + 0.5) / counts[found], 1.0)
    return float(nearer[found] + share * (farther[found] - nearer[found]))
