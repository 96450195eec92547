"""Are the numbers about data those that brute force gives?"""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from training_runs import copper, isolated_atoms, labeled, water

from mace.quickstart.facts import CUTOFFS, gather_facts, look_at_machine
from mace.structures.reading import read_configurations


def facts_of(folder, frames):
    write(folder / "x.xyz", frames, format="extxyz")
    return gather_facts(read_configurations(str(folder / "x.xyz")))


def test_molecules(tmp_path):
    facts = facts_of(tmp_path, isolated_atoms() + water(6, config_type="gas"))
    assert (facts.structures, facts.mean_atoms, facts.largest, facts.elements) == (6, 3.0, 3, (1, 8))
    assert (facts.isolated, facts.periodic, facts.types) == ((1, 8), 0, 1)
    assert facts.labeled["energy"] == facts.labeled["forces"] == 6 and facts.labeled["stress"] == 0
    assert not facts.determines_energies  # all have the same composition
    assert facts.neighbors[4.0].mean == 2.0 and facts.neighbors[4.0].alone == 0.0
    assert facts.rms_stress is None
    assert "6 structures of 3 atoms" in facts.line() and "elements H O" in facts.line()


def test_neighbors_of_a_crystal_are_counted_with_images(tmp_path):
    atoms = labeled(bulk("Cu", cubic=True), stress=True)
    facts = facts_of(tmp_path, [atoms])
    cell, positions = atoms.cell.array, atoms.positions
    shifts = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3) @ cell
    distances = np.linalg.norm(positions[:, None, None] - positions[None, :, None] - shifts, axis=-1)
    for cutoff in CUTOFFS:
        expected = ((distances > 1e-9) & (distances <= cutoff)).sum() / len(positions)
        assert facts.neighbors[cutoff].mean == pytest.approx(expected)


def test_sizes_of_labels(tmp_path):
    frames = copper(3)
    facts = facts_of(tmp_path, frames)
    forces = np.concatenate([atoms.arrays["REF_forces"].ravel() for atoms in frames])
    stress = np.concatenate([atoms.info["REF_stress"] for atoms in frames])
    assert facts.rms_forces == pytest.approx(np.sqrt(np.mean(forces**2)), rel=1e-6)
    assert facts.rms_stress == pytest.approx(np.sqrt(np.mean(stress**2)), rel=1e-6)
    assert facts.determines_energies and facts.isolated == () and facts.periodic == 3


def test_lone_atoms_are_counted(tmp_path):
    frames = water(2)
    for atoms in frames:
        atoms.positions[0] += 50.0
    assert facts_of(tmp_path, frames).neighbors[6.0].alone == pytest.approx(1 / 3)


def test_the_machine_is_as_given():
    machine = look_at_machine("cpu", 3)
    assert machine.is_cpu and machine.threads == 3 and (machine.memory or 1) > 0
    assert not look_at_machine("cuda:1", None).is_cpu
