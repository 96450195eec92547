"""Does the calculator see charges, spins and the like, and each change of them?"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
from ase import Atoms
from ase.build import molecule

from mace.calculators import MACECalculator
from mace.errors import UserError
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.plan import ModelPlan


def model_with(*conditions: Any, **changes: Any) -> MACE:
    return files.model(ModelPlan.model_validate(files.PLAN.model_dump() | {"conditions": conditions, **changes}))


@pytest.fixture(scope="module")
def calculator() -> MACECalculator:
    return MACECalculator(models=model_with(files.CHARGE, files.SPIN, condition_readout=True))


def water(arrays: dict[str, Any] | None = None, **info: Any) -> Atoms:
    atoms = molecule("H2O")
    atoms.info.update(info)
    for name, values in (arrays or {}).items():
        atoms.set_array(name, np.array(values))
    return atoms


def energy(calculator: MACECalculator, atoms: Atoms) -> float:
    atoms.calc = calculator
    return float(atoms.get_potential_energy())


def test_a_change_of_charge_or_spin_is_a_change(calculator: MACECalculator) -> None:
    atoms = water(charge=0, spin=1)
    found = [energy(calculator, atoms)]
    for key, value in (("charge", 1), ("spin", 2), ("charge", -1)):
        atoms.info[key] = value
        found.append(energy(calculator, atoms))
    assert len(set(found)) == 4
    atoms.info.update(charge=0, spin=1)
    assert energy(calculator, atoms) == found[0]


def test_forces_change_too(calculator: MACECalculator) -> None:
    atoms = water(charge=0)
    energy(calculator, atoms)
    before = atoms.get_forces()
    atoms.info["charge"] = 2
    assert np.abs(atoms.get_forces() - before).max() > 1e-6


def test_what_is_no_condition_changes_nothing(calculator: MACECalculator, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = water(charge=1)
    before, calls, calculate = energy(calculator, atoms), list[object](), calculator.calculate
    monkeypatch.setattr(calculator, "calculate", lambda *given: (calls.append(given), calculate(*given)))
    atoms.info.update(note="the same", charge=1.0, spin=1)  # one and 1.0 are equal, and a singlet is what was taken
    assert energy(calculator, atoms) == before and not calls
    atoms.info["charge"] = 2
    assert energy(calculator, atoms) != before and len(calls) == 1


def test_what_was_taken_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    calculator = MACECalculator(models=model_with(files.CHARGE, files.SPIN))
    with caplog.at_level(logging.INFO):
        assert energy(calculator, water()) == energy(calculator, water(charge=0, spin=1))
        energy(calculator, water())
    told = [r.getMessage() for r in caplog.records if "taken are" in r.getMessage()]
    assert told == ["The structure does not say all it could; taken are total_charge 0 and total_spin 1"]


def test_keys_can_be_named(calculator: MACECalculator) -> None:
    other = MACECalculator(models=calculator.models, info_keys={"total_charge": "q", "total_spin": "spin"})
    assert energy(other, water(q=2, charge=0, spin=2)) == energy(calculator, water(charge=2, spin=2))
    sites = MACECalculator(models=model_with(files.SITE), arrays_keys={"site": "s"})
    assert energy(sites, water({"s": [0, 1, 2]})) != energy(sites, water({"s": [1, 0, 2]}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"info_keys": {"site": "s"}}, "info_keys names 'site', .* there are total_charge"),
        ({"arrays_keys": {"total_charge": "q"}}, "arrays_keys names 'total_charge', .* there are none"),
        ({"info_keys": {"total_charge": 3}}, "says 3 for 'total_charge', which is no key"),
    ],
)
def test_keys_of_nothing_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MACECalculator(models=model_with(files.CHARGE), **arguments)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"charge": 0.5}, r"The structure: total_charge \(key 'charge'\) is 0.5"),
        ({"charge": 9}, "knows values from -3 to 3"),
        ({"charge": 1, "total_charge": 0}, "says two things of total_charge"),
    ],
)
def test_what_cannot_be_is_refused(calculator: MACECalculator, info: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        energy(calculator, water(**info))
    with pytest.raises(UserError, match=f"Structure 1 of the list: .*{message}"):
        calculator.evaluate([water(), water(**info)])


def test_a_condition_without_a_default_must_be_given() -> None:
    calculator = MACECalculator(models=model_with(files.TEMPERATURE))
    with pytest.raises(UserError, match="The structure has no 'temperature', which the model needs to know"):
        energy(calculator, water())
    assert energy(calculator, water(temperature=0.3)) != energy(calculator, water(temperature=0.4))


def test_many_structures_at_once(calculator: MACECalculator) -> None:
    atoms = [water(charge=q, spin=s) for q, s in ((0, 1), (1, 2), (-2, 3))]
    for one, results in zip(atoms, calculator.evaluate(atoms), strict=True):
        assert results["energy"] == pytest.approx(energy(calculator, one), rel=1e-13)


def test_descriptors_and_hessian_see_them(calculator: MACECalculator) -> None:
    neutral, charged = water(charge=0), water(charge=1)
    assert np.abs(calculator.get_descriptors(neutral) - calculator.get_descriptors(charged)).max() > 1e-6
    assert np.abs(calculator.get_hessian(neutral) - calculator.get_hessian(charged)).max() > 1e-6


def test_a_committee_sees_them() -> None:
    both = model_with(files.CHARGE, files.SPIN), model_with(files.CHARGE)
    committee = MACECalculator(models=both)
    atoms = water(charge=2, spin=3)
    alone = [energy(MACECalculator(models=each), atoms.copy()) for each in both]
    assert energy(committee, atoms) == pytest.approx(np.mean(alone), rel=1e-12)
    assert committee.results["energy_var"] == pytest.approx(np.var(alone), rel=1e-6)


def test_a_copy_by_pickle_is_the_same(calculator: MACECalculator) -> None:
    again = pickle.loads(pickle.dumps(calculator))
    assert energy(again, water(charge=1)) == energy(calculator, water(charge=1))


def test_tables_of_radial_functions_do_not_care(tmp_path: Path) -> None:
    path = save_model(tmp_path / "some.model", model_with(files.CHARGE, files.TEMPERATURE))
    for charge in (0, 2):
        atoms = water(charge=charge, temperature=1.5)
        exact = energy(MACECalculator(path, default_dtype="float64"), atoms.copy())
        assert energy(MACECalculator(path, default_dtype="float32"), atoms.copy()) == pytest.approx(exact, abs=2e-3)
