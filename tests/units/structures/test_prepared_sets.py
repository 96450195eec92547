"""Is what is read from a prepared set what was written, to the last bit, however it is asked for?"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_sets import assert_same_flat, assert_same_structure, assert_same_structures, write_set

from mace.packing.finishing import finish_set
from mace.properties import PROPERTIES
from mace.structures import prepared
from mace.structures.collection import Joined, ListedStructures, together
from mace.structures.configuration import Configuration
from mace.structures.prepared import StoredStructures, isolated_atoms_of, select
from mace.structures.shards import ShardFile

FREE, ALL = (False, False, False), (True, True, True)
SOME = ("none", "all", "some", "some shards")
PER_ATOM = ("forces", "charges")


def made(
    seed: int, sizes: list[int], labels: dict[str, str], weighted: set[str], conditions: tuple[str, ...], named: bool
) -> list[Configuration]:
    """Make structures of whatever kind, in shards of some sizes."""
    rng = np.random.default_rng(seed)
    shard_has = {name: rng.random(len(sizes)) < 0.5 for name in labels}
    found = []
    for shard in [number for number, size in enumerate(sizes) for _ in range(size)]:
        n_atoms = int(rng.integers(1, 7))
        pbc = tuple((rng.random(3) < 0.5).tolist()) if rng.random() < 0.5 else FREE
        cell = np.eye(3) * 6.0 + rng.normal(0, 0.3, (3, 3)) if any(pbc) else np.zeros((3, 3))
        values: dict[str, Any] = {}
        for name, row in PROPERTIES.items():
            has = {"none": False, "all": True, "some": rng.random() < 0.5, "some shards": shard_has[name][shard]}
            if has[labels[name]]:
                shape = (n_atoms, *row.shape) if row.of_atoms else row.shape
                values[name] = rng.normal(size=shape) if shape else float(rng.normal())
        if "weight" in weighted and rng.random() < 0.7:
            values["weight"] = float(rng.choice([0.0, 1.0, rng.random()]))
        if "labels" in weighted and rng.random() < 0.7:
            chosen = rng.choice(list(PROPERTIES), 2, replace=False)
            values["property_weights"] = {str(name): float(rng.choice([0.0, rng.random()])) for name in chosen}
        if "atoms" in weighted and rng.random() < 0.7:
            weights = rng.random(n_atoms) * (rng.random(n_atoms) < 0.5)
            values["atom_weights"] = {str(rng.choice(PER_ATOM)): weights}
        of_each = {"charge": rng.normal(size=1), "spin": rng.normal(size=1), "a_field": rng.normal(size=(n_atoms, 2))}
        values["conditions"] = {name: of_each[name] for name in conditions}
        if named:
            values |= {"config_type": str(rng.choice(["bulk", "molecule", "Default"]))}
            values |= {"head": str(rng.choice(["one", "other"])), "file": str(rng.choice(["b.xyz", "a.xyz"]))}
        numbers = rng.choice([1, 8, 30, 92], n_atoms)
        positions = rng.normal(0, 2, (n_atoms, 3)) * rng.choice([1.0, 1e-9, 1e5])
        index = int(rng.integers(0, 2**40))
        found.append(Configuration(numbers, positions, cell, pbc, index=index, **values))
    return found


@st.composite
def any_structures(draw: st.DrawFn) -> tuple[list[Configuration], list[int]]:
    """Draw structures and the sizes of the shards that they are written in."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    labels = {name: draw(st.sampled_from(SOME)) for name in PROPERTIES}
    weighted = draw(st.sets(st.sampled_from(["weight", "labels", "atoms"])))
    conditions = draw(st.sampled_from([(), ("charge",), ("spin", "a_field", "charge")]))
    return made(draw(st.integers(0, 2**32)), sizes, labels, weighted, conditions, draw(st.booleans())), sizes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets") / "set"


