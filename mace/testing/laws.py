"""Physical laws as assertions that any potential can be handed to.

A potential is any callable ``(atomic_numbers, positions, cell, pbc) -> (energy, forces, stress)`` that computes in
float64; the stress is ``None`` where it has no meaning. Every law raises an `AssertionError` that gives the deviation
it measured. Tolerances count in units of the largest magnitude compared, or of one where that is smaller; the defaults
are as tight as float64 allows.

>>> import numpy as np
>>> def free(atomic_numbers, positions, cell, pbc):
...     return 0.0, np.zeros_like(positions), None
>>> water = Structure(np.array([8, 1, 1]), np.eye(3), np.zeros((3, 3)), (False, False, False))
>>> assert_forces_are_the_gradient(free, water)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Result = tuple[float, np.ndarray, np.ndarray | None]
"""Energy in eV, forces in eV/Angstrom ``[atoms, 3]``, stress in eV/Angstrom^3 ``[3, 3]`` or None."""

Potential = Callable[[np.ndarray, np.ndarray, np.ndarray, tuple[bool, bool, bool]], Result]
"""What the laws are about: from atomic numbers, positions, cell and periodic directions to a `Result`."""

EXACT = 1e-11
"""Default tolerance of laws that hold to rounding."""

DIFFERENCED = 1e-7
"""Default tolerance of laws that are checked by finite differences."""

_STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
"""Central first derivative of sixth order: steps and their coefficients."""


class Structure(NamedTuple):
    """The arguments of a potential.

    Attributes:
        atomic_numbers: ``[atoms]``.
        positions: Angstrom, ``[atoms, 3]``.
        cell: Rows are lattice vectors in Angstrom, ``[3, 3]``.
        pbc: Which directions repeat.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]


DipoleMoment = Callable[[np.ndarray, np.ndarray, np.ndarray, tuple[bool, bool, bool]], np.ndarray]
"""From the arguments of a potential to a dipole in e*Angstrom ``[3]``."""

BatchPotential = Callable[[Sequence[Structure]], Sequence[Result]]
"""A potential that evaluates several structures at once."""


def assert_rotation(potential: Potential, structure: Structure, tolerance: float = EXACT, seed: int = 0) -> None:
    """Assert that energy, forces and stress turn with the structure.

    Args:
        potential: The potential.
        structure: Any structure; its cell turns with the atoms.
        tolerance: Largest deviation allowed.
        seed: Chooses the rotation.

    Raises:
        AssertionError: If they do not.
    """
    _assert_orthogonal("rotation", potential, structure, _random_rotation(seed), tolerance)


def assert_reflection(potential: Potential, structure: Structure, tolerance: float = EXACT, seed: int = 0) -> None:
    """Assert that energy, forces and stress of the mirror image are the mirror image of theirs.

    Args:
        potential: The potential.
        structure: Any structure.
        tolerance: Largest deviation allowed.
        seed: Chooses the mirror.

    Raises:
        AssertionError: If they are not.
    """
    normal = _random_rotation(seed)[0]
    _assert_orthogonal("reflection", potential, structure, np.eye(3) - 2.0 * np.outer(normal, normal), tolerance)


def assert_translation(potential: Potential, structure: Structure, tolerance: float = EXACT, seed: int = 0) -> None:
    """Assert that moving all atoms by the same vector changes nothing.

    Args:
        potential: The potential.
        structure: Any structure.
        tolerance: Largest deviation allowed.
        seed: Chooses the vector, of several Angstrom.

    Raises:
        AssertionError: If energy, forces or stress change.
    """
    shift = 5.0 * _random_rotation(seed)[1]
    moved = structure._replace(positions=structure.positions + shift)
    _compare("translation", potential(*moved), potential(*structure), tolerance)


def assert_images(potential: Potential, structure: Structure, tolerance: float = EXACT, seed: int = 0) -> None:
    """Assert that it does not matter which periodic image of an atom is given.

    Args:
        potential: The potential.
        structure: A structure with a periodic direction.
        tolerance: Largest deviation allowed.
        seed: Chooses the images.

    Raises:
        AssertionError: If energy, forces or stress change.
        ValueError: If no direction repeats.
    """
    _require(any(structure.pbc), "images of atoms exist only where a direction repeats")
    rng = np.random.default_rng(seed)
    shifts = rng.integers(-3, 4, size=structure.positions.shape) * np.array(structure.pbc)
    moved = structure._replace(positions=structure.positions + shifts @ structure.cell)
    _compare("periodic images", potential(*moved), potential(*structure), tolerance)


