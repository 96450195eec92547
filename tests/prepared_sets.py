"""Prepared sets of few structures, and comparisons to the last bit, for every folder that tests reading them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mace.graphs.assembly import search_neighbors
from mace.inspection.parts import inspect_part, merge_parts
from mace.packing.finishing import finish_set
from mace.packing.part import BONDED, COUNTED_PAIRS
from mace.properties import PROPERTIES
from mace.structures.collection import ListedStructures, StructureCollection
from mace.structures.configuration import Configuration
from mace.structures.reading import read_configurations
from mace.structures.shards import shard_content, write_file


def write_set(
    folder: Path,
    structures: Sequence[Configuration],
    per_shard: int | Sequence[int] = 5,
    r_max: float | None = None,
    keeps_pairs: bool = True,
    isolated_atoms: Sequence[Configuration] = (),
    left_out: Sequence[int] = (),
    is_inspected: bool = False,
    **facts: Any,
) -> Path:
    """Write structures as a prepared set.

    Args:
        folder: The folder of the set; what is there is removed.
        structures: The structures, one at least.
        per_shard: Number of structures in each shard, or in all but the last one.
        r_max: Cutoff within which neighbors are stored; none are stored without it.
        keeps_pairs: Whether the neighbors are stored, not only their numbers.
        isolated_atoms: Frames of isolated atoms.
        left_out: Structures that are not in the set.
        is_inspected: Whether what checks see in them is stored.
        **facts: Further entries of the manifest.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listed, entries, parts = ListedStructures(structures), [], []
    for number, places in enumerate(_divided(len(listed), per_shard)):
        part = listed.take(places)
        columns, pairs = dict[str, np.ndarray](), None
        if is_inspected:
            parts.append(inspect_part(part, isolated_atoms if number == 0 else ()))
            columns |= parts[-1].columns
        if r_max is not None:
            found = search_neighbors(part, r_max)
            rows = np.column_stack([found.pair_sender, found.pair_receiver, found.pair_shift])
            alone = [found.take(np.array([place])) for place in range(len(part))]
            connected = np.array([len({*each.pair_sender, *each.pair_receiver}) for each in alone])
            pairs = (found.n_pairs, rows)
            columns[BONDED] = connected.astype(np.int32)
            if not keeps_pairs:
                pairs, columns[COUNTED_PAIRS] = None, found.n_pairs.astype(np.int32)
        content = shard_content(part, pairs, columns)
        entries.append(write_file(folder / f"shard-{number:05d}.safetensors", content, len(part)))
    heads = listed.heads.present()
    document = merge_parts(parts).as_document() if is_inspected and len(heads) == 1 else None
    facts = {
        "written_by": "a test",
        "r_max": r_max,
        "conditions": list(listed.condition_names),
        "labels": {head: [] for head in heads},
        "inspection": {heads[0]: document} if document else {},
        **facts,
    }
    finish_set(folder, entries, isolated_atoms, np.array(left_out, dtype=np.int64), **facts)
    return folder


def _divided(count: int, per_shard: int | Sequence[int]) -> Iterator[np.ndarray]:
    sizes = [per_shard] * -(-count // per_shard) if isinstance(per_shard, int) else per_shard
    ends = np.cumsum(sizes)
    return (np.arange(end - size, min(end, count)) for size, end in zip(sizes, ends.tolist(), strict=True))


def prepare_files(
    folder: Path, files: str | Path | Sequence[str | Path], r_max: float | None = None, **given: Any
) -> Path:
    """Read files and write them as a prepared set; see `write_set`."""
    result = read_configurations(files)
    by_head = {head: list(result.configurations) for head in result.configurations.heads.present()}
    labels = {head: [each.document() for each in result.report.files] for head in by_head}
    return write_set(
        folder,
        list(result.configurations),
        r_max=r_max,
        isolated_atoms=result.isolated_atoms,
        is_inspected=True,
        labels=labels,
        **given,
    )


def assert_same_structure(one: Configuration, other: Configuration) -> None:
    """Compare structures to the last bit; a weight of one may be said or not."""
    for name in ("pbc", "energy", "weight", "config_type", "head", "file", "index"):
        assert getattr(one, name) == getattr(other, name), name
        assert type(getattr(one, name)) is type(getattr(other, name)), name
    for name in ("atomic_numbers", "positions", "cell", *PROPERTIES):
        assert_same_array(getattr(one, name), getattr(other, name), name)
    assert tuple(one.conditions) == tuple(other.conditions)
    for name, values in one.conditions.items():
        assert_same_array(values, other.conditions[name], name)
    for name in PROPERTIES:
        assert one.property_weights.get(name, 1.0) == other.property_weights.get(name, 1.0), name
        ones = np.ones(one.n_atoms)
        assert_same_array(one.atom_weights.get(name, ones), other.atom_weights.get(name, ones), name)
        assert one.has_weight(name) == other.has_weight(name), name


def assert_same_array(one: Any, other: Any, name: str) -> None:
    """Compare arrays to the last bit, or what is none."""
    if one is None or other is None or not isinstance(one, np.ndarray):
        assert one is None and other is None or one == other, name
        return
    assert one.dtype == other.dtype and one.shape == other.shape, name
    assert one.tobytes() == other.tobytes(), name


def assert_same_structures(one: StructureCollection, other: StructureCollection) -> None:
    """Compare collections by all that can be asked of them."""
    assert len(one) == len(other) and one.elements == other.elements
    assert not len(one) or one.condition_names == other.condition_names
    assert one.n_atoms.tolist() == other.n_atoms.tolist()
    assert one.file_index.tolist() == other.file_index.tolist()
    for name in ("config_types", "heads", "files"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert [mine[i] for i in range(len(one))] == [theirs[i] for i in range(len(one))], name
        assert set(mine.present()) == set(theirs.present()) and mine.present() == tuple(dict.fromkeys(mine.present()))
        for each in {*mine.names, *theirs.names, "nobody has this"}:
            assert mine.where(each).tolist() == theirs.where(each).tolist() and mine.count(each) == theirs.count(each)
    for name in PROPERTIES:
        assert one.labeled(name).tolist() == other.labeled(name).tolist(), name
        assert one.has_weight(name).tolist() == other.has_weight(name).tolist(), name
    assert one.label_counts() == other.label_counts()
    for mine, theirs in zip(one, other, strict=True):
        assert_same_structure(mine, theirs)


def assert_same_flat(one: Any, other: Any) -> None:
    """Compare `FlatStructures` by what they answer."""
    assert len(one) == len(other) and one.n_atoms.dtype == other.n_atoms.dtype == np.int64
    assert one.n_atoms.tolist() == other.n_atoms.tolist()
    assert_same_array(one.numbers, other.numbers, "numbers")
    for name in ("positions", "cell", "pbc"):
        assert_same_array(one.columns[name], other.columns[name], name)
    assert_same_array(one.weights(), other.weights(), "weight")
    for name in PROPERTIES:
        assert_same_array(one.labeled(name), other.labeled(name), name)
        assert_same_array(one.labels(name), other.labels(name), name)
        assert_same_array(one.weights(name), other.weights(name), name)
        assert_same_array(one.atom_weights(name), other.atom_weights(name), name)
        assert_same_array(one.has_weight(name), other.has_weight(name), name)
    assert list(one.conditions()) == list(other.conditions())
    for name, values in one.conditions().items():
        assert_same_array(values, other.conditions()[name], name)
    assert_same_array(one.compositions([1, 8, 30]), other.compositions([1, 8, 30]), "compositions")
