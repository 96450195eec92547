"""Do units multiply every result, and have arguments the limits their documentation says?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from mace.calculators import MACECalculator
from mace.errors import UserError
from mace.model.mace import MACE

MakeModel = Callable[..., MACE]


def everything(calculator: MACECalculator, atoms: Atoms) -> dict[str, Any]:
    """All that can be asked for."""
    calculator.calculate(atoms, ["stresses"])
    found = dict(calculator.results)
    found["hessian"] = calculator.get_hessian(atoms)
    found["atomic stresses"] = calculator.get_atomic_stresses(atoms)
    found["r_max"] = calculator.r_max
    return found


@pytest.mark.parametrize(("energy", "length"), [(27.2, 0.5), (0.04, 10.0), (0.001, 0.03)])
def test_units_multiply_every_result(make_model: MakeModel, crystal: Atoms, energy: float, length: float) -> None:
    """A model in other units sees the same numbers, and what it says is turned back by the dimension of each."""
    scaled = crystal.copy()
    scaled.set_cell(crystal.cell * length, scale_atoms=True)
    plain = everything(MACECalculator(models=make_model()), crystal)
    found = everything(MACECalculator(models=make_model(), energy_units_to_eV=energy, length_units_to_A=length), scaled)
    of_energy = dict.fromkeys(("energy", "free_energy", "energies", "node_energy", "virials"), energy)
    of_stress = dict.fromkeys(("stress", "stresses", "atomic stresses"), energy / length**3)
    factors = of_energy | of_stress | {"forces": energy / length, "hessian": energy / length**2, "r_max": length}
    assert found.keys() == plain.keys() == factors.keys()
    for name, factor in factors.items():
        size = np.abs(plain[name]).max() * factor
        np.testing.assert_allclose(found[name], plain[name] * factor, rtol=1e-7, atol=1e-7 * size, err_msg=name)


@pytest.mark.parametrize("name", ["energy_units_to_eV", "length_units_to_A"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_units_are_positive_numbers(make_model: MakeModel, name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; it must be a finite number larger than zero"):
        MACECalculator(models=make_model(), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, -1e-9, math.inf, math.nan])
def test_a_skin_is_a_length(make_model: MakeModel, value: float) -> None:
    with pytest.raises(UserError, match="skin is .*; it must be zero or a positive length"):
        MACECalculator(models=make_model(), skin=value)


@pytest.mark.parametrize("skin", [0.0, 0.01, 2.0])
def test_no_skin_changes_a_result(make_model: MakeModel, crystal: Atoms, skin: float) -> None:
    usual, other = MACECalculator(models=make_model()), MACECalculator(models=make_model(), skin=skin)
    for shift in (0.0, 0.2, 0.9):
        crystal.positions[0] += [shift, 0.0, 0.0]
        assert other.get_potential_energy(crystal) == usual.get_potential_energy(crystal)
        np.testing.assert_array_equal(other.get_forces(crystal), usual.get_forces(crystal))


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_a_threshold_of_a_committee_is_positive(make_model: MakeModel, value: float) -> None:
    with pytest.raises(UserError, match="committee_threshold is .*; it must be a finite number above zero"):
        MACECalculator(models=[make_model(0), make_model(1)], committee_threshold=value)


@pytest.mark.parametrize(("word", "known"), [("skn", "skin"), ("hed", "head"), ("dtype", "default_dtype")])
def test_a_misspelled_argument_names_the_nearest(make_model: MakeModel, word: str, known: str) -> None:
    with pytest.raises(TypeError, match=f"no argument '{word}'; did you mean '{known}'"):
        MACECalculator(models=make_model(), **{word: 1})
    with pytest.raises(TypeError, match="no argument 'xyzzy'; it takes .*skin"):
        MACECalculator(models=make_model(), xyzzy=1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("DipoleMACE", "contradicts the model, which is of the kind ScaleShiftMACE"),
        ("EnergyDipoleMACE", "contradicts the model"),
        ("MACELES", "there are MACE, DipoleMACE, EnergyDipoleMACE only"),
    ],
)
def test_the_kind_of_model_is_compared(make_model: MakeModel, kind: str, words: str) -> None:
    for right in (None, "MACE", "ScaleShiftMACE"):
        MACECalculator(models=make_model(), model_type=right)
    with pytest.raises(UserError, match=words):
        MACECalculator(models=make_model(), model_type=kind)
