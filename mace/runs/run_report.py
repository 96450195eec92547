"""The page of a run, kept fresh while it goes on, and never in its way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType

from mace.console.optional_outputs import OptionalOutput
from mace.errors import RunInterrupted, UserError
from mace.files.durable import write_durably
from mace.pages.run_facts import Condition, MeasuredStage, RunFacts, RunState, Warned
from mace.pages.run_page import write_run_page
from mace.preparation.preparation import Preparation
from mace.reporting.predictions import PredictedSet, summarize_predictions
from mace.reporting.records import RecordFollower, results_path
from mace.reporting.set_names import shown_name, table_row
from mace.reporting.worst import worst_structures
from mace.runs.facts import gather_facts
from mace.runs.final_report import FinalErrors
from mace.runs.session import Session
from mace.training.loop import EpochReport, Trainer

_LOGGER = logging.getLogger(__name__)

SHARE = 0.01
"""Share of the time of a run that its page may take; it is written less often where it would take more."""

_MOST_WARNINGS = 1000


class WarningCollector(logging.Handler):
    """Keep what a run warns of; one that is repeated is counted."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._found: dict[tuple[str, str], Warned] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a message."""
        key = record.levelname, record.getMessage()
        if key not in self._found and len(self._found) >= _MOST_WARNINGS:
            return
        times = self._found[key].times if key in self._found else 0
        self._found[key] = Warned(datetime.fromtimestamp(record.created), *key, times + 1)

    @property
    def warnings(self) -> list[Warned]:
        """What was warned of, in the order of the first time."""
        return list(self._found.values())


class RunReport:
    """Write the page of a run: at its start, after evaluations, and at its end.

    Whatever goes wrong here is one warning until it succeeds again, and the run goes on.

    Args:
        path: The page; None to write none.
        clock: Seconds since some fixed time.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self._started = datetime.now()
        self._collector = WarningCollector()
        self._facts: RunFacts | None = None
        self._stages: list[MeasuredStage] = []
        self._validated: EpochReport | None = None
        self._due_at = -1.0
        self._output = OptionalOutput(path)

    def begin(self, session: Session, preparation: Preparation, trainer: Trainer) -> None:
        """Gather what is known before the first step, and write the page."""
        self._trainer, self._settings = trainer, session.settings
        self._follower = RecordFollower(
            results_path(session.folders.results, session.settings.name, session.settings.seed)
        )
        self._times_back = trainer.progression.times_back
        self._valid_sets = preparation.valid

        if self.path is None:
            return
        with OptionalOutput(self.path):
            self._facts = gather_facts(session, preparation, trainer, self._started)
            plan = trainer.state.model.plan
            self._energies = dict(zip(plan.atomic_numbers, plan.reference_energies, strict="energy" in plan.outputs))
        self._write("running", "Training begins.")

    def refresh(self, report: EpochReport) -> None:
        """Write the page again after an evaluation, unless that would take too much of the time of the run."""
        self._validated = report
        if self._clock() < self._due_at:
            return
        state = self._trainer.progression if self._facts is not None else None
        if state is not None:
            self._write(
                "running", f"Training goes on: epoch {state.epoch} of {self._settings.max_num_epochs} comes next."
            )

    def measured(self, stage: str, epoch: int | None, errors: FinalErrors) -> None:
        """Show what was measured of the model of a stage."""
        if self._facts is not None:
            with OptionalOutput(self.path):
                self._stages.append(self._measured(stage, epoch, errors))
        self._write("running", "Training is complete; the models are being measured.")

    def ended(self, condition: Condition, sentence: str = "") -> None:
        """Write the page for the last time.

        Args:
            condition: How the run ended.
            sentence: Why; for a finished run it is made here.
        """
        self._write(condition, sentence or self._last_words())
        if self._facts is not None and not self._output.failed:
            _LOGGER.info("The report on the run is in %s", self.path)

    def __enter__(self) -> RunReport:
        """Listen to warnings from now on."""
        if self.path is not None:
            logging.getLogger("mace").addHandler(self._collector)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say on the page why a run ended before its end, and listen no more."""
        if isinstance(error, RunInterrupted):
            self.ended("stopped", f"Stopped: {error}")
        elif isinstance(error, UserError):
            self.ended("failed", str(error))
        elif isinstance(error, KeyboardInterrupt):
            self.ended("stopped", "Stopped by the keyboard.")
        elif error is not None:
            self.ended("failed", f"An error of the program ended the run: {type(error).__name__}: {error}")
        logging.getLogger("mace").removeHandler(self._collector)

    def _measured(self, stage: str, epoch: int | None, errors: FinalErrors) -> MeasuredStage:
        predictions = summarize_predictions(errors.predicted, self._energies)
        worst = worst_structures(errors.predicted, self._energies)
        return MeasuredStage(stage, epoch, errors.metrics, predictions, worst, tuple(self._valid_sets))

    def _latest(self) -> MeasuredStage | None:
        """Show the last validation as long as no finished model has been measured."""
        report = self._validated
        if self._stages or report is None or report.epoch is None:
            return None
        rows = {head: table_row("valid", head) for head in report.evaluations}
        predicted = [
            PredictedSet(shown_name(rows[head]), "valid", self._valid_sets[head], found.compared)
            for head, found in report.evaluations.items()
            if found.compared
        ]
        if not predicted:
            return None
        errors = FinalErrors({rows[head]: found.metrics for head, found in report.evaluations.items()}, predicted)
        return self._measured("two" if report.stage_two else "one", report.epoch, errors)

    def _last_words(self) -> str:
        if self._facts is None:
            return ""
        state = self._trainer.progression
        early = (
            " It ended early, by --patience." if state.finished and state.epoch < self._settings.max_num_epochs else ""
        )
        best = ", ".join(f"epoch {epoch} (stage {stage})" for stage, epoch in state.best_epochs.items())
        if not best:
            return "Nothing was trained, by --max_num_epochs=0; the model is as it started."
        return f"Training is complete; the models hold the weights of {best}.{early}"

    def _write(self, condition: Condition, sentence: str) -> None:
        facts, path = self._facts, self.path
        if facts is None or path is None:
            return

        begin = self._clock()
        with self._output:
            state = self._trainer.progression
            anew, self._times_back = state.times_back != self._times_back, state.times_back
            now = RunState(
                condition=condition,
                sentence=sentence,
                written=datetime.now(),
                history=self._follower.update(anew),
                stage_two_start=state.stage_two_start,
                best_epochs=dict(sorted(state.best_epochs.items())),
                times_back=state.times_back,
                warnings=self._collector.warnings,
                stages=self._stages,
                latest=self._latest(),
            )
            write_durably(path, write_run_page(facts, now).encode())
        end = self._clock()
        self._due_at = end + (end - begin) / SHARE
