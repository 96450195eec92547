"""Loaders of published models, with the names and arguments that existing scripts use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NoReturn

import torch
from ase.calculators.mixing import SumCalculator
from ase.units import Bohr

from mace.calculators.arguments import refuse_unknown, warn_of_inert
from mace.calculators.calculator import MACECalculator
from mace.calculators.dispersion import check_dispersion, with_dispersion
from mace.compat.importing import heads_in, open_model
from mace.errors import UserError
from mace.files.published import ADDRESSES, locate, published_model
from mace.model.mace import MACE
from mace.potential.loading import find_device, find_dtype

_LOGGER = logging.getLogger(__name__)

OMOL_HEAD = "omol"
"""Head of MACE-OMOL used by default."""


def mace_mp(
    model: str | Path | None = None,
    device: str = "",
    default_dtype: str | torch.dtype = "float32",
    dispersion: bool = False,
    damping: str = "bj",
    dispersion_xc: str = "pbe",
    dispersion_cutoff: float = 40.0 * Bohr,
    return_raw_model: bool = False,
    **kwargs: Any,
) -> MACECalculator | MACE | SumCalculator:
    """Open a model of the MACE-MP family for materials, downloading it on first use.

    Args:
        model: ``small``, ``medium``, ``large``, ``medium-mpa-0`` and so on, a file, or a URL; None for
            ``medium-mpa-0``.
        device: The device to compute on; empty for a GPU if there is one.
        default_dtype: ``float32`` or ``float64``.
        dispersion: Add the D3 dispersion correction, computed by the package torch-dftd; not for models whose training
            data already include dispersion.
        damping: Damping of the correction: ``zero``, ``bj``, ``zerom`` or ``bjm``.
        dispersion_xc: Functional whose parameters the correction uses.
        dispersion_cutoff: Cutoff of the correction in Angstrom.
        return_raw_model: Return the model instead of a calculator.
        **kwargs: Further arguments of `mace.calculators.MACECalculator`, such as ``head`` for models with several.

    Returns:
        A calculator; with dispersion, ASE's sum of it and the correction.

    Raises:
        UserError: If the model cannot be found, downloaded or opened, or an argument cannot be used.
    """
    if dispersion and return_raw_model:
        raise UserError("mace_mp: return_raw_model=True gives a model, to which dispersion=True cannot be added.")
    if dispersion:
        check_dispersion(damping, dispersion_cutoff)
    opened = _open("mace_mp", model, device, default_dtype, return_raw_model, kwargs)
    if dispersion and isinstance(opened, MACECalculator):
        return with_dispersion(opened, damping, dispersion_xc, dispersion_cutoff)
    return opened


def mace_off(
    model: str | Path | None = None,
    device: str = "",
    default_dtype: str | torch.dtype = "float64",
    return_raw_model: bool = False,
    **kwargs: Any,
) -> MACECalculator | MACE:
    """Open a model of the MACE-OFF23 family for organic molecules (``small``, ``medium``, ``large``); see `mace_mp`."""
    return _open("mace_off", model, device, default_dtype, return_raw_model, kwargs)


def mace_omol(
    model: str | Path | None = None,
    device: str = "",
    default_dtype: str | torch.dtype = "float64",
    return_raw_model: bool = False,
    **kwargs: Any,
) -> MACECalculator | MACE:
    """Open the MACE-OMOL model for molecules (``extra_large``); see `mace_mp`.

    If it has several heads and none is named, the one called ``omol`` is used.
    """
    model = find_model("mace_omol", model)
    if "head" not in kwargs and not return_raw_model and OMOL_HEAD in heads_in(model):
        kwargs["head"] = OMOL_HEAD
    return _open("mace_omol", model, device, default_dtype, return_raw_model, kwargs)


def mace_anicc(
    device: str = "", model_path: str | Path | None = None, return_raw_model: bool = False
) -> MACECalculator | MACE:
    """Open the model trained on the ANI-1ccx data (H, C, N, O), in float64; see `mace_mp`."""
    return _open("mace_anicc", model_path, device, "float64", return_raw_model, {})


def mace_polar(*arguments: Any, **settings: Any) -> NoReturn:
    """Raise an error: models with long-range electrostatics are not available.

    Raises:
        UserError: Always; this architecture does not exist here.
    """
    raise UserError("mace_polar: models with long-range electrostatics do not exist here; use mace-torch for them.")


def find_model(loader: str, model: str | Path | None) -> Path:
    """Return the file of a published model, downloading it on first use.

    Args:
        loader: Name of the loader, such as ``mace_mp``.
        model: Name, URL or file; None for the default.

    Raises:
        UserError: If there is no such model, or it cannot be downloaded.
    """
    # a published name takes precedence over a file of the same name, as scripts expect
    if model is not None and str(model) not in ADDRESSES[loader] and Path(model).is_file():
        return Path(model)
    return locate(published_model(loader, None if model is None else str(model)))


def _open(
    loader: str,
    model: str | Path | None,
    device: str,
    default_dtype: str | torch.dtype,
    raw: bool,
    kwargs: dict[str, Any],
) -> MACECalculator | MACE:
    """Find the file of a model, and open it as a calculator or as a raw model."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = find_model(loader, model)
    _LOGGER.info("%s: using %s in %s", loader, path, default_dtype or "the precision of the file")
    if raw:
        head = kwargs.pop("head", None)
        refuse_unknown(kwargs, ["head"])
        warn_of_inert(kwargs)
        return open_model(path, find_device(device), find_dtype(default_dtype), head).model
    return MACECalculator(model_paths=[path], device=device, default_dtype=default_dtype, **kwargs)
