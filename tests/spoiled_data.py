"""Data sets, each with a problem of one kind, and clean ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from labeled_crystals import changed, constant, crystals, pushed, shuffled, strained
from training_runs import copper, isolated_atoms, labeled, water

from mace import units

Sets = dict[str, object]


def clean() -> Sets:
    """Data with nothing to say about: rattled and strained crystals, labeled by one potential."""
    return {"training": crystals(24), "validation": crystals(3, seed=1), "test": crystals(3, seed=2), "r_max": 3.0}


def with_change(index: int, change: Callable[[Atoms], object], frames: list[Atoms] | None = None) -> Sets:
    """Change one structure of clean data."""
    frames = crystals(24) if frames is None else frames
    change(frames[index])
    return {**clean(), "training": frames}


def put(atoms: Atoms, key: str, value: object) -> None:
    atoms.info[key] = value


def close_images(atoms: Atoms) -> None:
    """Bring two atoms together across a face of the cell."""
    atoms.positions[0] = [0.05, 1.0, 1.0]
    atoms.positions[1] = np.array([-0.1, 1.0, 1.0]) + atoms.cell.array[0]


def without(name: str, frames: list[Atoms]) -> list[Atoms]:
    for atoms in frames:
        atoms.info.pop(f"REF_{name}", None)
        atoms.arrays.pop(f"REF_{name}", None)
    return frames


def fixed(frames: list[Atoms], zeroed: bool) -> list[Atoms]:
    for atoms in frames[:2]:
        atoms.set_constraint(FixAtoms([0]))
        if zeroed:
            atoms.arrays["REF_forces"][0] = 0.0
    return frames


def in_bohr(frames: list[Atoms]) -> list[Atoms]:
    for atoms in frames:
        atoms.set_cell(atoms.cell.array / units.BOHR, scale_atoms=True)
    return frames


def voigt_swapped(frames: list[Atoms]) -> list[Atoms]:
    """Write the stress as xx yy zz xy yz zx."""
    for atoms in frames:
        full = atoms.info["REF_stress"].reshape(3, 3)
        order = [full[0, 0], full[1, 1], full[2, 2], full[0, 1], full[1, 2], full[0, 2]]
        atoms.info["REF_stress"] = np.array(order)
    return frames


def with_virials(frames: list[Atoms], sign: float) -> list[Atoms]:
    for atoms in frames:
        atoms.info["REF_virials"] = sign * atoms.get_volume() * atoms.info["REF_stress"]
    return frames


def repeated(frames: list[Atoms], energy: float = 0.0) -> list[Atoms]:
    """Append a copy of a structure with its atoms in another order and moved by a lattice vector's rounding."""
    copy = frames[3][[2, 0, 3, 1]]
    copy.info = dict(frames[3].info)
    copy.info["REF_energy"] += energy
    copy.positions += 1.0e-9
    return [*frames, copy]


def trajectory(count: int) -> list[Atoms]:
    """A crystal whose atoms swing."""
    rng = np.random.default_rng(0)
    start = bulk("Cu", cubic=True)
    modes = rng.normal(0.0, 0.06, (3, *start.positions.shape))
    frames = []
    for time in range(count):
        atoms = start.copy()
        atoms.positions += np.einsum("m,mai->ai", np.sin(time * np.array([0.11, 0.17, 0.23]) + [0, 1, 2]), modes)
        frames.append(labeled(atoms, stress=True))
    return frames


def unrelated(frames: list[Atoms]) -> list[Atoms]:
    rng = np.random.default_rng(5)
    for atoms in frames:
        atoms.info["REF_energy"] = float(rng.normal(0.0, 5.0))
    return frames


OTHER_ELEMENT = [labeled(bulk("Au", cubic=True), stress=True)]
FAR = Atoms("Cu2", positions=[[0, 0, 0], [9, 0, 0]])

