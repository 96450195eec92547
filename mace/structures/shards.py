"""One file of a prepared set: consecutive structures in flat columns, of which single rows are read.

A shard is a safetensors file that explains itself. Columns of float64 (see `mace.structures.flat.FlatStructures`) stand
side by side in one tensor with a row per atom and in one with a row per structure, since every tensor that is read of a
structure is an access to the disk; which columns they are, and the names of heads, types and files, stand in the
metadata. Rows are read with ``pread``, not through a memory map, so that the memory of a process does not grow with
what it has read.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from mace.errors import UserError
from mace.files.durable import write_durably
from mace.structures.collection import StructureCollection
from mace.structures.flat import is_of_atoms

NAMED = ("config_type", "head", "file")
"""Columns of codes, whose names stand in the metadata."""

PAIRS = "pairs"
"""Tensor with a row per pair: sender, receiver and the three lattice translations of the receiver's image."""

OF_ATOMS, OF_STRUCTURES = "atoms", "structures"
"""Tensors in which the columns of float64 stand side by side."""

Layout = dict[str, list[tuple[str, tuple[int, ...]]]]
"""Names of the columns in each of these two tensors, and the shapes of their rows."""

_KINDS = {
    **{"F64": np.float64, "F32": np.float32, "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U8": np.uint8, "BOOL": np.bool_},
}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file.

    Attributes:
        file: Its name in the folder.
        size: Bytes.
        crc32: Checksum of all its bytes.
        structures: How many structures it holds.
    """

    file: str
    size: int
    crc32: int
    structures: int


class _Tensor(NamedTuple):
    kind: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


def shard_content(
    structures: StructureCollection,
    pairs: tuple[np.ndarray, np.ndarray] | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """Write consecutive structures as the content of a shard; the same structures give the same bytes.

    Args:
        structures: One at least.
        pairs: How many pairs of neighbors each has, ``[structures]``, and for each pair sender, receiver and the
            lattice translations of the receiver's image, ``[pairs, 5]``; None without neighbors.
        columns: Further columns with a row per structure.
    """
    flat = structures.flat(np.arange(len(structures)))
    held: dict[str, np.ndarray] = {"n_atoms": flat.n_atoms.astype(np.int32), "numbers": flat.numbers.astype(np.uint8)}
    packed: dict[str, list[np.ndarray]] = {OF_ATOMS: [], OF_STRUCTURES: []}
    layout: Layout = {OF_ATOMS: [], OF_STRUCTURES: []}
    for name in sorted(flat.columns):
        values = flat.columns[name]
        if values.dtype == np.float64:
            tensor = OF_ATOMS if is_of_atoms(name) else OF_STRUCTURES
            packed[tensor].append(values.reshape(len(values), -1))
            layout[tensor].append((name, values.shape[1:]))
        elif name != "numbers":
            held[name] = values
    for tensor, columns_of in packed.items():
        held[tensor] = np.concatenate(columns_of, axis=1)
    held["index"] = structures.file_index.astype(np.int64)
    names = {}
    for name, found in zip(NAMED, (structures.config_types, structures.heads, structures.files), strict=True):
        held[name], names[name] = found.codes.astype(np.int32), list(found.names)
    if pairs is not None:
        counts, rows = pairs
        limit = int(np.abs(rows).max(initial=0))
        held["n_pairs"] = counts.astype(np.int32)
        held[PAIRS] = rows.astype(np.int16 if limit <= np.iinfo(np.int16).max else np.int32)
    return _content({**held, **(columns or {})}, names, layout)


def _content(tensors: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]], layout: Layout) -> bytes:
    arrays = {name: np.ascontiguousarray(values) for name, values in sorted(tensors.items())}
    # a single entry, because several would come in the order of chance
    return save(arrays, {"about": json.dumps({"names": names, "layout": layout})})


def index_content(columns: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> bytes:
    """Write columns with a row per structure as the content of a file that `ShardFile` reads.

    Args:
        columns: By name.
        names: Names of the codes of each of `NAMED`.
    """
    return _content(columns, names, {})


def write_file(path: Path, content: bytes, structures: int) -> FileEntry:
    """Write a file of a prepared set, whole or not at all.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        write_durably(path, content)
    except OSError as error:
        raise UserError(f"{path}: the prepared set cannot be written ({error.strerror or error}).") from error
    return FileEntry(path.name, len(content), zlib.crc32(content), structures)


