"""Structures and labels come out of files as they are written there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from mace.errors import UserError
from mace.structures.labels import LabelKeys, require_labels
from mace.structures.reading import read_configurations

DATA = Path(__file__).parents[4] / "shared" / "data"

CUBE = 'Lattice="2 0 0 0 2 0 0 0 2"'


def frame(info: str = "", energy: str = "energy=-1.5", forces: str = "forces") -> str:
    """A molecule of two atoms in extended XYZ."""
    return (
        f"2\n{info} Properties=species:S:1:pos:R:3:{forces}:R:3 {energy}\n"
        "O 0.0 0.0 0.0 1.0 2.0 3.0\nH 0.0 0.0 1.0 -1.0 -2.0 -3.0\n"
    )


def test_plain_names_are_found_in_the_calculator(write_file: Callable[..., str]) -> None:
    result = read_configurations(write_file(frame() * 3))
    configuration = result.configurations[2]
    assert configuration.energy == -1.5
    np.testing.assert_array_equal(configuration.forces, [[1, 2, 3], [-1, -2, -3]])
    np.testing.assert_array_equal(configuration.atomic_numbers, [8, 1])
    assert configuration.where() == "train.xyz: structure 2"
    assert configuration.stress is None and configuration.dipole is None and configuration.charges is None
    assert result.report.lines() == [
        "train.xyz: energy 3 of 3 (calculator 'energy'), forces 3 of 3 (calculator 'forces')"
    ]
    assert result.report.notes == ()


def test_given_plain_key_reads_only_labeled_frames(write_file: Callable[..., str]) -> None:
    """The others must not be trained on zero."""
    file = write_file(frame() + frame(energy="") + "1\nProperties=species:S:1:pos:R:3\nH 0 0 0\n")
    result = read_configurations(file, LabelKeys(energy="energy", forces="forces"))
    assert [configuration.energy for configuration in result.configurations] == [-1.5, None, None]
    assert [configuration.forces is None for configuration in result.configurations] == [False, False, True]
    assert result.report.lines() == [
        "train.xyz: energy 1 of 3 (calculator 'energy'), forces 2 of 3 (calculator 'forces')"
    ]


def test_ref_key_wins_in_the_whole_file(write_file: Callable[..., str]) -> None:
    file = write_file(frame(energy="energy=-1 REF_energy=-2") + frame())
    result = read_configurations(file)
    assert [configuration.energy for configuration in result.configurations] == [-2.0, None]
    assert "energy 1 of 2 (info 'REF_energy')" in result.report.lines()[0]
    assert any("1 structures have 'energy' but no 'REF_energy'" in note for note in result.report.notes)


def test_each_file_decides_for_itself(write_file: Callable[..., str]) -> None:
    files = [write_file(frame(), "a.xyz"), write_file(frame("REF_energy=-2"), "b.xyz")]
    result = read_configurations(files)
    assert [configuration.energy for configuration in result.configurations] == [-1.5, -2.0]
    assert [row[2:4] for row in result.report.rows() if row[1] == "energy"] == [
        ("energy", "calculator"),
        ("REF_energy", "info"),
    ]


def test_given_key_beats_ref(write_file: Callable[..., str]) -> None:
    file = write_file(frame("REF_energy=-2 dft=-3", forces="REF_forces"))
    for key, energy in (("energy", -1.5), ("dft", -3.0), ("REF_energy", -2.0)):
        (configuration,) = read_configurations(file, LabelKeys(energy=key)).configurations
        assert configuration.energy == energy


def test_given_key_that_is_nowhere_is_reported_then_refused(write_file: Callable[..., str]) -> None:
    result = read_configurations(write_file(frame("dipole='1 2 3' note=hi")), LabelKeys(energy="REF_energy"))
    assert result.configurations[0].energy is None
    assert "energy 0 of 1 (no 'REF_energy')" in result.report.lines()[0]
    with pytest.raises(UserError) as caught:
        require_labels(result.report)
    message = str(caught.value)
    for part in ("train.xyz", "'REF_energy'", "energy (calculator, 1)", "note (info, 1)", "--energy_key"):
        assert part in message
    require_labels(result.report, ("forces", "dipole"))


def test_required_stress_counts_conversion_and_names_the_reason_without(write_file: Callable[..., str]) -> None:
    virial = "virial='1 2 3 4 5 6'"
    require_labels(read_configurations(write_file(frame(f"{CUBE} {virial}"))).report, ("stress", "virials"))
    slab = read_configurations(write_file(frame(f"{CUBE} pbc='T T F' {virial}")))
    assert any("do not repeat in all three directions" in note for note in slab.report.notes)
    with pytest.raises(UserError, match="no structure repeats in all directions.*--stress_key"):
        require_labels(slab.report, ("stress",))


def test_constraints_do_not_touch_forces(write_file: Callable[..., str]) -> None:
    text = frame().replace("forces:R:3", "forces:R:3:move_mask:L:1").replace("3.0\n", "3.0 F\n")
    (masked,) = read_configurations(write_file(text)).configurations
    np.testing.assert_array_equal(masked.forces, [[1, 2, 3], [-1, -2, -3]])
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]], constraint=FixAtoms([0, 1]))
    forces = np.arange(1.0, 7.0).reshape(2, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
    write("fixed.traj", atoms)
    (fixed,) = read_configurations("fixed.traj", LabelKeys(forces="forces")).configurations
    np.testing.assert_array_equal(fixed.forces, forces)


@pytest.mark.parametrize("values", ["1 2 3 4 5 6", "1 6 5 6 2 4 5 4 3"], ids=["Voigt", "nine"])
@pytest.mark.parametrize("key", ["stress", "REF_stress"])
def test_stress_in_each_shape(write_file: Callable[..., str], key: str, values: str) -> None:
    result = read_configurations(write_file(frame(f"{CUBE} {key}='{values}'")))
    (configuration,) = result.configurations
    expected = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    np.testing.assert_array_equal(configuration.stress, expected)
    assert configuration.virials is not None
    np.testing.assert_allclose(configuration.virials, -8.0 * expected, rtol=1e-14)
    assert "virials 1 of 1 (1 from stress)" in result.report.lines()[0]


@pytest.mark.parametrize("key", ["virials", "virial", "REF_virials"])
def test_virials_under_each_name(write_file: Callable[..., str], key: str) -> None:
    (configuration,) = read_configurations(write_file(frame(f"{CUBE} {key}='8 16 24 0 0 0'"))).configurations
    assert configuration.stress is not None
    np.testing.assert_allclose(configuration.stress, -np.diag([1.0, 2.0, 3.0]), rtol=1e-14)


def test_suspicious_tensors_are_noted(write_file: Callable[..., str]) -> None:
    notes = read_configurations(write_file(frame(f"{CUBE} REF_stress='1 2 3 4 5 6 7 8 9'"))).report.notes
    assert any("stress of 1 structures is not symmetric" in note for note in notes)


def test_dipole_and_charges(write_file: Callable[..., str]) -> None:
    text = "2\ndipole='1 2 3' Properties=species:S:1:pos:R:3:charges:R:1\nO 0 0 0 -0.5\nH 0 0 1 0.5\n"
    (configuration,) = read_configurations(write_file(text)).configurations
    np.testing.assert_array_equal(configuration.dipole, [1, 2, 3])
    np.testing.assert_array_equal(configuration.charges, [-0.5, 0.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (frame(energy="energy=nan"), "'energy' .* is NaN or infinite"),
        (frame(energy="energy=inf"), "'energy' .* is NaN or infinite"),
        (frame(energy="energy=unknown"), "'energy' .* is 'unknown' and not a number"),
        (frame(energy="energy"), "'energy' .* not a number"),
        (frame(energy="energy='1 2'"), r"'energy' .* has the shape \[2\] where one number"),
        (frame().replace("-3.0\n", "nan\n"), "'forces' .* is NaN"),
        (frame(forces="other").replace("other:R:3", "other:R:1:forces:R:2"), r"'forces' .* \[2, 2\] where \[2, 3\]"),
        (frame("dipole='1 2'"), r"'dipole' .* \[2\] where \[3\]"),
        (frame("REF_stress='1 2 3'"), r"'stress' .* has the shape \[3\] where \[6\], \[9\] or \[3, 3\] is expected"),
        (frame("REF_charges='1 2 3'"), r"'charges' .* has the shape \[3\]"),
        (frame().replace("O 0.0", "O nan"), "position that is NaN"),
        (frame('Lattice="2 0 0 0 inf 0 0 0 2"'), "cell that is NaN"),
        (frame("pbc='T T T'"), "lattice vectors there are zero or linearly dependent"),
        (frame('Lattice="2 0 0 0 2 0 2 2 0"'), 'repeats along pbc="T T T"'),
        (frame('Lattice="2 0 0 0 0 0 0 0 2" pbc="T T F"'), 'repeats along pbc="T T F"'),
        ("0\nProperties=species:S:1:pos:R:3\n", "has no atoms"),
        (frame().replace("O 0.0", "X 0.0"), "'X'"),
        ("2\nProperties=species:S:1\nO\nH\n", "all its atoms at the origin"),
        (frame("config_weight=-1"), "'config_weight' is .*-1"),
        (frame("config_forces_weight=nan"), "'config_forces_weight' is .*nan"),
        (frame("config_energy_weight=high"), "'config_energy_weight' is 'high'"),
    ],
)
def test_bad_values_name_file_and_structure(write_file: Callable[..., str], text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"train.xyz: structure 1[ :].*{message}"):
        read_configurations(write_file(frame() + text))


@pytest.mark.parametrize("info", ['Lattice="2 0 0 0 0 0 0 0 2" pbc="T F T"', 'Lattice="9 0 0 0 9 0 0 0 0" pbc="F F F"'])
def test_directions_that_do_not_repeat_need_no_vector(write_file: Callable[..., str], info: str) -> None:
    assert len(read_configurations(write_file(frame(info))).configurations) == 1


def test_missing_value_in_calculator_is_no_label(write_file: Callable[..., str]) -> None:
    file = write_file("", "none.traj")
    write(file, Atoms("H", info={"REF_energy": None}))
    assert read_configurations(file).configurations[0].energy is None


def test_weights(write_file: Callable[..., str]) -> None:
    infos = ["config_type=a config_weight=3", "config_type=b", "", "config_energy_weight=0 config_stress_weight=2"]
    file = write_file("".join(frame(info) for info in infos))
    configurations = read_configurations(file, config_type_weights={"a": 2.0, "Default": 0.5}).configurations
    assert [configuration.weight for configuration in configurations] == [6.0, 0.5, 0.5, 0.5]
    assert [configuration.config_type for configuration in configurations] == ["a", "b", "Default", "Default"]
    assert configurations[3].property_weights == {"energy": 0.0, "stress": 2.0}


def test_config_type_weights_are_checked(write_file: Callable[..., str]) -> None:
    file = write_file(frame("config_type=300"))
    assert read_configurations(file, config_type_weights={"300": 4.0}).configurations[0].weight == 4.0
    with pytest.raises(UserError, match="--config_type_weights: the weight '300'"):
        read_configurations(file, config_type_weights={"300": -1.0})
    notes = read_configurations(file, config_type_weights={"3000": 1.0}).report.notes
    assert any("'3000'" in note and "'300'" in note for note in notes)


@pytest.mark.parametrize("name", ["IsolatedAtom", "isolated_atom", "ISOLATEDATOM"])
def test_isolated_atoms_are_apart(write_file: Callable[..., str], name: str) -> None:
    atom = f"1\nProperties=species:S:1:pos:R:3 config_type={name} energy=-13.6\nH 0 0 0\n"
    result = read_configurations(write_file(atom + frame() + frame(f"config_type={name}")))
    assert [atom.energy for atom in result.isolated_atoms] == [-13.6]
    assert [configuration.index for configuration in result.configurations] == [1, 2]
    assert result.report.lines()[0].endswith("forces 2 of 2 (calculator 'forces'); 1 isolated atom, 1 with an energy")
    assert any("have several atoms" in note for note in result.report.notes)


def test_isolated_atoms_alone(write_file: Callable[..., str]) -> None:
    result = read_configurations(
        write_file("1\nProperties=species:S:1:pos:R:3 config_type=IsolatedAtom\nH 0 0 0\n", "atoms.xyz")
    )
    assert result.report.lines() == ["atoms.xyz: 1 isolated atom, 0 with an energy"]
    with pytest.raises(UserError, match="atoms.xyz: there is no structure to learn from"):
        require_labels(result.report)


def test_progress_and_head(write_file: Callable[..., str]) -> None:
    seen: list[tuple[str, int]] = []
    result = read_configurations(write_file(frame() * 2), progress=lambda *step: seen.append(step), head="dft")
    assert seen == [("train.xyz", 1), ("train.xyz", 2)]
    assert {configuration.head for configuration in result.configurations} == {"dft"}


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is not beside this repository")
def test_published_data() -> None:
    result = read_configurations([str(DATA / "acac" / "train_300K.xyz"), str(DATA / "acac" / "isolated_atoms.xyz")])
    assert len(result.configurations) == 500 and len(result.isolated_atoms) == 3
    assert result.report.total("energy") == result.report.total("forces") == 500
    uio66 = read_configurations(str(DATA / "uio66" / "*.extxyz"))
    assert uio66.report.total("stress") == uio66.report.total("virials") == 18
    assert len(uio66.isolated_atoms) == 4
