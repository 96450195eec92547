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
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.properties import PROPERTIES
from mace.structures.collection import ListedStructures, Names, StructureCollection
from mace.structures.configuration import DEFAULT_TYPE, Configuration
from mace.structures.flat import FlatStructures
from mace.structures.shards import (
    NAMED,
    OF_ATOMS,
    OF_STRUCTURES,
    PAIRS,
    FileEntry,
    Layout,
    ShardFile,
    index_content,
    shard_content,
    unpacked,
    width_of,
    write_file,
)

MANIFEST, INDEX = "manifest.json", "index.safetensors"
ISOLATED, LEFT_OUT = "isolated.safetensors", "left_out.safetensors"

STRUCTURES_PER_SHARD = 8192

_VERSION = 1
_OPEN_FILES = 256


@dataclass(frozen=True)
class Manifest:
    """What a prepared set holds.

    Attributes:
        written_by: Version of the program.
        structures: Number of structures, those left out included.
        atoms: Number of their atoms.
        pairs: Number of their pairs of neighbors; None without neighbors.
        r_max: Cutoff of the neighbors in Angstrom; None without.
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
    """Return whether a path is the folder of a prepared set."""
    return (Path(path) / MANIFEST).is_file()


def finish_set(
    folder: Path,
    shards: Sequence[FileEntry],
    isolated_atoms: Sequence[Configuration] = (),
    left_out: np.ndarray | None = None,
    **facts: Any,
) -> Manifest:
    """Write the index and the manifest of a set whose shards are there.

    Args:
        folder: The folder of the set.
        shards: Its shards, in order.
        isolated_atoms: Frames of isolated atoms.
        left_out: Structures of the shards that are not in the set.
        **facts: The entries of the manifest that are not found in the shards.

    Raises:
        UserError: If a shard is damaged, or something cannot be written.
    """
    files = [ShardFile(folder / entry.file, entry) for entry in shards]
    layout: Layout = {
        tensor: sorted(dict.fromkeys(column for file in files for column in file.layout[tensor]))
        for tensor in (OF_ATOMS, OF_STRUCTURES)
    }
    of_floats = [name for columns in layout.values() for name, _ in columns]
    kinds: dict[str, Any] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            kinds[name] = np.promote_types(tensor.kind, kinds.get(name, tensor.kind))
    small = {name for name in kinds if name not in (OF_ATOMS, OF_STRUCTURES, PAIRS, "numbers")}
    small |= {f"labeled/{name}" for name in PROPERTIES if f"label/{name}" in of_floats}
    small |= {name for name in of_floats if name.partition("/")[0] == "weight"}
    names = {name: tuple(dict.fromkeys(each for file in files for each in file.names[name])) for name in NAMED}
    index = {name: np.concatenate([_small_column(file, name, names) for file in files]) for name in sorted(small)}
    index = {name: values for name, values in index.items() if not (name.startswith("labeled/") and values.all())}
    for name in [name for name in of_floats if name.startswith("atom_weight/")]:
        # whether any atom of a structure has weight
        index[name.replace("atom_weight/", "any_weight/")] = np.concatenate([_any_weight(file, name) for file in files])
    elements = np.unique(np.concatenate([np.unique(file.tensor("numbers")) for file in files]))
    entry = write_file(folder / INDEX, index_content(index, names), len(index["n_atoms"]))
    apart = dict[str, Any]()
    if isolated_atoms:
        content = shard_content(ListedStructures(isolated_atoms))
        apart["isolated"] = write_file(folder / ISOLATED, content, len(isolated_atoms))
    if left_out is not None and len(left_out):
        content = index_content({"structures": np.sort(left_out).astype(np.int64)}, {})
        apart["left_out"] = write_file(folder / LEFT_OUT, content, len(left_out))
    manifest = Manifest(
        structures=len(index["n_atoms"]),
        atoms=int(index["n_atoms"].sum()),
        pairs=int(index["n_pairs"].sum()) if "n_pairs" in index else None,
        elements=elements.tolist(),
        layout=layout,
        kinds={name: kind.str.lstrip("|<") for name, kind in sorted(kinds.items())},
        shards=list(shards),
        index=entry,
        **apart,
        **facts,
    )
    document = {"format": "mace prepared set", "version": _VERSION, **vars(manifest)}
    text = json.dumps(document, indent=1, default=vars) + "\n"  # entries of files are the only other objects
    write_file(folder / MANIFEST, text.encode(), manifest.structures)
    return manifest


def _small_column(file: ShardFile, name: str, names: Mapping[str, tuple[str, ...]]) -> np.ndarray:
    """Read a column with a row per structure from a shard, with the values that it leaves out."""
    count, own = file.tensors["n_atoms"].shape[0], [column for columns in file.layout.values() for column, _ in columns]
    if name in own:
        return unpacked(file.tensor(OF_STRUCTURES), file.layout[OF_STRUCTURES])[name]
    if name in file.tensors:
        values = file.tensor(name)
        if name in names:
            values = np.array([names[name].index(each) for each in file.names[name]], dtype=np.int32)[values]
        return values
    if name.startswith("labeled/"):
        return np.full(count, name.replace("labeled/", "label/") in own)
    if name.partition("/")[0] == "weight":
        return np.ones(count)
    raise UserError(f"{file.path}: this part of a prepared set has no '{name}', which others have; prepare it again.")


def _any_weight(file: ShardFile, name: str) -> np.ndarray:
    n_atoms, columns = file.tensor("n_atoms"), unpacked(file.tensor(OF_ATOMS), file.layout[OF_ATOMS])
    if name not in columns:
        return np.ones(len(n_atoms), dtype=bool)
    return np.logical_or.reduceat(columns[name] > 0.0, np.cumsum(n_atoms) - n_atoms)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared set.

    Raises:
        UserError: If it cannot be read, or is of a version that is not known.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != "mace prepared set" or document["version"] > _VERSION:
            raise UserError(f"{path}: this prepared set was made by a newer version; install it, or prepare it again.")
        known = {item.name for item in fields(Manifest)}
        given = {name: value for name, value in document.items() if name in known}
        for name in ("index", "isolated", "left_out"):
            given[name] = given.get(name) and FileEntry(**given[name])
        given["shards"] = [FileEntry(**entry) for entry in given["shards"]]
        given["layout"] = {
            tensor: [(name, tuple(shape)) for name, shape in columns] for tensor, columns in given["layout"].items()
        }
        return Manifest(**given)
    except OSError as error:
        raise UserError(f"{path}: this prepared set cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: this is no manifest, or it is damaged; prepare the set again.") from error


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
            path = self.folder / entry.file
            size = path.stat().st_size if path.is_file() else None
            if size != entry.size:
                found = "is missing" if size is None else f"is damaged ({size} bytes instead of {entry.size})"
                raise UserError(
                    f"{path}: this part of the prepared set {found}; copy it again, or run mace_prepare_data again, "
                    "which makes what is missing."
                )
        self._index = ShardFile(self.folder / INDEX, self.manifest.index)
        self._kept: dict[str, np.ndarray] = {}
        self._opened: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()
        self.ends = np.cumsum([entry.structures for entry in self.manifest.shards])
        self._factor, self._head = 1.0, ""
        self.condition_names = tuple(self.manifest.conditions)
        self.config_type_weights: Mapping[str, float] = self.manifest.config_type_weights

    def __len__(self) -> int:
        """Return the number of structures."""
        return self.manifest.structures

    def kept(self, name: str) -> np.ndarray:
        """Return a column of the index, which is held in memory once it was asked for."""
        if name not in self._kept:
            self._kept[name] = self._index.tensor(name)
        return self._kept[name]

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
        return self._index.tensor("index")

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, in rising order."""
        return tuple(self.manifest.elements)

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        if f"labeled/{name}" in self._index.tensors:
            return self.kept(f"labeled/{name}")
        return np.broadcast_to(np.bool_(f"label/{name}" in self._of_floats), len(self))

    def weights(self) -> np.ndarray:
        """Return the weights of structures, ``[structures]``."""
        own = self.kept("weight") if "weight" in self._index.tensors else np.broadcast_to(1.0, len(self))
        types, given = self.config_types, self.config_type_weights
        of_types = np.array([given.get(name, given.get(DEFAULT_TYPE, 1.0)) for name in types.names]) * self._factor
        return own if (of_types == 1.0).all() else own * of_types[types.codes]

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
            name: partial(rows.column, name)
            for name in self._of_floats
            if "condition/" not in name or name.partition("/")[2] in self.condition_names
        }
        columns["numbers"] = partial(rows.tensor, "numbers")
        for name in self._index.tensors:
            if name == "pbc" or name.startswith(("labeled/", "weight/")):
                columns[name] = partial(np.take, self.kept(name), chosen, axis=0)
        columns.pop("weight", None)
        if self.config_type_weights or self._factor != 1.0 or "weight" in self._index.tensors:
            columns["weight"] = lambda: self.weights()[chosen]
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

    def shard(self, number: int) -> ShardFile:
        """Return an opened shard; those not used for long are closed when too many are open."""
        with self._lock:
            if (file := self._opened.get(number)) is None:
                entry = self.manifest.shards[number]
                file = self._opened[number] = ShardFile(self.folder / entry.file, entry)
                while len(self._opened) > _OPEN_FILES:
                    self._opened.popitem(last=False)  # closed once no thread reads from it any more
            self._opened.move_to_end(number)
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


