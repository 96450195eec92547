"""Are graphs, labels and numbers of structures on disk those of the same structures in memory, to the last bit?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_sets import write_set

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs import in_memory
from mace.graphs import prepared as stored_datasets
from mace.graphs.dataset import Dataset
from mace.graphs.in_memory import InMemoryDataset
from mace.graphs.prepared import dataset_of
from mace.properties import PROPERTIES
from mace.structures.collection import Joined, ListedStructures, StructureCollection
from mace.structures.configuration import Configuration
from mace.structures.prepared import StoredStructures

R_MAX = 3.0
ELEMENTS = ElementTable((1, 6, 8))
HEADS = ("one", "other")


def structures(count: int = 14) -> list[Configuration]:
    """Molecules, crystals, atoms alone and out of reach, with labels, weights and a condition here and there."""
    rng, found = np.random.default_rng(count), []
    for number in range(count):
        n_atoms = int(rng.integers(1, 8))
        pbc = ((True, True, True), (True, False, True), (False, False, False))[number % 3]
        cell = np.diag(rng.uniform(2.5, 6.0, 3)) + rng.normal(0.0, 0.2, (3, 3)) if any(pbc) else np.zeros((3, 3))
        labels: dict[str, Any] = {"energy": float(rng.normal())}
        if number % 4:
            labels["forces"] = rng.normal(size=(n_atoms, 3))
        if pbc == (True, True, True):
            labels["stress"] = labels["virials"] = rng.normal(size=(3, 3))
        if number >= 10:
            labels |= {"charges": rng.normal(size=n_atoms), "dipole": rng.normal(size=3)}
        found.append(
            Configuration(
                rng.choice([1, 6, 8], n_atoms), rng.uniform(0.0, 4.0, (n_atoms, 3)), cell, pbc, **labels,
                weight=float(rng.choice([1.0, 0.5])), property_weights={"energy": 2.0} if number % 2 else {},
                conditions={"total_charge": rng.normal(size=1), "field": rng.normal(size=(n_atoms, 2))},
                head=HEADS[number % 2], file="a.xyz", index=number,
            )
        )  # fmt: skip
    return found


LISTED = structures()


def in_memory_of(chosen: StructureCollection | list[Configuration], r_max: float = R_MAX) -> InMemoryDataset:
    return InMemoryDataset(list(chosen), ELEMENTS, r_max, heads=HEADS)


def on_disk(stored: StructureCollection, r_max: float = R_MAX) -> Dataset:
    found = dataset_of(stored, ELEMENTS, r_max, HEADS)
    assert not isinstance(found, InMemoryDataset) and found.on_disk
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "set", LISTED, r_max=R_MAX)


def assert_same(one: Any, other: Any, name: str = "") -> None:
    """Compare tensors and arrays to the last bit, in whatever they are nested."""
    if isinstance(one, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes(), name
    elif isinstance(one, dict):
        assert list(one) == list(other), name
        for key in one:
            assert_same(one[key], other[key], f"{name}/{key}")
    elif is_dataclass(one):
        for each in fields(one):
            assert_same(getattr(one, each.name), getattr(other, each.name), f"{name}.{each.name}")
    else:
        assert one == other, name


def assert_same_datasets(one: Dataset, other: Dataset, seed: int = 0) -> None:
    rng, every = np.random.default_rng(seed), np.arange(len(other))
    assert len(one) == len(other) and one.n_atoms == other.n_atoms and one.n_edges == other.n_edges
    assert one.average_neighbors() == other.average_neighbors()
    assert one.element_counts().tolist() == other.element_counts().tolist()
    assert one.neighbor_histogram(every).tolist() == other.neighbor_histogram(every).tolist()
    assert_same(one.shortest_distances(), other.shortest_distances())
    for name in PROPERTIES:
        assert one.labeled(name).tolist() == other.labeled(name).tolist()
    assert one.describe(every) == other.describe(every)
    for chosen in (every, rng.permutation(every), rng.integers(0, len(every), 5), every[-1:], np.repeat(every[:3], 2)):
        for count in ("atoms_of", "edges_of", "atoms_with_neighbors"):
            assert getattr(one, count)(chosen).tolist() == getattr(other, count)(chosen.tolist()).tolist(), count
        assert_same(one.batch(chosen), other.batch(chosen))
        assert_same(one.graph(chosen), other.graph(chosen))
        assert_same(one.targets(chosen), other.targets(chosen))
    for mine, theirs in zip(one.batches(4, every[::-1]), other.batches(4, every[::-1]), strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("stored_r_max", [R_MAX, 2.0, 4.5, None])
def test_whatever_cutoff_the_set_was_prepared_with(tmp_path: Path, stored_r_max: float | None) -> None:
    for keeps_pairs in (True, False):
        stored = write_set(tmp_path / "set", LISTED, r_max=stored_r_max, keeps_pairs=keeps_pairs)
        assert_same_datasets(on_disk(StoredStructures(stored)), in_memory_of(LISTED))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 13), min_size=1, max_size=20), st.booleans())
def test_some_structures_in_any_order(folder: Path, chosen: list[int], is_known: bool) -> None:
    r_max = R_MAX if is_known else 2.2
    some = on_disk(StoredStructures(folder).take(np.array(chosen)), r_max)
    assert_same_datasets(some, in_memory_of([LISTED[place] for place in chosen], r_max))


def test_sets_and_structures_in_memory_together(folder: Path, tmp_path: Path) -> None:
    others = structures(9)
    second = StoredStructures(write_set(tmp_path / "second", others, 2))
    stored = StoredStructures(folder)
    joined = Joined([stored.take(np.array([3, 1, 12])), ListedStructures(others[:2]), second, stored.changed(0.5)])
    assert_same_datasets(on_disk(joined), in_memory_of(list(joined)))
    some = joined.take(np.random.default_rng(0).permutation(len(joined))[:11])
    assert_same_datasets(on_disk(some), in_memory_of(list(some)))


def test_neighbors_within_another_cutoff_are_counted_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    searched = list[int]()
    find = stored_datasets.find_all_neighbors
    monkeypatch.setattr(
        stored_datasets, "find_all_neighbors", lambda found, r_max: (searched.append(len(found)), find(found, r_max))[1]
    )
    stored = StoredStructures(folder)
    with caplog.at_level(logging.WARNING):
        train, valid = (on_disk(stored.changed(0.5).take(places), 4.0) for places in (np.arange(4), np.arange(4, 14)))
    assert sum(searched) == 14
    (said,) = [record.message for record in caplog.records]
    assert f"{folder} holds the neighbors within 3 Angstrom, not those within 4" in said and "--r_max=4" in said
    assert train.n_edges + valid.n_edges == in_memory_of(LISTED, 4.0).n_edges


def test_stored_neighbors_are_not_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*given: object) -> None:
        raise AssertionError("searched")

    for module in (stored_datasets, in_memory):
        monkeypatch.setattr(module, "find_all_neighbors", search)
    dataset = on_disk(StoredStructures(folder))
    assert dataset.batch([3, 1]).graph.n_edges and dataset.average_neighbors()


def test_a_structure_that_is_not_chosen_may_have_any_element(folder: Path) -> None:
    stored, small = StoredStructures(folder), ElementTable((1, 8))
    chosen = np.array([place for place, c in enumerate(LISTED) if 6 not in c.atomic_numbers])
    found = dataset_of(stored.take(chosen), small, R_MAX, HEADS)
    same = InMemoryDataset([LISTED[place] for place in chosen], small, R_MAX, heads=HEADS)
    assert_same_datasets(found, same)
    for refused in (stored, stored.take(np.arange(14)), Joined([stored.take(chosen), ListedStructures(LISTED)])):
        with pytest.raises(UserError, match="C"):
            dataset_of(refused, small, R_MAX, HEADS)


def test_what_is_refused_in_memory_is_refused_on_disk(tmp_path: Path) -> None:
    flat = replace(LISTED[5], stress=np.eye(3), cell=np.zeros((3, 3)), pbc=(False, False, False), index=5)
    faults: dict[str, tuple[Configuration, Callable[[StructureCollection], Dataset]]] = {
        "a.xyz: structure 5 has a stress but its cell has no volume": (flat, on_disk),
        "a.xyz: structure 5 is for the head 'third', which the model does not have": (
            replace(LISTED[5], head="third"),
            on_disk,
        ),
    }
    for message, (faulty, make) in faults.items():
        given = [*LISTED[:5], faulty, *LISTED[6:]]
        stored = StoredStructures(write_set(tmp_path / "set", given, r_max=R_MAX))
        with pytest.raises(UserError) as of_disk:
            make(stored)
        with pytest.raises(UserError) as of_memory:
            in_memory_of(given)
        assert message in str(of_disk.value) and str(of_disk.value) == str(of_memory.value)
