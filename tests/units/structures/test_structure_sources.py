"""Files with names, units and weights of their own become one set in eV and Angstrom."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import units

from mace.errors import UserError
from mace.properties import PROPERTIES
from mace.settings import parse_training_settings
from mace.settings.labels import FileSettings
from mace.structures.labels import LabelKeys
from mace.structures.reading import read_configurations, read_sources
from mace.structures.sources import FileUnits, sources_of
from mace.units import DEBYE, DEBYE_OF_MACE_TORCH, ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS

LABELS = (
    "2\nLattice='4 0 0 0 4 0 0 0 4' energy=-1.5 stress='1 2 3 4 5 6' dipole='1 2 3' REF_polarizability='1 2 3 0 0 0' "
    "REF_virials='1 2 3 0 0 0' Properties=species:S:1:pos:R:3:forces:R:3:charges:R:1\n"
    "O 0.0 0.0 0.0 1.0 2.0 3.0 -0.5\nH 0.0 0.0 1.0 -1.0 -2.0 -3.0 0.5\n"
)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (ENERGY_UNITS, {"Hartree": units.Hartree, "Rydberg": units.Rydberg, "kcal/mol": units.kcal / units.mol}),
        (ENERGY_UNITS, {"eV": 1.0, "meV": 1e-3, "kJ/mol": units.kJ / units.mol}),
        (LENGTH_UNITS, {"Angstrom": 1.0, "bohr": units.Bohr, "nm": units.nm}),
        (STRESS_UNITS, {"eV/Angstrom^3": 1.0, "GPa": units.GPa, "kbar": 1000.0 * units.bar}),
        (STRESS_UNITS, {"Hartree/bohr^3": units.Hartree / units.Bohr**3}),
        ({"D": DEBYE, "D of mace-torch": DEBYE_OF_MACE_TORCH}, {"D": units.Debye, "D of mace-torch": units.Debye}),
    ],
)
def test_factors_are_those_of_ASE(table: dict[str, float], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert table[name] == pytest.approx(value, rel=1e-8)


def test_every_quantity_is_converted(write_file: Callable[..., str]) -> None:
    file = write_file(LABELS)
    (plain,) = read_configurations(file).configurations
    (converted,) = read_configurations(file, units=FileUnits("Hartree", "bohr", "GPa")).configurations
    energy, length = units.Hartree, units.Bohr
    factors = {
        "positions": length,
        "cell": length,
        "energy": energy,
        "forces": energy / length,
        "stress": units.GPa,
        "virials": energy,
        "dipole": length,
        "polarizability": length**2 / energy,
        "charges": 1.0,
    }
    assert set(PROPERTIES) < set(factors)
    for name, factor in factors.items():
        expected = factor * np.asarray(getattr(plain, name))
        np.testing.assert_allclose(getattr(converted, name), expected, rtol=1e-8, err_msg=name)


def test_what_is_derived_uses_converted_numbers(write_file: Callable[..., str]) -> None:
    text = LABELS.replace("REF_virials='1 2 3 0 0 0' ", "")
    (item,) = read_configurations(write_file(text), units=FileUnits(length="nm", stress="kbar")).configurations
    np.testing.assert_allclose(item.virials, -(40.0**3) * item.stress)


def test_the_report_tells_units(write_file: Callable[..., str]) -> None:
    report = read_configurations(write_file(LABELS), units=FileUnits(energy="meV")).report
    assert report.lines()[0].endswith("; converted from meV, Angstrom, eV/Angstrom^3")
    assert any("--stress_unit" in note for note in report.notes)
    assert not read_configurations("train.xyz", units=FileUnits("meV", None, "GPa")).report.notes[1:]


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(UserError, match="--energy_unit must be one of eV, meV.*not 'erg'"):
        FileUnits(energy="erg")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("ev", "eV"), ("HARTREE", "Hartree"), ("Ha", "Hartree"), ("Ry", "Rydberg"), ("KCAL/MOL", "kcal/mol")],
)
def test_spellings_of_units(typed: str, meant: str) -> None:
    assert parse_training_settings(["--name=a", "--train_file=a.xyz", f"--energy_unit={typed}"]).energy_unit == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("eV/A^3", "eV/Angstrom^3"),
        ("ev/\N{ANGSTROM SIGN}**3", "eV/Angstrom^3"),
        ("gpa", "GPa"),
        ("Ha/bohr^3", "Hartree/bohr^3"),
    ],
)
def test_spellings_of_units_of_stress(typed: str, meant: str) -> None:
    assert parse_training_settings(["--name=a", "--train_file=a.xyz", f"--stress_unit={typed}"]).stress_unit == meant


def test_what_a_file_says_of_itself_wins() -> None:
    table = "{'file': 'b.xyz', 'energy_key': 'E', 'length_unit': 'bohr', 'config_type_weights': {'a': 2}}"
    flags = ["--name=a", "--train_file", "a.xyz", table, "--energy_key=shared", "--forces_key=F", "--energy_unit=meV"]
    settings = parse_training_settings(flags)
    shared, own = sources_of(settings, settings.train_file)
    assert (shared.paths, shared.keys) == ("a.xyz", LabelKeys(energy="shared", forces="F"))
    assert (own.paths, own.keys) == ("b.xyz", LabelKeys(energy="E", forces="F"))
    assert (shared.units, own.units) == (FileUnits(energy="meV"), FileUnits(energy="meV", length="bohr"))
    assert (shared.config_type_weights, own.config_type_weights) == ({"Default": 1.0}, {"a": 2.0})


def test_tables_survive_being_stored() -> None:
    """Checkpoints and model files hold the settings as JSON."""
    settings = parse_training_settings(["--name=a", "--train_file", "a.xyz", "{'file': 'b.xyz', 'energy_key': 'E'}"])
    again = type(settings).model_validate_json(settings.model_dump_json())
    assert again.train_file == settings.train_file
    assert isinstance(again.train_file, list) and isinstance(again.train_file[1], FileSettings)
    assert repr(again.train_file[1]) == "FileSettings(energy_key='E', file='b.xyz')"


def test_weights_of_types_are_judged_by_the_files_they_belong_to(write_file: Callable[..., str]) -> None:
    files = [write_file(LABELS.replace("energy", "config_type=a energy"), "a.xyz"), write_file(LABELS, "b.xyz")]
    settings = parse_training_settings(
        ["--name=a", "--train_file", files[0], f"{{'file': '{files[1]}', 'config_type_weights': {{'a': 3}}}}"]
    )
    result = read_sources(sources_of(settings, settings.train_file))
    notes = [note for note in result.report.notes if "config_type_weights" in note]
    assert notes == ["--config_type_weights names 'a', which no structure has as config_type; there are 'Default'."]


def test_observers_see_structures_in_order(write_file: Callable[..., str]) -> None:
    seen: list[int] = []
    settings = parse_training_settings(["--name=a", f"--train_file={write_file(LABELS * 2)}"])
    read_sources(sources_of(settings, settings.train_file), observe=lambda atoms: seen.append(len(atoms)))
    assert seen == [2, 2]


def test_weights_of_atoms(write_file: Callable[..., str]) -> None:
    text = LABELS.replace("charges:R:1", "forces_weight:R:1").replace("-0.5\n", "2.0\n")
    (item,) = read_configurations(write_file(text)).configurations
    np.testing.assert_array_equal(item.atom_weights["forces"], [2.0, 0.5])
    (other,) = read_configurations(write_file(LABELS)).configurations
    assert other.atom_weights == {}


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_label_has_a_weight(write_file: Callable[..., str], name: str) -> None:
    text = LABELS.replace("energy=", f"config_{name}_weight=0.25 energy=")
    (item,) = read_configurations(write_file(text)).configurations
    assert item.property_weights[name] == 0.25


def test_the_files_settings_are_documented() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("## Several files")[2].partition("\n## ")[0]
    for name in FileSettings.model_fields:
        assert f"`{name}`" in section or name.endswith("_key"), name
