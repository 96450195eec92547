"""Prepared sets of all files of a training: read, checked, split, with the report on the data and statistics."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from mace.conditions import Condition
from mace.console.logs import close_logging, setup_logging
from mace.console.progress import TrainingProgress, track
from mace.console.terminal import PlainConsole
from mace.elements import ElementTable
from mace.errors import UserError
from mace.files.ownership import OwnedByAnother, Ownership
from mace.finetuning.foundation import Foundation, open_foundation
from mace.formats.reading import iterate_frames, open_frames
from mace.inspection.findings import check_allowed
from mace.inspection.inspection import DataReport
from mace.packing.folder import SetPlan, begin
from mace.packing.part import BY_TYPE, Chosen, PartTask
from mace.packing.sets import Show, finished_set, pack_set
from mace.packing.statistics import average_neighbors, statistics_of
from mace.packing.workers import Workers
from mace.pages.data_page import write_page
from mace.planning.objectives import Losses, make_losses, with_labels
from mace.preparation.condition_keys import conditions_of
from mace.preparation.heads import Head, heads_of
from mace.preparation.reading import DataSets, inspect_data, labels_needed, labels_of_all, log_report
from mace.processes.devices import PRECISIONS
from mace.reporting.document import write_text
from mace.reporting.set_names import table_row
from mace.reporting.terminal import verdict
from mace.settings.declaration import inert_notes
from mace.settings.labels import Files
from mace.settings.other_commands import PrepareSettings
from mace.structures.collection import StructureCollection, together
from mace.structures.prepared import StoredStructures, is_prepared
from mace.structures.reading import ReadResult, read_sources
from mace.structures.sources import FilePart, HeadNaming, Source, expand_sources, sources_of
from mace.structures.splitting import split_validation, write_valid_indices

_LOGGER = logging.getLogger(__name__)

TRAIN, VALID, TEST = "train", "val", "test"
"""Folders of the sets, with the prefix before them."""


@dataclass(frozen=True)
class Preparing:
    """What all steps need.

    Attributes:
        settings: The settings.
        heads: The heads, by name.
        conditions: Conditions that structures are read with.
        losses: The losses, whose labels are needed.
        workers: The processes.
        progress: The progress display.
        show: Shows how many structures are done.
    """

    settings: PrepareSettings
    heads: Mapping[str, Head]
    conditions: Sequence[Condition]
    losses: Losses
    workers: Workers[PartTask]
    progress: TrainingProgress
    show: Show


def prepare_data(settings: PrepareSettings, console: Console | None = None) -> dict[str, DataReport]:
    """Prepare data as ``mace_prepare_data`` does.

    Args:
        settings: The settings.
        console: Where to show output; standard output if None.

    Returns:
        The reports on the data, by head.

    Raises:
        UserError: If settings or files are not usable; what is finished is kept and taken up by the next call.
    """
    console = console or PlainConsole()
    losses = make_losses(settings)
    check_allowed(settings.allow)
    setup_logging(settings.log_level, None, console, settings.quiet)
    try:
        mode = "off" if settings.quiet else settings.progress
        for note in inert_notes(settings):
            _LOGGER.info("%s", note)
        workers = Workers[PartTask](settings.num_process or _usable_cores(), lambda task: task.words)
        with _owned(settings), TrainingProgress(console, mode) as progress, workers:
            # without the structures that would be replayed
            settings = settings.model_copy(update={"multiheads_finetuning": False})
            foundation = open_foundation(settings, PRECISIONS[settings.default_dtype])
            conditions = conditions_of(settings, foundation)

            def show(items: Iterable[int], words: str, total: int) -> Iterator[int]:
                rate = "{:.0f} structures/s".format
                return track(items, words, total, console=console, mode=mode, rate=rate, size=int)

            preparing = Preparing(settings, heads_of(settings), conditions, losses, workers, progress, show)
            return _prepare(preparing, foundation)
    finally:
        close_logging()


@contextmanager
def _owned(settings: PrepareSettings) -> Iterator[None]:
    """Own everything with the prefix inside a ``with`` block."""
    place = Path(f"{settings.h5_prefix}prepared")
    try:
        with Ownership(f"{place.name}_data", [place.parent], take_over=settings.take_over) as ownership:
            for note in ownership.notes:
                _LOGGER.warning("%s", note)
            yield
    except OwnedByAnother as error:
        raise UserError(
            f"{str(error).partition(': ')[2].replace('the files of this run', 'prepared sets there')}; let it end, or "
            "choose another --h5_prefix."
        ) from error
    except OSError as error:
        raise UserError(f"--h5_prefix={settings.h5_prefix}: {error.strerror or error}; choose another one.") from error


def _usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(preparing: Preparing, foundation: Foundation | None) -> dict[str, DataReport]:
    """Make all sets."""
    settings, heads = preparing.settings, preparing.heads
    plans = _plans(preparing, settings.r_max if foundation is None else foundation.plan.r_max)
    packed = {}
    for folder, plan in plans.items():
        state = begin(plan, settings.overwrite)
        if state == "complete":
            _LOGGER.info("%s is there already, made from the same files in the same way", plan.folder)
            packed[folder] = finished_set(plan)
        else:
            packed[folder] = pack_set(plan, preparing.workers, preparing.show, state == "begun")
    staged = {folder: found.stage() for folder, found in packed.items()}
    sets = {name: _read(head, staged, preparing.conditions) for name, head in heads.items()}
    losses = with_labels(settings, preparing.losses, labels_of_all(sets))
    reports = {name: inspect_data(head, losses, sets, preparing.progress, foundation) for name, head in heads.items()}
    _report(settings, reports)
    train, left_out = staged[TRAIN], None
    if VALID not in plans:
        needed = {name: labels_needed(head, losses, sets) for name, head in heads.items()}
        places, left_out = _split(preparing, sets, needed)
        chosen_by = {
            "digest": plans[TRAIN].tasks()[0].digest,
            "valid_fraction": settings.valid_fraction,
            "seed": settings.seed,
            "places": hashlib.sha256(places.tobytes()).hexdigest(),
        }
        plan = replace(
            plans[TRAIN],
            name="the validation set",
            folder=Path(f"{settings.h5_prefix}{VALID}"),
            chosen=Chosen(str(train.folder), places),
            chosen_by=chosen_by,
        )
        state = begin(plan, settings.overwrite)
        if state != "complete":
            pack_set(plan, preparing.workers, preparing.show, state == "begun").finish()
    if settings.compute_statistics:
        kept = np.delete(np.arange(len(train)), [] if left_out is None else left_out)
        elements = settings.atomic_numbers or {
            z for folder in (TRAIN, VALID) if folder in staged for z in staged[folder].elements
        }
        _write_statistics(preparing, sets, kept, ElementTable(tuple(sorted(elements))), foundation)
    for folder in (VALID, TEST, TRAIN):  # the training set last: with it everything is there
        if folder in packed:
            packed[folder].finish(left_out if folder == TRAIN else None)
    _say(settings, train, left_out)
    return reports


def _plans(preparing: Preparing, r_max: float) -> dict[str, SetPlan]:
    """Find the files of each set."""
    settings, heads = preparing.settings, preparing.heads
    searches = settings.neighbors or settings.compute_statistics
    with_file = [name for name, head in heads.items() if head.settings.valid_file is not None]
    if 0 < len(with_file) < len(heads):
        other = next(name for name in heads if name not in with_file)
        raise UserError(
            f"--heads: {with_file[0]} has a valid_file and {other} has none, and the structures of all heads are kept "
            "in the same set; give all of them a valid_file, or none."
        )
    plans = {}
    for folder, roles in (
        (TRAIN, {"train_file": "the training set"}),
        (VALID, {"valid_file": "the validation set"}),
        (TEST, {"test_file": "the test sets", "test_dir": "the test sets"}),
    ):
        found = [each for head in heads.values() for role in roles for each in _files(head, role, preparing.conditions)]
        if not found:
            continue
        counts = [open_frames(part.file).count() for part, _ in found]
        for (part, _), count in zip(found, counts, strict=True):
            if count == 0:
                raise UserError(f"{part.file}: the file holds no structure.")
        plans[folder] = SetPlan(
            next(iter(roles.values())),
            Path(f"{settings.h5_prefix}{folder}"),
            r_max if searches else None,
            settings.neighbors,
            files=tuple(part for part, _ in found),
            counts=tuple(counts),
            groups=tuple(group for _, group in found),
        )
    return plans


def _files(head: Head, role: str, conditions: Sequence[Condition]) -> Iterator[tuple[FilePart, str]]:
    """Yield the files of a head for one purpose, each with the group of its structures; see `SetPlan.groups`."""
    given: Files | None = getattr(head.settings, role)
    if given is None:
        return
    if role == "test_dir":
        folder = Path(str(given))
        if not folder.is_dir():
            raise UserError(f"--test_dir: {folder} is not a folder.")
        given = [str(path) for path in sorted(folder.iterdir()) if path.is_file()]
    for file, source in expand_sources(sources_of(head.settings, given, conditions)):
        if is_prepared(file):
            raise UserError(f"{file}: this is a prepared set already; give the files that it was made from.")
        naming = HeadNaming(head.name)
        if role in head.shared:
            naming = HeadNaming(head.name, head.key, head.names)
            naming = replace(naming, names_heads=naming.names_own(next(iterate_frames(file, 0, 1))))
        stem = Path(file).name.partition(".")[0]
        group = {"test_file": BY_TYPE, "test_dir": stem if head.is_alone else table_row(stem, head.name)}.get(role, "")
        yield FilePart(file, source, naming), group


def _read(head: Head, staged: Mapping[str, StoredStructures], conditions: Sequence[Condition]) -> DataSets:
    """Open the sets for one head, all structures of the training set included."""

    def read(folder: str) -> ReadResult | None:
        if folder not in staged:
            return None
        source = Source(str(staged[folder].folder), conditions=conditions)
        return read_sources(
            [source],
            head=head.name,
            head_key=None if head.is_alone else head.key,
            heads=() if head.is_alone else head.names,
        )

    training, tests = read(TRAIN), read(TEST)
    assert training is not None, "there are training files always"
    return DataSets(training, read(VALID), {} if tests is None else {"": tests})


def _report(settings: PrepareSettings, reports: Mapping[str, DataReport]) -> None:
    """Log the reports on the data, write their pages, and stop if there are errors.

    Raises:
        UserError: With the sentences of all errors.
    """
    alone = len(reports) == 1
    pages = {name: Path(f"{settings.h5_prefix}data{'' if alone else f'_{name}'}.html") for name in reports}
    for name, report in reports.items():
        log_report(report, "" if alone else f"{name}: ")
        if settings.report:
            links = None if alone else {other: path.name for other, path in pages.items()}
            write_text(pages[name], write_page(report, "Data", links, "" if alone else name), "--h5_prefix")
            _LOGGER.info("%s The report on the data is in %s", verdict(report), pages[name])
    stopping = []
    for name, report in reports.items():
        for finding in report.errors:
            if finding.name != "missing-reference-energies" or settings.compute_statistics:
                stopping.append(f"{'' if alone else f'Head {name}: '}{finding.sentence}")
            else:  # a training can be given them
                _LOGGER.warning("[%s] %s", finding.name, finding.sentence)
    if stopping:
        raise UserError("\n".join(stopping))


def _split(
    preparing: Preparing, sets: Mapping[str, DataSets], needed: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose the validation structures of all heads among those of the training files, as a training would.

    Returns:
        Their places in the training set, and those of them that it is to leave out.
    """
    settings = preparing.settings
    chosen, left_out, valid = list[np.ndarray](), list[np.ndarray](), list[StructureCollection]()
    for name, head in preparing.heads.items():
        with head.named_in_errors():
            result = sets[name].training
            fraction, seed = head.settings.valid_fraction, head.settings.seed
            split = split_validation(result.configurations, fraction, seed, needed[name])
        for note in split.notes:
            _LOGGER.warning("%s", note)
        places = result.stored[0].places[np.array(split.indices, dtype=np.int64)]
        chosen.append(places)
        if len(split.train) < len(result.configurations):
            left_out.append(places)
        valid.append(split.valid)
    name = Path(f"{settings.h5_prefix}prepared").name
    path = write_valid_indices(settings.work_dir, name, settings.seed, together(valid))
    _LOGGER.info("A random part of the training set is for validation, with indices saved in: %s", path)
    return np.sort(np.concatenate(chosen)), np.sort(np.concatenate(left_out)) if left_out else None