def asked(count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Choices of structures: all, in any order, some more than once, one, the first ones, none twice."""
    yield np.arange(count)
    yield rng.permutation(count)
    yield rng.integers(0, count, 2 * count)
    yield np.array([count - 1])
    yield np.arange(-(-count // 2))
    yield np.repeat(np.arange(count), 2)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(any_structures(), st.integers(0, 1000))
def test_whatever_is_written_is_read_the_same(
    folder: Path, drawn: tuple[list[Configuration], list[int]], seed: int
) -> None:
    structures, sizes = drawn
    listed = ListedStructures(structures)
    stored = StoredStructures(write_set(folder, structures, sizes))
    rng = np.random.default_rng(seed)
    assert_same_structures(stored, listed)
    for place in (0, len(listed) - 1, -1):
        assert_same_structure(stored[place], listed[place])
    assert_same_structures(stored[1::2], listed[1::2])
    for places in asked(len(listed), rng):
        assert_same_flat(stored.flat(places), listed.flat(places))
        assert_same_flat(stored.flat(places.tolist()), listed.flat(places))
        some, same = stored.take(places), listed.take(places)
        assert_same_structures(some, same)
        again = rng.permutation(len(places))
        assert_same_flat(some.take(again).flat(again), same.take(again).flat(again))
        assert_same_structures(some.take(again), same.take(again))
    for size in (1, 3, 100):
        for one, other in zip(stored.blocks(size), listed.blocks(size), strict=True):
            assert_same_flat(one, other)
    for variant in (lambda each: each.changed(0.3, "new"), lambda each: each.changed(1.7), lambda each: each.changed()):
        assert_same_structures(variant(stored), variant(listed))
        assert_same_flat(variant(stored).flat(again % len(listed)), variant(listed).flat(again % len(listed)))
        assert_same_structures(variant(stored.take(places)), variant(listed.take(places)))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(any_structures(), st.data())
def test_sets_and_structures_in_memory_are_joined(
    folder: Path, drawn: tuple[list[Configuration], list[int]], data: st.DataObject
) -> None:
    structures, sizes = drawn
    cut = data.draw(st.integers(0, len(structures) - 1))
    stored = StoredStructures(write_set(folder, structures, sizes))
    rng = np.random.default_rng(cut)
    others = ListedStructures(structures[cut:])
    joined = Joined([stored.take(rng.permutation(len(stored))[: cut + 1]), others, stored])
    listed = ListedStructures(list(joined))
    assert_same_structures(joined, listed)
    for places in asked(len(listed), rng):
        assert_same_flat(joined.flat(places), listed.flat(places))
        assert_same_structures(joined.take(places), listed.take(places))
    assert_same_structures(joined.changed(0.1, "new"), listed.changed(0.1, "new"))
    assert together([others, ListedStructures([]), stored]).__class__ is Joined
    assert together([ListedStructures([]), stored]) is stored


def few(count: int = 12, **labels: str) -> list[Configuration]:
    """Structures in whose shards of five some labels are missing, with all kinds of weights and conditions."""
    kinds = dict.fromkeys(PROPERTIES, "some") | {"energy": "all", "dipole": "some shards"} | labels
    sizes = [5] * (count // 5) + [count % 5] * bool(count % 5)
    return made(3, sizes, kinds, {"weight", "labels", "atoms"}, ("spin", "a_field", "charge"), named=True)


def test_weights_of_types_are_those_of_the_preparation_unless_a_run_gives_others(tmp_path: Path) -> None:
    structures, before = few(), {"bulk": 3.0, "IsolatedAtom": 0.7}
    atom = replace(structures[0], config_type="IsolatedAtom", weight=0.3)
    stored = StoredStructures(
        write_set(tmp_path / "set", structures, isolated_atoms=[atom], config_type_weights=before)
    )

    def weighted(weights: dict[str, float]) -> ListedStructures:
        default = weights.get("Default", 1.0)
        return ListedStructures(replace(c, weight=weights.get(c.config_type, default) * c.weight) for c in structures)

    assert_same_structures(stored, weighted(before))
    assert_same_structures(stored.changed(0.3), weighted(before).changed(0.3))
    assert isolated_atoms_of(stored)[0].weight == 0.7 * 0.3
    for others in ({"molecule": 0.0}, {"Default": 2.5, "bulk": 0.1}, {}):
        assert_same_structures(stored.with_type_weights(others), weighted(others))
        both = stored.changed(0.3, "new").with_type_weights(others)
        assert_same_flat(both.flat([7, 3]), weighted(others).changed(0.3, "new").flat([7, 3]))
        assert isolated_atoms_of(both)[0].weight == others.get("Default", 1.0) * 0.3
    assert_same_structures(stored, weighted(before))  # variants change nothing


def test_a_model_that_depends_on_fewer_conditions_sees_these_in_its_order(tmp_path: Path) -> None:
    structures = few()
    stored = StoredStructures(write_set(tmp_path / "set", structures, isolated_atoms=structures[:2]))
    for names in (("charge",), ("a_field", "spin"), ("charge", "spin", "a_field"), ()):
        expected = ListedStructures(replace(c, conditions={n: c.conditions[n] for n in names}) for c in structures)
        some = stored.under(names)
        assert_same_structures(some, expected)
        assert_same_flat(some.changed(2.0).flat([4, 1]), expected.changed(2.0).flat([4, 1]))
        # frames of isolated atoms can be trained on together with them
        assert_same_structures(
            Joined([some, ListedStructures(isolated_atoms_of(some))]), ListedStructures([*expected, *expected[:2]])
        )


def test_structures_that_are_left_out_are_not_selected(tmp_path: Path) -> None:
    structures = few()
    stored = StoredStructures(write_set(tmp_path / "set", structures, left_out=[11, 0, 6]))
    chosen, places = select(stored, np.arange(12))
    assert places.tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert_same_structures(chosen, ListedStructures([structures[place] for place in places]))
    of_head, places = select(stored, np.flatnonzero(stored.heads.where("one")))
    assert_same_structures(of_head, ListedStructures([structures[place] for place in places]))
    whole = StoredStructures(write_set(tmp_path / "set", structures))
    assert select(whole, np.arange(12))[0] is whole


def test_what_is_not_asked_for_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, read = StoredStructures(write_set(tmp_path / "set", few())), list[str]()
    rows = ShardFile.rows
    monkeypatch.setattr(ShardFile, "rows", lambda self, name, *given: (read.append(name), rows(self, name, *given))[1])
    flat = stored.flat([1, 7, 8])
    assert stored.labeled("energy").all() and flat.weights().shape == (3,) and flat.labeled("forces").shape == (3,)
    assert not read
    assert len(flat.labels("energy")) == 3 and len(flat.columns["cell"]) == 3
    assert read == ["structures"] * 2  # from each of two shards once
    assert len(flat.numbers) and len(flat.labels("forces")) and len(flat.columns["positions"])
    assert read[2:] == ["numbers"] * 2 + ["atoms"] * 2


def test_the_same_structures_give_the_same_files(tmp_path: Path) -> None:
    one, other = (write_set(tmp_path / name, few()) for name in ("one", "other"))
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()
    changed = [*few()[:-1], replace(few()[-1], energy=1.0)]
    others = write_set(tmp_path / "changed", changed)
    assert StoredStructures(one).digest == StoredStructures(other).digest != StoredStructures(others).digest


def test_few_files_are_open_at_a_time_whatever_threads_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = few(60)
    monkeypatch.setattr(prepared, "_OPEN_FILES", 3)
    stored, listed = StoredStructures(write_set(tmp_path / "set", structures, 2)), ListedStructures(structures)
    verified: list[Path] = []
    verify = ShardFile._verify
    monkeypatch.setattr(ShardFile, "_verify", lambda self, *given: (verified.append(self.path), verify(self, *given)))
    before = open_files(tmp_path)
    faults: list[BaseException] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(30):
                places = rng.integers(0, 60, 7)
                assert_same_flat(stored.flat(places), listed.flat(places))
                assert open_files(tmp_path) <= before + 3 + 2 * len(threads)
        except BaseException as fault:  # noqa: BLE001  # raised below
            faults.append(fault)

    threads = [Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert open_files(tmp_path) == before + 3
    assert len(set(verified)) == 30 and len(verified) <= 30 + 5 * len(threads)  # again only where two came at once


def test_files_are_closed_with_the_set(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    stored = StoredStructures(write_set(tmp_path / "set", few()))
    stored.flat(np.arange(12)).labels("energy")
    assert open_files(tmp_path) == 4
    del stored
    gc.collect()
    assert open_files(tmp_path) == 0 and not recwarn.list


def open_files(folder: Path) -> int:
    """Count the files of a folder that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(link))
    return sum(path.startswith(str(folder)) for path in found)


