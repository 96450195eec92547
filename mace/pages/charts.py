"""Histograms as SVG that takes its colors from the page around it."""

from __future__ import annotations

import math
from html import escape

from mace.inspection.distributions import Distribution

_WIDTH, _HEIGHT = 360.0, 170.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 12.0, 10.0, 34.0
_BASE = _HEIGHT - _BOTTOM


def histogram(numbers: Distribution, unit: str) -> str:
    """Draw a histogram with axes; every bar tells its range and count when pointed at."""
    low, high = numbers.edges[0], numbers.edges[-1]
    most = max(numbers.counts)
    bars = []
    for place, count in enumerate(numbers.counts):
        if count:
            x, right = _across(numbers.edges[place], low, high), _across(numbers.edges[place + 1], low, high)
            y = _up(count, most)
            tip = f"{numbers.edges[place]:.4g} to {numbers.edges[place + 1]:.4g} {unit}: {count}"
            bars.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(right - x - 0.8, 0.8):.1f}" '
                f'height="{_BASE - y:.1f}"><title>{escape(tip)}</title></rect>'
            )
    ticks, places = "", ""
    for value in round_ticks(0.0, float(most), 3):
        y = _up(value, most)
        if value > 0 and value == int(value):
            ticks += f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            ticks += f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>'
    for value in round_ticks(low, high):
        x = _across(value, low, high)
        places += f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_BASE}" y2="{_BASE + 4}"/>'
        places += f'<text x="{x:.1f}" y="{_BASE + 15}" text-anchor="middle">{value:.6g}</text>'
    baseline = f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_BASE}" y2="{_BASE}"/>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    label = f"Histogram of {numbers.count} numbers from {numbers.smallest:.4g} to {numbers.largest:.4g} {unit}"
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">'
        f"{ticks}{''.join(bars)}{baseline}{places}"
        f'<text x="{middle}" y="{_HEIGHT - 3}" text-anchor="middle">{escape(unit)}</text>'
        "</svg>"
    )


def sparkline(numbers: Distribution | None) -> str:
    """Draw a histogram as small as a word."""
    if numbers is None:
        return ""
    most = max(numbers.counts)
    step = 80.0 / len(numbers.counts)
    path = "".join(
        f"M{place * step:.0f} 18v{-max(16.0 * count / most, 1.0):.1f}h{step:.0f}V18z"
        for place, count in enumerate(numbers.counts)
        if count
    )
    return f'<svg class="spark" viewBox="0 0 80 18" aria-hidden="true"><path class="bar" d="{path}"/></svg>'


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Choose round numbers within a range.

    >>> round_ticks(0.0, 10.0), round_ticks(-0.031, 0.042)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [-0.02, 0.0, 0.02, 0.04])
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1.0 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) + 0.0 for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _across(value: float, low: float, high: float) -> float:
    return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)


def _up(count: float, most: int) -> float:
    return _BASE - count / most * (_BASE - _TOP)
