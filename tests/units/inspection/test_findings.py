"""Is every kind of finding found in data that have the problem, and not in data that have not?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms
from labeled_crystals import changed, constant, crystals, pushed, shuffled, strained
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
from training_runs import copper, isolated_atoms, labeled, water

from mace import units
from mace.errors import UserError
from mace.inspection.distortions import compare_distorted, strain_between
from mace.inspection.findings import KINDS, check_allowed
from mace.inspection.flat import flatten
from mace.inspection.inspection import DataReport
from mace.structures.collection import ListedStructures
from mace.structures.configuration import Configuration
from mace.structures.stress import full_tensor

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


def names(report: DataReport) -> set[str]:
    return {finding.name for finding in report.findings}


def test_clean_data_have_no_findings(inspect: Callable[..., DataReport]) -> None:
    report = inspect(**clean())
    assert not report.findings


def test_every_kind_of_finding_has_a_case() -> None:
    assert list(PROBLEMS) == list(KINDS)


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_a_problem_is_found(inspect: Callable[..., DataReport], name: str, problem: Callable[[], Sets]) -> None:
    report = inspect(**problem())
    assert name in names(report)
    finding = next(finding for finding in report.findings if finding.name == name)
    assert finding.sentence.endswith((".", "?")) and "\n" not in finding.sentence
    assert finding.level == KINDS[name].level
    assert finding.stops == (finding.level == "error")


def test_a_finding_names_file_structures_and_way_out(inspect: Callable[..., DataReport]) -> None:
    frames = crystals(24)
    for place in (3, 7, 8, 11, 12, 20, 23):
        frames[place].positions[1] = frames[place].positions[0] + 0.1
    (finding,) = inspect(frames, r_max=3.0).errors
    assert finding.structures == (3, 7, 8, 11, 12, 20, 23)
    assert finding.sentence == (
        "training.xyz: structures 3, 7, 8, 11, 12 and 2 more (7 of 24) have atoms closer than 0.3 Angstrom (closest: "
        "Cu-Cu, 0.173 Angstrom); correct the positions, their unit or the cell, or take the structures out, or let it "
        "pass with --allow close-atoms."
    )


def test_what_is_allowed_does_not_stop(inspect: Callable[..., DataReport]) -> None:
    case = with_change(4, close_images)
    with pytest.raises(UserError, match="--allow close-atoms"):
        inspect(**case).refuse_errors()
    report = inspect(**case, allow=check_allowed(["close-atoms"]))
    report.refuse_errors()
    assert [finding.allowed for finding in report.of_level("error")] == [True]


def test_only_findings_that_exist_can_be_allowed() -> None:
    with pytest.raises(UserError, match="did you mean close-atoms?"):
        check_allowed(["close-atom"])
    with pytest.raises(UserError, match="cannot be let pass"):
        check_allowed(["missing-label"])


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (-1.0, "the sign is opposite"),
        (units.HARTREE, "forces are in kcal/mol/Angstrom|energies are in Hartree"),
        (units.HARTREE / units.KCAL_PER_MOL / units.HARTREE, "forces are in kcal/mol/Angstrom"),
        (1.0 / units.KJ_PER_MOL, "forces are in kJ/mol/Angstrom"),
        (1.0 / units.HARTREE, "forces are in Hartree/Angstrom"),
        (units.BOHR / units.HARTREE, "forces are in Hartree/bohr"),
    ],
)
def test_the_unit_of_forces_is_named(inspect: Callable[..., DataReport], factor: float, words: str) -> None:
    report = inspect(changed(copper(40), forces=factor), r_max=3.0)
    (finding,) = report.errors
    assert finding.name == "contradicting-forces"
    assert any(word in finding.sentence for word in words.split("|"))


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (-1.0, "the sign is opposite"),
        (1.0 / units.KILOBAR, "the stress is in kbar"),
        (-1.0 / units.KILOBAR, "the stress is in kbar, with the opposite sign"),
        (1.0 / units.GIGAPASCAL, "the stress is in GPa"),
        (units.BOHR**3 / units.HARTREE, "the stress is in Hartree/bohr^3"),
    ],
)
@pytest.mark.parametrize("by", ["energies", "forces"])
def test_the_unit_of_the_stress_is_named(
    inspect: Callable[..., DataReport], factor: float, words: str, by: str
) -> None:
    frames = strained(30) if by == "energies" else crystals(24)
    report = inspect(changed(frames, stress=factor), r_max=3.0)
    names_of_stress = ("contradicting-stress", "suspicious-stress")
    sentences = [finding.sentence for finding in report.findings if finding.name in names_of_stress]
    assert any(words in sentence for sentence in sentences)


def test_virials_given_as_stress_are_named(inspect: Callable[..., DataReport]) -> None:
    frames = strained(30)
    for atoms in frames:
        atoms.info["REF_stress"] = -atoms.get_volume() * atoms.info["REF_stress"]
    assert "it is the virials, -volume * stress" in inspect(frames, r_max=3.0).errors[0].sentence


def test_energies_per_atom_are_named(inspect: Callable[..., DataReport]) -> None:
    frames = copper(40)
    for atoms in frames:
        atoms.info["REF_energy"] /= len(atoms)
    assert "energies are per atom" in inspect(frames, r_max=3.0).errors[0].sentence


def test_a_shuffled_trajectory_is_compared_all_the_same(inspect: Callable[..., DataReport]) -> None:
    frames = trajectory(60)
    frames = [frames[place] for place in np.random.default_rng(1).permutation(60)]
    assert not inspect(frames, r_max=3.0).findings
    assert names(inspect(changed(frames, forces=-1.0), r_max=3.0)) == {"contradicting-forces"}


def test_atoms_that_leave_the_cell_are_no_jump(inspect: Callable[..., DataReport]) -> None:
    frames = copper(40)
    for atoms in frames[::2]:
        atoms.positions += atoms.cell.array[0]
    assert not inspect(frames, r_max=3.0).findings


def test_slabs_and_molecules_have_their_own_neighbors(inspect: Callable[..., DataReport]) -> None:
    slab = bulk("Cu", cubic=True) * (1, 1, 2)
    slab.pbc = (True, True, False)
    slab.positions[0, 2] += 40.0  # unwrapped on purpose along the direction that does not repeat
    found = names(inspect([*crystals(24), labeled(slab), labeled(molecule("H2O"))], r_max=3.0))
    assert "lone-atoms" in found and "close-atoms" not in found


def test_isolated_atoms_give_reference_energies(inspect: Callable[..., DataReport]) -> None:
    report = inspect([*isolated_atoms(), *water(9)], E0s=None)
    assert sorted(report.reference_energies) == [1, 8]
    assert report.reference_source == "IsolatedAtom frames"
    assert report.files[0].groups[-1].config_type == "IsolatedAtom"


def test_forces_that_vanish_by_symmetry_are_left_alone(inspect: Callable[..., DataReport]) -> None:
    frames = crystals(24)
    slab = fcc111("Cu", (1, 1, 5), vacuum=5.0)
    slab.pbc, slab.info = True, {}
    frames.append(labeled(slab))
    frames[-1].arrays["REF_forces"] = np.zeros((5, 3))
    frames[-1].arrays["REF_forces"][[0, 4], 2] = [0.4, -0.4]
    assert "zeroed-forces" not in names(inspect(frames, r_max=3.0))


def test_copies_are_told_to_land_on_both_sides_of_a_random_split(inspect: Callable[..., DataReport]) -> None:
    def told(**sets: object) -> list[bool]:
        findings = inspect(repeated(crystals(24)), r_max=3.0, **sets).findings
        return ["copies may be trained on" in item.sentence for item in findings if item.name == "duplicates"]

    assert told() == [True]
    assert told(validation=crystals(3, seed=1)) == [False]


def test_average_reference_energies_are_not_called_absurd(inspect: Callable[..., DataReport]) -> None:
    frames = [*crystals(24), *crystals(24, seed=3)]
    for atoms in frames[::2]:
        atoms.info["REF_energy"] += 8.0
    found = inspect(frames, r_max=3.0, labels=["energy"])
    assert "doubtful-reference-energies" not in names(found)


def test_a_label_that_is_not_finite_is_told_once(inspect: Callable[..., DataReport]) -> None:
    atoms = isolated_atoms()
    atoms[0].info["REF_energy"] = np.nan
    assert [item.name for item in inspect([*atoms, *water(9)], E0s=None).errors] == ["non-finite-label"]
    allowed = inspect([*atoms, *water(9)], E0s=None, allow=check_allowed(["non-finite-label"]))
    assert [item.name for item in allowed.errors] == ["missing-reference-energies"]


@pytest.mark.parametrize(
    ("factors", "ratios"), [({"forces": -1.0}, (-1, 1)), ({"energy": 2.0, "stress": 4.0}, (2, 0.5))]
)
def test_forces_and_stress_are_told_apart(factors: dict[str, float], ratios: tuple[float, float]) -> None:
    frames = [
        Configuration(a.numbers, a.positions, a.cell.array, (True,) * 3, **labels_of(a))
        for a in changed(crystals(30), **factors)
    ]
    found = compare_distorted(flatten("crystals.xyz", ListedStructures(frames)))
    assert [result.ratio for result in found] == pytest.approx(ratios, rel=0.2)
    assert all(result.is_rough for result in found)


def labels_of(atoms: Atoms) -> dict[str, object]:
    return {
        "energy": atoms.info["REF_energy"],
        "forces": atoms.arrays["REF_forces"],
        "stress": full_tensor(atoms.info["REF_stress"]),
    }


def test_a_strained_and_turned_cell_is_divided_into_both() -> None:
    rng = np.random.default_rng(0)
    cells, symmetric = rng.normal(0.0, 1.0, (5, 3, 3)) + 4.0 * np.eye(3), rng.normal(0.0, 0.05, (5, 3, 3))
    symmetric = symmetric + symmetric.transpose(0, 2, 1)
    turns = Rotation.random(5, np.random.default_rng(0)).as_matrix()
    strain, turn = strain_between(cells, cells @ np.array([expm(s) for s in symmetric]) @ turns)
    np.testing.assert_allclose(strain, symmetric, atol=1e-12)
    np.testing.assert_allclose(turn, turns, atol=1e-12)