def assert_permutation(potential: Potential, structure: Structure, tolerance: float = EXACT, seed: int = 0) -> None:
    """Assert that the order of the atoms does not matter, and that forces follow their atoms.

    Args:
        potential: The potential.
        structure: Any structure.
        tolerance: Largest deviation allowed.
        seed: Chooses the order.

    Raises:
        AssertionError: If it matters.
    """
    # never the order given, whatever the seed
    order = np.roll(np.random.default_rng(seed).permutation(len(structure.atomic_numbers)), 1)
    if np.array_equal(order, np.arange(len(order))):
        order = order[::-1]
    energy, forces, stress = potential(*structure)
    shuffled = structure._replace(atomic_numbers=structure.atomic_numbers[order], positions=structure.positions[order])
    _compare("permutation", potential(*shuffled), (energy, forces[order], stress), tolerance)


def assert_forces_are_the_gradient(
    potential: Potential,
    structure: Structure,
    tolerance: float = DIFFERENCED,
    step: float = 3e-4,
    directions: int = 3,
    seed: int = 0,
) -> None:
    """Assert that the forces are minus the derivative of the energy.

    Every coordinate moves at once, each by plus or minus the step; a wrong component shows in full.

    Args:
        potential: The potential.
        structure: Any structure.
        tolerance: Largest deviation allowed, for the sum over coordinates.
        step: Displacement in Angstrom of the sixth-order difference.
        directions: How many choices of signs are tried.
        seed: Chooses the signs.

    Raises:
        AssertionError: If they are not.
    """
    _, forces, _ = potential(*structure)
    rng = np.random.default_rng(seed)
    for _ in range(directions):
        signs = rng.choice([-1.0, 1.0], size=forces.shape)

        def energy(amount: float, signs: np.ndarray = signs) -> float:
            return potential(*structure._replace(positions=structure.positions + amount * signs))[0]

        expected = -_derivative(energy, step)
        _check("forces as gradient", "force along the displacement", (forces * signs).sum(), expected, tolerance)


def assert_stress_is_the_strain_derivative(
    potential: Potential,
    structure: Structure,
    tolerance: float = DIFFERENCED,
    step: float = 1e-4,
    directions: int = 3,
    seed: int = 0,
) -> None:
    """Assert that the stress is the derivative of the energy by strain divided by the volume of the cell.

    Args:
        potential: The potential.
        structure: A structure with a volume; atoms and cell are strained together.
        tolerance: Largest deviation allowed.
        step: Strain of the sixth-order difference.
        directions: How many symmetric strains are tried.
        seed: Chooses the strains.

    Raises:
        AssertionError: If it is not, or is not symmetric, or missing.
    """
    _, _, stress = potential(*structure)
    assert stress is not None, "stress as strain derivative: the potential returned no stress"
    _check("stress as strain derivative", "antisymmetric part", stress, stress.T, tolerance)
    volume = abs(np.linalg.det(structure.cell))
    rng = np.random.default_rng(seed)
    for _ in range(directions):
        upper = np.triu(rng.choice([-1.0, 1.0], size=(3, 3)))
        direction = upper + np.triu(upper, 1).T

        def energy(amount: float, direction: np.ndarray = direction) -> float:
            return potential(*_deformed(structure, np.eye(3) + amount * direction))[0]

        expected = _derivative(energy, step) / volume
        _check(
            "stress as strain derivative", "stress along the strain", (stress * direction).sum(), expected, tolerance
        )


def assert_far_structures_add_up(
    potential: Potential, structure: Structure, tolerance: float = EXACT, distance: float = 60.0
) -> None:
    """Assert that two copies far apart have twice the energy and the same forces.

    Args:
        potential: The potential.
        structure: A structure with a direction that does not repeat; the copy is moved along it.
        tolerance: Largest deviation allowed.
        distance: How far in Angstrom, more than the structure's extent plus twice the range of the potential.

    Raises:
        AssertionError: If they interact.
        ValueError: If every direction repeats.
    """
    _require(not all(structure.pbc), "a structure that repeats in every direction leaves no room for a copy")
    repeating = structure.cell[np.array(structure.pbc)].reshape(-1, 3)
    away = np.linalg.svd(repeating, full_matrices=True)[2][-1] if len(repeating) else np.array([0.6, 0.0, 0.8])
    energy, forces, _ = potential(*structure)
    both = structure._replace(
        atomic_numbers=np.tile(structure.atomic_numbers, 2),
        positions=np.concatenate([structure.positions, structure.positions + distance * away]),
    )
    found = potential(*both)
    _compare("far structures", (found[0], found[1], None), (2.0 * energy, np.tile(forces, (2, 1)), None), tolerance)


