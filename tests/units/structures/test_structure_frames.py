"""Files are found, and unreadable structures are named."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

from mace.conditions import Condition
from mace.errors import UserError
from mace.formats.reading import iterate_frames
from mace.structures.reading import read_configurations, read_sources
from mace.structures.sources import Source, expand_paths, is_prepared

FRAME = "2\nProperties=species:S:1:pos:R:3 energy=-1.0\nO 0 0 0\nH 0 0 1\n"


def test_glob_is_sorted_and_order_of_arguments_kept(write_file: Callable[..., str]) -> None:
    for name in ("b.xyz", "a.xyz", "z.xyz"):
        write_file(FRAME, name)
    assert expand_paths(["z.xyz", "[ab].xyz"]) == ["z.xyz", "a.xyz", "b.xyz"]


def test_existing_name_with_glob_characters_is_literal(write_file: Callable[..., str]) -> None:
    write_file(FRAME, "1.xyz")
    assert expand_paths(write_file(FRAME, "[1].xyz")) == ["[1].xyz"]


def test_folders_and_lists_stand_for_files(write_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("parts", "more", "set"):
        Path(folder).mkdir()
    for name in ("parts/b.xyz", "parts/a.extxyz", "parts/c.xyz.gz", "more/d.db", "set/manifest.json", "set/shard.xyz"):
        write_file(FRAME, name)
    for name in ("parts/.hidden.xyz", "parts/statistics.json", "parts/README", "more/d.db-lock", "10:30.xyz"):
        write_file(FRAME, name)
    parts = ["parts/a.extxyz", "parts/b.xyz", "parts/c.xyz.gz"]
    assert expand_paths("parts") == expand_paths("parts/") == expand_paths("part*") == parts
    assert expand_paths("more:parts") == ["more/d.db", *parts]
    assert expand_paths("parts/b.xyz:more/d.db:parts/a.*xyz") == ["parts/b.xyz", "more/d.db", "parts/a.extxyz"]
    assert expand_paths("10:30.xyz") == expand_paths("1?:*.xyz") == ["10:30.xyz"]
    assert expand_paths(["set", "more"]) == ["set", "more/d.db"]  # a prepared set is one whole
    assert is_prepared("set") and not is_prepared("parts") and not is_prepared("10:30.xyz")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert expand_paths("more/d.db:~/parts/b.xyz") == ["more/d.db", f"{Path.cwd()}/parts/b.xyz"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("missing.xyz", "missing.xyz: there is no such file"),
        ("none*.xyz", r"none\*.xyz: no file matches"),
        ("folder", "folder: this folder holds no file with the ending of a format of structures"),
        ("empty.xyz", "empty.xyz: the file is empty"),
        (["full.xyz", "./full.xyz"], "given twice"),
        ([], "No structure file"),
        ("", "name of a structure file is empty"),
        ("mixed", r"mixed: this folder holds files of several formats, 2 like a.db and 1 like c.xyz; .*'mixed/\*.db'"),
        ("full.xyz:mixed/missing.db", "mixed/missing.db: there is no such file"),
        ("full.xyz:notes", "full.xyz:notes: there is no such file"),
        ("full.xyz:full.xyz", "given twice"),
    ],
)
def test_bad_paths(write_file: Callable[..., str], paths: str | list[str], message: str) -> None:
    write_file("", "empty.xyz")
    write_file(FRAME, "full.xyz")
    Path("folder").mkdir()
    Path("mixed").mkdir()
    for name in ("mixed/a.db", "mixed/b.db", "mixed/c.xyz"):
        write_file(FRAME, name)
    with pytest.raises(UserError, match=message):
        expand_paths(paths)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (FRAME.replace("H 0 0 1", "H 0 0 one"), "one"),
        (FRAME.replace("H 0", "Hx 0"), "Hx"),
        (FRAME.replace("H 0 0 1\n", ""), ""),
        (FRAME.replace("H 0 0 1", "H 0 0"), ""),
        ("two\n", "a number of atoms is expected where 'two' stands"),
        ("-2\n", "its number of atoms is -2"),
        (FRAME.replace("2\n", '2\nstress="1 2 3" ', 1), "stress"),
    ],
)
def test_unreadable_frame_is_named(write_file: Callable[..., str], bad: str, reason: str) -> None:
    file = write_file(FRAME * 3 + bad + FRAME)
    frames = iterate_frames(file)
    for _ in range(3):
        next(frames)
    with pytest.raises(UserError, match=f"train.xyz: structure 3 cannot be read: .*{reason}"):
        list(frames)


def test_truncated_file_is_named(write_file: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="structure 1 cannot be read: the file ends after 1 of its 2 atoms"):
        list(iterate_frames(write_file(FRAME + FRAME.replace("H 0 0 1\n", ""))))


def test_empty_lines_between_frames_lose_nothing(write_file: Callable[..., str]) -> None:
    assert len(list(iterate_frames(write_file(FRAME + "\n" + FRAME + "\n\n")))) == 2


def test_empty_comment_line_is_part_of_its_frame(write_file: Callable[..., str]) -> None:
    frames = list(iterate_frames(write_file("1\n\nH 0 0 0\n" * 2)))
    assert [len(atoms) for atoms in frames] == [1, 1]


def test_blank_file(write_file: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="blank.xyz: the file holds no structure"):
        list(iterate_frames(write_file("\n\n", "blank.xyz")))


def test_lattice_as_pseudo_atoms(write_file: Callable[..., str]) -> None:
    text = "1\ncomment\nH 0 0 0\nVEC1 4 0 0\nVEC2 0 5 0\n"
    frames = list(iterate_frames(write_file(text * 2)))
    assert [np.linalg.norm(frame.cell, axis=1).tolist() for frame in frames] == [[4.0, 5.0, 0.0]] * 2


def test_voigt_stress_under_the_plain_name(write_file: Callable[..., str]) -> None:
    (frame,) = iterate_frames(write_file(FRAME.replace("energy", "stress='1 2 3 4 5 6' energy")))
    np.testing.assert_array_equal(frame.results["stress"], [1, 2, 3, 4, 5, 6])


def test_compressed_file(write_file: Callable[..., str]) -> None:
    file = write_file("", "train.xyz.gz")
    Path(file).write_bytes(gzip.compress((FRAME * 2).encode()))
    assert len(list(iterate_frames(file))) == 2
    Path(file).write_bytes(gzip.compress((FRAME * 200).encode())[:-9])
    with pytest.raises(UserError, match="train.xyz.gz: .*EOFError"):
        list(iterate_frames(file))


def test_other_format_and_its_bad_frame(write_file: Callable[..., str]) -> None:
    file = write_file("", "train.traj")
    write(file, [Atoms("H"), Atoms("HO")])
    assert [len(atoms) for atoms in iterate_frames(file)] == [1, 2]
    Path("broken.traj").write_bytes(Path(file).read_bytes()[:400])
    with pytest.raises(UserError, match=r"broken.traj: structure \d cannot be read"):
        list(iterate_frames("broken.traj"))


def test_unknown_format(write_file: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="notes.unknown: ASE knows no format with the ending '.unknown'; rename"):
        list(iterate_frames(write_file("hello\n", "notes.unknown")))


def test_at_sign_belongs_to_the_name(write_file: Callable[..., str]) -> None:
    assert len(list(iterate_frames(write_file(FRAME * 2, "train@0.xyz")))) == 2


@pytest.mark.parametrize("name", ["train.exyz", "train.Xyzz", "train.exyz.gz", "my.train"])
def test_an_ending_that_ase_does_not_know_is_named(write_file: Callable[..., str], name: str) -> None:
    file = write_file(FRAME, name)
    if name.endswith(".gz"):
        Path(file).write_bytes(gzip.compress(FRAME.encode()))
    ending = name.removesuffix(".gz").rpartition(".")[2].lower()
    with pytest.raises(UserError, match=f"{name}: ASE knows no format with the ending '.{ending}'; rename .* .xyz"):
        list(iterate_frames(file))


@pytest.mark.parametrize(
    "name", ["OUTCAR_1.xyz", "from_POSCAR.extxyz", "CONTCAR.XYZ", "vasp_OUTCAR_all.xyz.gz", "XDATCAR.xyz", "pw.in.xyz"]
)
def test_the_ending_decides_before_the_rest_of_a_name(write_file: Callable[..., str], name: str) -> None:
    file = write_file(FRAME, name)
    if name.endswith(".gz"):
        Path(file).write_bytes(gzip.compress(FRAME.encode()))
    assert [len(frame) for frame in iterate_frames(file)] == [2]
    write_file("", "OUTCAR.traj")
    write("OUTCAR.traj", Atoms("H"), format="traj")
    assert [len(frame) for frame in iterate_frames("OUTCAR.traj")] == [1]


def write_database(file: str) -> None:
    """Three waters and an atom, with labels, types and weights wherever a database has room for them."""
    ending = file.rpartition(".")[2]
    with connect(file, type="aselmdb" if ending == "lmdb" else ending, use_lock_file=False) as database:
        for place in range(3):
            atoms = Atoms("OHH", positions=np.arange(9.0).reshape(3, 3) + place)
            atoms.calc = SinglePointCalculator(atoms, energy=-7.0, forces=np.full((3, 3), 7.0))
            forces, dipole = np.arange(9.0).reshape(3, 3), np.array([1.0, 2.0, 3.0])
            data = {"REF_forces": forces, "REF_dipole": dipole, "forces_weight": np.array([1.0, 0.0, 2.0])}
            more = {"note": {"a": [1]}, "odd": [[1], [2, 3]]}
            database.write(atoms, config_type="wet", config_weight=2.5, REF_energy=-1.0 - place, data={**data, **more})
        database.write(Atoms("H"), config_type="IsolatedAtom", REF_energy=-13.6)


@pytest.mark.parametrize("ending", ["db", "json", "aselmdb", "lmdb"])
def test_databases_are_read_with_what_rows_say_besides(write_file: Callable[..., str], ending: str) -> None:
    write_file("", f"train.{ending}")
    Path(f"train.{ending}").unlink()
    write_database(f"train.{ending}")
    result = read_configurations(f"train.{ending}")
    assert [c.energy for c in result.configurations] == [-1.0, -2.0, -3.0]
    assert [c.energy for c in result.isolated_atoms] == [-13.6]
    for configuration in result.configurations:
        np.testing.assert_array_equal(configuration.forces, np.arange(9.0).reshape(3, 3))
        np.testing.assert_array_equal(configuration.dipole, [1, 2, 3])
        np.testing.assert_array_equal(configuration.atom_weights["forces"], [1, 0, 2])
        assert (configuration.config_type, configuration.weight) == ("wet", 2.5)
    (file,) = result.report.files
    assert file.of("forces").places == {"arrays": 3} and file.of("dipole").places == {"info": 3}
    frames = list(iterate_frames(f"train.{ending}"))
    assert frames[0].info["note"] == {"a": [1]} and frames[0].results["energy"] == -7.0


@pytest.mark.parametrize("ending", ["db", "json", "aselmdb"])
def test_heads_and_conditions_of_rows_are_read(tmp_path: Path, ending: str) -> None:
    """Total charge and spin stand in ``data`` of fairchem's molecules, numbers of a calculator in the row itself."""
    file = str(tmp_path / f"train.{ending}")
    with connect(file, type=ending, use_lock_file=False) as database:
        for place, head in enumerate(["low", "high", "low"]):
            atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1 + place]], cell=np.eye(3) * 9, pbc=True)
            labels = {"energy": -1.0 * place, "forces": np.full((2, 3), place), "stress": np.arange(6.0)}
            atoms.calc = SinglePointCalculator(atoms, **labels)
            more = {"__info__": {"config_weight": 2.0}, "__arrays__": {"forces_weight": np.array([1.0, 0.0])}}
            database.write(atoms, data={"charge": place, "spin": 1, "level": head, **more})
    names = ("total_charge", "total_spin")
    wanted = [Condition(name=name, kind="continuous", per="structure", width=1) for name in names]
    result = read_sources([Source(file, conditions=wanted)], head="low", head_key="level", heads=("low", "high"))
    assert [c.index for c in result.configurations] == [0, 2]
    for configuration in result.configurations:
        place = configuration.index
        assert (configuration.energy, configuration.weight, configuration.head) == (-1.0 * place, 2.0, "low")
        found = {name: value.item() for name, value in configuration.conditions.items()}
        assert found == {"total_charge": place, "total_spin": 1}
        np.testing.assert_array_equal(configuration.forces, np.full((2, 3), place))
        np.testing.assert_array_equal(configuration.atom_weights["forces"], [1, 0])
        assert configuration.stress is not None and configuration.stress[1, 2] == 3.0


