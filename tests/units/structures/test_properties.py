"""Does the table of properties say what each is in physics?"""

from __future__ import annotations

import numpy as np
import pytest

from mace.properties import PREDICTED, PROPERTIES

UNITS = {
    "energy": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å³",
    "virials": "eV",
    "dipole": "e·Å",
    "polarizability": "e²·Å²/eV",
    "charges": "e",
}


def test_units_are_those_of_the_definitions() -> None:
    assert {name: row.unit for name, row in PROPERTIES.items()} == UNITS
    per_atom = {"energy", "virials", "dipole", "polarizability"}  # what grows with the number of atoms
    shown = {name: f"{unit}/atom" if name in per_atom else unit for name, unit in UNITS.items()}
    assert {name: row.shown_unit for name, row in PROPERTIES.items()} == shown


@pytest.mark.parametrize(
    ("product", "factors"),
    [
        ("energy", ("dipole", "dipole", "polarizability")),  # E = d^2 / alpha
        ("virials", ("energy",)),
    ],
)
def test_dimensions_agree(product: str, factors: tuple[str, ...]) -> None:
    signs = (1, 1, -1)
    for power in ("energy", "length", "charge"):
        terms = [s * getattr(PROPERTIES[name], power) for s, name in zip(signs, factors, strict=False)]
        assert getattr(PROPERTIES[product], power) == sum(terms)


def test_a_vector_has_as_many_directions_as_it_turns_its_sign_for() -> None:
    """True tensors: inversion multiplies each index by -1."""
    for row in PROPERTIES.values():
        assert set(row.shape) <= {3} and row.parity == (-1) ** len(row.shape), row.name
    assert [len(row.shape) for row in PROPERTIES.values()] == [0, 1, 2, 2, 1, 2, 0]


def test_what_belongs_to_atoms_does_not_grow_with_them() -> None:
    assert {name for name, row in PROPERTIES.items() if row.of_atoms} == {"forces", "charges"}
    assert not any(row.of_atoms and row.extensive for row in PROPERTIES.values())
    assert PREDICTED == ("energy", "forces", "stress", "virials", "dipole")
    assert [name for name, row in PROPERTIES.items() if row.relative] == ["forces", "dipole"]
    assert [name for name, row in PROPERTIES.items() if row.derived] == ["virials"]


def test_names_for_people_and_scripts_differ_from_each_other() -> None:
    for field in ("title", "symbol", "suffix"):
        values = [getattr(row, field) for row in PROPERTIES.values()]
        assert len(np.unique(values)) == len(values), field
