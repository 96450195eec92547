"""Does every kind of model obey physics?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mace.testing import laws
from mace.testing.laws import BatchPotential, Potential, Structure

pytestmark = pytest.mark.usefixtures("kernels")

ALWAYS = (laws.assert_rotation, laws.assert_reflection, laws.assert_translation, laws.assert_permutation)


@pytest.mark.parametrize("law", ALWAYS, ids=lambda law: law.__name__)
def test_symmetries(potential: Potential, structures: list[Structure], law: Callable[..., None]) -> None:
    for structure in structures:
        law(potential, structure)


def test_periodic_images(potential: Potential, structures: list[Structure]) -> None:
    for structure in structures[1:]:
        laws.assert_images(potential, structure)


def test_supercells(potential: Potential, structures: list[Structure]) -> None:
    for structure in structures[1:]:
        laws.assert_supercell(potential, structure)


def test_forces(potential: Potential, structures: list[Structure]) -> None:
    for structure in structures:
        laws.assert_forces_are_the_gradient(potential, structure, directions=1)


def test_stress(potential: Potential, structures: list[Structure]) -> None:
    for structure in structures[1:]:
        laws.assert_stress_is_the_strain_derivative(potential, structure, directions=1)


def test_far_structures(potential: Potential, structures: list[Structure]) -> None:
    for structure in (structures[0], structures[2]):
        laws.assert_far_structures_add_up(potential, structure)


def test_batches(batch_potential: BatchPotential, structures: list[Structure]) -> None:
    # an isolated atom has no neighbors at all: its row of slots is all padding
    atom = Structure(np.array([8]), np.ones((1, 3)), np.zeros((3, 3)), (False, False, False))
    laws.assert_batching(batch_potential, [*structures, atom])


def test_smooth_where_an_atom_leaves(case: Any, potential: Potential) -> None:
    """A hydrogen leaves the range of an oxygen while a carbon stays neighbor of both.

    Where radial weights depend on the atoms and only the radial functions are cut off, the energy jumps, as the
    original's does, which the log of a training says; `cutoff_after_network` is the remedy.
    """
    positions = np.array([[0.0, 0.0, 0.0], [1.1, 0.8, 0.3], [4.0, 0.2, 0.1]])
    structure = Structure(np.array([8, 6, 1]), positions, np.zeros((3, 3)), (False, False, False))
    plan = case.plan
    if plan.is_directed and not plan.cutoff_after_network:
        with pytest.raises(AssertionError, match="cutoff: energy deviates"):
            laws.assert_smooth_at_cutoff(potential, structure, (0, 2), plan.r_max)
        return
    laws.assert_smooth_at_cutoff(potential, structure, (0, 2), plan.r_max)


def test_isolated_atoms(case: Any, potential: Potential) -> None:
    """Models whose first layer adds no residual have exactly the reference energy, the others none in general."""
    for number, energy in zip(case.plan.atomic_numbers, case.plan.reference_energies, strict=True):
        if case.plan.model == "MACE":
            laws.assert_isolated_atom(potential, number, energy)
        else:
            alone = Structure(np.array([number]), np.zeros((1, 3)), np.zeros((3, 3)), (False, False, False))
            laws.assert_isolated_atom(potential, number, potential(*alone)[0])


def test_all_laws_at_once(load_case: Any, structures: list[Structure]) -> None:
    for structure in structures:
        laws.assert_all_laws(load_case("repulsion_l3_c2_t2").potential(), structure)