PROBLEMS: dict[str, list[Callable[[], Sets]]] = {
    "missing-label": [lambda: {**clean(), "training": without("forces", crystals(24))}],
    "missing-reference-energies": [lambda: {**clean(), "E0s": None}, lambda: {**clean(), "E0s": {1: -13.6}}],
    "unknown-elements": [
        lambda: {**clean(), "test": OTHER_ELEMENT},
        lambda: {**clean(), "validation": OTHER_ELEMENT},
        lambda: {**clean(), "atomic_numbers": [1, 8]},
    ],
    "non-finite-label": [
        lambda: with_change(5, lambda atoms: put(atoms, "REF_energy", np.nan)),
        lambda: with_change(5, lambda atoms: atoms.arrays["REF_forces"].__setitem__((0, 0), np.inf)),
        lambda: with_change(5, lambda atoms: put(atoms, "REF_stress", np.full(9, np.nan))),
    ],
    "misspelled-key": [
        lambda: with_change(5, lambda atoms: put(atoms, "REF_Energy", atoms.info.pop("REF_energy"))),
        lambda: with_change(5, lambda atoms: put(atoms, "stresses", atoms.info.pop("REF_stress"))),
        lambda: with_change(5, lambda atoms: atoms.new_array("force", atoms.arrays.pop("REF_forces"))),
    ],
    "close-atoms": [
        lambda: with_change(4, lambda atoms: atoms.positions.__setitem__(1, atoms.positions[0] + 0.1)),
        lambda: with_change(4, lambda atoms: atoms.positions.__setitem__(1, atoms.positions[0])),
        lambda: with_change(4, close_images),
        lambda: with_change(4, lambda atoms: atoms.set_cell([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 4.9, 0.2]])),
    ],
    "contradicting-forces": [
        lambda: {**clean(), "training": changed(copper(40), forces=-1.0)},
        lambda: {**clean(), "training": changed(copper(40), energy=1.0 / units.HARTREE)},
        lambda: {**clean(), "training": changed(copper(40), forces=units.BOHR / units.HARTREE)},
    ],
    "contradicting-stress": [
        lambda: {**clean(), "training": changed(strained(30), stress=-1.0)},
        lambda: {**clean(), "training": changed(strained(30), stress=1.0 / units.KILOBAR)},
        lambda: {**clean(), "training": changed(strained(30), stress=-1.0 / units.GIGAPASCAL)},
    ],
    "suspicious-forces": [
        lambda: {**clean(), "training": changed(water(10), forces=-1.0)},
        lambda: {**clean(), "training": changed(crystals(24), forces=-1.0)},
        lambda: {**clean(), "training": changed(crystals(24), energy=1.0 / units.KCAL_PER_MOL)},
        lambda: {**clean(), "training": unrelated(trajectory(40))},
    ],
    "suspicious-stress": [
        lambda: {**clean(), "training": changed(crystals(24), stress=-1.0)},
        lambda: {**clean(), "training": changed(crystals(24), stress=1.0 / units.KILOBAR)},
        lambda: {**clean(), "training": changed(without("energy", crystals(24)), stress=-1.0), "labels": ["forces"]},
    ],
    "swapped-stress": [lambda: {**clean(), "training": voigt_swapped(crystals(40))}],
    "contradicting-virials": [lambda: {**clean(), "training": with_virials(crystals(24), 1.0)}],
    "large-stress": [lambda: {**clean(), "training": changed(crystals(24), stress=1.0 / units.KILOBAR)}],
    "large-forces": [lambda: with_change(2, lambda atoms: atoms.arrays["REF_forces"].__setitem__((0, 0), 150.0))],
    "energy-outliers": [lambda: with_change(2, lambda atoms: put(atoms, "REF_energy", -900.0))],
    "zero-energies": [
        lambda: {**clean(), "training": [*crystals(24), *changed(crystals(2, seed=9), energy=0.0)]},
    ],
    "placeholder-labels": [
        lambda: {**clean(), "training": changed(crystals(24), forces=0.0)},
        lambda: {**clean(), "training": [*crystals(24), *changed(crystals(2, seed=9), forces=0.0)]},
        lambda: {**clean(), "training": changed(crystals(24), stress=0.0)},
        lambda: {**clean(), "training": [*crystals(24), *changed(strained(3), stress=0.0)]},
        lambda: {**clean(), "training": with_virials(crystals(24), 0.0)},
        lambda: {**clean(), "training": constant(crystals(24), "REF_energy", -3.5), "labels": ["energy"]},
        lambda: {**clean(), "training": [*crystals(19), *constant(crystals(5, 9), "REF_energy", -3.5)]},
        lambda: {**clean(), "training": constant(crystals(24), "REF_stress", np.diag([0.1, 0.2, 0.3]).ravel())},
        lambda: {**clean(), "training": constant(water(6), "REF_dipole", np.zeros(3)), "test": ()},
        lambda: {**clean(), "training": constant(water(6), "REF_dipole", np.ones(3)), "test": ()},
        lambda: {**clean(), "training": constant(water(6), "REF_polarizability", np.eye(3).ravel()), "test": ()},
    ],
    "net-forces": [
        lambda: {**clean(), "training": pushed(water(6)), "test": ()},
        lambda: {**clean(), "training": [*crystals(24), *pushed(water(3))]},
        lambda: {**clean(), "training": shuffled(water(9)), "test": ()},
    ],
    "zeroed-forces": [
        lambda: {**clean(), "training": fixed(crystals(24), zeroed=True)},
        lambda: with_change(3, lambda atoms: atoms.arrays["REF_forces"].__setitem__(0, 0.0)),
    ],
    "doubtful-reference-energies": [
        lambda: {**clean(), "E0s": {29: -1000.0}},
        lambda: {**clean(), "training": [*water(9)]},
    ],
    "overruled-reference-energies": [
        lambda: {**clean(), "training": [*isolated_atoms(["Cu"]), *crystals(24)]},
        lambda: {**clean(), "training": [*isolated_atoms(["Cu"]), *crystals(24)], "E0s": "estimated"},
        lambda: {**clean(), "training": [*isolated_atoms(["Cu"]), *crystals(24)], "E0s": {29: 1.0}},
    ],
    "unlikely-distances": [lambda: {**clean(), "training": in_bohr(crystals(24))}],
    "duplicates": [lambda: {**clean(), "training": repeated(crystals(24))}],
    "contradicting-duplicates": [lambda: {**clean(), "training": repeated(crystals(24), energy=0.1)}],
    "leakage": [
        lambda: {**clean(), "test": crystals(24)[3:5]},
        lambda: {**clean(), "validation": crystals(24)[3:5]},
        lambda: {**clean(), "validation": crystals(3, seed=2)},
    ],
    "unmarked-isolated-atoms": [lambda: {**clean(), "training": [*crystals(24), labeled(Atoms("Cu"))]}],
    "label-remarks": [lambda: with_change(1, lambda atoms: put(atoms, "REF_stress", np.arange(9.0) / 100.0))],
    "partly-labeled": [lambda: with_change(7, lambda atoms: atoms.info.pop("REF_stress"))],
    "constraints": [lambda: {**clean(), "training": fixed(crystals(24), zeroed=False)}],
    "lone-atoms": [
        lambda: {**clean(), "training": [*crystals(24), labeled(FAR)]},
        lambda: with_change(3, lambda atoms: (atoms.set_cell([9.0, 9.0, 9.0]), atoms.set_positions(spread()))),
    ],
    "thin-cells": [lambda: {**clean(), "r_max": 5.0}],
}


def spread() -> np.ndarray:
    return np.array([[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0], [4.5, 4.5, 4.5]], dtype=float)


CASES = [
    pytest.param(name, case, id=f"{name}-{place}")
    for name, cases in PROBLEMS.items()
    for place, case in enumerate(cases)
]
