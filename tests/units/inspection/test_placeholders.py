"""Are labels that stand for missing ones told from labels that are the same for a reason?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from labeled_crystals import changed, constant, crystals, strained
from scipy.spatial.transform import Rotation
from training_runs import labeled, water

from mace.inspection.inspection import DataReport


def perfect(count: int) -> list[Atoms]:
    """Strained crystals in which symmetry forbids forces."""
    frames = strained(count)
    for atoms in frames:
        atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
    return frames


def rotated(frames: list[Atoms]) -> list[Atoms]:
    """Copies that differ by a rotation and the order of atoms only."""
    copies = []
    for place, rotation in enumerate(Rotation.random(8, rng=0)):
        atoms = frames[0][np.roll(np.arange(len(frames[0])), place)]
        atoms.info = dict(frames[0].info)
        atoms.positions = rotation.apply(atoms.positions)
        atoms.arrays["REF_forces"] = rotation.apply(atoms.arrays["REF_forces"])
        copies.append(atoms)
    return copies


def symmetric_molecules() -> list[Atoms]:
    """Molecules without a dipole, of several sizes."""
    frames = []
    for name in ("CO2", "CH4", "C6H6", "C2H4", "N2"):
        for size in (0.98, 1.0, 1.02):
            atoms = molecule(name)
            atoms.positions *= size
            frames.append(atoms)
    for place, atoms in enumerate(frames):
        atoms.info |= {"REF_energy": -1.0 - 0.01 * place, "REF_dipole": np.zeros(3)}
        atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
        atoms.arrays["REF_forces"][[0, -1], 2] = [0.1, -0.1]
    return frames


@pytest.mark.parametrize(
    "frames",
    [
        lambda: perfect(24),
        lambda: [labeled(bulk("Cu", a=3.5 + 0.02 * step), stress=True) for step in range(20)],
        lambda: rotated(water(1)),
        lambda: constant(constant(water(6), "REF_dipole", np.zeros(3)), "config_dipole_weight", 0.0),
        symmetric_molecules,
        lambda: [labeled(Atoms("Cu2", positions=[[0, 0, 0], [20.0 + i, 0, 0]])) for i in range(6)],
        lambda: [*crystals(20), *constant(crystals(4, 9), "REF_energy", -0.01)],
    ],
)
def test_labels_that_are_right_are_no_placeholders(
    inspect: Callable[..., DataReport], frames: Callable[[], list[Atoms]]
) -> None:
    found = {finding.name for finding in inspect(frames(), r_max=3.0, labels=["energy"]).findings}
    assert not {"placeholder-labels", "net-forces", "zero-energies"} & found


def test_a_placeholder_is_described(inspect: Callable[..., DataReport]) -> None:
    frames = [*crystals(20), *changed(crystals(4, seed=9), forces=0.0)]
    (finding,) = (item for item in inspect(frames, r_max=3.0).findings if item.name == "placeholder-labels")
    assert finding.structures == (20, 21, 22, 23)
    assert "structures 20, 21, 22, 23 (4 of 24) have labels 'forces' that are exactly zero; leave" in finding.sentence
