"""Is every kind of finding found in data that have the problem, and not in data that have not?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from labeled_crystals import changed, crystals, strained
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
from spoiled_data import CASES, PROBLEMS, Sets, clean, close_images, repeated, trajectory, with_change
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
