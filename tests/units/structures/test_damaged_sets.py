"""Is a prepared set that was damaged refused in one sentence that names the file, and never read wrongly?"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_sets import assert_same_structures, write_set

from mace.errors import UserError
from mace.packing.finishing import finish_set
from mace.structures import prepared
from mace.structures.collection import ListedStructures
from mace.structures.configuration import Configuration
from mace.structures.prepared import INDEX, ISOLATED, LEFT_OUT, MANIFEST, StoredStructures, isolated_atoms_of, select
from mace.structures.reading import read_configurations
from mace.structures.shards import ShardFile, write_file

FREE = (False, False, False)
FIRST, SECOND = "shard-00000.safetensors", "shard-00001.safetensors"
FILES = (MANIFEST, INDEX, ISOLATED, LEFT_OUT, FIRST, SECOND)


def structures(seed: int = 0) -> list[Configuration]:
    """Water molecules with energies and forces."""
    rng = np.random.default_rng(seed)
    return [
        Configuration(
            np.array([8, 1, 1]), rng.normal(size=(3, 3)), np.zeros((3, 3)), FREE, energy=float(rng.normal()),
            forces=rng.normal(size=(3, 3)), weight=float(rng.random()), config_type=str(rng.choice(["a", "b"])),
            file="train.xyz", index=number,
        )
        for number in range(12)
    ]  # fmt: skip


def complete(folder: Path, seed: int = 0) -> Path:
    """Write a set that has every kind of file."""
    found = structures(seed)
    return write_set(folder, found, 6, r_max=2.5, isolated_atoms=found[:2], left_out=[3, 7])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("sets") / "original")


def everything(folder: Path) -> None:
    """Read all that a set holds and compare it with what was written."""
    stored = StoredStructures(folder)
    expected = structures()
    assert_same_structures(stored, ListedStructures(expected))
    assert len(select(stored, np.arange(12))[1]) == 10
    assert_same_structures(ListedStructures(isolated_atoms_of(stored)), ListedStructures(expected[:2]))
    assert stored.manifest.r_max == 2.5
    counts, pairs = stored.pairs(np.arange(12))
    assert (counts == stored.kept("n_pairs")).all() and len(pairs) == counts.sum() == stored.manifest.pairs


def refusal(folder: Path, name: str) -> str:
    """Return the one sentence in which a set is refused, which names the file that is damaged."""
    with pytest.raises(UserError) as refused:
        everything(folder)
    said = str(refused.value)
    assert str(folder / name) in said and "\n" not in said and said.endswith(".") and len(said) < 400
    return said


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_size_or_none(original: Path, tmp_path: Path, name: str) -> None:
    content = (original / name).read_bytes()
    for number, changed in enumerate((content[:-2], content[: len(content) // 2], content[:5], b"", content + b"\0")):
        folder = shutil.copytree(original, tmp_path / str(number))
        (folder / name).write_bytes(changed)
        said = refusal(folder, name)
        assert name == MANIFEST or f"{len(changed)} bytes instead of {len(content)}" in said
    folder = shutil.copytree(original, tmp_path / "none")
    (folder / name).unlink()
    assert re.search("missing|No such file", refusal(folder, name))
    (folder / name).mkdir()
    refusal(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_that_is_another_one(original: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(original, tmp_path / "set")
    content, rng = (original / name).read_bytes(), np.random.default_rng(FILES.index(name))
    for place in [0, 8, len(content) - 1, *rng.integers(0, len(content), 25)]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        (folder / name).write_bytes(changed)
        if name == MANIFEST and same_document(changed, content):
            everything(folder)  # other spaces say the same
        else:
            refusal(folder, name)


def same_document(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_files_that_are_confused(original: Path, tmp_path: Path) -> None:
    other = complete(tmp_path / "other", seed=1)
    for name in FILES:
        folder = shutil.copytree(original, tmp_path / f"with-{name}")
        shutil.copyfile(other / name, folder / name)
        if name == MANIFEST:  # then all others are wrong, of which one is named
            refusal(folder, "")
        elif (other / name).read_bytes() != (original / name).read_bytes():
            refusal(folder, name)
    folder = shutil.copytree(original, tmp_path / "swapped")
    os.replace(folder / FIRST, folder / "first")
    os.replace(folder / SECOND, folder / FIRST)
    os.replace(folder / "first", folder / SECOND)
    assert "shard-0000" in refusal(folder, "")


def test_a_manifest_that_is_no_manifest(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "set")
    document = json.loads((original / MANIFEST).read_text())
    contents: list[Any] = [[], {}, 3, None, "manifest", {"format": "another"}, {"format": "mace prepared set"}]
    contents += [{**document, "format": "another"}, {**document, "version": "one"}, {**document, "sha256": ""}]
    for content in contents:
        (folder / MANIFEST).write_text(json.dumps(content))
        assert "is no manifest of a prepared set, or it is damaged" in refusal(folder, MANIFEST)
    for text in (b"[" * 100_000, b"\xff\xfe\x00", b'{"format": "mace prepared set", "version": NaN}'):
        (folder / MANIFEST).write_bytes(text)
        assert "is no manifest of a prepared set, or it is damaged" in refusal(folder, MANIFEST)
    (folder / MANIFEST).write_text(json.dumps({**document, "version": 2, "shards": "elsewhere"}))
    assert "was made by a newer version" in refusal(folder, MANIFEST)


def test_a_manifest_with_values_of_other_kinds(original: Path, tmp_path: Path) -> None:
    """As another program might write it, its checksum included."""
    folder = shutil.copytree(original, tmp_path / "set")
    document = json.loads((original / MANIFEST).read_text())
    del document["sha256"]
    others: tuple[Any, ...] = ([], {}, "text", None, -1.5, [3], {"a": 1})
    for name, value in document.items():
        for other in others:
            if name in ("format", "version") or other == value or type(other) is type(value):
                continue
            if name in ("inspection", "statistics", "isolated", "left_out", "pairs", "r_max") and other is None:
                continue
            changed = {**document, name: other}
            changed["sha256"] = prepared.digest_of_manifest(changed)
            (folder / MANIFEST).write_text(json.dumps(changed))
            try:
                everything(folder)
            except UserError as error:
                assert str(folder) in str(error) and "\n" not in str(error)
            except AssertionError:  # a set that says less, or other things
                assert name in ("r_max", "pairs", "config_type_weights", "conditions", "keys", "units", "labels")


def test_a_folder_that_may_not_be_read(original: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from mace.structures.reading import read_configurations\n"
        "from mace.errors import UserError\n"
        "os.setuid(65534)\n"
        "try: read_configurations(sys.argv[1])\n"
        "except UserError as error: print(error)"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = shutil.copytree(original, Path(place) / "set")
        for path, mode in ((place, 0), (folder, 0), (folder, 0o444), (folder / MANIFEST, 0), (folder / INDEX, 0)):
            before = Path(path).stat().st_mode
            Path(path).chmod(mode)
            given = [sys.executable, "-c", program, str(folder)]
            ended = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
            Path(path).chmod(before)
            assert "Permission denied" in ended.stdout and str(folder) in ended.stdout, ended.stderr
            assert not ended.stderr and ended.stdout.count("\n") == 1


def test_damage_while_it_is_used(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes after it was opened is noticed when it is opened again; what is read is what was verified."""
    monkeypatch.setattr(prepared, "_OPEN_FILES", 1)

    def removed(path: Path) -> None:
        path.unlink()

    def shorter(path: Path) -> None:
        os.truncate(path, path.stat().st_size - 8)

    def other(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-3] ^= 16
        path.write_bytes(content)

    changes: list[Callable[[Path], None]] = [removed, shorter, other]
    for number, change in enumerate(changes):
        folder = shutil.copytree(original, tmp_path / str(number))
        stored = StoredStructures(folder)
        stored[0], stored[11], stored[0]  # of which the first shard is open now
        change(folder / SECOND)
        with pytest.raises(UserError, match=SECOND):
            stored[11].energy  # noqa: B018
        assert stored[0].energy == structures()[0].energy
    monkeypatch.undo()
    folder = shutil.copytree(original, tmp_path / "open")
    stored = StoredStructures(folder)
    assert stored[0].energy == structures()[0].energy
    os.truncate(folder / FIRST, 1500)
    with pytest.raises(UserError, match=f"{FIRST}.* has become shorter"):
        list(stored)


