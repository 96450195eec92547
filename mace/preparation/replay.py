"""The structures of the head of the foundation model: which are replayed, and their labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mace.conditions import Condition
from mace.console.progress import TrainingProgress
from mace.errors import UserError
from mace.files.published import REPLAY_SETS
from mace.finetuning.foundation import Foundation
from mace.finetuning.pseudolabels import label_with_foundation
from mace.finetuning.replay_sets import replay_source
from mace.finetuning.selection import SelectionRule, select_structures
from mace.finetuning.structure_descriptors import describe_structures
from mace.potential.potential import open_potential
from mace.preparation.heads import Head
from mace.processes.devices import choose_device
from mace.processes.team import Team
from mace.settings import TrainingSettings, provided
from mace.settings.declaration import as_list
from mace.settings.heads import REPLAY_HEAD
from mace.structures.collection import ListedStructures, together
from mace.structures.configuration import Configuration
from mace.structures.labels import FileLabels, LabelCoverage, LabelReport
from mace.structures.reading import ReadResult
from mace.structures.sources import Source, sources_of
from mace.structures.splitting import first_with_others
from mace.training.memory import EdgeLimit

_LOGGER = logging.getLogger(__name__)

LABEL_FOLDER = "pseudolabels"
"""Folder in the working directory for labels by the foundation model."""

_SELECTION = ("num_samples_pt", "subselect_pt", "filter_type_pt")


def replay_sources(
    head: Head,
    elements: frozenset[int],
    foundation: Foundation,
    conditions: Sequence[Condition],
    progress: TrainingProgress,
    team: Team,
) -> tuple[Source, ...]:
    """Return the structures to replay: all of the given files, or those that are selected.

    Structures are selected from published sets, and from files if any setting of the selection was given.

    Args:
        head: The head of the foundation model; it has training files.
        elements: Elements of the other training structures, which the filter takes if none are given.
        foundation: The foundation model.
        conditions: Conditions the model depends on.
        progress: The progress display.
        team: The processes of the run, of which one selects.

    Raises:
        UserError: If files cannot be read, or too few structures may be selected.
    """
    settings = head.settings
    files = settings.train_file
    assert files is not None, "asked with files only"
    sources, is_published = list[Source](), False
    for item in as_list(files):
        if isinstance(item, str) and _is_name_of_set(item):
            source = team.once(partial(replay_source, item, progress.track))
            sources.append(replace(source, conditions=conditions))
            is_published = True
        else:
            sources += sources_of(settings, item, conditions)
    typed = sorted(provided(settings) & {*_SELECTION})
    if typed and "train_file" in head.shared:
        _LOGGER.warning(
            "--%s has no effect: all structures that name the head %s are replayed; --pt_train_file selects",
            ", --".join(typed),
            head.name,
        )
    if "train_file" in head.shared or not (is_published or typed):
        return tuple(sources)
    rule = SelectionRule(
        filter_type=settings.filter_type_pt,
        elements=frozenset(settings.atomic_numbers or elements),
        n_samples=settings.num_samples_pt,
        subselect=settings.subselect_pt,
        random_padding=settings.allow_random_padding_pt,
        at_most=True,  # the log says so
        seed=settings.seed,
    )

    def select() -> tuple[Source, ...]:
        if settings.subselect_pt == "random":
            return select_structures(sources, rule, None, progress.track).sources
        device = choose_device(settings.device, settings.default_dtype)
        potential = open_potential(foundation.model, device, kernels=settings.kernels)
        describe = lambda places, count, structures: describe_structures(potential, structures)  # noqa: E731
        return select_structures(sources, rule, describe, progress.track).sources

    return team.once(select)


def _is_name_of_set(word: str) -> bool:
    """Return whether a word names a published set, or tries to: it is no file and has neither folder nor ending."""
    return word in REPLAY_SETS or (word.replace("_", "").replace("-", "").isalnum() and not Path(word).exists())


def check_replayed(head: Head, result: ReadResult, foundation: Foundation) -> None:
    """Check that the foundation model can have been trained on structures.

    Raises:
        UserError: If it does not know an element, unless the head was given reference energies of its own.
    """
    if head.settings.E0s != "foundation":
        return
    if found := first_with_others(foundation.plan.atomic_numbers, result.configurations):
        raise UserError(
            f"Head {REPLAY_HEAD}: {found[0].where()} contains {found[1]}, which the foundation model "
            f"{foundation.source} does not know, so that it was not trained on it; take it out, or select others with "
            "--filter_type_pt."
        )


def log_replay(result: ReadResult, labels: str) -> None:
    """Log what is replayed, and with which labels."""
    files = ", ".join(file.file for file in result.report.files)
    count = len(result.configurations)
    _LOGGER.info("Head %s: %d structures of %s are replayed, with %s", REPLAY_HEAD, count, files, labels)


def warn_of_common_files(result: ReadResult, others: Iterable[ReadResult]) -> None:
    """Warn of files that are replayed and are training files of other heads too."""
    files = {Path(file.file).resolve() for other in others for file in other.report.files}
    for file in result.report.files:
        if Path(file.file).resolve() in files:
            _LOGGER.warning(
                "%s is replayed, and is a training file of another head too: what the foundation model learned is kept "
                "only by other structures, or by its own labels (--pseudolabel_replay)",
                file.file,
            )


def own_structures(results: Sequence[ReadResult]) -> ReadResult:
    """Return the structures of all other heads as those of the foundation model, to be labeled by it."""
    return ReadResult(
        together([result.configurations for result in results]).changed(head=REPLAY_HEAD),
        [],
        LabelReport(tuple(file for result in results for file in result.report.files)),
        tuple(path for result in results for path in result.paths),
    )


def labeled_by_foundation(
    result: ReadResult, settings: TrainingSettings, foundation: Foundation, progress: TrainingProgress, team: Team
) -> ReadResult:
    """Give structures the labels that the foundation model predicts; see `label_with_foundation`.

    The first process computes them and keeps them in ``<work_dir>/pseudolabels``, where the others find them.

    Args:
        result: The structures as read.
        settings: The settings of the run.
        foundation: The foundation model.
        progress: The progress display.
        team: The processes of the run.

    Returns:
        The same structures, and a report that names the foundation model as the place of their labels.

    Raises:
        UserError: See `label_with_foundation`.
    """
    label: Callable[[], list[Configuration]] = partial(
        label_with_foundation,
        foundation,
        result.configurations,
        settings.valid_batch_size,
        choose_device(settings.device, settings.default_dtype),
        every_stress=settings.pseudolabel_replay_compute_stress,
        folder=Path(settings.work_dir) / LABEL_FOLDER,
        limit=EdgeLimit(settings.max_edges_per_batch, "labeling"),
        progress=partial(progress.track, description="Labeling with the foundation model"),
        kernels=settings.kernels,
    )
    labeled: list[Configuration] = []
    team.once(lambda: labeled.extend(label()))
    labeled = labeled or label()  # the others find them in the folder
    by_file: dict[str, list[Configuration]] = {}
    for configuration in labeled:
        by_file.setdefault(configuration.file, []).append(configuration)
    files = tuple(_relabeled(file, by_file.get(file.file, [])) for file in result.report.files)
    return ReadResult(ListedStructures(labeled), [], LabelReport(files), result.paths)


def _relabeled(file: FileLabels, configurations: Sequence[Configuration]) -> FileLabels:
    """Describe the new labels of the structures of a file."""
    coverage = tuple(
        LabelCoverage(
            name=entry.name,
            key="the foundation model",
            candidates=("the foundation model",),
            places={"prediction": count} if count else {},
            labeled=count,
            converted=0,
            frames=len(configurations),
        )
        for entry in file.coverage
        for count in [sum(getattr(configuration, entry.name) is not None for configuration in configurations)]
    )
    return replace(file, frames=len(configurations), isolated_atoms=0, coverage=coverage, not_finite={}, near_keys={})


def elements_of(results: Iterable[ReadResult]) -> frozenset[int]:
    """Return the elements of all structures."""
    return frozenset().union(*(result.configurations.elements for result in results))
