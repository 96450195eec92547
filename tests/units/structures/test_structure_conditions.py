"""Are conditions found where they stand, and is what cannot be one named with file, structure and key?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from mace.conditions import Condition, condition_of_spec, read_specs, spec_of_condition, words_without_effect
from mace.elements import ElementTable
from mace.errors import UserError
from mace.structures.condition_values import (
    FoundConditions,
    check_condition_keys,
    conditions_of_atoms,
    example_values,
    find_conditions,
)
from mace.structures.configuration import Configuration
from mace.structures.reading import ReadResult, read_sources
from mace.structures.reference_energies import resolve_reference_energies
from mace.structures.sources import Source

CHARGE = Condition(name="total_charge", kind="categorical", per="structure", width=3, n_classes=7, offset=3)
SPIN = Condition(name="total_spin", kind="categorical", per="structure", width=2, n_classes=5)
HEAT = Condition(name="elec_temp", kind="continuous", per="structure", width=2)
PRESSURE = Condition(name="pressure", kind="continuous", per="structure", width=2, key="p_GPa")
SITE = Condition(name="site", kind="categorical", per="atom", width=2, n_classes=3)
MOMENTS = Condition(name="moments", kind="continuous", per="atom", width=4, n_values=2)


def find(condition: Condition, given: dict[str, str] | None = None, arrays: Any = None, **info: Any) -> FoundConditions:
    return find_conditions([condition], given or {}, info, arrays or {}, 3, "a.xyz: structure 5")


@pytest.mark.parametrize(
    ("info", "key", "value"),
    [
        ({}, None, 0.0),
        ({"charge": -2}, "charge", -2.0),
        ({"total_charge": 1.0}, "total_charge", 1.0),
        ({"total_charge": np.int64(3), "charge": 3.0}, "total_charge", 3.0),
        ({"charge": np.array([2])}, "charge", 2.0),
        ({"charge": None}, None, 0.0),
    ],
)
def test_the_usual_keys_are_looked_at(info: dict[str, Any], key: str | None, value: float) -> None:
    found = find(CHARGE, **info)
    assert found.keys == {"total_charge": key}
    assert found.values["total_charge"].tolist() == [value]


def test_defaults_are_those_of_the_original() -> None:
    assert find(SPIN).values["total_spin"].tolist() == [1.0]
    assert find(HEAT).values["elec_temp"].tolist() == [0.0]


def test_a_given_key_is_obeyed_exactly() -> None:
    found = find(CHARGE, {"total_charge": "q"}, q=2, charge=-1)
    assert found.values["total_charge"].tolist() == [2.0]
    assert find(CHARGE, {"total_charge": "q"}, charge=-1).keys == {"total_charge": None}


def test_a_key_of_the_model_comes_first() -> None:
    assert find(PRESSURE, p_GPa=4).values["pressure"].tolist() == [4.0]
    assert find(PRESSURE, pressure=4).keys == {"pressure": "pressure"}


def test_conditions_of_atoms_have_rows() -> None:
    assert find(SITE, arrays={"site": np.array([0, 2, 1])}).values["site"].tolist() == [[0.0], [2.0], [1.0]]
    assert find(MOMENTS, arrays={"moments": np.ones((3, 2))}).values["moments"].shape == (3, 2)


WRONG: list[tuple[Condition, dict[str, Any], dict[str, Any], str]] = [
    (CHARGE, {"charge": 0.5}, {}, r"a.xyz: structure 5: total_charge \(key 'charge'\) is 0.5; .* whole numbers only"),
    (CHARGE, {"total_charge": 4}, {}, "total_charge is 4, but the model knows values from -3 to 3"),
    (CHARGE, {"charge": -4}, {}, "is -4, but the model knows values from -3 to 3"),
    (SPIN, {"spin": "doublet"}, {}, "total_spin .* is doublet and no finite number"),
    (SPIN, {"spin": True}, {}, "is True and no finite number"),
    (SPIN, {"spin": float("nan")}, {}, "is nan and no finite number"),
    (SPIN, {"spin": [1, 2]}, {}, r"has the shape \[2\] where one number is expected"),
    (SPIN, {"spin": [[1], [1, 2]]}, {}, "no finite number"),
    (CHARGE, {"charge": 1, "total_charge": 2}, {}, "says two things of total_charge, under 'total_charge' and under"),
    (CHARGE, {}, {"charge": np.zeros(3)}, r"is a column \(array\), but the model wants one number"),
    (PRESSURE, {}, {}, "structure 5 has no 'p_GPa' or 'pressure', which the model needs to know; add it"),
    (PRESSURE, {"pressure": float("inf")}, {}, "is inf and no finite number"),
    (SITE, {}, {}, "has no 'site', which the model needs for each of its atoms to know"),
    (SITE, {"site": 1}, {}, r"is an entry of the comment line \(info\), but the model wants a column"),
    (SITE, {}, {"site": np.array([0, 3, 1])}, "site is 3, but the model knows values from 0 to 2"),
    (SITE, {}, {"site": np.array([0, 1])}, r"has the shape \[2\] where \[3, 1\] is expected"),
    (MOMENTS, {}, {"moments": np.zeros(3)}, r"has the shape \[3\] where \[3, 2\] is expected"),
]


@pytest.mark.parametrize(("condition", "info", "arrays", "message"), WRONG)
def test_what_cannot_be_is_named(condition: Condition, info: Any, arrays: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(condition, None, arrays, **info)


def test_a_default_outside_of_the_range_is_an_error_too() -> None:
    cations = CHARGE.model_copy(update={"offset": -1})
    with pytest.raises(UserError, match="total_charge, by default is 0, but the model knows values from 1 to 7"):
        find(cations)


def test_models_of_a_committee_may_know_different_ranges() -> None:
    narrow = CHARGE.model_copy(update={"n_classes": 3, "offset": 1})
    both = [CHARGE, narrow]
    assert find_conditions(both, {}, {"charge": 1}, {}, 3, "it").values["total_charge"].tolist() == [1.0]
    with pytest.raises(UserError, match="from -1 to 1"):
        find_conditions(both, {}, {"charge": 2}, {}, 3, "it")


def test_examples_are_values_that_are_found_again() -> None:
    conditions = [CHARGE, SPIN, HEAT, PRESSURE, SITE, MOMENTS]
    for seed in (None, 1, 2):
        made = example_values(conditions, 3, seed)
        info = {c.name: made[c.name] for c in conditions if c.per == "structure"}
        arrays = {c.name: made[c.name] for c in conditions if c.per == "atom"}
        found = find_conditions(conditions, {}, info, arrays, 3, "it").values
        assert all(np.array_equal(found[name], values) for name, values in made.items())


SPEC = {"type": "categorical", "per": "graph", "num_classes": 7, "emb_dim": 3, "offset": 3}


def test_the_words_of_the_original_are_understood_and_written() -> None:
    assert read_specs({"total_charge": SPEC}) == (CHARGE,)
    for condition in (CHARGE, SPIN, HEAT, PRESSURE, SITE, MOMENTS):
        assert condition_of_spec(condition.name, spec_of_condition(condition)) == condition


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, []),
        ({"in_dim": 1}, ["in_dim of 'q'"]),
        ({"in_dim": "2", "use_bias": "False"}, ["in_dim of 'q'", "use_bias of 'q'"]),
        ({"type": "continuous"}, ["num_classes of 'q'", "offset of 'q'"]),
    ],
)
def test_words_of_another_kind_change_nothing(more: dict[str, Any], words: list[str]) -> None:
    specs = {"q": SPEC | more}
    assert words_without_effect(specs) == words
    (condition,), plain = read_specs(specs), {word: SPEC[word] for word in ("per", "emb_dim")}
    used = {"num_classes": 7, "offset": 3} if condition.kind == "categorical" else {}
    assert read_specs({"q": {**plain, **used, "type": condition.kind}}) == (condition,)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({}, "names no condition"),
        ({"q": 5}, "has 'q', which is not described by a dictionary"),
        ({"q": SPEC | {"num_class": 3}}, "unknown word 'num_class' for 'q'; did you mean num_classes"),
        ({"q": {"type": "categorical"}}, "does not say the per and emb_dim of 'q'"),
        ({"q": SPEC | {"per": "molecule"}}, "has 'q' per 'molecule'; there are graph and atom"),
        ({"q": {"type": "categorical", "per": "graph", "emb_dim": 3}}, "does not say num_classes of 'q'"),
        ({"T": {"type": "continuous", "per": "graph", "emb_dim": 3, "in_dim": 2}}, "one value of a condition"),
        ({"T": {"type": "number", "per": "graph", "emb_dim": 3}}, "cannot have 'T' as it is described"),
        ({"q": SPEC | {"emb_dim": 2.5}}, "cannot have 'q' as it is described: .*integer.* of width"),
        ({"a b": SPEC}, "cannot have 'a b' as it is described"),
    ],
)
def test_mistakes_in_descriptions_are_named(specs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_specs(specs)


def ions(**info: Any) -> Atoms:
    atoms = molecule("H2O")
    atoms.info.update(REF_energy=-2080.0, **info)
    return atoms


def read(
    path: Path, frames: list[Atoms], conditions: tuple[Condition, ...] = (CHARGE, SPIN), **keys: str
) -> ReadResult:
    write(path, frames, format="extxyz")
    return read_sources([Source(str(path), conditions=conditions, condition_keys=keys)])


def test_files_are_read_with_conditions(tmp_path: Path) -> None:
    result = read(tmp_path / "a.xyz", [ions(charge=1, spin=2), ions(charge=-1, spin=2), ions(spin=3)])
    found = [[c.conditions[name].item() for name in ("total_charge", "total_spin")] for c in result.configurations]
    assert found == [[1.0, 2.0], [-1.0, 2.0], [0.0, 3.0]]
    (line,) = result.report.lines()
    assert "total_charge 2 of 3 ('charge'), total_spin 3 of 3 ('spin')" in line
    (note,) = result.report.notes
    assert note == f"{tmp_path}/a.xyz: 1 of 3 structures do not say total_charge; 0 is taken."


def test_without_conditions_nothing_is_read_of_them(tmp_path: Path) -> None:
    result = read(tmp_path / "a.xyz", [ions(charge="high")], ())
    assert result.configurations[0].conditions == {}
    assert "charge" not in result.report.lines()[0]


def test_a_bad_condition_names_file_and_structure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.xyz: structure 1: total_charge \(key 'q'\) is 9"):
        read(tmp_path / "a.xyz", [ions(q=1), ions(q=9)], total_charge="q")


def test_energies_of_elements_are_those_of_neutral_atoms(tmp_path: Path) -> None:
    atom, cation = Atoms("H"), Atoms("H")
    cation.info.update(REF_energy=0.0, config_type="IsolatedAtom", charge=1)
    atom.info.update(REF_energy=-13.6, config_type="IsolatedAtom", charge=0)
    result = read(tmp_path / "a.xyz", [cation, atom])
    energies = resolve_reference_energies(None, result.isolated_atoms, [], ElementTable((1,)))
    assert energies.energies == {1: -13.6}
    alone = resolve_reference_energies(None, result.isolated_atoms[:1], [], ElementTable((1,)))
    assert alone.energies == {1: 0.0}


def test_one_name_cannot_mean_structures_and_atoms() -> None:
    of_atoms = Condition(name="pressure", kind="continuous", per="atom", width=2)
    rows = {"pressure": np.ones((3, 1))}
    with pytest.raises(UserError, match="'pressure' belongs to structures in one model and to atoms in the other"):
        find_conditions([PRESSURE, of_atoms], {}, {"p_GPa": 2.0}, rows, 3, "a.xyz: structure 5")


@pytest.mark.parametrize(
    ("keys", "conditions", "message"),
    [
        ({"spin": "s"}, [SPIN, CHARGE], "info_keys names 'spin', .*; there are total_charge, total_spin."),
        ({"spin": "s"}, [], "info_keys names 'spin', .*; there are none."),
        ({"total_spin": ""}, [SPIN], "info_keys says '' for 'total_spin', which is no key; write text."),
        ({"total_spin": 3}, [SPIN], "info_keys says 3 for 'total_spin', which is no key"),
        ({"total_spin": "s", "total_charge": None}, [SPIN, CHARGE], "info_keys says None for 'total_charge'"),
    ],
)
def test_keys_are_those_of_conditions_that_exist(
    keys: dict[str, Any], conditions: list[Condition], message: str
) -> None:
    check_condition_keys("info_keys", {"total_charge": "q"}, [CHARGE, SPIN])
    with pytest.raises(UserError, match=message):
        check_condition_keys("info_keys", keys, conditions)


def test_conditions_of_a_set_are_spread_over_its_atoms() -> None:
    def structure(n_atoms: int, **conditions: Any) -> Configuration:
        geometry = (np.ones(n_atoms, dtype=int), np.eye(3)[:n_atoms], np.zeros((3, 3)), (False, False, False))
        return Configuration(*geometry, conditions={name: np.array(value) for name, value in conditions.items()})

    items = [structure(2, q=[1.0], m=[[1.0, 2.0], [3.0, 4.0]]), structure(1, q=[-2.0], m=[[5.0, 6.0]])]
    found = conditions_of_atoms(items)
    assert {name: values.tolist() for name, values in found.items()} == {
        "q": [[1.0], [1.0], [-2.0]],
        "m": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
    }
    assert conditions_of_atoms([]) == {}
    for other in (structure(1, q=[0.0]), structure(1, m=[[0.0, 0.0]], q=[0.0])):
        with pytest.raises(ValueError, match="the same conditions, in the same order"):
            conditions_of_atoms([*items, other])
