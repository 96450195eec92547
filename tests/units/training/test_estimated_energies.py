"""Do estimated reference energies take up what another level of theory adds to the energies of a foundation model?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import original_files as files
import pytest
from ase.build import molecule

from mace.calculators import MACECalculator
from mace.elements import ElementTable
from mace.errors import UserError
from mace.finetuning.estimated_energies import estimate_energies
from mace.finetuning.foundation import Foundation
from mace.structures.configuration import Configuration

FOUNDATION = Foundation("the foundation", files.model())
SHIFTS = {1: 0.7, 6: -3.1, 8: 12.5}
"""What the labels add to each atom, eV."""


def labeled(names: str, noise: float = 0.0) -> list[Configuration]:
    """Molecules with the energies of the foundation model, shifted by element."""
    calculator, rng = MACECalculator(models=FOUNDATION.model), np.random.default_rng(0)
    found = []
    for name in names.split():
        atoms = molecule(name)
        atoms.calc = calculator
        energy = atoms.get_potential_energy() + sum(SHIFTS[z] for z in atoms.numbers) + rng.normal(0.0, noise)
        found.append(Configuration(atoms.numbers, atoms.positions, np.zeros((3, 3)), (False,) * 3, energy=energy))
    return found


def test_a_shift_of_each_element_is_found() -> None:
    elements = ElementTable((1, 6, 8))
    energies, notes = estimate_energies(FOUNDATION, labeled("H2O CH4 CO2 CH3OH CO"), elements, batch_size=2)
    expected = {z: FOUNDATION.energies[z] + shift for z, shift in SHIFTS.items()}
    assert energies == pytest.approx(expected, abs=1e-8)
    assert notes == []


def test_it_is_the_fit_that_misses_least() -> None:
    """Compared with the normal equations of the same problem."""
    data, elements = labeled("H2O CH4 CO2 CH3OH CO CH3CHO", noise=0.3), ElementTable((1, 6, 8))
    energies, _ = estimate_energies(FOUNDATION, data, elements, batch_size=4)
    exact = labeled("H2O CH4 CO2 CH3OH CO CH3CHO")
    counts = np.array([[np.sum(c.atomic_numbers == z) for z in elements] for c in data], dtype=float)
    left = np.array([noisy.energy - clean.energy for noisy, clean in zip(data, exact, strict=True)])  # type: ignore[operator]
    corrections = np.linalg.solve(counts.T @ counts, counts.T @ left)
    expected = [FOUNDATION.energies[z] + SHIFTS[z] + c for z, c in zip(elements, corrections, strict=True)]
    np.testing.assert_allclose(list(energies.values()), expected, atol=1e-8)


def test_one_composition_changes_as_little_as_possible() -> None:
    energies, notes = estimate_energies(FOUNDATION, labeled("H2O H2O"), ElementTable((1, 8)), batch_size=5)
    change = {z: energies[z] - FOUNDATION.energies[z] for z in energies}
    assert 2 * change[1] + change[8] == pytest.approx(2 * SHIFTS[1] + SHIFTS[8], abs=1e-8)
    assert change[1] == pytest.approx(2 * change[8], abs=1e-8), "the smallest change"
    assert "--E0s estimated: the compositions of the 2 structures" in notes[0]


def test_structures_without_weight_do_not_count() -> None:
    data = labeled("H2O CH4 CO2 CH3OH CO")
    data.append(replace(data[0], energy=1e6, weight=0.0))
    data.append(replace(data[0], energy=None))
    energies, _ = estimate_energies(FOUNDATION, data, ElementTable((1, 6, 8)), batch_size=3)
    assert energies[8] == pytest.approx(FOUNDATION.energies[8] + SHIFTS[8], abs=1e-8)
    with pytest.raises(UserError, match="--E0s estimated needs structures with an energy"):
        estimate_energies(FOUNDATION, data[-1:], ElementTable((1, 8)), batch_size=3)


def test_known_energies_stay_and_the_others_are_corrected() -> None:
    """With hydrogen known, water alone determines oxygen."""
    elements, known = ElementTable((1, 8)), {1: FOUNDATION.energies[1] + SHIFTS[1] + 1.0}
    energies, warnings = estimate_energies(FOUNDATION, labeled("H2O H2O"), elements, batch_size=2, known=known)
    assert energies == pytest.approx({**known, 8: FOUNDATION.energies[8] + SHIFTS[8] - 2.0}, abs=1e-8)
    assert warnings == []
    with pytest.raises(UserError, match="--E0s=estimated: the foundation model has no energy of Pu"):
        estimate_energies(FOUNDATION, [], ElementTable((1, 94)), batch_size=2)
