"""Do models of dipoles obey physics, and are dipoles that do not caught?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.model.prediction import predict
from mace.structures.configuration import Configuration
from mace.testing import laws
from mace.testing.laws import DipoleMoment, Structure

pytestmark = pytest.mark.usefixtures("kernels")

SMALL = 1e-6
METHANOL, SILICON, SLAB = range(3)


def dipole_of(case: Any, charges: np.ndarray | None) -> DipoleMoment:
    """Make a function of a structure from a stored model, with learned dipoles of the size of one e*Angstrom."""
    model = case.model()
    learned = predict(model, case.dataset().batch([0, 1, 2]).graph).atomic_dipoles
    for readout in model.dipole_readouts:
        readout.weight.data /= learned.abs().max()

    def dipole(numbers: Any, positions: Any, cell: Any, pbc: Any) -> np.ndarray:
        configuration = Configuration(numbers, positions, cell, pbc, charges=charges)
        batch = InMemoryDataset([configuration], ElementTable(model.plan.atomic_numbers), model.plan.r_max).batch([0])
        return predict(model, batch.graph, forces=False).dipole[0].numpy()

    return dipole


@pytest.mark.parametrize("which", [METHANOL, SILICON, SLAB])
def test_dipoles(dipole_case: Any, which: int) -> None:
    structure, charges = dipole_case.structures()[which], dipole_case.configurations[which].charges
    laws.assert_dipole_turns(dipole_of(dipole_case, charges), structure)
    laws.assert_dipole_of_shifted_atoms(dipole_of(dipole_case, charges), structure, charges.sum())
    neutral = dipole_of(dipole_case, charges - charges.mean())
    laws.assert_dipole_turns(neutral, structure)
    laws.assert_dipole_of_shifted_atoms(neutral, structure)
    laws.assert_dipole_of_shifted_atoms(dipole_of(dipole_case, None), structure)


def test_images_matter_only_to_charges(dipole_case: Any) -> None:
    structure, charges = dipole_case.structures()[SILICON], dipole_case.configurations[SILICON].charges
    moved = structure._replace(positions=structure.positions.copy())
    moved.positions[1] += structure.cell[2]
    learned, given = dipole_of(dipole_case, None), dipole_of(dipole_case, charges)
    assert np.abs(learned(*moved) - learned(*structure)).max() < 1e-11
    difference = given(*moved) - given(*structure)
    np.testing.assert_allclose(difference, charges[1] * structure.cell[2], atol=1e-11)


def test_a_supercell_has_as_many_times_the_learned_dipole(dipole_case: Any) -> None:
    silicon, dipole = dipole_case.structures()[SILICON], dipole_of(dipole_case, None)
    doubled = Structure(
        np.tile(silicon.atomic_numbers, 2),
        np.concatenate([silicon.positions, silicon.positions + silicon.cell[1]]),
        silicon.cell * np.array([[1.0], [2.0], [1.0]]),
        silicon.pbc,
    )
    np.testing.assert_allclose(dipole(*doubled), 2.0 * dipole(*silicon), atol=1e-11)


def test_energies_of_models_with_dipoles(load_case: Any) -> None:
    case = load_case("dipoles/energy_vector_l1_c3_t1")
    for structure in case.structures()[METHANOL], case.structures()[SLAB]:
        laws.assert_all_laws(case.potential(), structure)


@pytest.fixture
def lawful(load_case: Any) -> DipoleMoment:
    """A dipole that obeys every law."""
    return dipole_of(load_case("dipoles/energy_vector_l3_c3_t2"), None)


@pytest.fixture
def methanol(load_case: Any) -> Structure:
    return load_case("dipoles/energy_vector_l3_c3_t2").structures()[METHANOL]


def fixed_direction(s: Structure) -> np.ndarray:
    return SMALL * np.array([1.0, 0.0, 0.0])


def axial(s: Structure) -> np.ndarray:
    a, b = s.positions[1:3] - s.positions[0]
    return SMALL * np.cross(a, b)


def charged(s: Structure) -> np.ndarray:
    return SMALL * s.positions[0]


@pytest.mark.parametrize(
    ("law", "extra", "message"),
    [
        (laws.assert_dipole_turns, fixed_direction, "under rotation: dipole deviates"),
        (laws.assert_dipole_turns, axial, "under inversion: dipole deviates"),
        (laws.assert_dipole_of_shifted_atoms, charged, "shifted atoms: dipole deviates"),
    ],
    ids=["fixed_direction", "axial", "charged"],
)
def test_a_small_break_is_caught(lawful: DipoleMoment, methanol: Structure, law: Any, extra: Any, message: str) -> None:
    law(lawful, methanol)
    with pytest.raises(AssertionError, match=message):
        law(lambda *arguments: lawful(*arguments) + extra(Structure(*arguments)), methanol)


def test_a_wrong_charge_is_caught(lawful: DipoleMoment, methanol: Structure) -> None:
    with pytest.raises(AssertionError, match="dipole deviates"):
        laws.assert_dipole_of_shifted_atoms(lawful, methanol, charge=SMALL)


def test_a_model_with_swapped_components_is_caught(load_case: Any) -> None:
    """A vector is x, y, z; the harmonics of another convention would be y, z, x."""
    case = load_case("dipoles/energy_vector_l3_c3_t2")
    dipole = dipole_of(case, None)
    with pytest.raises(AssertionError, match="under rotation"):
        laws.assert_dipole_turns(lambda *arguments: dipole(*arguments)[[1, 2, 0]], case.structures()[METHANOL])
