"""The work on one part of a prepared set: some thousand structures are read, searched, looked at and written."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.files.documents import from_document, to_document
from mace.files.durable import is_full
from mace.formats.frame import Frame
from mace.formats.frame_file import FrameFile
from mace.formats.reading import open_frames
from mace.graphs.assembly import SEARCHED_TOGETHER
from mace.graphs.neighbors import find_all_pairs
from mace.inspection.parts import empty_columns, inspect_part
from mace.processes.garbage_collection import collection_paused
from mace.properties import PROPERTIES
from mace.reporting.set_names import table_row
from mace.structures.collection import ListedStructures
from mace.structures.configuration import Configuration
from mace.structures.labels import FileLabels
from mace.structures.prepared import MANIFEST, StoredStructures
from mace.structures.reading import UncertainKeyError, read_part
from mace.structures.shards import FileEntry, ShardFile, shard_content, write_file
from mace.structures.sources import FilePart

RECORDS = ".parts"
"""Folder in that of a set with what is known of its parts until all of them are there."""

MOST_ATOMS = 100_000
"""Atoms in a shard, unless a single structure has more."""

COUNTED_PAIRS, BONDED = "counted_pairs", "atoms_with_neighbors"
"""Columns with the number of pairs where these are not kept, and with that of atoms that have neighbors."""

BY_TYPE = "*"
"""In place of a folder: one for each ``config_type`` and head."""


@dataclass(frozen=True)
class Chosen:
    """Some structures of another prepared set.

    Attributes:
        folder: The set.
        places: Which structures.
    """

    folder: str
    places: np.ndarray


@dataclass(frozen=True)
class PartTask:
    """A part of a prepared set.

    Attributes:
        folder: Folder of the set.
        number: Place of the part in the set, from which its files have their names.
        digest: Of everything that the set is made from.
        r_max: Cutoff in Angstrom; None if nobody asks for neighbors.
        keeps_pairs: Whether the neighbors are written, not only counted.
        pieces: What it holds: consecutive structures of one file, or of several small ones.
        keys: By piece, the key of each label, once it is known for the whole file.
        groups: By piece, the folder for its structures in that of the set; see `mace.packing.folder.SetPlan`.
        chosen: Structures of another set, in place of pieces.
    """

    folder: str
    number: int
    digest: str
    r_max: float | None
    keeps_pairs: bool
    pieces: tuple[FilePart, ...] = ()
    keys: tuple[Mapping[str, str] | None, ...] = ()
    groups: tuple[str, ...] = ()
    chosen: Chosen | None = None

    @property
    def record(self) -> Path:
        """The file that says what was written."""
        return Path(self.folder) / RECORDS / f"{self.number:05d}.json"

    @property
    def n_structures(self) -> int:
        """How many structures it is made from, isolated atoms and those for other heads included."""
        if self.chosen is not None:
            return len(self.chosen.places)
        return sum((piece.stop or 0) - piece.start for piece in self.pieces)

    @property
    def words(self) -> str:
        """The structures in words."""
        if self.chosen is not None:
            return f"{self.chosen.folder}: {len(self.chosen.places)} structures"
        shown = [f"{piece.file}: structures {piece.start} to {(piece.stop or 0) - 1}" for piece in self.pieces[:2]]
        more = f" and {len(self.pieces) - 2} more files" if len(self.pieces) > 2 else ""
        return f"{', '.join(shown)}{more}"


@dataclass(frozen=True)
class Seen:
    """What checks saw in structures of one head; see `mace.inspection.parts.PartReport`.

    Attributes:
        group: Folder of their shards within that of the set, empty for the folder itself.
        head: The head.
        document: The report as a document.
    """

    group: str
    head: str
    document: Mapping[str, Any]


@dataclass(frozen=True)
class PartRecord:
    """What is known of a part that has been written.

    Attributes:
        digest: See `PartTask.digest`.
        labels: What was found in each piece.
        shards: The files with its structures, named from the folder of the set.
        isolated: The file with its isolated atoms, in the folder of the records; None if there are none.
        seen: What checks saw.
        uncertain: What is wrong with labels under a key that the whole file may not use; empty if nothing is. Then
            there are no shards, and of the labels only the keys count.
    """

    digest: str
    labels: tuple[FileLabels, ...]
    shards: tuple[FileEntry, ...] = ()
    isolated: FileEntry | None = None
    seen: tuple[Seen, ...] = ()
    uncertain: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as what JSON holds."""
        return {
            "digest": self.digest,
            "labels": [labels.document() for labels in self.labels],
            "shards": to_document(self.shards),
            "isolated": to_document(self.isolated),
            "seen": [vars(each) for each in self.seen],
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> PartRecord:
        """Return what `document` was made from."""
        return cls(
            document["digest"],
            tuple(map(FileLabels.of_document, document["labels"])),
            from_document(tuple[FileEntry, ...], document["shards"]),
            from_document(FileEntry | None, document["isolated"]),
            tuple(Seen(**each) for each in document["seen"]),
        )


@dataclass
class _Batch:
    """Structures of one file, or of a selection, that are checked together.

    Attributes:
        configurations: The structures.
        isolated_atoms: Isolated atoms beside them.
        labeled: Labels that they have in the file.
        constrained: Which of them have constraints, by their places in their file.
        group: See `PartTask.groups`.
    """

    configurations: list[Configuration]
    isolated_atoms: list[Configuration] = field(default_factory=list)
    labeled: Sequence[str] = ()
    constrained: Mapping[str, Sequence[int]] = field(default_factory=dict)
    group: str = ""

    def by_group(self) -> dict[str, list[Configuration]]:
        """Divide the structures by the folder they are written to."""
        if self.group != BY_TYPE:
            return {self.group: self.configurations}
        found: dict[str, list[Configuration]] = {}
        for configuration in self.configurations:
            found.setdefault(table_row(configuration.config_type, configuration.head), []).append(configuration)
        return found


def pack_part(task: PartTask) -> PartRecord:
    """Read the structures of a part and write them into shards, then its record.

    Raises:
        UserError: If they cannot be read or written.
    """
    with collection_paused():
        if task.chosen is None:
            labels, batches, uncertain = _read(task)
            if uncertain:
                return PartRecord(task.digest, labels, uncertain=uncertain)
        else:
            manifest = Path(task.chosen.folder) / MANIFEST
            # without weights by type, which the manifest of the set that is written has
            stored = _stored(task.chosen.folder, _content(manifest)).with_type_weights({})
            labels, batches = (), [_Batch(list(stored.take(task.chosen.places)), [], _labels_of(stored))]
        try:
            return _write(task, labels, batches)
        except UserError as error:
            if is_full(error.__cause__):
                raise UserError(
                    f"{task.folder}: the disk is full; free some space and run the same command again, which goes on "
                    "from here."
                ) from error
            raise


def _read(task: PartTask) -> tuple[tuple[FileLabels, ...], list[_Batch], str]:
    """Read the pieces of a part; if one has to be read with other keys, say why."""
    labels, batches, uncertain = list[FileLabels](), list[_Batch](), ""
    for piece, keys, group in zip(task.pieces, task.keys, task.groups, strict=True):
        try:
            found = read_part(piece, keys, skip_non_finite=True, frames=_frames(piece))
        except UncertainKeyError as error:
            labels.append(error.labels)
            uncertain = uncertain or str(error)
            continue
        labels.append(found.labels)
        labeled = [entry.name for entry in found.labels.coverage if entry.labeled]
        constrained = {piece.file: found.labels.constrained}
        batches.append(_Batch(found.configurations, found.isolated_atoms, labeled, constrained, group))
    return tuple(labels), batches, uncertain


def _labels_of(stored: StoredStructures) -> list[str]:
    """List the labels that the files of a set hold."""
    files = [FileLabels.of_document(each) for of_head in stored.manifest.labels.values() for each in of_head]
    return [name for name in PROPERTIES if any(file.of(name).labeled for file in files)]


@lru_cache(maxsize=64)
def _opened(file: str, content: Hashable) -> FrameFile:
    """Open a file once for all of its parts; another content is another file."""
    return open_frames(file)


@lru_cache(maxsize=2)
def _stored(folder: str, content: Hashable) -> StoredStructures:
    """Open a set once for all parts that are made from it."""
    return StoredStructures(folder)


def _content(path: str | Path) -> tuple[int, ...]:
    """Return what changes with the content of a file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


_streams: dict[FrameFile, tuple[Iterator[Frame], int]] = {}
"""Files that cannot be read from the middle, with the number of structures that have been read of each."""


def _frames(piece: FilePart) -> Iterator[Frame]:
    """Read a range of a file; one that can be read only from its beginning is kept open for the next range."""
    opened, stop = _opened(piece.file, _content(piece.file)), piece.stop or 0
    if opened.seeks:
        return opened.frames(piece.start, stop)
    stream, done = _streams.pop(opened, (iter(()), stop))
    if done > piece.start:
        stream, done = opened.frames(), 0
    for _ in itertools.islice(stream, piece.start - done):
        pass
    _streams[opened] = (stream, stop)
    return itertools.islice(stream, stop - piece.start)


def _write(task: PartTask, labels: tuple[FileLabels, ...], batches: Sequence[_Batch]) -> PartRecord:
    """Write shards, isolated atoms and the record of a part."""
    divided = [{folder_name(name): own for name, own in batch.by_group().items()} for batch in batches]
    groups = sorted({group for by_group in divided for group in by_group})
    shards, seen = list[FileEntry](), list[Seen]()
    for group in groups:
        configurations, columns = list[Configuration](), {name: [none] for name, none in empty_columns(0).items()}
        for batch, by_group in zip(batches, divided, strict=True):
            isolated_atoms = batch.isolated_atoms if group == min(by_group, default=group) else []
            for head in dict.fromkeys(c.head for c in [*by_group.get(group, ()), *isolated_atoms]):
                own, isolated = (
                    [c for c in each if c.head == head] for each in (by_group.get(group, ()), isolated_atoms)
                )
                report = inspect_part(own, isolated, batch.labeled, batch.constrained)
                seen.append(Seen(group, head, report.as_document()))
                configurations += own
                for name, values in report.columns.items():
                    columns[name].append(values)
        of_each = {name: np.concatenate(values) for name, values in columns.items()}
        for name, rows in _shards(task, group, configurations):
            own_columns = {column: values[rows] for column, values in of_each.items()}
            shards.append(_write_shard(task, name, configurations[rows], own_columns))
    isolated_atoms = [c for batch in batches for c in batch.isolated_atoms]
    entry = None
    if isolated_atoms:
        path = task.record.with_suffix(".safetensors")
        entry = write_file(path, shard_content(ListedStructures(isolated_atoms)), len(isolated_atoms))
    record = PartRecord(task.digest, labels, tuple(shards), entry, tuple(seen))
    write_file(task.record, json.dumps(record.document()).encode(), 0)
    return record


def folder_name(group: str) -> str:
    """Write the name of a group as that of a folder.

    >>> folder_name("bulk 300K/solid_Default")
    'bulk_300K_solid_Default'
    """
    return re.sub(r"[^\w.+-]", "_", group)


def _shards(task: PartTask, group: str, configurations: Sequence[Configuration]) -> Iterator[tuple[str, slice]]:
    """Divide structures so that no shard has more than `MOST_ATOMS`, and name the shards."""
    bounds, n_atoms = [0], 0
    for place, configuration in enumerate(configurations):
        if n_atoms and n_atoms + configuration.n_atoms > MOST_ATOMS:
            bounds.append(place)
            n_atoms = 0
        n_atoms += configuration.n_atoms
    for place, (first, last) in enumerate(zip(bounds, [*bounds[1:], len(configurations)], strict=True)):
        if last > first:
            further = f"-{place:02d}" if len(bounds) > 1 else ""
            yield f"{group}{'/' if group else ''}shard-{task.number:05d}{further}.safetensors", slice(first, last)


def _write_shard(
    task: PartTask, name: str, configurations: Sequence[Configuration], columns: Mapping[str, np.ndarray]
) -> FileEntry:
    """Write one shard, with the neighbors or their numbers if these are asked for."""
    pairs, columns = None, dict(columns)
    if task.r_max is not None:
        searched = [
            search(configurations[first : first + SEARCHED_TOGETHER], task.r_max)
            for first in range(0, len(configurations), SEARCHED_TOGETHER)
        ]
        n_pairs, rows, bonded = (np.concatenate(column) for column in zip(*searched, strict=True))
        columns[BONDED] = bonded
        if task.keeps_pairs:
            pairs = (n_pairs, rows)
        else:
            columns[COUNTED_PAIRS] = n_pairs
    content = shard_content(ListedStructures(configurations), pairs, columns)
    return replace(write_file(Path(task.folder) / name, content, len(configurations)), file=name)


def search(configurations: Sequence[Configuration], r_max: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the neighbors of some structures.

    Returns:
        How many pairs of neighbors each has, ``[structures]``; the pairs, see `find_all_pairs`, ``[pairs, 5]``; and how
        many atoms of each have a neighbor, ``[structures]``; all int32.
    """
    n_pairs, pairs = find_all_pairs(configurations, r_max)
    n_atoms = np.array([configuration.n_atoms for configuration in configurations])
    first = np.cumsum(n_atoms) - n_atoms
    bonded = np.zeros(int(n_atoms.sum()), dtype=np.int32)
    bonded[pairs[:, 0] + np.repeat(first, n_pairs)] = 1
    bonded[pairs[:, 1] + np.repeat(first, n_pairs)] = 1
    return n_pairs.astype(np.int32), pairs.astype(np.int32), np.add.reduceat(bonded, first)


def find_record(task: PartTask) -> PartRecord | None:
    """Return the record of a part that has been written before, if its files are still as they were written."""
    try:
        record = PartRecord.of_document(json.loads(task.record.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    files = [(Path(task.folder), entry) for entry in record.shards]
    if record.isolated is not None:
        files.append((task.record.parent, record.isolated))
    is_whole = record.digest == task.digest and all(_is_as_written(folder, entry) for folder, entry in files)
    return record if is_whole else None


def _is_as_written(folder: Path, entry: FileEntry) -> bool:
    """Compare a file with its size and checksum."""
    try:
        ShardFile(folder / entry.file, entry)
    except UserError:
        return False
    return True
