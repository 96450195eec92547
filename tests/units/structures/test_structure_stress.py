"""Stress and virials are the same information where there is a volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mace.structures.configuration import Configuration
from mace.structures.reading import read_configurations
from mace.structures.stress import cell_volume, convert_stress_virials, disagree, full_tensor, is_asymmetric

STRESS = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
PERIODIC = {"cell": np.diag([2.0, 2.0, -2.0]), "pbc": (True, True, True)}


@pytest.mark.parametrize("values", [np.arange(1.0, 7.0), STRESS.ravel(), STRESS])
def test_all_shapes_mean_the_same(values: np.ndarray) -> None:
    np.testing.assert_array_equal(full_tensor(values), STRESS)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3\]"):
        full_tensor(np.zeros(3))


def test_conversion_and_back(configure: Callable[..., Configuration]) -> None:
    with_virials = convert_stress_virials(configure([1], stress=STRESS, **PERIODIC))
    assert with_virials.virials is not None
    np.testing.assert_allclose(with_virials.virials, -8.0 * STRESS, rtol=1e-14)
    assert with_virials.stress is STRESS
    back = convert_stress_virials(configure([1], virials=with_virials.virials, **PERIODIC))
    assert back.stress is not None
    np.testing.assert_allclose(back.stress, STRESS, rtol=1e-14)


def test_derived_label_inherits_the_weight(configure: Callable[..., Configuration]) -> None:
    weights = {"stress": 0.5, "energy": 2.0}
    converted = convert_stress_virials(configure([1], stress=STRESS, property_weights=weights, **PERIODIC))
    assert converted.property_weights == {"stress": 0.5, "energy": 2.0, "virials": 0.5}
    assert weights == {"stress": 0.5, "energy": 2.0}
    own = convert_stress_virials(
        configure([1], virials=STRESS, property_weights={"stress": 3.0, "virials": 0.0}, **PERIODIC)
    )
    assert own.property_weights == {"stress": 3.0, "virials": 0.0}


def test_slab_and_both_and_neither_stay_as_they_are(configure: Callable[..., Configuration]) -> None:
    for configuration in (
        configure([1], stress=STRESS, cell=PERIODIC["cell"], pbc=(True, True, False)),
        configure([1], stress=STRESS, virials=STRESS, **PERIODIC),
        configure([1], **PERIODIC),
        configure([1], virials=STRESS),
    ):
        assert convert_stress_virials(configuration) is configuration


def test_volume_is_positive_and_needs_three_directions(configure: Callable[..., Configuration]) -> None:
    assert cell_volume(configure([1], **PERIODIC)) == pytest.approx(8.0)
    assert cell_volume(configure([1], cell=PERIODIC["cell"], pbc=(True, False, True))) is None


def test_contradiction_is_seen() -> None:
    virials = np.stack([-8.0 * STRESS, 8.0 * STRESS, np.full((3, 3), np.nan), 8.0 * STRESS])
    volumes = np.array([8.0, 8.0, 8.0, np.nan])
    assert disagree(np.stack([STRESS] * 4), virials, volumes).tolist() == [False, True, False, False]


def test_asymmetry_is_seen() -> None:
    assert is_asymmetric(STRESS + np.triu(np.ones((3, 3)), 1))
    assert not is_asymmetric(STRESS)
    assert not is_asymmetric(None)


def test_virials_are_minus_the_strain_derivative(tmp_path: Path) -> None:
    """Against finite differences of a potential that ASE brings along."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * np.tri(3)), scale_atoms=True)
    energy_of: Callable[[np.ndarray], float] = lambda strain: _strained_energy(atoms, strain)  # noqa: E731
    atoms.calc = EMT()
    stress = atoms.get_stress()
    file = str(tmp_path / "copper.xyz")
    labeled = atoms.copy()
    labeled.calc = SinglePointCalculator(labeled, stress=stress)
    write(file, labeled)
    (configuration,) = read_configurations(file).configurations
    assert configuration.virials is not None
    for i, j in ((0, 0), (1, 1), (0, 1), (1, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5e-4
        strain[j, i] += 0.5e-4
        derivative = (energy_of(strain) - energy_of(-strain)) / 2e-4
        assert configuration.virials[i, j] == pytest.approx(-derivative, abs=1e-4)


def _strained_energy(atoms: object, strain: np.ndarray) -> float:
    strained = atoms.copy()  # type: ignore[attr-defined]
    strained.set_cell(strained.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    strained.calc = EMT()
    return float(strained.get_potential_energy())