class _Rows:
    """Rows of some structures in the tensors of the shards."""

    def __init__(self, stored: StoredStructures, structures: np.ndarray) -> None:
        self._stored, self._structures = stored, structures
        self._found: dict[str, dict[str, np.ndarray]] = {}

    @cached_property
    def _runs(self) -> list[tuple[ShardFile, int, int]]:
        """Runs of consecutive structures of a shard: the shard, the first one there, and the end."""
        structures, ends = self._structures, self._stored.ends
        shard = np.searchsorted(ends, structures, side="right")
        first = structures - np.where(shard > 0, ends[shard - 1], 0)
        is_new = np.ones(len(structures), dtype=bool)
        is_new[1:] = (structures[1:] - structures[:-1] != 1) | (shard[1:] != shard[:-1])
        starts = np.flatnonzero(is_new)
        counts = np.diff(starts, append=len(structures))
        rows = zip(shard[starts].tolist(), first[starts].tolist(), counts.tolist(), strict=True)
        return [(self._stored.shard(number), begin, begin + count) for number, begin, count in rows]

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor, with the columns that the manifest says."""
        stored, manifest = self._stored, self._stored.manifest
        layout = manifest.layout.get(name)
        width = (5,) if name == PAIRS else () if layout is None else (width_of(layout),)
        by = OF_ATOMS if name in (OF_ATOMS, "numbers") else name
        if name == OF_STRUCTURES:
            total = len(self._structures)
        else:
            total = int((stored.kept("n_pairs") if name == PAIRS else stored.n_atoms)[self._structures].sum())
        values, done = np.empty((total, *width), np.dtype(manifest.kinds[name])), 0
        for file, first, last in self._runs:
            if name != OF_STRUCTURES:
                rows = file.first_rows[by]
                first, last = int(rows[first]), int(rows[last])
            own = values[done : done + last - first]
            if layout is None or file.layout[name] == layout:
                file.rows(name, first, own)
            else:
                found = np.empty((last - first, width_of(file.layout[name])))
                file.rows(name, first, found)
                own[...] = _rearranged(unpacked(found, file.layout[name]), layout, last - first)
            done += last - first
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
    """Return the frames of isolated atoms of a prepared set."""
    entry = stored.manifest.isolated
    return [] if entry is None else structures_in(stored.folder / ISOLATED, entry)


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