def test_rows_with_plain_lists_are_read(tmp_path: Path) -> None:
    """As mace-torch writes them: without the types of arrays."""
    forces = [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]
    row = {"numbers": [8, 1], "positions": [[0, 0, 0], [0, 0, 1.5]], "cell": [[9, 0, 0], [0, 9, 0], [0, 0, 9]]}
    row |= {"pbc": [True] * 3, "energy": -2.5, "forces": forces, "unique_id": "0", "ctime": 1.0, "mtime": 1.0}
    row |= {"key_value_pairs": {"head": "low"}, "data": {"__info__": {"REF_dipole": [1, 2, 3]}}}
    with lmdb.open(str(tmp_path / "train.lmdb"), subdir=False, map_size=2**20) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in {"1": row, "2": {**row, "energy": 0.5}, "nextid": 3}.items():
                transaction.put(key.encode(), zlib.compress(json.dumps(value).encode()))
    first, second = read_sources([Source(tmp_path / "train.lmdb")], head_key="head").configurations
    assert (first.energy, second.energy, first.head, first.pbc) == (-2.5, 0.5, "low", (True, True, True))
    np.testing.assert_array_equal(first.forces, forces)
    np.testing.assert_array_equal(first.dipole, [1, 2, 3])
    assert first.positions.dtype == np.float64 and first.positions[1, 2] == 1.5 and first.cell[2, 2] == 9.0


