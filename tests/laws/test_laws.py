"""Does each law catch a potential that breaks it by one part in a million, and only then?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mace.testing import laws
from mace.testing.laws import Potential, Result, Structure

SMALL = 1e-6
METHANOL, SILICON, SLAB = range(3)
R_MAX = 4.0

Extra = Callable[[Structure], tuple[float, np.ndarray | float, np.ndarray | float]]
"""What is added to energy, forces and stress."""


@pytest.fixture
def lawful(load_case: Any) -> Potential:
    """A potential that obeys every law."""
    return load_case("repulsion_l3_c2_t2").potential()


def broken(potential: Potential, extra: Extra) -> Potential:
    """Add something to a potential."""

    def evaluate(*arguments: Any) -> Result:
        energy, forces, stress = potential(*arguments)
        more_energy, more_forces, more_stress = extra(Structure(*arguments))
        return energy + more_energy, forces + more_forces, None if stress is None else stress + more_stress

    return evaluate


def preferred_direction(s: Structure) -> Any:
    return SMALL * (s.positions[0, 0] - s.positions[1, 0]) ** 2, 0.0, 0.0


def forces_that_do_not_turn(s: Structure) -> Any:
    return 0.0, np.array([SMALL, 0.0, 0.0]), 0.0


def stress_that_does_not_turn(s: Structure) -> Any:
    return 0.0, 0.0, np.diag([SMALL, 0.0, 0.0])


def handedness(s: Structure) -> Any:
    a, b, c = s.positions[1:4] - s.positions[0]
    return SMALL * np.sign(a @ np.cross(b, c)), 0.0, 0.0


def forces_of_one_hand(s: Structure) -> Any:
    a, b = s.positions[1:3] - s.positions[0]
    axial = np.cross(a, b)
    return 0.0, SMALL * axial / np.linalg.norm(axial), 0.0


def origin(s: Structure) -> Any:
    return SMALL * s.positions[0] @ [1.0, 1.0, 1.0], 0.0, 0.0


def order(s: Structure) -> Any:
    return SMALL * s.atomic_numbers @ np.arange(len(s.atomic_numbers)), 0.0, 0.0


def forces_on_the_first(s: Structure) -> Any:
    forces = np.zeros_like(s.positions)
    forces[0, 2] = SMALL
    return 0.0, forces, 0.0


def sheared(s: Structure) -> Any:
    return 0.0, 0.0, SMALL * np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def antisymmetric(s: Structure) -> Any:
    return 0.0, 0.0, SMALL * np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def long_range(s: Structure) -> Any:
    return SMALL * len(s.atomic_numbers) ** 2, 0.0, 0.0


def size(s: Structure) -> Any:
    return SMALL * np.sqrt(len(s.atomic_numbers)), 0.0, 0.0


def forces_by_size(s: Structure) -> Any:
    return 0.0, SMALL * len(s.atomic_numbers), 0.0


def stress_by_size(s: Structure) -> Any:
    return 0.0, 0.0, SMALL * len(s.atomic_numbers)


BREAKS: list[tuple[Callable[..., None], int, Extra]] = [
    (laws.assert_rotation, METHANOL, preferred_direction),
    (laws.assert_rotation, METHANOL, forces_that_do_not_turn),
    (laws.assert_rotation, SLAB, stress_that_does_not_turn),
    (laws.assert_reflection, METHANOL, handedness),
    (laws.assert_reflection, SILICON, forces_of_one_hand),
    (laws.assert_reflection, SLAB, stress_that_does_not_turn),
    (laws.assert_translation, METHANOL, origin),
    (laws.assert_images, SILICON, origin),
    (laws.assert_permutation, METHANOL, order),
    (laws.assert_permutation, SLAB, forces_on_the_first),
    (laws.assert_forces_are_the_gradient, METHANOL, forces_on_the_first),
    (laws.assert_forces_are_the_gradient, SILICON, preferred_direction),
    (laws.assert_stress_is_the_strain_derivative, SILICON, sheared),
    (laws.assert_stress_is_the_strain_derivative, SLAB, antisymmetric),
    (laws.assert_far_structures_add_up, METHANOL, long_range),
    (laws.assert_far_structures_add_up, SLAB, forces_by_size),
    (laws.assert_supercell, SILICON, size),
    (laws.assert_supercell, SLAB, forces_by_size),
    (laws.assert_supercell, SILICON, stress_by_size),
]


@pytest.mark.parametrize(("law", "which", "extra"), BREAKS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_small_break_is_caught(
    lawful: Potential, structures: list[Structure], law: Callable[..., None], which: int, extra: Extra
) -> None:
    structure = structures[which]
    law(lawful, structure)
    with pytest.raises(AssertionError, match="deviates by"):
        law(broken(lawful, extra), structure)


@pytest.mark.parametrize("extra", [handedness, forces_of_one_hand])
def test_rotation_does_not_notice_handedness(lawful: Potential, structures: list[Structure], extra: Extra) -> None:
    laws.assert_rotation(broken(lawful, extra), structures[METHANOL])


@pytest.mark.parametrize("power", [0, 1, 2])
def test_a_jump_at_the_cutoff_is_caught(lawful: Potential, power: int) -> None:
    """A step of the energy, of the forces and of their derivative."""

    def jump(s: Structure) -> Any:
        separation = s.positions[1] - s.positions[0]
        distance = np.linalg.norm(separation)
        inside = max(R_MAX - distance, 0.0)
        forces = np.zeros((2, 3))
        if power and inside:
            forces[1] = SMALL * power * inside ** (power - 1) * separation / distance
            forces[0] = -forces[1]
        return SMALL * (inside**power if power else inside > 0.0), forces, 0.0

    dimer = Structure(np.array([8, 1]), np.diag([0.0, 1.0, 0.0])[:2], np.zeros((3, 3)), (False, False, False))
    laws.assert_smooth_at_cutoff(lawful, dimer, (0, 1), R_MAX)
    what = ["energy", "forces", "derivative of the forces"][power]
    with pytest.raises(AssertionError, match=f"cutoff: {what} deviates by"):
        laws.assert_smooth_at_cutoff(broken(lawful, jump), dimer, (0, 1), R_MAX)


def test_a_wrong_isolated_atom_is_caught(load_case: Any) -> None:
    case = load_case("vector_l3_c3_t2")
    potential, energy = case.potential(), case.plan.reference_energies[0]
    laws.assert_isolated_atom(potential, 1, energy)
    with pytest.raises(AssertionError, match="energy deviates by 1.0"):
        laws.assert_isolated_atom(potential, 1, energy + SMALL)
    with pytest.raises(AssertionError, match="forces deviates by 1.0"):
        laws.assert_isolated_atom(broken(potential, forces_on_the_first), 1, energy)


def test_a_batch_that_leaks_is_caught(lawful: Potential, structures: list[Structure]) -> None:
    def batch(several: Sequence[Structure], leak: float) -> list[Result]:
        results = [lawful(*structure) for structure in several]
        return [(energy + leak * (len(several) - 1), forces, stress) for energy, forces, stress in results]

    laws.assert_batching(lambda several: batch(several, 0.0), structures)
    with pytest.raises(AssertionError, match="batching, structure 0: energy deviates by"):
        laws.assert_batching(lambda several: batch(several, SMALL), structures)


def test_not_a_number_is_caught(lawful: Potential, structures: list[Structure]) -> None:
    with pytest.raises(AssertionError, match="energy deviates by nan"):
        laws.assert_translation(broken(lawful, lambda s: (float("nan"), 0.0, 0.0)), structures[METHANOL])


def test_a_missing_stress_is_caught(lawful: Potential, structures: list[Structure]) -> None:
    with pytest.raises(AssertionError, match="no stress"):
        laws.assert_stress_is_the_strain_derivative(lawful, structures[METHANOL])


@pytest.mark.parametrize(
    ("law", "which"),
    [(laws.assert_images, METHANOL), (laws.assert_supercell, METHANOL), (laws.assert_far_structures_add_up, SILICON)],
)
def test_a_law_that_does_not_apply_says_so(
    lawful: Potential, structures: list[Structure], law: Callable[..., None], which: int
) -> None:
    with pytest.raises(ValueError):
        law(lawful, structures[which])


@pytest.mark.parametrize("extra", [preferred_direction, origin, order, forces_on_the_first, long_range])
def test_all_laws_catch_each_break(lawful: Potential, structures: list[Structure], extra: Extra) -> None:
    with pytest.raises(AssertionError):
        laws.assert_all_laws(broken(lawful, extra), structures[METHANOL])
