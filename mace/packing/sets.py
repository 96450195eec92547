"""Makes the parts of prepared sets, those that are not there yet, so that all are read with the same keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mace.packing.folder import SetPlan, digest_of, divide
from mace.packing.part import PartRecord, PartTask, find_record, pack_part
from mace.packing.workers import Workers
from mace.structures.labels import FileLabels, merge_labels
from mace.structures.reading import choose_keys, note_unused_weights

_LOGGER = logging.getLogger(__name__)

STRUCTURES_IN_A_PART = 4096
"""So many take a few seconds, and some megabytes on disk."""

Show = Callable[[Iterable[None], str, int], Iterable[None]]
"""Shows progress: gets what is yielded for every structure that is done, words, and the number of structures."""


@dataclass(frozen=True)
class PackedSet:
    """A set whose parts are all on disk.

    Attributes:
        plan: What was to be made.
        records: What is known of each part, in their order.
        labels: What was found in each file.
    """

    plan: SetPlan
    records: tuple[PartRecord, ...]
    labels: tuple[FileLabels, ...]


def tasks_of(plan: SetPlan) -> list[PartTask]:
    """List the parts of a set."""
    digest = digest_of(plan.made_from())
    return [
        PartTask(str(plan.folder), number, pieces, digest, plan.r_max, plan.keeps_pairs, keys=(None,) * len(pieces))
        for number, pieces in enumerate(divide(plan.files, plan.counts, STRUCTURES_IN_A_PART))
    ]


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
    tasks = tasks_of(plan)
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
    keys = _keys_of_files(tasks, records)
    again = []
    for place, (task, record) in enumerate(zip(tasks, records, strict=True)):
        assert record is not None
        wanted = tuple(keys[_name(piece)] for piece in task.pieces)
        if record.uncertain or not all(
            labels.agrees_with(of_file) for labels, of_file in zip(record.labels, wanted, strict=True)
        ):
            tasks[place] = replace(task, keys=wanted)
            again.append(place)
    if again:
        _LOGGER.info(
            "%s: %d parts are read again, as other parts of their files have better keys", plan.name, len(again)
        )
        make(again, f"Reading parts of {plan.name} again")
    finished = tuple(record for record in records if record is not None)
    return PackedSet(plan, finished, _labels_of_files(plan, tasks, finished))


def _name(piece: Any) -> tuple[str, str]:
    """Return what tells the files of a set apart; a file for several heads is read for each."""
    return piece.file, piece.naming.head


def _by_file(
    tasks: Sequence[PartTask], records: Sequence[PartRecord | None]
) -> dict[tuple[str, str], list[FileLabels]]:
    """Collect what was found in the pieces of each file."""
    found: dict[tuple[str, str], list[FileLabels]] = {}
    for task, record in zip(tasks, records, strict=True):
        assert record is not None
        for piece, labels in zip(task.pieces, record.labels, strict=True):
            found.setdefault(_name(piece), []).append(labels)
    return found


def _keys_of_files(
    tasks: Sequence[PartTask], records: Sequence[PartRecord | None]
) -> dict[tuple[str, str], Mapping[str, str]]:
    """Choose the keys of the labels of each file."""
    return {name: choose_keys(parts) for name, parts in _by_file(tasks, records).items()}


def _labels_of_files(plan: SetPlan, tasks: Sequence[PartTask], records: Sequence[PartRecord]) -> tuple[FileLabels, ...]:
    """Put together what was found in the parts of each file."""
    parts = _by_file(tasks, records)
    merged = [merge_labels(parts[_name(file)]) for file in plan.files]
    return note_unused_weights(merged, [file.source.config_type_weights for file in plan.files])


def _done(
    workers: Workers[PartTask],
    work: Callable[[PartTask], Any],
    tasks: Sequence[PartTask],
    show: Show,
    words: str,
) -> Iterator[tuple[int, Any]]:
    """Do tasks and show how many structures are done."""
    results: list[tuple[int, Any]] = []

    def steps() -> Iterator[None]:
        for place, result in workers.run(work, tasks):
            results.append((place, result))
            for _ in range(tasks[place].n_structures):
                yield None

    for _ in show(steps(), words, sum(task.n_structures for task in tasks)):
        pass
    return iter(results)