def test_a_set_is_finished_with_few_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    structures = few(100)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 10, hard))
        folder = write_set(tmp_path / "set", structures, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_same_structures(StoredStructures(folder), ListedStructures(structures))


def test_a_process_that_was_forked_reads_too(tmp_path: Path) -> None:
    structures = few()
    stored, listed = StoredStructures(write_set(tmp_path / "set", structures)), ListedStructures(structures)
    assert_same_flat(stored.flat([0, 1]), listed.flat([0, 1]))
    if (child := os.fork()) == 0:
        status = 1
        try:
            assert_same_structures(stored, listed)
            status = 0
        finally:
            os._exit(status)
    assert_same_structures(stored, listed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


LARGE = """
import resource, sys, tracemalloc
from pathlib import Path
import numpy as np, torch
from mace.elements import ElementTable
from mace.graphs.prepared import dataset_of
from mace.structures.prepared import StoredStructures
from mace.structures.splitting import split_validation
from mace.structures.statistics import summarize

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

tracemalloc.start()
before = resident()
stored = StoredStructures(sys.argv[1])
split = split_validation(stored, 0.1, 1, ["energy", "forces"])
elements = ElementTable(split.train.elements)
train, valid = (dataset_of(each, elements, 3.0, ("Default",)) for each in (split.train, split.valid))
summary = summarize(split.train, {number: -1.0 for number in elements})
train.average_neighbors()
order = np.random.default_rng(0).permutation(len(train))
for places in np.array_split(order[:2_000], 200):
    train.batch(places)
held, peak = tracemalloc.get_traced_memory()
print(held / len(stored), peak / len(stored), (resident() - before) / len(stored))
"""


def test_a_large_set_takes_little_memory(tmp_path: Path) -> None:
    """Under a hundred bytes for each structure: at the end, and at the worst in between but for a block."""
    rng, folder = np.random.default_rng(0), tmp_path / "set"
    folder.mkdir()
    block = [
        Configuration(
            np.array([8, 1, 1]), rng.normal(size=(3, 3)), np.zeros((3, 3)), FREE,
            energy=float(rng.normal()), forces=rng.normal(size=(3, 3)), config_type=f"kind {number % 7}",
        )
        for number in range(8192)
    ]  # fmt: skip
    write_set(folder, block, 8192, r_max=3.0)
    entry = StoredStructures(folder).manifest.shards[0]
    entries = [entry]
    for number in range(1, 37):
        copy = folder / f"shard-{number:05d}.safetensors"
        os.link(folder / entry.file, copy)
        entries.append(replace(entry, file=copy.name))
    finish_set(folder, entries, written_by="a test", r_max=3.0)
    program = subprocess.run(
        [sys.executable, "-c", LARGE, str(folder)], capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert program.returncode == 0, program.stderr
    held, peak, resident = map(float, program.stdout.split())
    assert held < 70 and peak < 100 and resident < 250, (held, peak, resident)
