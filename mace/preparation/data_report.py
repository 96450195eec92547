"""The report on the data at the start of a training, and of ``mace_check_data``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mace.console.optional_outputs import OptionalOutput
from mace.console.progress import TrainingProgress
from mace.finetuning.foundation import Foundation
from mace.inspection.findings import check_allowed
from mace.inspection.inspection import DataReport, Demands, StructureSet, inspect_sets
from mace.model.plan import OUTPUTS
from mace.pages.data_page import write_page
from mace.planning.objectives import ways_out
from mace.reporting.document import write_text
from mace.reporting.terminal import summary_lines, verdict
from mace.settings import TrainingSettings
from mace.structures.reading import ReadResult
from mace.training.loss import Loss

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSets:
    """All that was read, before anything is set aside.

    Attributes:
        training: From the training files.
        validation: From the validation files; None if structures of the training files are to be set aside.
        tests: From the test files, and from each file of the test folder.
    """

    training: ReadResult
    validation: ReadResult | None
    tests: Mapping[str, ReadResult]

    def with_roles(self) -> list[StructureSet]:
        """The sets as the checks want them, the training set first."""
        validation = [StructureSet("validation", self.validation)] if self.validation is not None else []
        tests = [StructureSet("test", result) for result in self.tests.values()]
        return [StructureSet("training", self.training), *validation, *tests]


def inspect_data(
    settings: TrainingSettings,
    losses: Sequence[Loss | None],
    sets: DataSets,
    progress: TrainingProgress,
    foundation: Foundation | None = None,
) -> DataReport:
    """Run all checks, with the cutoff and, if they are asked for, the E0s of the model that is fine-tuned.

    Raises:
        UserError: If ``--allow`` names what there is not.
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


def tell_report(report: DataReport, path: Path | None, title: str) -> None:
    """Log a summary of a report and write its page.

    Args:
        report: The report.
        path: The page to write; None for none.
        title: Its heading.
    """
    for line in summary_lines(report):
        _LOGGER.info("%s", line)
    for finding in report.findings:
        if finding.level == "note":
            _LOGGER.info("[%s] %s", finding.name, finding.sentence)
        elif not finding.stops:
            allowed = ", allowed" if finding.allowed else ""
            _LOGGER.warning("[%s%s] %s", finding.name, allowed, finding.sentence)
    if path is None:
        return
    with OptionalOutput(path):
        write_text(path, write_page(report, title), "--results_dir")
        _LOGGER.info("%s The report on the data is in %s", verdict(report), path)
