"""Every element gets its reference energy from where the user says, or an error says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mace.elements import ElementTable
from mace.errors import UserError
from mace.structures.configuration import Configuration
from mace.structures.reference_energies import resolve_reference_energies, undetermined_elements

OH = ElementTable((1, 8))


def test_isolated_atoms(configure: Callable[..., Configuration]) -> None:
    atoms = [configure([8], energy=-432.0), configure([1], energy=-13.0), configure([26], energy=-1.0)]
    result = resolve_reference_energies(None, atoms, [configure([1, 8], energy=-450.0)], OH)
    assert result.energies == {1: -13.0, 8: -432.0}
    assert (result.source, result.warnings) == ("IsolatedAtom frames", ())
    assert result.unused == {26: -1.0}
    assert result.energies == {1: -13.0, 8: -432.0}


def test_missing_isolated_atom_is_named_with_the_way_out(configure: Callable[..., Configuration]) -> None:
    with pytest.raises(UserError, match=r"of O are not in the IsolatedAtom frames.*--E0s"):
        resolve_reference_energies(None, [configure([1], energy=-13.0)], [], OH)
    with pytest.raises(UserError, match=r"of H, O are not in the training data.*config_type=IsolatedAtom.*--E0s"):
        resolve_reference_energies(None, [], [], OH)


def test_unlabeled_isolated_atom_is_not_zero(configure: Callable[..., Configuration]) -> None:
    atoms = [configure([8], energy=-432.0), configure([1], file="train.xyz", index=3)]
    with pytest.raises(UserError, match="train.xyz: structure 3 is an isolated H atom without an energy.*--energy_key"):
        resolve_reference_energies(None, atoms, [], OH)


def test_contradicting_isolated_atoms(configure: Callable[..., Configuration]) -> None:
    same = [configure([1], energy=-13.0), configure([1], energy=-13.0)]
    assert resolve_reference_energies(None, same, [], ElementTable((1,))).energies == {1: -13.0}
    with pytest.raises(UserError, match="structure 5 gives an isolated H atom -12.0.*structure 0 gives -13.0"):
        resolve_reference_energies(None, [*same, configure([1], energy=-12.0, index=5)], [], ElementTable((1,)))


@pytest.mark.parametrize(
    "E0s",
    ["{1: -13.0, 8: -432.0}", '{"H": -13, "O": -432.0}', '{"1": -13.0, "8": -432.0, "Fe": 1}', {"H": -13.0, 8: -432.0}],
)
def test_mappings(E0s: Any) -> None:
    result = resolve_reference_energies(E0s, [], [], OH)
    assert result.energies == {1: -13.0, 8: -432.0}
    assert result.source == "command line"


def test_json_file(tmp_path: Path) -> None:
    file = tmp_path / "E0s.json"
    file.write_text(json.dumps({"1": -13.0, "O": -432.0}))
    result = resolve_reference_energies(str(file), [], [], OH)
    assert result.energies == {1: -13.0, 8: -432.0}
    assert result.source == f"file {file}"
    file.write_text("{1: ")
    with pytest.raises(UserError, match="is not JSON"):
        resolve_reference_energies(str(file), [], [], OH)
    with pytest.raises(UserError, match="missing.json.*cannot be opened"):
        resolve_reference_energies("missing.json", [], [], OH)


def test_explicit_energies_overrule_isolated_atoms(configure: Callable[..., Configuration]) -> None:
    result = resolve_reference_energies({"H": -1.0}, [configure([1], energy=-13.0)], [], ElementTable((1,)))
    assert result.energies == {1: -1.0}
    (sentence,) = result.overruled
    assert "H -1 eV (the frame: -13)" in sentence and "leave out --E0s" in sentence
    close = resolve_reference_energies({"H": -13.0004}, [configure([1], energy=-13.0)], [], ElementTable((1,)))
    assert close.energies == {1: -13.0004} and close.overruled == ()


@pytest.mark.parametrize(
    ("E0s", "message"),
    [
        ("", "--E0s is ''"),
        ("avrage", "--E0s is 'avrage'.*neither 'isolated', 'average'"),
        ("[1, 2]", "--E0s is"),
        ("{}", "map elements to eV"),
        ({}, "map elements to eV"),
        ("{1: -13.0}", "no reference energy for O"),
        ("{1: 'a', 8: 1.0}", "energy of 1 is 'a'"),
        ({1: float("nan"), 8: 0.0}, "energy of 1 is nan"),
        ({1: True, 8: 0.0}, "energy of 1 is True"),
        ({"H": -1.0, 1: -1.0, 8: 0.0}, "H has two"),
        ({"Hx": -1.0}, "'Hx' is not a chemical element"),
    ],
)
def test_bad_mappings(E0s: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_reference_energies(E0s, [], [], OH)


def test_average_skips_unlabeled_structures(configure: Callable[..., Configuration]) -> None:
    compositions = [[1, 1, 8], [1, 1], [8, 8], [1, 8]]
    configurations = [
        configure(numbers, energy=sum({1: -13.5, 8: -432.0}[z] for z in numbers)) for numbers in compositions
    ]
    result = resolve_reference_energies("average", [], [*configurations, configure([1, 8, 8])], OH)
    assert result.energies == pytest.approx({1: -13.5, 8: -432.0}, rel=1e-12)
    assert (result.source, result.warnings) == ("least squares", ())


def test_average_without_any_energy(configure: Callable[..., Configuration]) -> None:
    with pytest.raises(UserError, match="no training structure does"):
        resolve_reference_energies("average", [], [configure([1, 8])], OH)


def test_average_names_undetermined_elements(configure: Callable[..., Configuration]) -> None:
    """Water and copper: hydrogen and oxygen only ever come together."""
    configurations = [
        configure([8, 1, 1], energy=-5.0),
        configure([8, 1, 1] * 2, energy=-10.0),
        configure([29], energy=-3.0),
    ]
    result = resolve_reference_energies("Average", [], configurations, ElementTable((1, 8, 29)))
    assert result.energies == pytest.approx({1: -2.0, 8: -1.0, 29: -3.0})
    assert len(result.warnings) == 1
    assert "energies of H, O;" in result.warnings[0]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[1, 0], [0, 1]], []),
        ([[2, 1]], [0, 1]),
        ([[1, 0, 0]], [1, 2]),
        ([[1, 1, 0], [0, 1, 1]], [0, 1, 2]),
        ([[1, 1, 0], [0, 1, 0]], [2]),
        ([[1000, 1], [1000, 2]], []),
    ],
)
def test_undetermined_elements(counts: list[list[int]], expected: list[int]) -> None:
    assert undetermined_elements(np.array(counts, dtype=np.float64)) == expected


@pytest.mark.parametrize(("energy", "warned"), [(-10.0, False), (-50.0, True), (3.0, True), (1.0, False)])
def test_absurd_atomization_energy(configure: Callable[..., Configuration], energy: float, warned: bool) -> None:
    """Two atoms with E0 = 0; the mean over structures, one of which has no energy."""
    configurations = [configure([1, 1], energy=energy), configure([1])]
    result = resolve_reference_energies({"H": 0.0}, [], configurations, ElementTable((1,)))
    assert len(result.warnings) == int(warned)
    if warned:
        assert f"{-energy / 2:.2f} eV per atom" in result.warnings[0]


def test_average_weighs_structures(configure: Callable[..., Configuration]) -> None:
    """Two energies of one atom: the mean is weighted, and a structure of weight zero says nothing."""
    H = ElementTable((1,))
    two = [configure([1], energy=-1.0, weight=3.0), configure([1], energy=-2.0, property_weights={"energy": 1.0})]
    assert resolve_reference_energies("average", [], two, H).energies[1] == pytest.approx(-1.25)
    silent = configure([1], energy=900.0, property_weights={"energy": 0.0})
    assert resolve_reference_energies("average", [], [*two, silent], H).energies[1] == pytest.approx(-1.25)
    with pytest.raises(UserError, match="an energy that has weight"):
        resolve_reference_energies("average", [], [silent], H)


def test_average_tells_what_is_left(configure: Callable[..., Configuration]) -> None:
    items = [
        configure([1, 1], energy=-2.2, config_type="b"),
        configure([1, 1], energy=-1.8, config_type="a", index=4),
        configure([1, 1], energy=-2.0, config_type="a"),
    ]
    first, second = resolve_reference_energies("average", [], items, ElementTable((1,))).residuals
    assert (first.config_type, first.structures, second.config_type, second.structures) == ("a", 2, "b", 1)
    assert (first.rms, first.largest, first.where) == pytest.approx((0.1 / 2**0.5, 0.1, "structure 4"))
    assert resolve_reference_energies({"H": -1.0}, [], items, ElementTable((1,))).residuals == ()


def test_one_absurd_structure_is_named(configure: Callable[..., Configuration]) -> None:
    items = [configure([1, 1], energy=-4.0, index=place) for place in range(9)]
    items += [configure([1, 1], energy=-60.0, index=9)]
    (warning,) = resolve_reference_energies({"H": 0.0}, [], items, ElementTable((1,))).warnings
    assert "of 1 training structures is outside -1 to 20 eV per atom, most of all 30.00 of structure 9" in warning


@pytest.mark.parametrize("word", ["average", "estimated"])
def test_isolated_atoms_come_before_a_fit(configure: Callable[..., Configuration], word: str) -> None:
    atoms = [configure([8], energy=-432.0, file="a.xyz"), configure([1], energy=-13.0, file="b.xyz")]
    result = resolve_reference_energies(word, atoms, [configure([1, 8], energy=-450.0)], OH)
    assert (result.energies, result.source, result.residuals) == ({1: -13.0, 8: -432.0}, "IsolatedAtom frames", ())
    (sentence,) = result.overruled
    assert sentence.startswith("a.xyz and b.xyz: the E0s of H, O are those of the IsolatedAtom frames")
    assert f"before --E0s={word};" in sentence and "take the frames out" in sentence


def test_only_elements_without_an_isolated_atom_are_fitted(configure: Callable[..., Configuration]) -> None:
    """Water alone does not determine both elements, but it does determine one if the other is known."""
    water = [configure([8, 1, 1], energy=-460.0), configure([8, 1, 1], energy=-462.0), configure([1, 1], energy=-30.0)]
    result = resolve_reference_energies("average", [configure([1], energy=-13.0)], water, OH)
    assert result.energies == pytest.approx({1: -13.0, 8: -435.0})
    assert result.source == "IsolatedAtom frames and least squares" and result.warnings == ()
    assert "those of O are fitted, with these held fixed" in result.overruled[0]
    assert result.residuals[0].structures == 3


def test_an_isolated_atom_without_energy_is_left_to_the_fit(configure: Callable[..., Configuration]) -> None:
    atoms = [configure([8], energy=-432.0), configure([1], file="train.xyz", index=3)]
    result = resolve_reference_energies("average", atoms, [configure([8, 1, 1], energy=-460.0)], OH)
    assert result.energies == pytest.approx({1: -14.0, 8: -432.0})
    assert "train.xyz: structure 3 is an isolated H atom without an energy" in result.overruled[1]


def test_contradicting_isolated_atoms_are_no_matter_of_fits(configure: Callable[..., Configuration]) -> None:
    atoms = [configure([1], energy=-13.0), configure([1], energy=-12.0, index=5)]
    with pytest.raises(UserError, match="structure 5 gives an isolated H atom -12.0"):
        resolve_reference_energies("average", atoms, [configure([1], energy=-1.0)], ElementTable((1,)))
    assert resolve_reference_energies({1: -13.0}, atoms, [], ElementTable((1,))).energies == {1: -13.0}


@pytest.mark.parametrize("word", ["isolated", "Isolated"])
def test_the_word_for_isolated_atoms(configure: Callable[..., Configuration], word: str) -> None:
    atoms = [configure([8], energy=-432.0), configure([1], energy=-13.0)]
    result = resolve_reference_energies(word, atoms, [], OH)
    assert result.energies == {1: -13.0, 8: -432.0} and result.overruled == ()
    with pytest.raises(UserError, match="of O are not in the IsolatedAtom frames"):
        resolve_reference_energies(word, atoms[1:], [], OH)


def test_energies_of_the_foundation_model(configure: Callable[..., Configuration]) -> None:
    atoms, known = [configure([1], energy=-13.0)], {1: -1.0, 6: -6.0, 8: -8.0}
    result = resolve_reference_energies("foundation", atoms, [], OH, known)
    assert (result.energies, result.source) == ({1: -1.0, 8: -8.0}, "the foundation model")
    assert "H -1 eV (the frame: -13)" in result.overruled[0]
    with pytest.raises(UserError, match="--E0s=foundation: the foundation model has no energy of O"):
        resolve_reference_energies("foundation", atoms, [], OH, {1: -1.0})
    with pytest.raises(UserError, match=r"of O are not in the Isolated.*'foundation'.*'estimated'.*'average'"):
        resolve_reference_energies(None, atoms, [], OH, known)


def test_estimates_keep_isolated_atoms(configure: Callable[..., Configuration]) -> None:
    given: list[object] = []

    def fit(known: Mapping[int, float]) -> tuple[dict[int, float], list[str]]:
        given.append(dict(known))
        return {**known, 8: -7.0}, ["a warning"]

    atoms = [configure([1], energy=-13.0), configure([26], energy=-1.0)]
    result = resolve_reference_energies("estimated", atoms, [], OH, {1: -1.0, 8: -8.0}, fit)
    assert given == [{1: -13.0}] and result.energies == {1: -13.0, 8: -7.0}
    assert result.source == "IsolatedAtom frames and estimates by the foundation model"
    assert result.warnings == ("a warning",)
