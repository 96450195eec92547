"""Reading and checking the structures of a run, before any neighbor search."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mace.conditions import Condition
from mace.console.optional_outputs import OptionalOutput
from mace.console.progress import ReadingProgress, TrainingProgress
from mace.errors import UserError
from mace.finetuning.foundation import Foundation, open_foundation
from mace.finetuning.starting_weights import StartingWeights
from mace.inspection.findings import check_allowed
from mace.inspection.inspection import DataReport, Demands, StructureSet, inspect_sets
from mace.model.plan import OUTPUTS
from mace.pages.data_page import write_page
from mace.planning.objectives import Losses, ways_out, with_labels
from mace.preparation.condition_keys import conditions_of, keys_without_condition
from mace.processes.devices import PRECISIONS
from mace.reporting.document import write_text
from mace.reporting.tables import contents_line
from mace.reporting.terminal import summary_lines, verdict
from mace.settings import TrainingSettings
from mace.settings.labels import Files
from mace.structures.reading import ReadResult, read_sources
from mace.structures.sources import sources_of

_LOGGER = logging.getLogger(__name__)


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
        validation = [StructureSet("validation", self.validation)] if self.validation is not None else []
        tests = [StructureSet("test", result) for result in self.tests.values()]
        return [StructureSet("training", self.training), *validation, *tests]


@dataclass(frozen=True)
class InputData:
    """Input of a run besides its settings.

    Attributes:
        sets: The structures.
        losses: The losses of the stages, without terms that no structure has labels for.
        report: Results of the checks of all files.
        foundation: The foundation model to fine-tune, if any.
        weights: Weights of another run to start from, if any.
    """

    sets: DataSets
    losses: Losses
    report: DataReport
    foundation: Foundation | None = None
    weights: StartingWeights | None = None


def read_and_check(
    settings: TrainingSettings, losses: Losses, progress: TrainingProgress, page: Path | None
) -> InputData:
    """Read the files of a run, check the structures, log the findings, and write the data page.

    Args:
        settings: The given settings.
        losses: The losses of the stages.
        progress: The progress display.
        page: Path of the data page, ``<tag>_data.html``; None to write no page.

    Raises:
        UserError: If files cannot be read, or structures or labels are not usable for training.
    """
    weights = None if settings.init_from is None else StartingWeights(Path(settings.init_from))
    foundation = open_foundation(settings, PRECISIONS[settings.default_dtype])
    conditions = conditions_of(settings, foundation)
    for warning in keys_without_condition(settings, conditions):
        _LOGGER.warning("%s", warning)
    sets = read_sets(settings, progress, conditions)
    _LOGGER.info(contents_line("Total Training set", sets.training.configurations))
    if sets.validation is not None:
        _LOGGER.info(contents_line("Total Validation set", sets.validation.configurations))
    losses = with_labels(settings, losses, sets.training.report)
    report = inspect_data(settings, losses, sets, progress, foundation)
    for line in summary_lines(report):
        _LOGGER.info("%s", line)
    for finding in report.findings:
        if finding.level == "note":
            _LOGGER.info("[%s] %s", finding.name, finding.sentence)
        elif not finding.stops:
            allowed = ", allowed" if finding.allowed else ""
            _LOGGER.warning("[%s%s] %s", finding.name, allowed, finding.sentence)
    if page is not None:
        with OptionalOutput(page):
            write_text(page, write_page(report, f"Data of {page.stem.removesuffix('_data')}"), "--results_dir")
            _LOGGER.info("%s The report on the data is in %s", verdict(report), page)
    report.refuse_errors()
    return InputData(sets, losses, report, foundation, weights)


def read_sets(settings: TrainingSettings, progress: TrainingProgress, conditions: Sequence[Condition] = ()) -> DataSets:
    """Read all files and log where labels were found; NaN labels are left out and reported.

    Args:
        settings: Settings of files, keys, units and weights.
        progress: The progress display.
        conditions: Conditions the model depends on; see `mace.preparation.condition_keys`.

    Raises:
        UserError: See `mace.structures.reading.read_sources`.
    """

    def read(files: Files, what: str) -> ReadResult:
        reading = ReadingProgress(progress)
        try:
            result = read_sources(sources_of(settings, files, conditions), progress=reading, skip_non_finite=True)
        finally:
            reading.close()
        for line in result.report.lines():
            _LOGGER.info("%s: %s", what, line)
        return result

    training = read(settings.train_file, "Training set")
    validation = read(settings.valid_file, "Validation set") if settings.valid_file else None
    # the set of the test file has no name
    tests = {"": read(settings.test_file, "Test set")} if settings.test_file is not None else {}
    if settings.test_dir is not None:
        folder = Path(settings.test_dir)
        if not folder.is_dir():
            raise UserError(f"--test_dir: {folder} is not a folder.")
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            tests[file.stem] = read(str(file), "Test set")
    return DataSets(training, validation, tests)


def inspect_data(
    settings: TrainingSettings,
    losses: Losses,
    sets: DataSets,
    progress: TrainingProgress,
    foundation: Foundation | None = None,
) -> DataReport:
    """Run all checks of the data, with the cutoff and, if requested, the E0s of the foundation model.

    Raises:
        UserError: If ``--allow`` names a check that does not exist.
    """
    demands = Demands(
        r_max=settings.r_max if foundation is None else foundation.plan.r_max,
        labels=sorted(ways_out(losses)),
        ways_out=ways_out(losses),
        E0s=settings.E0s,
        foundation_energies=None if foundation is None else foundation.energies,
        needs_E0s="energy" in OUTPUTS[settings.model],
        atomic_numbers=settings.atomic_numbers,
        allow=check_allowed(settings.allow),
    )
    return inspect_sets(sets.with_roles(), demands, progress.track)
