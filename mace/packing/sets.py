"""Makes the parts of prepared sets, those that are not there yet, and then the sets."""

from __future__ import annotations

import json
import logging
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mace import __version__
from mace.inspection.parts import PartReport, empty_columns, merge_parts
from mace.packing.finishing import finish_set
from mace.packing.folder import LABELS, SetPlan
from mace.packing.part import RECORDS, PartRecord, PartTask, find_record, pack_part
from mace.packing.workers import Workers
from mace.properties import PROPERTIES
from mace.structures.collection import StructureCollection
from mace.structures.configuration import Configuration
from mace.structures.labels import FileLabels, merge_labels
from mace.structures.prepared import MANIFEST, StoredStructures, isolated_atoms_of, structures_in
from mace.structures.reading import choose_keys, note_unused_weights
from mace.structures.shards import FileEntry, write_file
from mace.structures.sources import FileUnits

_LOGGER = logging.getLogger(__name__)

Show = Callable[[Iterable[int], str, int], Iterable[int]]
"""Shows progress: gets the number of structures of each part as it is done, words, and the number of all structures."""


@dataclass(frozen=True)
class PackedSet:
    """A set whose parts are all on disk, whether or not it has been finished.

    Attributes:
        plan: What was to be made.
        shards: Its shards, named from its folder.
        isolated_atoms: Its isolated atoms.
        labels: What was found in each file, by head.
        seen: What checks saw, by group of shards and head; see `mace.packing.part.Seen`.
    """

    plan: SetPlan
    shards: tuple[FileEntry, ...]
    isolated_atoms: list[Configuration]
    labels: Mapping[str, list[FileLabels]]
    seen: Mapping[tuple[str, str], PartReport]

    @property
    def staged(self) -> Path:
        """Folder in which the set can be opened before it is finished."""
        return self.plan.folder / RECORDS

    def stage(self) -> StoredStructures:
        """Let the set be opened before it is finished, as one even if there will be several.

        Raises:
            UserError: If a shard is damaged, or something cannot be written.
        """
        self.staged.mkdir(exist_ok=True)
        shards = [replace(entry, file=f"../{entry.file}") for entry in self.shards]
        finish_set(self.staged, shards, self.isolated_atoms, **self._facts(self.labels, None))
        return StoredStructures(self.staged)

    def finish(self, left_out: np.ndarray | None = None, **facts: Any) -> None:
        """Write index and manifest, after which the set is complete.

        Args:
            left_out: Structures of the shards that are not in the set.
            **facts: Further entries of the manifest.

        Raises:
            UserError: If a shard is damaged, or something cannot be written.
        """
        folder = self.plan.folder
        if not self.plan.has_groups:
            finish_set(folder, self.shards, self.isolated_atoms, left_out, **self._facts(self.labels, None), **facts)
        else:
            whole = {head: [each.document() for each in files] for head, files in self.labels.items()}
            write_file(folder / LABELS, json.dumps(whole).encode(), 0)
            staged = StoredStructures(self.staged)
            ends = np.cumsum([entry.structures for entry in self.shards])
            group_of = [entry.file.rpartition("/")[0] for entry in self.shards]
            for group in sorted(set(group_of)):
                own = [place for place, name in enumerate(group_of) if name == group]
                places = np.concatenate([np.arange(ends[k] - self.shards[k].structures, ends[k]) for k in own])
                shards = [replace(self.shards[k], file=self.shards[k].file.rpartition("/")[2]) for k in own]
                labels = selected_labels(self.labels, staged.take(places))
                finish_set(folder / group, shards, **self._facts(labels, group), **facts)
        if self.staged.exists():
            (self.staged / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.staged)

    def _facts(self, labels: Mapping[str, list[FileLabels]], group: str | None) -> dict[str, Any]:
        """Return what the manifest says besides what is found in the shards; of one group, or of all if None."""
        plan = self.plan
        source = plan.files[0].source
        seen: dict[str, list[PartReport]] = {}
        for (of_group, head), report in sorted(self.seen.items(), key=lambda item: item[0]):
            if group in (None, of_group):
                seen.setdefault(head, []).append(report)
        return {
            "written_by": __version__,
            "r_max": plan.r_max,
            "config_type_weights": dict(plan.type_weights),
            "labels": {head: [each.document() for each in files] for head, files in labels.items()},
            "inspection": {head: merge_parts(reports).as_document() for head, reports in seen.items()},
            "keys": {name: source.keys.given(name) for name in PROPERTIES},
            "units": {item.name: getattr(source.units, item.name) for item in fields(FileUnits)},
            "conditions": list(dict.fromkeys(condition.name for condition in source.conditions)),
        }