@pytest.mark.parametrize("ending", ["db", "json", "aselmdb"])
def test_damaged_databases_are_named(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"train.{ending}"
    write_database(str(file))
    whole = file.read_bytes()
    for damaged in (
        whole[: len(whole) // 3],
        whole[: len(whole) * 4 // 5],
        b"\0" * 40 + whole[40:],
        b"These are not atoms.\n" * 200,
    ):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"train.{ending}: "):
            list(iterate_frames(str(file)))


def test_the_way_out_without_the_package_for_lmdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_database(str(tmp_path / "train.aselmdb"))
    monkeypatch.setitem(sys.modules, "ase_db_backends.aselmdb", None)
    with pytest.raises(UserError, match=r"train.aselmdb: .* ase-db-backends; .* pip install 'mace-train\[lmdb\]'"):
        list(iterate_frames(str(tmp_path / "train.aselmdb")))


def test_entries_of_a_trajectory_are_read(write_file: Callable[..., str]) -> None:
    atoms = Atoms("OHH", positions=np.arange(9.0).reshape(3, 3))
    atoms.info = {"config_type": "wet", "REF_energy": -1.0, "REF_forces": np.ones((3, 3)), "config_energy_weight": 0.5}
    atoms.info["forces_weight"] = [1.0, 0.0, 2.0]
    write(write_file("", "train.traj"), [atoms])
    (configuration,) = read_configurations("train.traj").configurations
    assert (configuration.energy, configuration.config_type) == (-1.0, "wet")
    assert configuration.property_weights == {"energy": 0.5}
    np.testing.assert_array_equal(configuration.forces, np.ones((3, 3)))
    np.testing.assert_array_equal(configuration.atom_weights["forces"], [1, 0, 2])


@pytest.mark.parametrize("ending", ["xyz", "traj", "json"])
def test_an_entry_comes_before_what_a_calculator_says(write_file: Callable[..., str], ending: str) -> None:
    """The same key twice: extended XYZ has it once only."""
    file = write_file("2\nenergy=-3\nO 0 0 0\nH 0 0 1\n", f"train.{ending}")
    expected, place = -3.0, "calculator"
    if ending != "xyz":
        Path(file).unlink()
        atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]], info={"energy": -1.0})
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0)
        if ending == "json":
            connect(file).write(atoms, data={"energy": -1.0})
        else:
            write(file, atoms)
        expected, place = -1.0, "info"
    result = read_configurations(file)
    assert result.configurations[0].energy == expected
    assert result.report.files[0].of("energy").places == {place: 1}


def test_files_are_utf8_whatever_the_locale(write_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_file(FRAME.replace("energy", "author='M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller' energy") * 2)
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "ascii")
    monkeypatch.setattr("locale.getencoding", lambda: "ascii", raising=False)
    (first, _) = iterate_frames(file)
    assert first.info["author"].startswith("M\N{LATIN SMALL LETTER U WITH DIAERESIS}")
