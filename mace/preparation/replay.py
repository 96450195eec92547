"""The structures of the head of the foundation model: which are replayed, and their labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mace.conditions import Condition
from mace.console.progress import TrainingProgress
from mace.files.published import REPLAY_SETS
from mace.finetuning.foundation import Foundation
from mace.finetuning.pseudolabels import label_with_foundation
from mace.finetuning.replay_sets import replay_source
from mace.finetuning.selection import SelectionRule, select_structures
from mace.finetuning.structure_descriptors import describe_structures
from mace.planning.replay import REPLAY_HEAD
from mace.potential.potential import open_potential
from mace.preparation.heads import Head
from mace.processes.devices import choose_device
from mace.processes.team import Team
from mace.settings import TrainingSettings, provided
from mace.structures.configuration import Configuration
from mace.structures.labels import FileLabels, LabelCoverage, LabelReport
from mace.structures.reading import ReadResult
from mace.structures.sources import Source, sources_of
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
    is_published = isinstance(files, str) and files in REPLAY_SETS
    if is_published:
        source = team.once(lambda: replay_source(str(files), progress.track))
        sources: tuple[Source, ...] = (replace(source, conditions=conditions),)
    else:
        sources = sources_of(settings, files, conditions)
    if not is_published and not provided(settings) & {*_SELECTION}:
        return sources
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


def own_structures(results: Sequence[ReadResult]) -> ReadResult:
    """Return the structures of all other heads as those of the foundation model, to be labeled by it."""
    return ReadResult(
        [replace(c, head=REPLAY_HEAD) for result in results for c in result.configurations],
        [],
        LabelReport(tuple(file for result in results for file in result.report.files)),
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
    labeled = label() if team.is_first else []
    team.broadcast(None)  # the others wait
    labeled = labeled if team.is_first else label()
    by_file: dict[str, list[Configuration]] = {}
    for configuration in labeled:
        by_file.setdefault(configuration.file, []).append(configuration)
    files = tuple(_relabeled(file, by_file.get(file.file, [])) for file in result.report.files)
    return ReadResult(labeled, [], LabelReport(files))


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
    return replace(file, frames=len(configurations), isolated_atoms=0, coverage=coverage, faults=(), misspelled=())


def elements_of(results: Mapping[str, ReadResult]) -> frozenset[int]:
    """Return the elements of all structures."""
    return frozenset(int(z) for result in results.values() for c in result.configurations for z in c.atomic_numbers)