def pack_set(plan: SetPlan, workers: Workers[PartTask], show: Show, is_begun: bool) -> PackedSet:
    """Make the parts of a set.

    Args:
        plan: The set, in whose folder is nothing but earlier parts of it.
        workers: The processes that do it.
        show: Shows progress.
        is_begun: Whether some parts may be there.

    Raises:
        UserError: If structures cannot be read, or parts cannot be written; what is finished is kept.
    """
    tasks = plan.tasks()
    records: list[PartRecord | None] = [None] * len(tasks)
    if is_begun:
        for place, found in _done(workers, find_record, tasks, show, f"Checking what there is of {plan.name}"):
            records[place] = found
        there = sum(record is not None for record in records)
        _LOGGER.info("%s: %d of %d parts are there from an earlier call", plan.folder, there, len(tasks))

    def make(places: Sequence[int], words: str) -> None:
        """Make some parts."""
        for place, made in _done(workers, pack_part, [tasks[place] for place in places], show, words):
            records[places[place]] = made

    make([place for place, record in enumerate(records) if record is None], f"Preparing {plan.name}")
    again = []
    keys = {name: choose_keys(parts) for name, parts in _by_file(tasks, records).items()}
    for place, (task, record) in enumerate(zip(tasks, records, strict=True)):
        assert record is not None
        wanted = tuple(keys[piece.file, piece.naming.head] for piece in task.pieces)
        if record.uncertain or not all(map(FileLabels.agrees_with, record.labels, wanted)):
            tasks[place] = replace(task, keys=wanted)
            again.append(place)
    if again:
        _LOGGER.info(
            "%s: %d parts are read again, as other parts of their files have better keys", plan.name, len(again)
        )
        make(again, f"Reading parts of {plan.name} again")
    return _packed(plan, tasks, [record for record in records if record is not None])


def _by_file(
    tasks: Sequence[PartTask], records: Sequence[PartRecord | None]
) -> dict[tuple[str, str], list[FileLabels]]:
    """Collect what was found in the pieces of each file, by name and head: a file for several is read for each."""
    found: dict[tuple[str, str], list[FileLabels]] = {}
    for task, record in zip(tasks, records, strict=True):
        assert record is not None
        for piece, labels in zip(task.pieces, record.labels, strict=True):
            found.setdefault((piece.file, piece.naming.head), []).append(labels)
    return found


def _packed(plan: SetPlan, tasks: Sequence[PartTask], records: Sequence[PartRecord]) -> PackedSet:
    """Put together what is known of all parts."""
    labels: dict[str, list[FileLabels]] = {}
    if plan.chosen is None:
        parts = _by_file(tasks, records)
        merged = [merge_labels(parts[file.file, file.naming.head]) for file in plan.files]
        noted = note_unused_weights(merged, [file.source.config_type_weights for file in plan.files])
        for file, found in zip(plan.files, noted, strict=True):
            labels.setdefault(file.naming.head, []).append(found)
    else:
        stored = StoredStructures(plan.chosen.folder)
        whole = {head: list(map(FileLabels.of_document, files)) for head, files in stored.manifest.labels.items()}
        labels = selected_labels(whole, stored.take(plan.chosen.places))
    seen: dict[tuple[str, str], list[PartReport]] = {}
    for record in records:
        for each in record.seen:
            seen.setdefault((each.group, each.head), []).append(
                PartReport.from_document(each.document, empty_columns(0))
            )
    isolated = [
        atom
        for task, record in zip(tasks, records, strict=True)
        if record.isolated is not None
        for atom in structures_in(task.record.with_suffix(".safetensors"), record.isolated)
    ]
    shards = tuple(entry for record in records for entry in record.shards)
    return PackedSet(plan, shards, isolated, labels, {name: merge_parts(reports) for name, reports in seen.items()})


