"""Which wrong unit or sign explains the ratio between two numbers that should be equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mace.inspection.findings import Evidence
from mace.inspection.flat import FlatFile
from mace.units import BOHR, GIGAPASCAL, HARTREE, KCAL_PER_MOL, KILOBAR, KJ_PER_MOL

FEWEST_PAIRS = 5
"""Pairs of structures below which nothing is concluded."""

OVERWHELMING_PAIRS = 20
EXPLAINED_WITHIN = 0.6
"""Difference of logarithms within which a wrong unit is named where numbers follow each other roughly."""

_ROUGH = 0.75
_PLAUSIBLE = (0.2, 5.0)
_CLEAR = 0.95
_OVERWHELMING = 0.995
_ALIKE = (0.6, 1.6)
_NAMED_WITHIN = 0.2
_TRIMMED = 0.1
_MOST_NAMED = 2

_HARTREE_PER_BOHR = HARTREE / BOHR

FORCE_EXPLANATIONS: dict[str, float] = {
    "energies are in Hartree": 1.0 / HARTREE,
    "energies are in kcal/mol": 1.0 / KCAL_PER_MOL,
    "energies are in kJ/mol": 1.0 / KJ_PER_MOL,
    "forces are in Hartree/bohr": _HARTREE_PER_BOHR,
    "forces are in kcal/mol/Angstrom": KCAL_PER_MOL,
    "forces are in kJ/mol/Angstrom": KJ_PER_MOL,
    "forces are in Hartree/Angstrom": HARTREE,
    "forces are in eV/bohr, or energies in Hartree and forces in Hartree/bohr": 1.0 / BOHR,
    "energies are in Hartree and forces in kcal/mol/Angstrom": KCAL_PER_MOL / HARTREE,
    "energies are in eV and forces in Rydberg/bohr": 0.5 * _HARTREE_PER_BOHR,
    "energies are in Rydberg": 2.0 / HARTREE,
    "lengths are in bohr": BOHR,
}
"""Energy difference over -force * displacement, as the numbers stand in the file."""

STRESS_EXPLANATIONS: dict[str, float] = {
    "the stress is in kbar": KILOBAR,
    "the stress is in GPa": GIGAPASCAL,
    "the stress is in Hartree/bohr^3": HARTREE / BOHR**3,
    "energies are in Hartree": 1.0 / HARTREE,
    "energies are in kcal/mol": 1.0 / KCAL_PER_MOL,
    "lengths are in bohr": BOHR**3,
}
"""Energy difference over volume * stress * strain, as the numbers stand in the file."""


@dataclass(frozen=True)
class Comparison:
    """How one set of numbers follows another.

    Attributes:
        ratio: Typical size of the measured numbers over that of the expected ones, with the sign of their correlation.
        correlation: Cosine of the angle between both, between -1 and 1.
        count: Numbers compared.
    """

    ratio: float
    correlation: float
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether the ratio means something."""
        return self.count >= FEWEST_PAIRS and abs(self.correlation) > _CLEAR

    @property
    def is_overwhelming(self) -> bool:
        """Whether nobody could doubt the ratio."""
        return self.count >= OVERWHELMING_PAIRS and abs(self.correlation) > _OVERWHELMING

    @property
    def is_rough(self) -> bool:
        """Whether the sign and the order of magnitude of the ratio mean something."""
        return self.count >= FEWEST_PAIRS and abs(self.correlation) > _ROUGH

    @property
    def is_plausible(self) -> bool:
        """Whether numbers that follow each other roughly may be the same; pair interactions give 0.6 to 1.2."""
        return _PLAUSIBLE[0] < self.ratio < _PLAUSIBLE[1]

    @property
    def contradicts(self) -> bool:
        """Whether the numbers are certainly not the same."""
        return (self.is_clear and not self.is_alike) or (self.is_rough and not self.is_plausible)

    @property
    def is_alike(self) -> bool:
        """Whether the numbers are about the same."""
        return _ALIKE[0] <= self.ratio <= _ALIKE[1]


def compare(measured: np.ndarray, expected: np.ndarray) -> Comparison:
    """Compare numbers that should be equal, the tenth that fits worst left out.

    >>> compare(-2.0 * np.arange(10.0), np.arange(10.0)).ratio
    -2.0
    """
    measured, expected = np.ravel(measured), np.ravel(expected)
    known = np.isfinite(measured) & np.isfinite(expected)
    measured, expected = measured[known], expected[known]
    result = _compare(measured, expected)
    if len(measured) < FEWEST_PAIRS or not math.isfinite(result.ratio):
        return result
    misfit = np.abs(measured - result.ratio * expected)
    kept = np.argsort(misfit)[: math.ceil((1.0 - _TRIMMED) * len(misfit))]
    return _compare(measured[kept], expected[kept])


def _compare(measured: np.ndarray, expected: np.ndarray) -> Comparison:
    size, other = float(np.linalg.norm(measured)), float(np.linalg.norm(expected))
    if not size or not other:
        return Comparison(math.nan, 0.0, len(measured))
    correlation = float(measured @ expected) / (size * other)
    return Comparison(math.copysign(size / other, correlation), correlation, len(measured))


def contradiction(file: FlatFile, label: str, pairs: str, result: Comparison, reason: str | None) -> Evidence:
    """Write that energies do not change by what a label says.

    Args:
        file: The structures.
        label: ``forces`` or ``stress``.
        pairs: What is compared, pairs of these.
        result: How both compare.
        reason: What would explain it.
    """
    name = f"{'contradicting' if reason and result.is_overwhelming else 'suspicious'}-{label}"
    says = "the forces say" if label == "forces" else "the stress says"
    guess = f"; it looks as if {reason}" if reason else ""
    return file.saw(
        name,
        f"over {result.count} pairs of {pairs}, energies change by {result.ratio:.4g} times what {says} (correlation "
        f"{abs(result.correlation):.3f}){guess}",
        severity=result.count * abs(result.correlation),
    )


def explain(ratio: float, explanations: Mapping[str, float], within: float = _NAMED_WITHIN) -> str | None:
    """Name the wrong units and signs that give a ratio, the nearest first, if there are any.

    Args:
        ratio: What was measured.
        explanations: The ratio each explanation gives.
        within: Difference of logarithms up to which one fits.

    >>> explain(-27.0, {"forces are in Hartree/Angstrom": 27.2})
    'forces are in Hartree/Angstrom, with the opposite sign'
    >>> explain(-1.1, {}), explain(3.3, {})
    ('the sign is opposite', None)
    """
    if not math.isfinite(ratio) or ratio == 0.0:
        return None
    if abs(math.log(abs(ratio))) < max(within, math.log(_ALIKE[1])):
        return "the sign is opposite" if ratio < 0 else None
    misfits = {name: abs(math.log(abs(ratio) / value)) for name, value in explanations.items()}
    fitting = sorted((name for name in misfits if misfits[name] < within), key=lambda name: misfits[name])
    if not fitting:
        return None
    return " or ".join(fitting[:_MOST_NAMED]) + (", with the opposite sign" if ratio < 0 else "")
