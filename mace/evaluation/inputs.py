"""The structures to predict: all are checked first, and then read once more, in memory that does not grow with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from mace.errors import UserError
from mace.formats.frame import Frame
from mace.formats.reading import FramesInOrder
from mace.processes.garbage_collection import collection_paused
from mace.properties import PROPERTIES
from mace.structures.collection import ListedStructures, StructureCollection, in_blocks
from mace.structures.configuration import DEFAULT_HEAD, DEFAULT_TYPE, HEAD_KEY, Configuration
from mace.structures.labels import FileLabels, LabelReport, merge_labels
from mace.structures.prepared import MANIFEST, is_prepared
from mace.structures.reading import UncertainKeyError, choose_keys, read_part
from mace.structures.sources import FilePart, HeadNaming, Source, expand_sources
from mace.structures.stored_reading import read_stored

READ_TOGETHER = 1000
"""How many structures are read at once."""

MOST_KEPT = 200_000
"""Atoms of structures that are kept once they are checked; larger files are read a second time."""

Read = tuple[Configuration, Frame]
"""A structure as it is predicted, and as it is in its file."""

Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Shows how far an iteration is, given what it does in words and the number of its steps if that is known."""


class Inputs:
    """Structures in some files, all of which are read and checked before the first is given out.

    Args:
        source: The files, and how to read them.
        naming: Which head their structures are for.
        check: Called with all structures, some at a time; what it raises ends the reading.
        progress: Shows how far the reading is.

    Attributes:
        report: Where labels were found.
        labels: By file, the keys of the labels that its structures have, and all keys.
        heads: Number of structures for each head.

    Raises:
        UserError: See `mace.structures.reading.read_sources`.
    """

    def __init__(
        self, source: Source, naming: HeadNaming, check: Callable[[StructureCollection], None], progress: Progress
    ) -> None:
        self._files = list[_File]()
        self.heads = Counter[str]()
        self.labels = dict[str, tuple[set[str], set[str]]]()
        found, room = list[FileLabels](), MOST_KEPT
        for path, of_file in expand_sources([source]):
            file = (_PreparedSet if is_prepared(path) else _File)(path, of_file, naming)
            found += file.look_through(check, progress, room)
            room -= sum(configuration.n_atoms for configuration, _ in file.kept)
            self._files.append(file)
            self.heads.update(file.heads)
            self.labels[path] = file.label_keys, file.all_keys
        self.report = LabelReport(tuple(found))

    def __len__(self) -> int:
        """Return the number of structures."""
        return self.heads.total()

    def __iter__(self) -> Iterator[Read]:
        """Iterate over the structures in the order of the files.

        Raises:
            UserError: If a file has changed since it was checked.
        """
        for file in self._files:
            yield from file.kept or file.again()