def finished_set(plan: SetPlan) -> PackedSet:
    """Open a set that an earlier call has finished.

    Raises:
        UserError: If it is damaged.
    """
    folder = plan.folder
    groups = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}")) if plan.has_groups else [""]
    shards, isolated_atoms = list[FileEntry](), list[Configuration]()
    documents, seen = dict[str, list[Any]](), dict[tuple[str, str], PartReport]()
    for group in groups:
        stored = StoredStructures(folder / group)
        prefix = f"{group}/" if group else ""
        shards += [replace(entry, file=f"{prefix}{entry.file}") for entry in stored.manifest.shards]
        isolated_atoms += isolated_atoms_of(stored)
        documents = stored.manifest.labels
        for head, document in stored.manifest.inspection.items():
            seen[group, head] = PartReport.from_document(document, empty_columns(0))
    if plan.has_groups:
        documents = json.loads((folder / LABELS).read_bytes())
    labels = {head: list(map(FileLabels.of_document, files)) for head, files in documents.items()}
    shards.sort(key=lambda entry: (entry.file.rpartition("/")[2], entry.file))  # as they were made
    return PackedSet(plan, tuple(shards), isolated_atoms, labels, seen)


def selected_labels(
    labels: Mapping[str, Sequence[FileLabels]], structures: StructureCollection
) -> dict[str, list[FileLabels]]:
    """Say where the labels of some structures were found, as far as that is known of single ones.

    Args:
        labels: What was found in the files from which they come, by head.
        structures: The structures.
    """
    heads, names, index, types = structures.heads, structures.files, structures.file_index, structures.config_types
    has = {name: structures.labeled(name) for name in PROPERTIES}
    found: dict[str, list[FileLabels]] = {}
    for head, files in labels.items():
        for file in files:
            own = heads.where(head) & names.where(file.file)
            count = int(np.count_nonzero(own))
            if count == 0:
                continue
            coverage = []
            for entry in file.coverage:
                with_label = int(np.count_nonzero(has[entry.name] & own))
                labeled = with_label if entry.labeled else 0
                places = {place: labeled for place in list(entry.places)[:1] if labeled}
                coverage.append(
                    replace(
                        entry,
                        places=places,
                        labeled=labeled,
                        converted=with_label - labeled,
                        frames=count,
                        isolated=0,
                    )
                )
            of_type = np.bincount(types.codes[own], minlength=len(types.names))
            found.setdefault(head, []).append(
                FileLabels(
                    file.file,
                    frames=count,
                    isolated_atoms=0,
                    keys=Counter({(p, str(e.key)): number for e in coverage for p, number in e.places.items()}),
                    coverage=tuple(coverage),
                    constrained=array("I", np.intersect1d(index[own], file.constrained).astype(np.uint32)),
                    units=file.units,
                    other_heads=file.other_heads,
                    config_types=Counter({n: int(k) for n, k in zip(types.names, of_type, strict=True) if k}),
                )
            )
    return found


def _done(
    workers: Workers[PartTask], work: Callable[[PartTask], Any], tasks: Sequence[PartTask], show: Show, words: str
) -> Iterator[tuple[int, Any]]:
    """Do tasks and show how many structures are done."""
    results: list[tuple[int, Any]] = []

    def steps() -> Iterator[int]:
        for place, result in workers.run(work, tasks):
            results.append((place, result))
            yield tasks[place].n_structures

    for _ in show(steps(), words, sum(task.n_structures for task in tasks)) if tasks else ():
        pass
    return iter(results)
