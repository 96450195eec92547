"""Are prepared sets what one reading in memory gives, whatever processes make them and whenever these are killed?"""

from __future__ import annotations

import ast
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mace.cli.preprocess_data import run
from mace.errors import UserError
from mace.graphs.neighbors import find_neighbors
from mace.packing import folder as packing_folder
from mace.structures.collection import StructureCollection
from mace.structures.configuration import Configuration
from mace.structures.labels import FileLabels
from mace.structures.prepared import StoredStructures, select
from mace.structures.reading import read_configurations, read_sources
from mace.structures.sources import Source
from mace.structures.splitting import split_validation

REFERENCES = Path(__file__).parents[1] / "parity" / "references" / "prepared"
TOGETHER = ("--num_process=1", "--E0s=average", "--log_level=WARNING")


def write_structures(
    file: Path, count: int, seed: int = 1, key: Callable[[int], str] = lambda place: "REF_energy"
) -> Path:
    """Structures of two to eight atoms, some of which repeat; two isolated atoms among them."""
    rng = np.random.default_rng(seed)
    text = []
    for place in range(count):
        n_atoms = int(rng.integers(2, 9))
        grid = np.stack(np.meshgrid(*[np.arange(2.0)] * 3), axis=-1).reshape(-1, 3)[:n_atoms] * 1.4
        positions, forces = grid + rng.normal(0, 0.1, (n_atoms, 3)), rng.normal(0, 1, (n_atoms, 3))
        cell = f'Lattice="4.2 0 0 0.3 4 0 0 0 {3.8 + 0.1 * rng.random():.4f}"' if place % 3 == 0 else ""
        kind, symbols = ("solid", "gas", "liquid")[place % 3], rng.choice(["H", "O", "Si"], n_atoms)
        energy = -3.0 * n_atoms + rng.normal()
        stress = 'REF_stress="' + " ".join(f"{x:.6f}" for x in rng.normal(0, 0.01, 6)) + '"' if cell else ""
        weight = "config_weight=2.5" if place % 7 == 0 else ""
        info = f"{cell} {key(place)}={energy:.8f} {stress} config_type={kind} {weight}"
        text.append(f"{n_atoms}\n{info} Properties=species:S:1:pos:R:3:REF_forces:R:3\n")
        for symbol, row in zip(symbols, np.hstack([positions, forces]), strict=True):
            text.append(f"{symbol} {' '.join(f'{x:.8f}' for x in row)}\n")
        if place in (3, 8):
            text.append(
                f"1\nconfig_type=IsolatedAtom {key(place)}=-1.5 pbc='F F F'\n{'H' if place == 3 else 'O'} 0 0 0\n"
            )
    file.write_text("".join(text), encoding="utf-8")
    return file


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let parts be so small that there are many, and work in a folder of one's own."""
    monkeypatch.setattr(packing_folder, "STRUCTURES_IN_A_PART", 7)
    monkeypatch.chdir(tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same(found: StructureCollection, expected: StructureCollection) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.where() == other.where()
        for name in Configuration.__dataclass_fields__:
            a, b = getattr(one, name), getattr(other, name)
            same = np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
            assert same or (name == "property_weights" and not (a or b)), (one.where(), name, a, b)


@pytest.mark.usefixtures("small_parts")
def test_sets_are_those_of_one_reading() -> None:
    """Structures, weights, labels, isolated atoms, reports and neighbors, to the last bit."""
    files = [
        str(write_structures(Path(f"{name}.xyz"), count, count)) for name, count in (("a", 40), ("b", 3), ("c", 20))
    ]
    weights = "--config_type_weights={'solid': 3.0, 'Default': 1.0}"
    run(["--train_file", *files, "--h5_prefix=out/", "--valid_fraction=0.2", "--r_max=3.0", weights, *TOGETHER])
    memory = read_configurations(files, config_type_weights={"solid": 3.0, "Default": 1.0}, skip_non_finite=True)
    split = split_validation(memory.configurations, 0.2, 123, ["energy", "forces"])
    for name, expected in (("train", split.train), ("val", split.valid)):
        read = read_sources([Source(f"out/{name}")])
        assert_same(read.configurations, expected)
    stored = StoredStructures("out/train")
    assert_same(stored, memory.configurations)
    assert [FileLabels.of_document(each) for each in stored.manifest.labels["Default"]] == list(memory.report.files)
    assert [a.where() for a in read_sources([Source("out/train")]).isolated_atoms] == [
        a.where() for a in memory.isolated_atoms
    ]
    n_pairs, pairs = stored.pairs(np.arange(len(stored)))
    ends = np.cumsum(n_pairs)
    for place, c in enumerate(memory.configurations):
        alone = find_neighbors(c.positions, c.cell, c.pbc, 3.0)
        own = pairs[ends[place] - n_pairs[place] : ends[place]]
        assert np.array_equal(own[:, :2], np.column_stack([alone.pair_sender, alone.pair_receiver]))
        assert np.array_equal(own[:, 2:], alone.pair_shift)
    assert not list(Path("out").rglob(".parts")) and Path("out/data.html").exists()
    listed = Path("out_valid_indices_123.txt") if Path("out_valid_indices_123.txt").exists() else None
    text = (listed or Path("prepared_valid_indices_123.txt")).read_text(encoding="utf-8")
    assert [line.split() for line in text.splitlines()[1:]] == [[str(c.index), c.file] for c in split.valid]


@pytest.mark.usefixtures("small_parts")
def test_bytes_do_not_depend_on_the_number_of_processes() -> None:
    write_structures(Path("a.xyz"), 30)
    write_structures(Path("t.xyz"), 12, 4)
    Path("tests").mkdir()
    write_structures(Path("tests/more.xyz"), 5, 6)
    for count in (1, 2, 3):
        flags = ["--train_file=a.xyz", "--test_file=t.xyz", "--test_dir=tests", "--compute_statistics", "--E0s=average"]
        run([*flags, f"--h5_prefix=out{count}/", f"--num_process={count}", "--log_level=ERROR"])
    first = content(Path("out1"))
    assert {name.split("/")[1] for name in first if name.startswith("test/")} == {
        *(".about", "gas_Default", "liquid_Default", "solid_Default", "more")
    }
    assert first == content(Path("out2")) == content(Path("out3"))
    # what there is already is left alone
    before = {path: path.stat().st_mtime_ns for path in Path("out1").rglob("shard-*")}
    run([*flags, "--h5_prefix=out1/", "--num_process=1", "--log_level=ERROR"])
    assert content(Path("out1")) == first and {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("late", [0, 5, 39])
def test_a_better_key_that_comes_late_counts_for_the_whole_file(late: int) -> None:
    key = lambda place: "REF_energy" if place == late else "energy"  # noqa: E731
    file = str(write_structures(Path("a.xyz"), 40, key=key))
    run(["--train_file", file, "--h5_prefix=out/", *TOGETHER])
    memory = read_configurations(file, skip_non_finite=True)
    stored = StoredStructures("out/train")
    assert_same(stored, memory.configurations)
    assert stored.labeled("energy").sum() == 1
    assert [FileLabels.of_document(each) for each in stored.manifest.labels["Default"]] == list(memory.report.files)


def test_statistics_are_those_of_the_original(tmp_path: Path) -> None:
    """With its split, its counting of neighbors, and its names and formats; made by make_prepared_statistics.py."""
    expected = json.loads((REFERENCES / "statistics.json").read_text())
    flags = ["--valid_fraction=0.34", "--seed=5", "--r_max=4.0", "--compute_statistics", f"--work_dir={tmp_path}"]
    given = [f"--train_file={REFERENCES / 'labeled.xyz'}", f"--E0s={expected['atomic_energies']}"]
    allowed = ["--allow", "duplicates", "close-atoms"]
    for neighbors in ("True", "False"):
        prefix = f"{tmp_path}/{neighbors}/"
        run([*given, *flags, f"--h5_prefix={prefix}", f"--neighbors={neighbors}", "--num_process=1", *allowed])
        found = json.loads(Path(f"{prefix}statistics.json").read_text())
        assert list(found) == list(expected)
        assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}
        for name in ("avg_num_neighbors", "mean", "std", "r_max"):
            # the original has energies of thousands of eV in single precision
            tolerance = 1e-4 if name == "mean" else 1e-6 * expected[name]
            assert found[name] == pytest.approx(expected[name], abs=tolerance), name
        for name in ("atomic_energies", "atomic_numbers"):
            assert ast.literal_eval(found[name]) == ast.literal_eval(expected[name])


@pytest.mark.usefixtures("small_parts")
def test_heads_keep_their_structures_apart() -> None:
    """Some in files of their own with keys of their own, some in a file that names them."""
    text = write_structures(Path("both.xyz"), 20).read_text(encoding="utf-8").splitlines(keepends=True)
    place = [k for k, line in enumerate(text) if "Properties" in line or "IsolatedAtom" in line]
    for number, line in enumerate(place):
        text[line] = f"head={('a', 'b')[number % 2]} {text[line]}"
    Path("both.xyz").write_text("".join(text), encoding="utf-8")
    write_structures(Path("own.xyz"), 10, 3, key=lambda place: "E_dft")
    heads = "{'a': {}, 'b': {}, 'c': {'train_file': 'own.xyz', 'energy_key': 'E_dft', 'E0s': 'average'}}"
    run(["--train_file=both.xyz", f"--heads={heads}", "--h5_prefix=out/", "--compute_statistics", *TOGETHER])
    stored = StoredStructures("out/train")
    for head, file, keys in (("a", "both.xyz", None), ("b", "both.xyz", None), ("c", "own.xyz", "E_dft")):
        from mace.structures.labels import LabelKeys

        source = [Source(file, keys=LabelKeys(energy=keys))]
        shared = {} if keys else {"head_key": "head", "heads": ("a", "b", "c")}
        memory = read_sources(source, head=head, skip_non_finite=True, **shared)  # type: ignore[arg-type]
        assert_same(stored.take(np.flatnonzero(stored.heads.where(head))), memory.configurations)
        assert Path(f"out/statistics_{head}.json").exists() and Path(f"out/data_{head}.html").exists()
        kept = select(stored, np.flatnonzero(stored.heads.where(head)))[0]
        expected = split_validation(memory.configurations, 0.1, 123, ["energy", "forces"]).train
        assert [c.where() for c in kept] == [c.where() for c in expected]


PROGRAM = """
import sys
import mace.packing.folder
import mace.packing.packing
from mace.cli.preprocess_data import main
mace.packing.folder.STRUCTURES_IN_A_PART = 7
print("ready", flush=True)
main()
"""


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start the command, and return once everything is imported."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None and "ready" in process.stdout.readline()
    return process


def finish(arguments: list[str]) -> str:
    process = start(arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def killed_and_resumed(instants: int, kills: int, seed: int) -> None:
    write_structures(Path("a.xyz"), 120)
    write_structures(Path("t.xyz"), 20, 4)
    flags = ["--train_file=a.xyz", "--test_file=t.xyz", "--compute_statistics", "--E0s=average", "--num_process=2"]
    began = time.monotonic()
    finish([*flags, "--h5_prefix=whole/"])
    duration, expected = time.monotonic() - began, content(Path("whole"))
    drawn = random.Random(seed)
    for number in range(instants):
        prefix = f"killed{number}/"
        for _ in range(kills):
            process = start([*flags, f"--h5_prefix={prefix}"])
            time.sleep(drawn.uniform(0.0, 0.8 * duration))
            process.send_signal(signal.SIGKILL)
            process.wait()
        finish([*flags, f"--h5_prefix={prefix}"])
        assert content(Path(prefix)) == expected, number


@pytest.mark.usefixtures("small_parts")
def test_killed_at_random_and_resumed() -> None:
    killed_and_resumed(2, 1, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_killed_at_twenty_random_instants_and_resumed() -> None:
    killed_and_resumed(20, 2, 2)


@pytest.mark.usefixtures("small_parts")
def test_what_is_damaged_is_made_again_and_what_is_changed_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    write_structures(Path("a.xyz"), 40)
    flags = ["--train_file=a.xyz", "--h5_prefix=out/", "--valid_fraction=0.2", *TOGETHER]
    run([*flags[:1], "--h5_prefix=whole/", *flags[2:]])
    with monkeypatch.context() as stopping, pytest.raises(ZeroDivisionError):  # all parts are there, and no more
        stopping.setattr("mace.packing.packing.inspect_data", lambda *_: 1 / 0)
        run(flags)
    torn, flipped, gone = (Path(f"out/train/shard-0000{k}.safetensors") for k in (1, 2, 4))
    torn.write_bytes(torn.read_bytes()[:-9])
    changed = bytearray(flipped.read_bytes())
    changed[-5] ^= 4
    flipped.write_bytes(changed)
    gone.unlink()
    Path("out/train/.parts/00000.json").write_text("{", encoding="utf-8")
    kept = Path("out/train/shard-00003.safetensors").stat().st_mtime_ns
    run([*flags, "--log_level=INFO"])
    assert Path("out/train/shard-00003.safetensors").stat().st_mtime_ns == kept
    assert content(Path("out/train")) == content(Path("whole/train"))
    # a finished set is not replaced without being asked
    with pytest.raises(UserError, match=r"out/train: a set made otherwise is there \(--r_max was 5.0 and is 4.0\)"):
        run([*flags, "--r_max=4.0"])
    write_structures(Path("a.xyz"), 41)
    with pytest.raises(UserError, match=r"a.xyz has changed since\); choose another --h5_prefix, or replace it with"):
        run(flags)
    assert content(Path("out/train")) == content(Path("whole/train"))
    run([*flags, "--overwrite"])
    assert len(StoredStructures("out/train")) == 41


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_leaves_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from mace.structures import shards

    write_structures(Path("a.xyz"), 40)
    flags = ["--train_file=a.xyz", "--h5_prefix=out/", *TOGETHER]
    write, calls = shards.write_durably, [0]

    def write_until_full(path: Path, data: bytes) -> None:
        calls[0] += 1
        if calls[0] > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(shards, "write_durably", write_until_full)
    with pytest.raises(UserError, match=r"out/train: the disk is full; free some space and run the same command again"):
        run(flags)
    finished = {path: path.stat().st_mtime_ns for path in Path("out/train").glob("shard-*")}
    assert 2 <= len(finished) < 7
    monkeypatch.setattr(shards, "write_durably", write)
    run(flags)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(StoredStructures("out/train")) == 40


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("change", "flags", "sentence"),
    [
        (
            ("config_type=gas", "config_type=gas config_weight=-1"),
            [],
            r"a.xyz: structure 1: the weight 'config_weight'",
        ),
        (("REF_energy=-", "REF_energy=x"), [], r"a.xyz: structure 0: the label 'energy'"),
        (("\nO ", "\nXx "), [], r"a.xyz: structure \d+ cannot be read: .* no chemical element"),
        (("REF_energy", "Energy"), [], "have no 'REF_energy' but 'Energy'|have no 'energy' but 'Energy'"),
        (("", ""), ["--valid_file=nothing.xyz"], r"nothing.xyz: there is no such file"),
        (("", ""), ["--energy_key=E"], "no structure has a label 'energy' under the key 'E'"),
        (("", ""), ["--compute_statistics", "--E0s={1: -1.0}"], "gives no reference energy for O, Si"),
        (("", ""), ["--num_process=0"], "--num_process must be a whole number of at least 1"),
        (("", ""), ["--h5_prefix=a.xyz/"], "a.xyz"),
        (("", ""), ["--h5_prefix=full/"], r"full/train: this folder has files that are no part .*\(notes.txt\)"),
    ],
)
def test_bad_input_gets_one_sentence(change: tuple[str, str], flags: list[str], sentence: str) -> None:
    processes = 2 if change[0] == "REF_energy=-" else 1  # the workers of the others say the same
    file = write_structures(Path("a.xyz"), 30)
    if change[0]:
        file.write_text(file.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    Path("full/train").mkdir(parents=True)
    Path("full/train/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=sentence) as caught:
        run([f"--train_file={file}", "--h5_prefix=out/", f"--num_process={processes}", "--E0s=average", *flags])
    assert len(re.findall(r"\.$", str(caught.value), re.M)) == len(str(caught.value).splitlines())
    assert not (Path("out/train/manifest.json")).exists()
    assert Path("full/train/notes.txt").read_text(encoding="utf-8") == "mine"