class _File:
    """A file of structures.

    Attributes:
        heads: Number of structures for each head.
        kept: All structures, or none of them if they are many.
        label_keys: Keys of the labels.
        all_keys: All keys that structures have.
    """

    label_keys: set[str]
    all_keys: set[str]

    def __init__(self, path: str, source: Source, naming: HeadNaming) -> None:
        self._path, self._source, self._naming = path, source, naming
        self._keys: Mapping[str, str] | None = None
        self._before = self._state()
        self.heads, self.kept = Counter[str](), list[Read]()

    def _state(self) -> tuple[int, int]:
        """Return what changes when the file is written to."""
        state = Path(self._path).stat()
        return state.st_size, state.st_mtime_ns

    def _parts(self) -> Iterator[tuple[FileLabels, list[Read] | None]]:
        """Read the file; without structures where a label is wrong under a key that another part may change."""
        opened, start = FramesInOrder(self._path), 0
        while start == 0 or not opened.is_over:
            part = FilePart(self._path, self._source, self._naming, start, start + READ_TOGETHER, opened)
            frames = list[Frame]()
            try:
                with collection_paused():
                    found = read_part(part, self._keys, frames.append)
            except UncertainKeyError as error:
                yield error.labels, None
            else:
                together = [*found.configurations, *found.isolated_atoms]  # reading separates them
                yield found.labels, list(zip(sorted(together, key=attrgetter("index")), frames, strict=True))
            start += READ_TOGETHER

    def look_through(
        self, check: Callable[[StructureCollection], None], progress: Progress, room: int
    ) -> tuple[FileLabels, ...]:
        """Read and check all structures, and keep them if they have no more atoms than there is room for."""
        labels, n_atoms, uncertain = list[FileLabels](), 0, False
        self.heads, self.kept = Counter(), []
        for of_part, part in progress(self._parts(), f"Checking {self._path} by the thousand", None):
            labels.append(of_part)
            if part is None:
                uncertain = True
                continue
            configurations = [configuration for configuration, _ in part]
            check(ListedStructures(configurations))
            self.heads.update(configuration.head for configuration in configurations)
            n_atoms += sum(configuration.n_atoms for configuration in configurations)
            self.kept = [*self.kept, *part] if n_atoms <= room else []
        return self._settle(labels, uncertain) or self.look_through(check, progress, room)

    def _settle(self, labels: list[FileLabels], uncertain: bool) -> tuple[FileLabels, ...]:
        """Put together what was found in all parts; nothing if they are to be read again with the keys of all."""
        is_first, self._keys = self._keys is None, choose_keys(labels)
        if is_first and (uncertain or not all(each.agrees_with(self._keys) for each in labels)):
            return ()
        merged = merge_labels(labels)
        self.label_keys, self.all_keys = set(self._keys.values()), {key for _, key in merged.keys}
        return (merged,)

    def again(self) -> Iterator[Read]:
        """Read the structures once more."""
        for _, part in self._parts():
            if self._state() != self._before:
                raise UserError(f"{self._path}: the file has changed since it was checked; run the command again.")
            yield from part or ()


class _PreparedSet(_File):
    """A prepared set, whose structures are written with the labels that it holds and their usual keys."""

    def __init__(self, path: str, source: Source, naming: HeadNaming) -> None:
        super().__init__(path, source, naming)
        self._stored = read_stored(path, source, naming)
        self._isolated_atoms = ListedStructures(self._stored.isolated_atoms)

    def _state(self) -> tuple[int, int]:
        state = (Path(self._path) / MANIFEST).stat()
        return state.st_size, state.st_mtime_ns

    def _parts(self) -> Iterator[tuple[FileLabels, list[Read] | None]]:
        for structures in (self._stored.configurations, self._isolated_atoms):
            for places in in_blocks(len(structures), READ_TOGETHER):
                yield self._stored.labels[0], [(each, frame_of(each)) for each in structures.take(places)]

    def _settle(self, labels: list[FileLabels], uncertain: bool) -> tuple[FileLabels, ...]:
        self.label_keys = {f"REF_{name}" for name in PROPERTIES if self._stored.configurations.labeled(name).any()}
        self.all_keys = self.label_keys
        note = (
            f"{self._path}: labels of a prepared set are written as REF_energy, ..., in eV and Angstrom; what else was "
            "in the files that it was prepared from is not in it."
        )
        first, *others = self._stored.labels
        return replace(first, further_notes=(*first.further_notes, note)), *others


def frame_of(configuration: Configuration) -> Frame:
    """Return a structure as a file would have it, with labels, weights and conditions under their usual keys."""
    info: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    if configuration.config_type != DEFAULT_TYPE:
        info["config_type"] = configuration.config_type
    if configuration.head != DEFAULT_HEAD:
        info[HEAD_KEY] = configuration.head
    for name, row in PROPERTIES.items():
        label = getattr(configuration, name)
        if label is not None and not (row.derived and configuration.stress is not None):
            (arrays if row.of_atoms else info)[f"REF_{name}"] = label
    if configuration.weight != 1.0:
        info["config_weight"] = configuration.weight
    info |= {f"config_{name}_weight": weight for name, weight in configuration.property_weights.items()}
    arrays |= {f"{name}_weight": weights for name, weights in configuration.atom_weights.items()}
    for name, values in configuration.conditions.items():
        if values.ndim == 1:
            info[name] = values.item()
        else:
            arrays[name] = values[:, 0] if values.shape[1] == 1 else values
    c = configuration
    return Frame(c.atomic_numbers, c.positions, c.cell, c.pbc, info, arrays)
