"""`MACECalculator` under the module name that it has in mace-torch, for scripts."""

from mace.calculators.calculator import MACECalculator

__all__ = ["MACECalculator"]