class _Descriptor:
    """A file open for reading, until nothing refers to it any more."""

    number = -1

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class ShardFile:
    """A file of a prepared set, opened for reading single rows from any number of threads.

    Args:
        path: The file.
        entry: What it must be.

    Raises:
        UserError: If it cannot be read, or is not as the manifest says.
    """

    def __init__(self, path: Path, entry: FileEntry) -> None:
        self.path, self._entry, self._seen = path, entry, tuple[int, ...]()
        self._opened: _Descriptor | None = None
        self.open()
        length = int.from_bytes(self._read(8, 0), "little")
        content = self._read(min(length, max(entry.size - 8, 0)), 8)
        try:
            header = json.loads(content)
            about = json.loads(header.pop("__metadata__", {}).get("about", "{}"))
            self.names: dict[str, list[str]] = about.get("names", {})
            self.layout: Layout = {
                tensor: [(name, tuple(shape)) for name, shape in columns]
                for tensor, columns in about.get("layout", {}).items()
            }
            begin = 8 + length
            self.tensors = {
                name: _Tensor(np.dtype(_KINDS[item["dtype"]]), tuple(item["shape"]), begin + item["data_offsets"][0])
                for name, item in header.items()
            }
        except UserError:  # which is a ValueError
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: this is no part of a prepared set; prepare the set again.") from error

    def open(self) -> None:
        """Keep the file open until `close` is called; while it is closed, it is opened for every access.

        Raises:
            UserError: If it cannot be opened, or has changed since it was compared with the manifest, to the worse.
        """
        self._opened = self._opened or self._descriptor()

    def close(self) -> None:
        """Close the file, as soon as no thread reads from it."""
        self._opened = None

    def _descriptor(self) -> _Descriptor:
        try:
            opened = _Descriptor(self.path)
            status = os.fstat(opened.number)
            seen = (status.st_size, status.st_mtime_ns, status.st_ino)
            if seen != self._seen:
                self._verify(opened, status.st_size)
        except OSError as error:
            raise self._unreadable(error) from error
        self._seen = seen
        return opened

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: this prepared set cannot be read ({error.strerror or error}).")

    def _verify(self, opened: _Descriptor, size: int) -> None:
        """Compare size and checksum with those of the manifest."""
        entry, done, checksum = self._entry, 0, 0
        while size == entry.size and (found := os.pread(opened.number, _CHUNK, done)):
            checksum, done = zlib.crc32(found, checksum), done + len(found)
        if size != entry.size or checksum != entry.crc32:
            told = f"{size} bytes instead of {entry.size}" if size != entry.size else "another checksum than written"
            raise UserError(
                f"{self.path}: this part of the prepared set is damaged ({told}); copy it again, or remove it and run "
                "mace_prepare_data again, which makes what is missing."
            )

    def _read(self, size: int, offset: int) -> bytearray:
        found = bytearray(size)
        self._fill(memoryview(found), offset)
        return found

    def tensor(self, name: str) -> np.ndarray:
        """Read a whole tensor."""
        kind, shape, offset = self.tensors[name]
        values = np.empty(shape, kind)
        if values.nbytes:
            self._fill(values.data.cast("B"), offset)
        return values

    def columns(self) -> dict[str, np.ndarray]:
        """Read everything, by column."""
        found = {name: self.tensor(name) for name in self.tensors}
        for tensor, layout in self.layout.items():
            found |= unpacked(found.pop(tensor), layout)
        return found

    def rows(self, name: str, first: int, values: np.ndarray) -> None:
        """Read consecutive rows of a tensor into an array, beginning with the first one given."""
        tensor = self.tensors[name]
        if values.dtype != tensor.kind:  # one file has wider numbers than another
            found = np.empty(values.shape, tensor.kind)
            self.rows(name, first, found)
            values[...] = found
        elif values.nbytes:
            self._fill(values.data.cast("B"), tensor.offset + first * (values.nbytes // len(values)))

    def _fill(self, view: memoryview, offset: int) -> None:
        opened = self._opened or self._descriptor()  # which is not closed as long as it is held here
        try:
            while view:
                read = os.preadv(opened.number, [view], offset)
                if not read:
                    raise UserError(f"{self.path}: this part of the prepared set has become shorter; copy it again.")
                view, offset = view[read:], offset + read
        except OSError as error:
            raise self._unreadable(error) from error


def unpacked(tensor: np.ndarray, layout: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Take a tensor apart into the columns that stand side by side in it."""
    columns, first = {}, 0
    for name, shape in layout:
        width = math.prod(shape)
        columns[name] = np.ascontiguousarray(tensor[:, first : first + width]).reshape(len(tensor), *shape)
        first += width
    return columns


def width_of(layout: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Return the number of values in a row of a tensor."""
    return sum(math.prod(shape) for _, shape in layout)
