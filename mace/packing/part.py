"""The work on one part of a prepared set: some thousand structures are read, searched for neighbors and written."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.files.durable import is_full
from mace.graphs.neighbors import find_all_pairs
from mace.processes.garbage_collection import collection_paused
from mace.structures.collection import ListedStructures
from mace.structures.configuration import Configuration
from mace.structures.labels import FileLabels
from mace.structures.reading import UncertainKeyError, read_part
from mace.structures.shards import FileEntry, shard_content, write_file
from mace.structures.sources import FilePart

RECORDS = ".parts"
"""Folder in that of a set with what is known of its parts until all of them are there."""

MOST_ATOMS = 100_000
"""Atoms in a shard, unless a single structure has more."""

COUNTED_PAIRS, BONDED = "counted_pairs", "atoms_with_neighbors"
"""Columns with the number of pairs where these are not kept, and with that of atoms that have neighbors."""

_SEARCHED_TOGETHER = 64
"""How many structures the neighbors are searched of at once."""


@dataclass(frozen=True)
class PartTask:
    """A part of a prepared set.

    Attributes:
        folder: Folder of the set.
        number: Place of the part in the set, from which its files have their names.
        pieces: What it holds: consecutive structures of one file, or of several small ones.
        digest: Of everything that the set is made from.
        r_max: Cutoff in Angstrom; None if nobody asks for neighbors.
        keeps_pairs: Whether the neighbors are written, not only counted.
        keys: By piece, the key of each label, once it is known for the whole file.
    """

    folder: str
    number: int
    pieces: tuple[FilePart, ...]
    digest: str
    r_max: float | None
    keeps_pairs: bool
    keys: tuple[Mapping[str, str] | None, ...]

    @property
    def record(self) -> Path:
        """The file that says what was written."""
        return Path(self.folder) / RECORDS / f"{self.number:05d}.json"

    @property
    def n_structures(self) -> int:
        """How many structures of files it has, isolated atoms and those of other heads included."""
        return sum((piece.stop or 0) - piece.start for piece in self.pieces)

    @property
    def words(self) -> str:
        """The structures in words."""
        shown = [f"{piece.file}: structures {piece.start} to {(piece.stop or 0) - 1}" for piece in self.pieces[:2]]
        more = f" and {len(self.pieces) - 2} more files" if len(self.pieces) > 2 else ""
        return f"{', '.join(shown)}{more}"


@dataclass(frozen=True)
class PartRecord:
    """What is known of a part that has been written.

    Attributes:
        digest: See `PartTask.digest`.
        labels: What was found in each piece.
        shards: The files with its structures.
        isolated: The file with its isolated atoms, in the folder of the records; None if there are none.
        uncertain: What is wrong with labels under a key that the whole file may not use; empty if nothing is. Then
            there are no shards, and of the labels only the keys count.
    """

    digest: str
    labels: tuple[FileLabels, ...]
    shards: tuple[FileEntry, ...] = ()
    isolated: FileEntry | None = None
    uncertain: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as what JSON holds."""
        return {
            "digest": self.digest,
            "labels": [labels.document() for labels in self.labels],
            "shards": [asdict(entry) for entry in self.shards],
            "isolated": None if self.isolated is None else asdict(self.isolated),
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> PartRecord:
        """Return what `document` was made from."""
        isolated = document["isolated"]
        return cls(
            document["digest"],
            tuple(map(FileLabels.of_document, document["labels"])),
            tuple(FileEntry(**entry) for entry in document["shards"]),
            None if isolated is None else FileEntry(**isolated),
        )


def pack_part(task: PartTask) -> PartRecord:
    """Read the structures of a part and write them into shards, then its record.

    Raises:
        UserError: If they cannot be read or written.
    """
    with collection_paused():
        found = _read(task)
        if isinstance(found, PartRecord):
            return found
        configurations, isolated_atoms, labels = found
        groups = list(_divided(configurations))
        names = [f"shard-{task.number:05d}" + f"-{place:02d}" * (len(groups) > 1) for place in range(len(groups))]
        try:
            shards = [
                _write(Path(task.folder) / f"{name}.safetensors", group, task)
                for name, group in zip(names, groups, strict=True)
            ]
            isolated = None
            if isolated_atoms:
                path = task.record.with_suffix(".safetensors")
                isolated = write_file(path, shard_content(ListedStructures(isolated_atoms)), len(isolated_atoms))
            record = PartRecord(task.digest, labels, tuple(shards), isolated)
            write_file(task.record, json.dumps(record.document()).encode(), 0)
        except UserError as error:
            if is_full(error.__cause__):
                raise UserError(
                    f"{task.folder}: the disk is full; free some space and run the same command again, which goes on "
                    "from here."
                ) from error
            raise
    return record


def _read(task: PartTask) -> PartRecord | tuple[list[Configuration], list[Configuration], tuple[FileLabels, ...]]:
    """Read the structures of a part: structures, isolated atoms and labels, or why it is to be read with other keys."""
    configurations, isolated_atoms, labels = list[Configuration](), list[Configuration](), list[FileLabels]()
    uncertain = ""
    for piece, keys in zip(task.pieces, task.keys, strict=True):
        try:
            found = read_part(piece, keys, skip_non_finite=True)
        except UncertainKeyError as error:
            labels.append(error.labels)
            uncertain = uncertain or str(error)
            continue
        labels.append(found.labels)
        configurations += found.configurations
        isolated_atoms += found.isolated_atoms
    if uncertain:
        return PartRecord(task.digest, tuple(labels), uncertain=uncertain)
    return configurations, isolated_atoms, tuple(labels)


def _divided(configurations: Sequence[Configuration]) -> Iterator[list[Configuration]]:
    """Divide structures so that no group has more than `MOST_ATOMS`."""
    group: list[Configuration] = []
    n_atoms = 0
    for configuration in configurations:
        if group and n_atoms + configuration.n_atoms > MOST_ATOMS:
            yield group
            group, n_atoms = [], 0
        group.append(configuration)
        n_atoms += configuration.n_atoms
    if group:
        yield group


def _write(path: Path, group: Sequence[Configuration], task: PartTask) -> FileEntry:
    """Write one shard, with the neighbors or their numbers if these are asked for."""
    if task.r_max is None:
        return write_file(path, shard_content(ListedStructures(group)), len(group))
    searched = [
        count_bonded(group[first : first + _SEARCHED_TOGETHER], task.r_max)
        for first in range(0, len(group), _SEARCHED_TOGETHER)
    ]
    n_pairs, pairs, bonded = (np.concatenate(column) for column in zip(*searched, strict=True))
    if task.keeps_pairs:
        content = shard_content(ListedStructures(group), (n_pairs, pairs), {BONDED: bonded})
    else:
        content = shard_content(ListedStructures(group), None, {COUNTED_PAIRS: n_pairs, BONDED: bonded})
    return write_file(path, content, len(group))


def count_bonded(group: Sequence[Configuration], r_max: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Search some structures.

    Returns:
        How many pairs of neighbors each has, ``[structures]``; the pairs, see `find_all_pairs`, ``[pairs, 5]``; and how
        many atoms of each have a neighbor, ``[structures]``; all int32.
    """
    n_pairs, pairs = find_all_pairs(group, r_max)
    n_atoms = np.array([configuration.n_atoms for configuration in group])
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
    entries = [(Path(task.folder), entry) for entry in record.shards]
    if record.isolated is not None:
        entries.append((task.record.parent, record.isolated))
    is_whole = record.digest == task.digest and all(
        _is_as_written(folder / entry.file, entry) for folder, entry in entries
    )
    return record if is_whole else None


def _is_as_written(path: Path, entry: FileEntry) -> bool:
    """Compare a file with its size and checksum."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return len(content) == entry.size and zlib.crc32(content) == entry.crc32
