"""Any range of a file is read, with the same structures and errors as the whole of it."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st

from mace.errors import UserError
from mace.formats.frame import Frame
from mace.formats.reading import count_frames, iterate_frames, open_frames

FRAME = "2\nProperties=species:S:1:pos:R:3 energy={}\nO 0 0 0\nH 0 0 1\n"
COUNT = 70


def write_frames(name: str) -> str:
    """Write COUNT structures whose number of atoms and position tell which they are."""
    structures = [Atoms(f"OH{k % 3}", positions=np.full((1 + k % 3, 3), 1.0 * k)) for k in range(COUNT)]
    if name.endswith(("lmdb", ".db")):
        with connect(name, type="aselmdb" if name.endswith("lmdb") else "db", use_lock_file=False) as database:
            for atoms in [Atoms("He"), *structures]:
                database.write(atoms)
            database.delete([1])
    elif name.endswith(".json"):
        write(name, structures, format="json")
    else:
        write(name.removesuffix(".gz"), structures)
    if name.endswith(".gz"):
        Path(name).write_bytes(gzip.compress(Path(name.removesuffix(".gz")).read_bytes()))
    return name


@pytest.fixture(scope="module", params=["xyz", "xyz.gz", "traj", "db", "json", "aselmdb", "lmdb", "cif"])
def frames_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield write_frames(str(tmp_path_factory.mktemp("frames") / f"many.{request.param}"))


def test_ranges_are_parts_of_the_whole(frames_file: str) -> None:
    file = pickle.loads(pickle.dumps(open_frames(frames_file)))
    assert file.count() == count_frames(frames_file) == COUNT
    whole = [frame.positions[0, 0] for frame in iterate_frames(frames_file)]
    if not frames_file.endswith("cif"):  # which wraps positions into a cell
        np.testing.assert_allclose(whole, np.arange(COUNT), atol=1e-8)
    for start, stop in [
        (0, None),
        (0, 1),
        (5, 40),
        (16, 32),
        (63, 65),
        (69, None),
        (69, 999),
        (70, None),
        (7, 7),
        (8, 3),
    ]:
        found = [frame.positions[0, 0] for frame in file.frames(start, stop)]
        assert found == whole[start:stop]
        assert [len(frame) for frame in file.frames(start, stop)] == [1 + k % 3 for k in range(COUNT)][start:stop]
        smaller = pickle.loads(pickle.dumps(file.starting_at(start)))
        assert [frame.positions[0, 0] for frame in smaller.frames(start, stop)] == whole[start:stop]
        assert [frame.positions[0, 0] for frame in smaller.frames(max(start - 20, 0), start)] == whole[:start][-20:]
        assert smaller.count() == COUNT
    with pytest.raises(ValueError, match="count from zero"):
        next(file.frames(-1))


def test_two_ranges_at_once(frames_file: str) -> None:
    first, second = iterate_frames(frames_file, 10), iterate_frames(frames_file, 20)
    for _ in range(5):
        assert next(second).positions[0, 0] - next(first).positions[0, 0] == pytest.approx(10, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\n\n" + text.replace("2\nProp", "\n  2 \nProp"),
        lambda text: text.replace("H 0 0 1\n", "H 0 0 1\nVEC1 4 0 0\nVEC2 0 5 0\nVEC3 0 0 6\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: "\N{BYTE ORDER MARK}" + text,
        lambda text: text.replace("2\n", "2 \N{NO-BREAK SPACE}\n"),
        lambda text: text.replace("energy", "name=M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller energy"),
        lambda text: text.rstrip("\n"),
    ],
)
def test_unusual_text_has_the_same_ranges(tmp_path: Path, change: Callable[[str], str]) -> None:
    file = tmp_path / "train.xyz"
    text = change("".join(FRAME.format(-k) for k in range(COUNT)))
    file.write_bytes(text.encode())
    whole = list(map(energy_of, iterate_frames(str(file))))
    assert whole == [-k for k in range(COUNT)] and count_frames(str(file)) == COUNT
    for start, stop in [(0, 20), (17, 33), (50, None), (69, None)]:
        assert list(map(energy_of, iterate_frames(str(file), start, stop))) == whole[start:stop]


def energy_of(frame: Frame) -> float:
    """The label, which ASE leaves in the comment where vectors stand among the atoms."""
    return float(frame.results.get("energy", str(frame.info.get("comment")).rpartition("=")[2]))


def test_a_carriage_return_ends_a_line_in_any_range(tmp_path: Path) -> None:
    """It tears a structure, and where those behind it begin cannot be told from their lines alone."""
    file = tmp_path / "train.xyz"
    file.write_text("".join(FRAME.format(-k) for k in range(COUNT)).replace("energy=-20", "note=\renergy=-20"))
    for start in (0, 15, 20, 40):
        with pytest.raises(UserError, match=r"train.xyz: structure 2[01] cannot be read"):
            list(iterate_frames(str(file), start))
    assert len(list(iterate_frames(str(file), 3, 20))) == 17


SPOILED = {"atom": ("H 0 0 1", "H 0 0 one"), "count": ("2\n", "two\n"), "short": ("H 0 0 1\n", "")}


@given(place=st.integers(0, COUNT - 1), start=st.integers(0, COUNT), spoiled=st.sampled_from(sorted(SPOILED)))
@settings(max_examples=40, deadline=None)
def test_errors_name_the_index_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, place: int, start: int, spoiled: str
) -> None:
    frames = [FRAME.format(-k) for k in range(COUNT)]
    frames[place] = frames[place].replace(*SPOILED[spoiled])
    file = tmp_path_factory.mktemp("spoiled") / "train.xyz"
    file.write_text("".join(frames))
    if spoiled == "atom":
        assert count_frames(str(file)) == COUNT
        if start > place:
            assert len(list(iterate_frames(str(file), start))) == COUNT - start
            return
    # other mistakes hide what stands behind them; a missing row takes the count of the next structure with it
    named = f"({place}|{place + 1})" if spoiled == "short" and start > place else str(place)
    with pytest.raises(UserError, match=f"train.xyz: structure {named} cannot be read"):
        list(iterate_frames(str(file), start))