def _write_statistics(
    preparing: Preparing,
    sets: Mapping[str, DataSets],
    kept: np.ndarray,
    elements: ElementTable,
    foundation: Foundation | None,
) -> None:
    """Write the statistics of the training set, for each head those of its own structures."""
    settings = preparing.settings
    for name, head in preparing.heads.items():
        training = sets[name].training
        (part,) = training.stored
        places = np.intersect1d(part.places, kept)
        with head.named_in_errors():
            entries, warnings = statistics_of(
                part.stored.take(places),
                training.isolated_atoms,
                head.settings.E0s,
                elements,
                average_neighbors(part.stored, places),
                settings.r_max if foundation is None else foundation.plan.r_max,
                None if foundation is None else foundation.energies,
            )
        for warning in warnings:
            _LOGGER.warning("%s%s", head.prefix, warning)
        of_head = "" if head.is_alone else f"_{name}"
        path = write_text(f"{settings.h5_prefix}statistics{of_head}.json", json.dumps(entries), "--h5_prefix")
        _LOGGER.info("%sWrote %s", head.prefix, path)


def _say(settings: PrepareSettings, train: StoredStructures, left_out: np.ndarray | None) -> None:
    """Say what there is now and how it is used."""
    prefix, n_train = settings.h5_prefix, len(train) - (0 if left_out is None else len(left_out))
    _LOGGER.info("%s%s: %d structures to train on", prefix, TRAIN, n_train)
    statistics = f" --statistics_file={prefix}statistics.json" if settings.compute_statistics else ""
    _LOGGER.info(
        "Train with: mace_run_train --train_file=%s%s --valid_file=%s%s%s", prefix, TRAIN, prefix, VALID, statistics
    )
