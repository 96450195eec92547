"""A prepared set: labeled structures on disk, in a folder of shards with an index and a manifest.

The index holds what a run needs of all structures before it has read any: numbers of atoms and pairs, heads, types,
which labels there are, weights. The manifest says which files there are, with checksums, and how the set was prepared.
It is written last, so that a folder with a manifest is complete.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.files.documents import from_document
from mace.structures.collection import Names, StructureCollection
from mace.structures.configuration import DEFAULT_TYPE, Configuration
from mace.structures.flat import FlatStructures
from mace.structures.shards import (
    NAMED,
    OF_STRUCTURES,
    PAIRS,
    FileEntry,
    Layout,
    ShardFile,
    unpacked,
    width_of,
)

MANIFEST, INDEX = "manifest.json", "index.safetensors"
ISOLATED, LEFT_OUT = "isolated.safetensors", "left_out.safetensors"

FORMAT, VERSION = "mace prepared set", 1

_OPEN_FILES = 128
"""Of one set at the same time; a process may have some hundred."""


@dataclass(frozen=True)
class Manifest:
    """What a prepared set holds.

    Attributes:
        written_by: Version of the program.
        structures: Number of structures, those left out included.
        atoms: Number of their atoms.
        pairs: Number of their pairs of neighbors; None without neighbors.
        r_max: Cutoff in Angstrom within which neighbors are stored, or at least counted; None without.
        elements: Atomic numbers that occur.
        layout: Columns of float64 of the shards, see `mace.structures.shards.Layout`.
        kinds: Kind of numbers in every other tensor of the shards.
        shards: The shards, in order.
        index: The index.
        isolated: Frames of isolated atoms, if there are any.
        left_out: Structures of the shards that are not in the set, such as those set aside for validation.
        config_type_weights: Weight of each config_type unless a run gives others; not yet in the weights of the shards.
        keys: Key of each label in the files; None where each file decided.
        units: Units of the files.
        conditions: Names of the conditions that structures are under.
        labels: Where labels were found, by head, for each file as `FileLabels.document`.
        inspection: What was found in the data, by head, as `mace.inspection.parts.PartReport.as_document`.
        statistics: Means and deviations of the set, for people and programs that ask.
        units_inside: Units of all numbers of the set.
    """

    written_by: str
    structures: int
    atoms: int
    pairs: int | None
    r_max: float | None
    elements: list[int]
    layout: Layout
    kinds: dict[str, str]
    shards: list[FileEntry]
    index: FileEntry
    isolated: FileEntry | None = None
    left_out: FileEntry | None = None
    config_type_weights: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str | None] = field(default_factory=dict)
    units: dict[str, str | None] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=list)
    labels: dict[str, list[Any]] = field(default_factory=dict)
    inspection: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    units_inside: str = "eV, Angstrom, eV/Angstrom^3 (stress = dE/dstrain/volume), elementary charges"


def is_prepared(path: str | Path) -> bool:
    """Return whether a path is the folder of a prepared set.

    Raises:
        UserError: If that cannot be found out.
    """
    try:
        return (Path(path) / MANIFEST).is_file()
    except OSError as error:
        raise UserError(f"{path}: this cannot be read ({error.strerror or error}).") from error


def digest_of_manifest(document: Mapping[str, Any]) -> str:
    """Return the checksum that a manifest holds of everything else in it."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared set.

    Raises:
        UserError: If it cannot be read, or is of a version that is not known.
    """
    path = folder / MANIFEST
    damaged = f"{path}: this is no manifest of a prepared set, or it is damaged; copy it again, or prepare the set."
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        is_newer = document["format"] == FORMAT and document["version"] > VERSION
        is_whole = document.pop("sha256", "") == digest_of_manifest(document)
        known = {item.name for item in fields(Manifest)}
        given = {name: value for name, value in document.items() if name in known and is_whole and not is_newer}
        manifest: Manifest | None = from_document(Manifest, given) if given else None
    except OSError as error:
        raise UserError(f"{path}: this prepared set cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(damaged) from error
    if is_newer:
        raise UserError(f"{path}: this prepared set was made by a newer version; install it, or prepare it again.")
    if manifest is None or document["format"] != FORMAT:
        raise UserError(damaged)
    return manifest


class StoredStructures(StructureCollection):
    """The structures of a prepared set, those left out included; see `select`.

    Of all structures only a few numbers are held in memory; everything else is read when it is asked for. Threads may
    read at the same time.

    Args:
        folder: The folder.

    Raises:
        UserError: If the manifest or the index cannot be read, or a shard is missing or has another size. Contents of
            shards are compared with their checksums when they are first read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for entry in self.manifest.shards:
            _check_size(self.folder / entry.file, entry)
        self._index = ShardFile(self.folder / INDEX, self.manifest.index)
        self._kept: dict[str, np.ndarray] = {}
        self._shards: dict[int, ShardFile] = {}
        self._opened: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()
        self.ends = np.cumsum([entry.structures for entry in self.manifest.shards])
        self._factor, self._head = 1.0, ""
        self.condition_names = tuple(self.manifest.conditions)
        self.config_type_weights: Mapping[str, float] = self.manifest.config_type_weights

    def __len__(self) -> int:
        """Return the number of structures."""
        return self.manifest.structures

    def kept(self, name: str, find: Callable[[], np.ndarray] | None = None) -> np.ndarray:
        """Return a column of the index, or what else is found; it is held in memory once it was asked for."""
        if name not in self._kept:
            self._kept[name] = self.column(name) if find is None else find()
        return self._kept[name]

    def column(self, name: str) -> np.ndarray:
        """Read a column of the index."""
        return self._index.tensor(name)

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each structure, ``[structures]``."""
        return self.kept("n_atoms")

    @property
    def config_types(self) -> Names:
        """The config_type of each structure."""
        return Names(tuple(self._index.names["config_type"]), self._codes("config_type"))

    @property
    def heads(self) -> Names:
        """The head that each structure is for."""
        if self._head:
            return Names((self._head,), np.broadcast_to(np.int8(0), len(self)))
        return Names(tuple(self._index.names["head"]), self._codes("head"))

    @property
    def files(self) -> Names:
        """The file that each structure was read from, as the user named it."""
        return Names(tuple(self._index.names["file"]), self._codes("file"))

    def _codes(self, name: str) -> np.ndarray:
        if len(self._index.names[name]) == 1:
            return np.broadcast_to(np.int8(0), len(self))
        return self.kept(name)

    @property
    def file_index(self) -> np.ndarray:
        """Place of each structure in its file, counted from zero, ``[structures]``."""
        return self.column("index")

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, in rising order."""
        return tuple(self.manifest.elements)

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        if f"labeled/{name}" in self._index.tensors:
            return self.kept(f"labeled/{name}")
        return np.broadcast_to(np.bool_(f"label/{name}" in self._of_floats), len(self))

    def weights(self, structures: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the weights of structures, ``[structures]``."""
        own = self.kept("weight") if "weight" in self._index.tensors else np.broadcast_to(1.0, len(self))
        types, given = self.config_types, self.config_type_weights
        of_types = np.array([given.get(name, given.get(DEFAULT_TYPE, 1.0)) for name in types.names])
        # in the order in which the weights of structures from files are multiplied
        return own[structures] * of_types[types.codes[structures]] * self._factor

    def has_weight(self, name: str) -> np.ndarray:
        """Return which structures have a label with weight in the loss, ``[structures]``."""
        found = self.labeled(name) & (self.weights() > 0.0)
        if f"weight/{name}" in self._index.tensors:
            found &= self.kept(f"weight/{name}") > 0.0
        if f"any_weight/{name}" in self._index.tensors:
            found &= self.kept(f"any_weight/{name}")
        return found

    def changed(self, factor: float = 1.0, head: str | None = None) -> StoredStructures:
        """Return the same structures with weights times a factor, for a head if one is named."""
        other = copy.copy(self)
        other._factor, other._head = self._factor * factor, head or self._head
        return other

    def under(self, conditions: Sequence[str]) -> StoredStructures:
        """Return the same structures with some of their conditions only."""
        other = copy.copy(self)
        other.condition_names = tuple(conditions)
        return other

    def with_type_weights(self, weights: Mapping[str, float]) -> StoredStructures:
        """Return the same structures with other weights of config_types than the set was prepared with."""
        other = copy.copy(self)
        other.config_type_weights = weights
        return other

    def flat(self, structures: Sequence[int] | np.ndarray) -> FlatStructures:
        """Gather some structures, in any order; a column is read when it is first asked for."""
        chosen = np.asarray(structures, dtype=np.int64)
        rows = _Rows(self, chosen)
        columns: dict[str, Callable[[], np.ndarray]] = {
            name: partial(rows.column, name) for name in self._of_floats if "condition/" not in name
        }
        for condition in self.condition_names:
            name = next(f"{kind}/{condition}" for kind in _CONDITIONS if f"{kind}/{condition}" in self._of_floats)
            columns[name] = partial(rows.column, name)
        columns["numbers"] = partial(rows.tensor, "numbers")
        for name in self._index.tensors:
            if name == "pbc" or name.startswith(("labeled/", "weight/")):
                columns[name] = partial(np.take, self.kept(name), chosen, axis=0)
        columns.pop("weight", None)
        if self.config_type_weights or self._factor != 1.0 or "weight" in self._index.tensors:
            columns["weight"] = partial(self.weights, chosen)
        return FlatStructures(self.n_atoms[chosen].astype(np.int64), _Columns(columns))

    @cached_property
    def _of_floats(self) -> dict[str, str]:
        """The tensor in which each column of float64 stands."""
        return {name: tensor for tensor, columns in self.manifest.layout.items() for name, _ in columns}

    def pairs(self, structures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the pairs of neighbors of some structures.

        Returns:
            How many each has, ``[structures]``, and the pairs, see `mace.structures.shards.PAIRS`, ``[pairs, 5]``.
        """
        return self.kept("n_pairs")[structures].astype(np.int64), _Rows(self, structures).tensor(PAIRS)

    def first_rows(self, counts: str) -> np.ndarray:
        """Return the first row of each structure in tensors of its shard, of which it has so many, ``[structures]``."""

        def find() -> np.ndarray:
            rows, first, begin = self.kept(counts), np.zeros(len(self), dtype=np.int32), 0
            for end in self.ends.tolist():
                np.cumsum(rows[begin : end - 1], out=first[begin + 1 : end])
                begin = end
            return first

        return self.kept(f"first row by {counts}", find)

    def shard(self, number: int) -> ShardFile:
        """Return an opened shard; when too many are open, those that were used longest ago are closed."""
        file = self._shards.get(number)
        if file is None:  # two threads may both read it to compare it with its checksum
            entry = self.manifest.shards[number]
            file = self._shards.setdefault(number, ShardFile(self.folder / entry.file, entry))
        with self._lock:
            file.open()
            self._opened[number] = file
            self._opened.move_to_end(number)
            if len(self._opened) > _OPEN_FILES:
                self._opened.popitem(last=False)[1].close()
        return file

    def _configurations(self, structures: np.ndarray) -> list[Configuration]:
        """Build some structures one by one."""
        found: dict[str, list[Any]] = {}
        for name, names in (("config_type", self.config_types), ("head", self.heads)):
            found[name] = [names[int(place)] for place in structures]
        of_file = self._index.names["file"]
        rows = {name: np.empty(1, self._index.tensors[name].kind) for name in ("file", "index")}
        found |= {"file": [], "index": []}
        for place in structures.tolist():
            for name, row in rows.items():
                self._index.rows(name, place, row)
            found["file"].append(of_file[int(rows["file"][0])])
            found["index"].append(int(rows["index"][0]))
        return self.flat(structures).configurations(**found)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, which changes with the content of the set."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()


def _check_size(path: Path, entry: FileEntry) -> None:
    """Check that a file is there, as large as it should be."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        found = "is missing"
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
    else:
        if size == entry.size:
            return
        found = f"is damaged ({size} bytes instead of {entry.size})"
    raise UserError(
        f"{path}: this part of the prepared set {found}; copy it again, or run mace_prepare_data again, which makes "
        "what is missing."
    )


class _Rows:
    """Rows of some structures in the tensors of the shards."""

    def __init__(self, stored: StoredStructures, structures: np.ndarray) -> None:
        self._stored, self._structures = stored, structures
        self._found: dict[str, dict[str, np.ndarray]] = {}

    @cached_property
    def _runs(self) -> tuple[np.ndarray, list[ShardFile]]:
        """Runs of consecutive structures of a shard: where they start among the given ones, and the shards."""
        structures = self._structures
        shard = np.searchsorted(self._stored.ends, structures, side="right")
        is_new = np.ones(len(structures), dtype=bool)
        is_new[1:] = (structures[1:] - structures[:-1] != 1) | (shard[1:] != shard[:-1])
        starts = np.flatnonzero(is_new)
        return starts, [self._stored.shard(number) for number in shard[starts].tolist()]

    def _rows_of_runs(self, counts: str) -> tuple[list[int], list[int]]:
        """First row and number of rows of each run in tensors of which each structure has so many rows, or one."""
        stored, structures, starts = self._stored, self._structures, self._runs[0]
        if counts:
            n_rows = np.add.reduceat(stored.kept(counts)[structures], starts) if len(starts) else starts
            return stored.first_rows(counts)[structures[starts]].tolist(), n_rows.tolist()
        first, shard = structures[starts], np.searchsorted(stored.ends, structures[starts], side="right")
        first = first - np.where(shard > 0, stored.ends[shard - 1], 0)
        return first.tolist(), np.diff(starts, append=len(structures)).tolist()

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor, with the columns that the manifest says."""
        manifest, (_, files) = self._stored.manifest, self._runs
        first_rows, n_rows = self._rows_of_runs({PAIRS: "n_pairs", OF_STRUCTURES: ""}.get(name, "n_atoms"))
        layout = manifest.layout.get(name)
        width = (5,) if name == PAIRS else () if layout is None else (width_of(layout),)
        values, done = np.empty((sum(n_rows), *width), np.dtype(manifest.kinds[name])), 0
        for file, first, count in zip(files, first_rows, n_rows, strict=True):
            own = values[done : done + count]
            if layout is None or file.layout[name] == layout:
                file.rows(name, first, own)
            else:
                found = np.empty((count, width_of(file.layout[name])))
                file.rows(name, first, found)
                own[...] = _rearranged(unpacked(found, file.layout[name]), layout, count)
            done += count
        return values

    def column(self, name: str) -> np.ndarray:
        """Read a column of float64; those that stand beside it are then there too."""
        tensor = self._stored._of_floats[name]
        if tensor not in self._found:
            self._found[tensor] = unpacked(self.tensor(tensor), self._stored.manifest.layout[tensor])
        return self._found[tensor][name]


def _rearranged(
    columns: Mapping[str, np.ndarray], layout: Sequence[tuple[str, tuple[int, ...]]], n_rows: int
) -> np.ndarray:
    """Put columns side by side in another layout, filling in what their shard leaves out."""
    parts = []
    for name, shape in layout:
        # no structure of the shard has this label, or a weight of its own
        left_out = 0.0 if name.startswith("label/") else 1.0
        values = columns[name] if name in columns else np.full((n_rows, *shape), left_out)
        parts.append(values.reshape(n_rows, -1))
    return np.concatenate(parts, axis=1)


_CONDITIONS = ("condition", "atom_condition")


class _Columns(Mapping[str, np.ndarray]):
    """Columns that are read when they are first asked for."""

    def __init__(self, read: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._read, self._found = read, dict[str, np.ndarray]()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._found:
            self._found[name] = self._read[name]()
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._read

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def select(stored: StoredStructures, structures: np.ndarray) -> tuple[StructureCollection, np.ndarray]:
    """Choose some structures of a prepared set, without those that are left out.

    Returns:
        The structures, which are the set itself if these are all, and their places in it.
    """
    entry = stored.manifest.left_out
    if entry is not None:
        out = ShardFile(stored.folder / LEFT_OUT, entry).tensor("structures")
        structures = structures[~np.isin(structures, out)]
    return (stored if len(structures) == len(stored) else stored.take(structures)), structures


def isolated_atoms_of(stored: StoredStructures) -> list[Configuration]:
    """Return the frames of isolated atoms of a prepared set, under its conditions and with the weights of types."""
    entry, given = stored.manifest.isolated, stored.config_type_weights
    return [
        replace(
            atom,
            conditions={name: atom.conditions[name] for name in stored.condition_names},
            weight=given.get(atom.config_type, given.get(DEFAULT_TYPE, 1.0)) * atom.weight,
        )
        for atom in ([] if entry is None else structures_in(stored.folder / ISOLATED, entry))
    ]


def structures_in(path: Path, entry: FileEntry) -> list[Configuration]:
    """Read a file of few structures, as a whole.

    Raises:
        UserError: If it cannot be read or is damaged.
    """
    file = ShardFile(path, entry)
    columns = file.columns()
    index, flat = columns.pop("index").tolist(), FlatStructures(columns.pop("n_atoms").astype(np.int64), columns)
    named = {name: [file.names[name][code] for code in columns.pop(name).tolist()] for name in NAMED}
    return flat.configurations(index=index, **named)
