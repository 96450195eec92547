"""Any range of a file is read, with the same structures and errors as the whole of it."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from ase.io import write

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
    with pytest.raises(ValueError, match="count from zero"):
        next(file.frames(-1))


def test_two_ranges_at_once(frames_file: str) -> None:
    first, second = iterate_frames(frames_file, 10), iterate_frames(frames_file, 20)
    for _ in range(5):
        assert next(second).positions[0, 0] - next(first).positions[0, 0] == pytest.approx(10, abs=1e-6)
