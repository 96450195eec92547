"""Reading and checking the structures of a run, before any neighbor search."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mace.conditions import Condition
from mace.console.optional_outputs import OptionalOutput
from mace.console.progress import ReadingProgress, TrainingProgress
from mace.errors import UserError
from mace.finetuning.foundation import Foundation, open_foundation
from mace.finetuning.starting_weights import StartingWeights
from mace.inspection.findings import check_allowed
from mace.inspection.inspection import DataReport, Demands, StructureSet, inspect_sets
from mace.inspection.parts import COLUMNS, PartReport, merge_parts
from mace.model.plan import OUTPUTS
from mace.pages.data_page import write_page
from mace.planning.objectives import Losses, ways_out, with_labels
from mace.preparation.condition_keys import conditions_of, keys_without_condition
from mace.preparation.heads import Head, heads_of
from mace.preparation.replay import (
    check_replayed,
    elements_of,
    labeled_by_foundation,
    log_replay,
    own_structures,
    replay_sources,
    warn_of_common_files,
)
from mace.processes.devices import PRECISIONS
from mace.processes.team import Team
from mace.reporting.document import write_text
from mace.reporting.tables import contents_line
from mace.reporting.terminal import summary_lines, verdict
from mace.settings import TrainingSettings
from mace.settings.heads import REPLAY_HEAD
from mace.settings.labels import Files
from mace.structures.collection import ListedStructures, StructureCollection
from mace.structures.configuration import DEFAULT_HEAD
from mace.structures.labels import LabelReport
from mace.structures.prepared import is_prepared
from mace.structures.reading import ReadResult, read_sources
from mace.structures.sources import Source, sources_of
from mace.structures.stored_reading import StoredPart

_LOGGER = logging.getLogger(__name__)

MANY_IN_MEMORY = 200_000
"""Structures in memory, some gigabytes, from which a warning names the other way."""


@dataclass(frozen=True)
class DataSets:
    """All data sets as read, before a validation set is split off.

    Attributes:
        training: Structures from the training files.
        validation: Structures from the validation files; None if they are to be split off the training set.
        tests: Structures from the test file, and from each file of the test folder.
    """

    training: ReadResult
    validation: ReadResult | None
    tests: Mapping[str, ReadResult]

    def with_roles(self) -> list[StructureSet]:
        """Return the sets with their roles for the checks, the training set first."""
        roles = [("training", self.training), ("validation", self.validation)]
        roles += [("test", result) for result in self.tests.values()]
        return [StructureSet(role, result, inspected(result)) for role, result in roles if result is not None]


@dataclass(frozen=True)
class InputData:
    """Input of a run besides its settings.

    Attributes:
        heads: The heads, in the order of the model.
        sets: The structures, by head.
        losses: The losses of the stages, without terms that no structure has labels for.
        reports: Results of the checks of all files, by head.
        foundation: The foundation model to fine-tune, if any.
        weights: Weights of another run to start from, if any.
    """

    heads: Mapping[str, Head]
    sets: Mapping[str, DataSets]
    losses: Losses
    reports: Mapping[str, DataReport]
    foundation: Foundation | None = None
    weights: StartingWeights | None = None

    def files(self) -> list[str]:
        """List the training and validation files and prepared sets of all heads."""
        results = [result for sets in self.sets.values() for result in (sets.training, sets.validation)]
        files = (path for result in results if result is not None for path in result.paths)
        return list(dict.fromkeys(files))


def inspected(result: ReadResult) -> PartReport | None:
    """Return what was found in structures when they were prepared; None if they are not all of prepared sets."""
    if not result.stored or len(result.stored) != len(result.paths):
        return None
    reports = [_report_of(part) for part in result.stored]
    return None if None in reports else merge_parts(report for report in reports if report is not None)


def _report_of(part: StoredPart) -> PartReport | None:
    """Return what was found in the structures that a prepared set has for a head; None if it was not stored."""
    documents = part.stored.manifest.inspection
    heads = part.configurations.heads.present()
    document = documents.get(heads[0]) if len(documents) > 1 else next(iter(documents.values()), None)
    if document is None or len(heads) != 1:
        return None
    return PartReport.from_document(document, {name: part.stored.column(name)[part.places] for name in COLUMNS})


def read_and_check(
    settings: TrainingSettings,
    losses: Losses,
    progress: TrainingProgress,
    page: Callable[[str], Path] | None,
    team: Team | None = None,
) -> InputData:
    """Read the files of a run, check the structures, log the findings, and write the pages on the data.

    Args:
        settings: The given settings.
        losses: The losses of the stages.
        progress: The progress display.
        page: Gives the path of the page on the data of a head; None to write no pages.
        team: The processes of the run; only this one if None.

    Raises:
        UserError: If files cannot be read, or structures or labels are not usable for training.
    """
    weights = None if settings.init_from is None else StartingWeights(Path(settings.init_from))
    foundation = open_foundation(settings, PRECISIONS[settings.default_dtype])
    conditions = conditions_of(settings, foundation)
    heads = heads_of(settings)
    said = (warning for head in heads.values() for warning in keys_without_condition(head.settings, conditions))
    for warning in dict.fromkeys(said):
        _LOGGER.warning("%s", warning)
    sets = read_heads(heads, progress, conditions, foundation, team)
    losses = with_labels(settings, losses, labels_of_all(sets))
    reports = {name: inspect_data(head, losses, sets, progress, foundation) for name, head in heads.items()}
    pages = None if page is None or len(heads) == 1 else {name: page(name).name for name in heads}
    for name, report in reports.items():
        log_report(report, "" if len(heads) == 1 else f"{name}: ")
        if page is not None:
            path, run = page(name), page(DEFAULT_HEAD).stem.removesuffix("_data")
            with OptionalOutput(path):
                write_text(path, write_page(report, f"Data of {run}", pages, name), "--results_dir")
                _LOGGER.info("%s The report on the data is in %s", verdict(report), path)
    for name, report in reports.items():
        with heads[name].named_in_errors():
            try:
                report.refuse_errors()
            except UserError as error:
                lacks_labels = any(finding.name == "missing-label" for finding in report.errors)
                if heads[name].is_replay and lacks_labels and sets[name].training.configurations:
                    hint = "With --pseudolabel_replay=True the foundation model labels them."
                    raise UserError(f"{error} {hint}") from error
                raise
    return InputData(heads, sets, losses, reports, foundation, weights)


def read_heads(
    heads: Mapping[str, Head],
    progress: TrainingProgress,
    conditions: Sequence[Condition] = (),
    foundation: Foundation | None = None,
    team: Team | None = None,
) -> dict[str, DataSets]:
    """Read all files of all heads; what is replayed comes last, as it may depend on the others.

    Args:
        heads: The heads.
        progress: The progress display.
        conditions: Conditions the model depends on.
        foundation: The foundation model, if there is one.
        team: The processes of the run; only this one if None.

    Raises:
        UserError: If files cannot be read.
    """
    team = team or Team()
    sets = {name: read_sets(head, progress, conditions) for name, head in heads.items() if not head.is_replay}
    for name, head in heads.items():
        if head.is_replay:
            assert foundation is not None, "there is no replay without it"
            sets[name] = _read_replayed(head, sets, progress, conditions, foundation, team)
    return {name: sets[name] for name in heads}


def _read_replayed(
    head: Head,
    others: Mapping[str, DataSets],
    progress: TrainingProgress,
    conditions: Sequence[Condition],
    foundation: Foundation,
    team: Team,
) -> DataSets:
    """Read the structures of the head of the foundation model, those of the other heads if it has no files."""
    training = [sets.training for sets in others.values()]
    if head.settings.train_file is None:
        replayed = read_sets(head, progress, conditions, training=own_structures(training))
        validation = [sets.validation for sets in others.values() if sets.validation is not None]
        if replayed.validation is None and len(validation) == len(training):
            replayed = replace(replayed, validation=own_structures(validation))
    else:
        sources = replay_sources(head, elements_of(training), foundation, conditions, progress, team)
        replayed = read_sets(head, progress, conditions, sources)
    if head.settings.pseudolabel_replay:
        label = partial(
            labeled_by_foundation, settings=head.settings, foundation=foundation, progress=progress, team=team
        )
        labeled = None if replayed.validation is None else label(replayed.validation)
        replayed = DataSets(label(replayed.training), labeled, replayed.tests)
        log_replay(replayed.training, f"labels by the foundation model {foundation.words}")
        return replayed
    log_replay(
        replayed.training, "the labels of their files, which are taken as those of the foundation model's method"
    )
    for result in filter(None, (replayed.training, replayed.validation)):
        check_replayed(head, result, foundation)
    if "train_file" not in head.shared:
        warn_of_common_files(replayed.training, training)
    return replayed


def labels_of_all(sets: Mapping[str, DataSets]) -> LabelReport:
    """Return where the labels of the training structures of all heads were found."""
    return LabelReport(tuple(file for of_head in sets.values() for file in of_head.training.report.files))


def log_report(report: DataReport, prefix: str) -> None:
    """Log what the files of a head hold, and what deserves attention."""
    for line in summary_lines(report):
        _LOGGER.info("%s%s", prefix, line)
    for finding in report.findings:
        if finding.level == "note":
            _LOGGER.info("%s[%s] %s", prefix, finding.name, finding.sentence)
        elif not finding.stops:
            allowed = ", allowed" if finding.allowed else ""
            _LOGGER.warning("%s[%s%s] %s", prefix, finding.name, allowed, finding.sentence)


def read_sets(
    head: Head,
    progress: TrainingProgress,
    conditions: Sequence[Condition] = (),
    training_sources: Sequence[Source] | None = None,
    training: ReadResult | None = None,
) -> DataSets:
    """Read all files of a head and log where labels were found; NaN labels are left out and reported.

    Args:
        head: The head, with its settings of files, keys, units and weights.
        progress: The progress display.
        conditions: Conditions the model depends on; see `mace.preparation.condition_keys`.
        training_sources: What to read in place of the training files.
        training: What there is in place of training files.

    Raises:
        UserError: See `mace.structures.reading.read_sources`; also if there is no structure for the head.
    """
    settings = head.settings
    if not head.is_alone:
        _LOGGER.info("=============    Processing head %s     ===========", head.name)

    # what holds for a shared file is said once, with the first head
    is_first = head.name == next((name for name in head.names if name != REPLAY_HEAD), head.name)

    def read(role: str, what: str, file: Files | None = None, given: Sequence[Source] | None = None) -> ReadResult:
        reading = ReadingProgress(progress)
        files = getattr(settings, role) if file is None else file
        is_shared = role in head.shared
        try:
            result = read_sources(
                sources_of(settings, files, conditions) if given is None else given,
                progress=reading,
                skip_non_finite=True,
                head=head.name,
                head_key=head.key if is_shared else None,
                heads=head.names if is_shared else (),
            )
        finally:
            reading.close()
        for line in result.report.lines():
            _LOGGER.info("%s: %s", what, line)
        if is_shared and role in ("train_file", "valid_file") and not result.configurations:
            names = ", ".join(each.file for each in result.report.files)
            raise UserError(
                f"{names}: no structure names the head {head.name} with {head.key}=; label some, give the head its own "
                f"{role} in --heads, or leave it out."
            )
        for each in result.report.files:
            if is_shared and is_first and each.frames and not each.keys["info", head.key]:
                _LOGGER.warning(
                    "%s: no structure names its head with %s=, so all are for every head", each.file, head.key
                )
            if each.other_heads and not head.is_replay:
                _LOGGER.warning(
                    "%s: structures name the heads %s, but all are for %s; give only their names to --heads to train a "
                    "readout for each",
                    each.file,
                    ", ".join(each.other_heads),
                    "the only head" if head.is_alone else f"the head {head.name}",
                )
        return result

    if training is None:
        training = read("train_file", "Training set", given=training_sources)
    _LOGGER.info(contents_line("Total Training set", training.configurations))
    _warn_of_many(training.configurations)
    validation = read("valid_file", "Validation set") if settings.valid_file else None
    if validation is not None:
        _LOGGER.info(contents_line("Total Validation set", validation.configurations))
    # the set of the test file has no name
    tests = {"": read("test_file", "Test set")} if settings.test_file is not None else {}
    if settings.test_dir is not None:
        for name, path in _test_sets_in(Path(settings.test_dir)).items():
            tests[name] = read("test_dir", "Test set", path)
    return DataSets(training, validation, tests)


def _test_sets_in(folder: Path) -> dict[str, str]:
    """List the test sets of a folder by name: prepared sets if there are any, else files, and folders of their parts.

    Raises:
        UserError: If it is no folder, or two of them have one name.
    """
    if not folder.is_dir():
        raise UserError(f"--test_dir: {folder} is not a folder.")
    if is_prepared(folder):
        return {folder.name: str(folder)}
    found: dict[str, str] = {}
    paths = sorted(folder.iterdir())
    # beside those that were prepared stand notes on them
    for path in [path for path in paths if is_prepared(path)] or paths:
        if path.name.startswith(".") or path.name.endswith("-lock"):  # which LMDB leaves beside its files
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise UserError(
                f"--test_dir: {found[name]} and {path} would both be the test set {name}; rename one of them."
            )
        found[name] = str(path)
    return found


def _warn_of_many(structures: StructureCollection) -> None:
    """Name the way to train from disk where very many structures are in memory."""
    if isinstance(structures, ListedStructures) and len(structures) > MANY_IN_MEMORY:
        _LOGGER.warning(
            "All %d training structures and their neighbors are held in memory, in every process; mace_prepare_data "
            "writes them to disk once, from where runs of any size read them",
            len(structures),
        )


def inspect_data(
    head: Head,
    losses: Losses,
    sets: Mapping[str, DataSets],
    progress: TrainingProgress,
    foundation: Foundation | None = None,
) -> DataReport:
    """Run all checks of the data of a head, with the cutoff and, if requested, the E0s of the foundation model.

    Raises:
        UserError: If ``--allow`` names a check that does not exist.
    """
    settings = head.settings
    demands = Demands(
        r_max=settings.r_max if foundation is None else foundation.plan.r_max,
        labels=labels_needed(head, losses, sets),
        ways_out=ways_out(losses),
        E0s=settings.E0s,
        foundation_energies=None if foundation is None else foundation.energies,
        needs_E0s="energy" in OUTPUTS[settings.model],
        atomic_numbers=None if head.is_replay else settings.atomic_numbers,
        has_other_heads=not head.is_alone,
        allow=check_allowed(settings.allow),
    )
    return inspect_sets(sets[head.name].with_roles(), demands, progress.track)


def labels_needed(head: Head, losses: Losses, sets: Mapping[str, DataSets]) -> list[str]:
    """List the labels that a head must have: all that the losses need, but those that other heads alone have.

    A label whose key was given for this head is asked for all the same, and a head without any of them for all.
    """
    needed = sorted(ways_out(losses))
    own, all_of_them = sets[head.name].training.report, labels_of_all(sets)
    asked = [name for name in needed if own.total(name) or name in head.keyed or not all_of_them.total(name)]
    return asked if any(own.total(name) for name in needed) else needed
