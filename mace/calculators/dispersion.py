"""The D3 dispersion correction, computed by the package torch-dftd, added to a model."""

from __future__ import annotations

import math

import torch
from ase.calculators.calculator import Calculator
from ase.calculators.mixing import SumCalculator

from mace.calculators.calculator import MACECalculator
from mace.errors import UserError

DAMPINGS = ("zero", "bj", "zerom", "bjm")
"""Kinds of damping at short distances, by Grimme's names."""


def check_dispersion(damping: str, cutoff: float) -> None:
    """Check that the correction can be computed, before any model is opened.

    Args:
        damping: One of `DAMPINGS`.
        cutoff: Largest distance between interacting atoms, in Angstrom.

    Raises:
        UserError: If torch-dftd is missing, or an argument is invalid.
    """
    if damping not in DAMPINGS:
        raise UserError(f"mace_mp: damping={damping!r} is unknown; choose {', '.join(DAMPINGS)}.")
    if not (math.isfinite(cutoff) and cutoff > 0.0):
        raise UserError(f"mace_mp: dispersion_cutoff is {cutoff}; it must be a finite number above zero, in Angstrom.")
    _torch_dftd()


def with_dispersion(calculator: MACECalculator, damping: str, functional: str, cutoff: float) -> SumCalculator:
    """Add the D3 correction to a calculator, on its device and in its precision.

    Args:
        calculator: Calculator of the model.
        damping: One of `DAMPINGS`.
        functional: Name of the exchange-correlation functional whose parameters are used, such as ``pbe``.
        cutoff: Largest distance between interacting atoms, in Angstrom.

    Returns:
        ASE's sum of both, with energy, forces and stress.

    Raises:
        UserError: If torch-dftd does not know the functional.
    """
    try:
        correction = _torch_dftd()(
            device=str(calculator.device),
            damping=damping,
            dtype=getattr(torch, calculator.default_dtype),
            xc=functional,
            cutoff=cutoff,
        )
    except ValueError as error:
        raise UserError(
            f"mace_mp: torch-dftd has no parameters for dispersion_xc={functional!r} with damping={damping!r}; name "
            "another functional, such as pbe."
        ) from error
    return SumCalculator([calculator, correction])


def _torch_dftd() -> type[Calculator]:
    """Return the calculator of torch-dftd.

    Raises:
        UserError: If it is not installed.
    """
    try:
        from torch_dftd.torch_dftd3_calculator import TorchDFTD3Calculator
    except ImportError as error:
        raise UserError(
            f"mace_mp: dispersion=True needs the package torch-dftd ({error}); install it with 'pip install "
            "torch-dftd', or leave the argument out for the model alone."
        ) from error
    found: type[Calculator] = TorchDFTD3Calculator
    return found