def test_a_disk_that_fails(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = StoredStructures(original)
    stored.flat([0]).labels("energy")

    def fail(*given: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match=f"{FIRST}: .*Input/output error"):
        stored.flat([1]).labels("energy")


def test_a_disk_that_answers_piece_by_piece(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, look = os.preadv, os.pread
    monkeypatch.setattr(os, "preadv", lambda file, views, place: read(file, [views[0][:7]], place))
    monkeypatch.setattr(os, "pread", lambda file, size, place: look(file, min(size, 11), place))
    everything(original)


def test_a_shard_that_lacks_what_others_have(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", structures(), 6, r_max=2.5)
    other = write_set(tmp_path / "other", structures(), 6)
    entries = [StoredStructures(folder).manifest.shards[0], StoredStructures(other).manifest.shards[1]]
    shutil.copyfile(other / SECOND, folder / SECOND)
    with pytest.raises(UserError, match=f"{SECOND}: .* lacks 'atoms_with_neighbors'"):
        finish_set(folder, entries, written_by="a test", r_max=2.5)
    with pytest.raises(UserError, match=f"{FIRST}: .*damaged"):
        finish_set(folder, [replace(entries[0], crc32=1)], written_by="a test", r_max=2.5)


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    for content in (
        b"",
        b"\0" * 4,
        b"\xff" * 200,
        b"\2\0\0\0\0\0\0\0[]",
        b"\2\0\0\0\0\0\0\0{}",
        b'\x06\0\0\0\0\0\0\0{"a":1}',
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        try:
            file = ShardFile(path, write_file(path, content, 1))
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert file.tensors == {}


def test_a_damaged_set_is_refused_where_files_are_read(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "set")
    (folder / INDEX).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{INDEX}.*\(0 bytes instead of"):
        read_configurations(folder)
