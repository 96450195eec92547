"""Are dipoles of the calculator those of the model, in e*Angstrom whatever the model's unit of length is?"""

from __future__ import annotations

from typing import Any

import numpy as np
import original_files as files
import pytest
from ase import Atoms

from mace.calculators import MACECalculator
from mace.errors import UserError
from mace.units import BOHR, HARTREE

CASES = ("dipoles/energy_vector_l1_c3_t1", "dipoles/atomic_vector_l1_c2_t1")
CHARGES = np.array([0.3, -0.5, 0.1])


@pytest.fixture(params=["energy and dipole", "dipole alone"])
def model(request: pytest.FixtureRequest, load_case: Any) -> Any:
    names = request.getfixturevalue("dipole_names")
    energies = request.param == "energy and dipole"
    found = next(
        model
        for model in map(lambda name: load_case(name).model(), names)
        if ("energy" in model.plan.outputs) == energies
    )
    for readout in found.dipole_readouts:
        readout.weight.data *= 1e3  # stored models have learned little
    return found


@pytest.fixture
def dipole_names() -> list[str]:
    import parity_cases  # type: ignore[import-not-found]  # loaded by the fixtures of stored cases

    names: list[str] = parity_cases.dipole_reference_names()
    return names


def water_like(model: Any, charges: np.ndarray | None = None) -> Atoms:
    numbers = np.resize(model.plan.atomic_numbers, 3)
    atoms = Atoms(numbers, positions=[[0.0, 0.0, 0.0], [0.9, 0.4, 0.1], [-0.8, 0.7, 0.2]])
    if charges is not None:
        atoms.arrays["Qs"] = charges
    return atoms


def dipole(calculator: MACECalculator, atoms: Atoms) -> np.ndarray:
    found: np.ndarray = calculator.get_dipole_moment(atoms)
    return found


@pytest.mark.parametrize("charges", [None, CHARGES], ids=["learned", "with charges"])
@pytest.mark.parametrize("length", [BOHR, 10.0])
def test_a_dipole_has_the_unit_of_length(model: Any, charges: np.ndarray | None, length: float) -> None:
    """A model in another unit sees the same numbers as positions and says the same number as dipole."""
    atoms = water_like(model, charges)
    plain = dipole(MACECalculator(models=model), atoms)
    scaled = atoms.copy()
    scaled.positions *= length
    other = MACECalculator(models=model, length_units_to_A=length, energy_units_to_eV=HARTREE)
    assert np.abs(plain).max() > 1e-3
    np.testing.assert_allclose(dipole(other, scaled), length * plain, rtol=1e-9)


def test_charges_add_charge_times_position(model: Any) -> None:
    calculator = MACECalculator(models=model)
    atoms = water_like(model, CHARGES)
    without = dipole(calculator, water_like(model))
    np.testing.assert_allclose(dipole(calculator, atoms) - without, CHARGES @ atoms.positions, rtol=1e-9)
    atoms.arrays["Qs"] = 2.0 * CHARGES  # a change of charges alone is noticed
    np.testing.assert_allclose(dipole(calculator, atoms) - without, 2.0 * CHARGES @ atoms.positions, rtol=1e-9)
    del atoms.arrays["Qs"]
    np.testing.assert_allclose(dipole(calculator, atoms), without, rtol=1e-12)
    named = MACECalculator(models=model, charges_key="charge")
    atoms.arrays["charge"] = CHARGES
    np.testing.assert_allclose(dipole(named, atoms) - without, CHARGES @ atoms.positions, rtol=1e-9)


def test_statistics_of_a_committee(model: Any) -> None:
    from copy import deepcopy

    other = deepcopy(model)
    for readout in other.dipole_readouts:
        readout.weight.data *= 3.0
    atoms = water_like(model)
    members = [dipole(MACECalculator(models=each), atoms) for each in (model, other)]
    committee = MACECalculator(models=[model, other])
    np.testing.assert_allclose(dipole(committee, atoms), np.mean(members, axis=0), rtol=1e-12)
    np.testing.assert_allclose(committee.results["dipole_comm"], members, rtol=1e-12)
    np.testing.assert_allclose(committee.results["dipole_var"], np.var(members, axis=0), rtol=1e-12)
    np.testing.assert_allclose(committee.results["dipole_std"], np.std(members, axis=0), rtol=1e-12)
    assert {"dipole", "dipole_comm", "dipole_var", "dipole_std"} <= set(committee.implemented_properties)


@pytest.mark.parametrize("charges", [np.ones((3, 1)), np.array([0.1, np.nan, 0.2]), np.array([1.0, np.inf, 0.0])])
def test_charges_are_one_finite_number_for_every_atom(model: Any, charges: np.ndarray) -> None:
    with pytest.raises(UserError, match="The charges of the structure must be one finite number for every atom"):
        dipole(MACECalculator(models=model), water_like(model, charges))


def test_models_that_predict_different_things_form_no_committee(model: Any) -> None:
    with pytest.raises(UserError, match=f"a committee of .*{model.plan.model}.* models cannot be formed"):
        MACECalculator(models=[model, files.model()])


def test_what_a_model_without_energy_cannot_do(model: Any) -> None:
    calculator = MACECalculator(models=model)
    assert ("energy" in calculator.implemented_properties) == ("energy" in model.plan.outputs)
    if "energy" not in model.plan.outputs:
        assert calculator.implemented_properties == ["dipole"]
        for wanted in (calculator.get_hessian, calculator.get_atomic_stresses):
            atoms = water_like(model)
            atoms.cell = 9.0 * np.eye(3)
            with pytest.raises(UserError, match="predicts no energy"):
                wanted(atoms)
        with pytest.raises(UserError, match="compute_atomic_stresses=True cannot be used"):
            MACECalculator(models=model, compute_atomic_stresses=True)
