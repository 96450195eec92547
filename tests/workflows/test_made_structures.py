"""Are the structures that benchmarks make what they say: exact labels of one potential, the same from the same seed?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from benchmarks.make_structures import (
    BLOCK,
    CUTOFF,
    ELEMENTS,
    STEEPNESS,
    Structure,
    draw_block,
    label,
    write_structures,
)

STRUCTURES = draw_block(3, 0, 60)
MOLECULE = next(each for each in STRUCTURES if each.cell is None)
SMALL_CELL = next(each for each in STRUCTURES if each.cell is not None and np.diag(each.cell).min() < CUTOFF / 2)
"""An atom of it meets several of its own images."""

EITHER = pytest.mark.parametrize("structure", [MOLECULE, SMALL_CELL], ids=["molecule", "cell"])
STEP = 1e-4


def energy(structure: Structure) -> float:
    return float(label([structure]).energies[0])


def image_by_image(structure: Structure) -> float:
    """Add up the potential over all pairs within the cutoff, slowly."""
    numbers, images = structure.numbers, [np.zeros(3)]
    if structure.cell is not None:
        images = [shift @ structure.cell for shift in np.indices((7, 7, 7)).reshape(3, -1).T - 3]
    total = sum(ELEMENTS[number][1] for number in numbers)
    for i, one in enumerate(numbers):
        for j, other in enumerate(numbers):
            for shift in images:
                r = float(np.linalg.norm(structure.positions[j] + shift - structure.positions[i]))
                if 0.0 < r < CUTOFF:
                    (_, _, radius, depth), (_, _, its_radius, its_depth) = ELEMENTS[one], ELEMENTS[other]
                    decay = np.exp(-STEEPNESS * (r - radius - its_radius))
                    morse = np.sqrt(depth * its_depth) * ((1.0 - decay) ** 2 - 1.0)
                    total += 0.5 * morse * (1.0 - (r / CUTOFF) ** 2) ** 3
    return total


@EITHER
def test_energies_add_up_pairs(structure: Structure) -> None:
    assert energy(structure) == pytest.approx(image_by_image(structure), abs=1e-8)


@EITHER
def test_forces_are_derivatives(structure: Structure) -> None:
    forces = label([structure]).forces
    assert np.abs(forces).max() > 0.1
    for atom, axis in np.ndindex(*forces.shape):
        moves = np.zeros_like(forces)
        moves[atom, axis] = STEP
        ahead, behind = (energy(replace(structure, positions=structure.positions + sign * moves)) for sign in (1, -1))
        assert forces[atom, axis] == pytest.approx((behind - ahead) / (2 * STEP), abs=2e-6)


@EITHER
def test_virials_are_derivatives(structure: Structure) -> None:
    (virial,) = label([structure]).virials
    assert np.abs(virial).max() > 0.1
    for row, column in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += sign * STEP
            cell = None if structure.cell is None else structure.cell @ strain
            energies.append(energy(Structure(structure.numbers, structure.positions @ strain, cell)))
        assert virial[row, column] == pytest.approx((energies[0] - energies[1]) / (2 * STEP), abs=1e-5)


def test_labels_of_many_are_those_of_each() -> None:
    together, apart = label(STRUCTURES), [label([structure]) for structure in STRUCTURES]
    assert np.allclose(together.energies, [each.energies[0] for each in apart], rtol=0, atol=1e-9)
    assert np.allclose(together.forces, np.concatenate([each.forces for each in apart]), rtol=0, atol=1e-12)
    assert np.allclose(together.virials, np.concatenate([each.virials for each in apart]), rtol=0, atol=1e-12)


def test_files_have_the_labels(tmp_path: Path) -> None:
    (file,) = write_structures(tmp_path, len(STRUCTURES), seed=3)
    labels, start = label(STRUCTURES), 0
    for place, (structure, atoms) in enumerate(zip(STRUCTURES, read(file, ":"), strict=True)):
        end = start + len(structure.numbers)
        assert (atoms.numbers == structure.numbers).all() and (atoms.positions == structure.positions).all()
        assert atoms.info["REF_energy"] == pytest.approx(labels.energies[place], abs=1e-9)
        assert np.allclose(atoms.arrays["REF_forces"], labels.forces[start:end], rtol=0, atol=1e-8)
        assert ("REF_stress" in atoms.info) == (structure.cell is not None) == bool(atoms.pbc.all())
        if structure.cell is not None:
            assert (atoms.cell.array == structure.cell).all()
            stress = np.reshape(atoms.info["REF_stress"], (3, 3))
            assert np.allclose(stress * atoms.get_volume(), labels.virials[place], rtol=0, atol=1e-6)
        start = end


def test_a_set_is_the_same_however_it_is_made(tmp_path: Path) -> None:
    count = BLOCK + 50
    (whole,) = write_structures(tmp_path / "whole", count, seed=1)
    halves = write_structures(tmp_path / "halves", count, files=2, seed=1, processes=2)
    assert len(halves) == 2
    assert "".join(file.read_text() for file in halves) == whole.read_text()
    (fewer,) = write_structures(tmp_path / "fewer", 50, seed=1)
    assert whole.read_text().startswith(fewer.read_text())
    (other,) = write_structures(tmp_path / "other", 50, seed=2)
    assert fewer.read_text() != other.read_text()


def test_sizes_are_as_promised() -> None:
    sizes = [len(structure.numbers) for block in range(4) for structure in draw_block(0, block)]
    assert min(sizes) == 3 and max(sizes) == 60
    assert np.mean(sizes) == pytest.approx(12.0, abs=0.5)
