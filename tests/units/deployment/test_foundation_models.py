"""Do the loaders of published models open a file that is named, as its kind of model is opened?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mace.calculators import MACECalculator, mace_anicc, mace_mp, mace_off, mace_omol, mace_polar
from mace.errors import UserError
from mace.model.mace import MACE


@pytest.mark.parametrize(("loader", "precision"), [(mace_mp, "float32"), (mace_off, "float64"), (mace_omol, "float64")])
def test_a_file_is_opened_in_the_precision_of_its_family(
    model_path: Path, loader: Callable[..., Any], precision: str
) -> None:
    calculator = loader(model_path, device="cpu")
    assert isinstance(calculator, MACECalculator) and calculator.default_dtype == precision
    other = {"float32": "float64", "float64": "float32"}[precision]
    assert loader(str(model_path), device="cpu", default_dtype=other).default_dtype == other
    raw = loader(model_path, device="cpu", return_raw_model=True)
    assert isinstance(raw, MACE) and str(raw.dtype) == f"torch.{precision}"


def test_the_model_of_ani_data_is_in_double_precision(model_path: Path) -> None:
    calculator = mace_anicc(device="cpu", model_path=model_path)
    assert isinstance(calculator, MACECalculator) and calculator.default_dtype == "float64"
    assert isinstance(mace_anicc(device="cpu", model_path=model_path, return_raw_model=True), MACE)


def test_arguments_are_looked_at_in_any_case(model_path: Path) -> None:
    for raw in (False, True):
        with pytest.raises(TypeError, match="no argument 'haed'"):
            mace_off(model_path, device="cpu", return_raw_model=raw, haed="x")
    with pytest.raises(UserError, match="return_raw_model=True gives a model, to which dispersion=True cannot be"):
        mace_mp(model_path, dispersion=True, return_raw_model=True)
    for arguments, words in (
        ({"damping": "none"}, "damping='none' is unknown; choose zero, bj, zerom, bjm"),
        ({"dispersion_cutoff": 0.0}, "dispersion_cutoff is 0.0; it must be a finite number above zero"),
        ({"dispersion_cutoff": float("inf")}, "dispersion_cutoff is inf"),
    ):
        with pytest.raises(UserError, match=words):
            mace_mp(model_path, dispersion=True, **arguments)


def test_electrostatics_do_not_exist() -> None:
    with pytest.raises(UserError, match="models with long-range electrostatics do not exist here"):
        mace_polar("anything", device="cpu")