def assert_smooth_at_cutoff(
    potential: Potential,
    structure: Structure,
    pair: tuple[int, int],
    r_max: float,
    tolerance: float = DIFFERENCED,
    step: float = 5e-4,
) -> None:
    """Assert that energy, forces and their derivative have no jump where one atom leaves the range of another.

    Args:
        potential: The potential.
        structure: A structure in which no other distance passes the cutoff when the second atom of the pair does.
        pair: The atom that stays and the one that is moved along their connection.
        r_max: Cutoff in Angstrom.
        tolerance: Largest jump allowed.
        step: Distance in Angstrom of the points from which either side is extrapolated to the cutoff.

    Raises:
        AssertionError: If there is a jump.
    """
    center = structure.positions[pair[0]]
    away = structure.positions[pair[1]] - center
    away /= np.linalg.norm(away)

    def at(distance: float) -> np.ndarray:
        positions = structure.positions.copy()
        positions[pair[1]] = center + distance * away
        energy, forces, _ = potential(*structure._replace(positions=positions))
        return np.concatenate([[energy], forces.reshape(-1)])

    points = np.arange(1, 7)
    inside, outside = (np.stack([at(r_max + sign * step * k) for k in points]) for sign in (-1, 1))
    # a step of the energy is judged against one, not against the energy of all electrons
    inside[:, 0] -= outside[0, 0]
    outside[:, 0] -= outside[0, 0]
    # rows: coefficients that extrapolate the value and the first derivative to distance zero
    extrapolate = np.linalg.inv(np.vander(points, increasing=True).astype(float))[:2]
    (below, slope_below), (above, slope_above) = extrapolate @ inside, extrapolate @ outside
    _check("smooth at the cutoff", "energy", below[0], above[0], tolerance)
    _check("smooth at the cutoff", "forces", below[1:], above[1:], tolerance)
    slopes = -slope_below[1:] / step, slope_above[1:] / step
    _check("smooth at the cutoff", "derivative of the forces", *slopes, tolerance)


def assert_isolated_atom(
    potential: Potential, atomic_number: int, reference_energy: float, tolerance: float = EXACT
) -> None:
    """Assert that an atom alone has its reference energy and feels no force.

    Args:
        potential: The potential.
        atomic_number: The element.
        reference_energy: eV.
        tolerance: Largest deviation allowed.

    Raises:
        AssertionError: If not.
    """
    atom = Structure(np.array([atomic_number]), np.zeros((1, 3)), np.zeros((3, 3)), (False, False, False))
    energy, forces, _ = potential(*atom)
    _compare("isolated atom", (energy, forces, None), (reference_energy, np.zeros((1, 3)), None), tolerance)


def assert_supercell(
    potential: Potential, structure: Structure, repeats: tuple[int, int, int] = (2, 1, 3), tolerance: float = EXACT
) -> None:
    """Assert that a supercell has as many times the energy, the same forces and the same stress.

    Args:
        potential: The potential.
        structure: A structure with a periodic direction.
        repeats: How often each lattice vector is repeated; directions that do not repeat stay single.
        tolerance: Largest deviation allowed.

    Raises:
        AssertionError: If not.
        ValueError: If nothing is repeated.
    """
    counts = [n if periodic else 1 for n, periodic in zip(repeats, structure.pbc, strict=True)]
    n_cells = int(np.prod(counts))
    _require(n_cells > 1, "a supercell needs a periodic direction that is repeated")
    offsets = np.array(list(np.ndindex(*counts))) @ structure.cell
    supercell = structure._replace(
        atomic_numbers=np.tile(structure.atomic_numbers, n_cells),
        positions=(offsets[:, None, :] + structure.positions).reshape(-1, 3),
        cell=structure.cell * np.array(counts)[:, None],
    )
    energy, forces, stress = potential(*structure)
    _compare("supercell", potential(*supercell), (n_cells * energy, np.tile(forces, (n_cells, 1)), stress), tolerance)


def assert_batching(potential: BatchPotential, structures: Sequence[Structure], tolerance: float = EXACT) -> None:
    """Assert that what is evaluated beside a structure, and in which order, does not change its result.

    Args:
        potential: The potential, for several structures at once.
        structures: At least two structures.
        tolerance: Largest deviation allowed.

    Raises:
        AssertionError: If it does.
        ValueError: If there are fewer than two.
    """
    _require(len(structures) > 1, "a batch of one structure says nothing")
    alone = [potential([structure])[0] for structure in structures]
    for order in (range(len(structures)), range(len(structures) - 1, -1, -1)):
        together = potential([structures[i] for i in order])
        for place, i in enumerate(order):
            _compare(f"batching, structure {i}", together[place], alone[i], tolerance)


