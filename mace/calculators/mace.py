"""The import path of `MACECalculator` in scripts that name the file of mace-torch it is in."""

from mace.calculators.calculator import MACECalculator

__all__ = ["MACECalculator"]
