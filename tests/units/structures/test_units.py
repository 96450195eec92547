"""Are the factors of units those of their definitions, and those of ASE?"""

from __future__ import annotations

import ase.units
import pytest

from mace.structures.sources import FileUnits
from mace.units import (
    BOHR,
    DEBYE,
    DEBYE_OF_MACE_TORCH,
    ENERGY_UNITS,
    GIGAPASCAL,
    HARTREE,
    KCAL_PER_MOL,
    KILOBAR,
    KJ_PER_MOL,
    LENGTH_UNITS,
    MILLI,
    STRESS_UNITS,
)  # fmt: skip

CHARGE = 1.602176634e-19
"""Of the electron in Coulomb, exact since 2019."""
AVOGADRO = 6.02214076e23
LIGHT = 299792458.0
"""Speed in m/s, exact."""


def test_units_of_ase_are_the_same() -> None:
    ours = (HARTREE, BOHR, KCAL_PER_MOL, KJ_PER_MOL, GIGAPASCAL, KILOBAR, DEBYE, MILLI)
    unit = ase.units
    kbar = 1000.0 * unit.bar
    theirs = (unit.Hartree, unit.Bohr, unit.kcal / unit.mol, unit.kJ / unit.mol, unit.GPa, kbar, unit.Debye, 1e-3)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
    ("ours", "definition"),
    [
        (DEBYE, 1e-21 / LIGHT / CHARGE * 1e10),  # 1e-18 electrostatic units times a centimeter
        (GIGAPASCAL, 1e9 / CHARGE * 1e-30),
        (KILOBAR, 1e8 / CHARGE * 1e-30),
        (KJ_PER_MOL, 1e3 / CHARGE / AVOGADRO),
        (KCAL_PER_MOL, 4.184e3 / CHARGE / AVOGADRO),
        (HARTREE * BOHR, 1e-7 * LIGHT**2 * CHARGE * 1e10),  # e^2 / 4 pi epsilon_0
    ],
)
def test_definitions(ours: float, definition: float) -> None:
    assert ours == pytest.approx(definition, rel=1e-7)


def test_the_debye_of_mace_torch_is_that_of_the_present_charge() -> None:
    assert pytest.approx(1e-21 / LIGHT / CHARGE * 1e10, rel=1e-14) == DEBYE_OF_MACE_TORCH


def test_tables_of_units() -> None:
    energies = {"eV": 1.0, "meV": 1e-3, "Hartree": HARTREE, "Rydberg": HARTREE / 2, "kcal/mol": KCAL_PER_MOL}
    assert pytest.approx({**energies, "kJ/mol": KCAL_PER_MOL / 4.184}, rel=1e-12) == ENERGY_UNITS
    assert pytest.approx({"Angstrom": 1.0, "bohr": BOHR, "nm": 10.0}, rel=1e-15) == LENGTH_UNITS
    stresses = {"eV/Angstrom^3": 1.0, "GPa": GIGAPASCAL, "kbar": GIGAPASCAL / 10, "Hartree/bohr^3": HARTREE / BOHR**3}
    assert pytest.approx(stresses, rel=1e-12) == STRESS_UNITS


def test_a_label_has_the_units_it_is_made_of() -> None:
    units = FileUnits("Hartree", "bohr", "GPa")
    expected = {
        "energy": HARTREE,
        "forces": HARTREE / BOHR,
        "stress": GIGAPASCAL,
        "virials": HARTREE,
        "dipole": BOHR,
        "polarizability": BOHR**2 / HARTREE,
        "charges": 1.0,
    }
    assert {name: units.of_label(name) for name in expected} == pytest.approx(expected, rel=1e-14)
    assert units.of_length == BOHR
    assert {name: FileUnits().of_label(name) for name in expected} == dict.fromkeys(expected, 1.0)


@pytest.mark.parametrize(
    ("units", "left_open"),
    [
        (FileUnits(), False),
        (FileUnits(energy="eV", length="Angstrom"), False),
        (FileUnits(energy="Hartree"), True),
        (FileUnits(length="bohr"), True),
        (FileUnits(energy="Hartree", stress="kbar"), False),
        (FileUnits(length="bohr", stress="eV/Angstrom^3"), False),
    ],
)
def test_a_stress_without_a_unit_among_others_is_left_open(units: FileUnits, left_open: bool) -> None:
    assert units.leave_stress_open == left_open


def test_units_in_words() -> None:
    assert FileUnits().text == FileUnits("eV", "Angstrom", "eV/Angstrom^3").text == ""
    assert FileUnits(stress="kbar").text == "converted from eV, Angstrom, kbar"