def assert_dipole_turns(dipole: DipoleMoment, structure: Structure, tolerance: float = EXACT, seed: int = 0) -> None:
    """Assert that a dipole turns with the structure and is odd under inversion.

    Args:
        dipole: The dipole.
        structure: Any structure; its cell turns with the atoms.
        tolerance: Largest deviation allowed.
        seed: Chooses the rotation.

    Raises:
        AssertionError: If it does not or is not.
    """
    for law, matrix in (("dipole under rotation", _random_rotation(seed)), ("dipole under inversion", -np.eye(3))):
        _check(law, "dipole", dipole(*_deformed(structure, matrix)), dipole(*structure) @ matrix.T, tolerance)


def assert_dipole_of_shifted_atoms(
    dipole: DipoleMoment, structure: Structure, charge: float = 0.0, tolerance: float = EXACT, seed: int = 0
) -> None:
    """Assert that moving all atoms by a vector adds the total charge times the vector, nothing to what is neutral.

    Args:
        dipole: The dipole.
        structure: Any structure.
        charge: Total charge in elementary charges.
        tolerance: Largest deviation allowed.
        seed: Chooses the vector, of several Angstrom.

    Raises:
        AssertionError: If something else is added.
    """
    shift = 5.0 * _random_rotation(seed)[1]
    found = dipole(*structure._replace(positions=structure.positions + shift))
    _check("dipole of shifted atoms", "dipole", found, dipole(*structure) + charge * shift, tolerance)


def assert_all_laws(potential: Potential, structure: Structure) -> None:
    """Assert every law that applies to one structure, with default tolerances.

    Laws that need more than a structure are left out: the isolated atom, the cutoff, batching.

    Args:
        potential: The potential.
        structure: Any structure.

    Raises:
        AssertionError: If one of them is broken.
    """
    for law in (assert_rotation, assert_reflection, assert_translation, assert_permutation):
        law(potential, structure)
    assert_forces_are_the_gradient(potential, structure)
    if any(structure.pbc):
        assert_images(potential, structure)
        assert_supercell(potential, structure, (2, 2, 2))
    if not all(structure.pbc):
        assert_far_structures_add_up(potential, structure)
    if potential(*structure)[2] is not None:
        assert_stress_is_the_strain_derivative(potential, structure)


def _assert_orthogonal(
    law: str, potential: Potential, structure: Structure, matrix: np.ndarray, tolerance: float
) -> None:
    energy, forces, stress = potential(*structure)
    expected = (energy, forces @ matrix.T, None if stress is None else matrix @ stress @ matrix.T)
    _compare(law, potential(*_deformed(structure, matrix)), expected, tolerance)


def _deformed(structure: Structure, matrix: np.ndarray) -> Structure:
    """Apply a linear map to atoms and cell."""
    return structure._replace(positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T)


def _random_rotation(seed: int) -> np.ndarray:
    """Draw a rotation far from the identity or not, ``[3, 3]``."""
    matrix, triangle = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(triangle))
    return matrix * np.linalg.det(matrix)


def _derivative(function: Callable[[float], float], step: float) -> float:
    """Differentiate at zero by a central difference of sixth order."""
    return sum(c * (function(k * step) - function(-k * step)) for k, c in _STENCIL) / step


def _compare(law: str, found: Result, expected: Result, tolerance: float) -> None:
    """Compare two results; a stress may be missing from both, not from one."""
    _check(law, "energy", found[0], expected[0], tolerance)
    _check(law, "forces", found[1], expected[1], tolerance)
    if found[2] is None or expected[2] is None:
        assert found[2] is expected[2], f"{law}: the stress is missing from one of two results"
        return
    _check(law, "stress", found[2], expected[2], tolerance)


def _check(law: str, what: str, found: np.ndarray | float, expected: np.ndarray | float, tolerance: float) -> None:
    assert np.shape(found) == np.shape(expected), f"{law}: {what} has shape {np.shape(found)}, not {np.shape(expected)}"
    deviation = float(np.max(np.abs(np.subtract(found, expected)), initial=0.0))
    allowed = tolerance * max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    # written so that NaN fails
    assert deviation <= allowed, f"{law}: {what} deviates by {deviation:.3e}, allowed is {allowed:.1e}"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
