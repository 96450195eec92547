"""The usual import path: ``from mace.calculators import MACECalculator``; torch is only loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mace.elsewhere import missing

if TYPE_CHECKING:
    from mace.calculators.calculator import MACECalculator
    from mace.calculators.foundation_models import mace_anicc, mace_mp, mace_off, mace_omol, mace_polar

__all__ = ["MACECalculator", "mace_anicc", "mace_mp", "mace_off", "mace_omol", "mace_polar"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first accessed."""
    if name == "LAMMPS_MACE":
        raise missing("mace.calculators.LAMMPS_MACE")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = "calculator" if name == "MACECalculator" else "foundation_models"
    return getattr(import_module(f"{__name__}.{place}"), name)


def __dir__() -> list[str]:
    """List the public names, including those not yet imported."""
    return sorted(__all__)
