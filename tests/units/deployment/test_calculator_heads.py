"""Does the calculator use the head that is meant, and the one of each structure where many are evaluated?"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import original_files as files
import pytest
from ase import Atoms

from mace.calculators import MACECalculator, mace_mp, mace_omol
from mace.errors import UserError
from mace.model.heads import with_one_head
from mace.model.mace import MACE
from mace.model.model_file import save_model

NAMES = ("low", "Default", "high")
MODEL = files.model(files.with_heads(*NAMES))
WITHOUT_DEFAULT = files.model(files.with_heads("omat_pbe", "matpes_r2scan"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_model(tmp_path / "heads.model", MODEL)


@pytest.fixture
def expected() -> Callable[[str, Atoms], dict[str, Any]]:
    """What the model of one head alone says."""

    def evaluate(head: str, atoms: Atoms) -> dict[str, Any]:
        return MACECalculator(models=with_one_head(MODEL, head)).evaluate([atoms])[0]

    return evaluate


def structures(heads: tuple[str | None, ...] = ("high", None, "low")) -> list[Atoms]:
    found = [ase.build.molecule(name) for name in ("H2O", "CH4", "CO2", "CH3OH")[: len(heads)]]
    for seed, (atoms, head) in enumerate(zip(found, heads, strict=True)):
        atoms.rattle(0.05, seed=seed)
        if head is not None:
            atoms.info["head"] = head
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(("model", "lines"), [(MODEL, 1), (files.model(), 0)])
def test_the_head_is_logged_where_there_are_others(model: MACE, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        MACECalculator(models=model)
    assert caplog.text.count("Using the head Default of low, Default, high") == caplog.text.count("Using") == lines


@pytest.mark.parametrize("head", NAMES)
def test_a_head_is_chosen(path: Path, expected: Callable[..., Any], head: str) -> None:
    (water,) = structures((None,))
    for calculator in (MACECalculator(path, head=head), MACECalculator(models=MODEL, head=head)):
        assert calculator.head == head and calculator.available_heads == list(NAMES)
        water.calc = calculator
        water.get_potential_energy()
        assert_same(calculator.results, expected(head, water))


def test_the_default_is_the_head_called_so(path: Path) -> None:
    assert MACECalculator(path).head == "Default"
    assert MACECalculator(models=files.model()).head == "Default"
    assert MACECalculator(models=files.model()).available_heads == ["Default"]
    said = r"has 2 heads \(omat_pbe, matpes_r2scan\), and none is called default; .* \(head='matpes_r2scan' in Python\)"
    with pytest.raises(UserError, match=said):
        MACECalculator(models=WITHOUT_DEFAULT)


def test_an_unknown_head_is_refused_with_all_names(path: Path) -> None:
    with pytest.raises(
        UserError, match=r"heads\.model: the model has no head 'hihg'; its heads are low, Default, high\."
    ):
        MACECalculator(path, head="hihg")
    calculator = MACECalculator(path, head="low")
    with pytest.raises(UserError, match="no head 'hihg'"):
        calculator.head = "hihg"
    assert calculator.head == "low"


def test_the_head_may_change_between_calls(path: Path, expected: Callable[..., Any]) -> None:
    (water,) = structures((None,))
    water.calc = calculator = MACECalculator(path, head="low")
    for head in ("low", "high", "low"):
        calculator.head = head
        assert water.get_potential_energy() == pytest.approx(expected(head, water)["energy"], abs=1e-9)
        hessian = calculator.get_hessian(water)
        np.testing.assert_allclose(hessian, MACECalculator(models=with_one_head(MODEL, head)).get_hessian(water))
    again = pickle.loads(pickle.dumps(calculator))
    assert again.head == "low" and again.evaluate([water])[0]["energy"] == pytest.approx(water.get_potential_energy())


@pytest.mark.parametrize("batch_size", [1, 64])
def test_structures_may_name_their_heads(path: Path, expected: Callable[..., Any], batch_size: int) -> None:
    calculator = MACECalculator(path, head="high")
    heads = ("low", None, "Default", "high")
    found = calculator.evaluate(structures(heads), batch_size=batch_size)
    for result, head, atoms in zip(found, heads, structures(heads), strict=True):
        assert_same(result, expected(head or "high", atoms))


def test_a_structure_with_an_unknown_head_is_named(path: Path) -> None:
    said = "Structure 2 of the list: .* has no head 'medium'; its heads are low, Default, high"
    with pytest.raises(UserError, match=said):
        MACECalculator(path).evaluate(structures(("low", None, "medium")))
    assert MACECalculator(models=files.model()).evaluate(structures(("any",))), "a single head is for all structures"


def test_a_head_of_a_structure_that_is_not_used_is_told_once(path: Path) -> None:
    (water,) = structures(("high",))
    water.calc = MACECalculator(path, head="low")
    with pytest.warns(UserWarning, match="is 'high', but the calculator uses the head 'low'"):
        water.get_potential_energy()
    water.rattle(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        water.get_potential_energy()


def test_committees(tmp_path: Path, path: Path, expected: Callable[..., Any]) -> None:
    """All members use the head; one that has a single head is content with any that others have by default."""
    other = files.model(files.with_heads("high", "low"))
    (water,) = structures(("high",))
    calculator = MACECalculator(models=[MODEL, other], head="low")
    (result,) = calculator.evaluate([water])
    members = [
        expected("high", water)["energy"],
        MACECalculator(models=other, head="high").evaluate([water])[0]["energy"],
    ]
    np.testing.assert_allclose(result["energy_comm"], members, atol=1e-9)
    with pytest.raises(UserError, match="no head 'Default'; its heads are high, low|none is called default"):
        MACECalculator(models=[MODEL, other])
    assert MACECalculator(models=[files.model(), MODEL]).available_heads == list(NAMES)
    with pytest.raises(UserError, match="has one head, Default, and no head 'low'"):
        MACECalculator(models=[files.model(), MODEL], head="low")


def test_files_of_mace_torch(tmp_path: Path) -> None:
    path = files.write_original(tmp_path / "old.model", files.tree_of(MODEL, files.state_of(MODEL), heads=list(NAMES)))
    (water,) = structures((None,))
    for head in NAMES:
        (found,) = mace_mp(path, default_dtype="float64", head=head).evaluate([water])
        assert_same(found, MACECalculator(models=MODEL, head=head).evaluate([water])[0])
    assert isinstance(mace_mp(path, return_raw_model=True), MACE)
    assert not mace_mp(path, return_raw_model=True, head="low").plan.heads


def test_the_loader_of_a_model_for_molecules_knows_its_head(tmp_path: Path) -> None:
    path = save_model(tmp_path / "several.model", files.model(files.with_heads("omat", "omol", "spice")))
    assert mace_omol(path).head == "omol" and mace_omol(path, head="spice").head == "spice"
    tree = files.tree_of(WITHOUT_DEFAULT, files.state_of(WITHOUT_DEFAULT), heads=["omol", "omat"])
    assert mace_omol(files.write_original(tmp_path / "old.model", tree)).head == "omol"
    assert mace_omol(save_model(tmp_path / "one.model", files.model())).head == "Default"


def test_models_of_other_default_heads_are_asked_for_one() -> None:
    two = [files.model(files.with_heads("Default", "high")), files.model(files.with_heads("high", "DEFAULT"))]
    first, second = (MACECalculator(models=model).head for model in two)
    assert first != second
    with pytest.raises(UserError, match=f"where no head is named, the models use {first} and {second}; name one"):
        MACECalculator(models=two)
    assert MACECalculator(models=two, head="high").head == "high"
