"""The report page of a run, updated while the run goes on; failing to write it never stops the run."""

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
from mace.reporting.predictions import PredictedSet, summarize_predictions
from mace.reporting.records import RecordFollower
from mace.reporting.set_names import shown_name, table_row
from mace.reporting.worst import worst_structures
from mace.training.loop import EpochReport, Trainer
from mace.training.stages import total_epochs

_LOGGER = logging.getLogger(__name__)

SetErrors = dict[str, dict[str, float]]
"""Errors by name of the data set."""

SHARE = 0.01
"""Fraction of a run's time that its page may take; it is written less often if it would take more."""

_MOST_WARNINGS = 1000


class WarningCollector(logging.Handler):
    """Collects the warnings of a run, and counts those that are repeated."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._found: dict[tuple[str, str], Warned] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Store or count a message."""
        key = record.levelname, record.getMessage()
        if key not in self._found and len(self._found) >= _MOST_WARNINGS:
            return
        times = self._found[key].times if key in self._found else 0
        self._found[key] = Warned(datetime.fromtimestamp(record.created), *key, times + 1)

    @property
    def warnings(self) -> list[Warned]:
        """The warnings, in the order in which they first occurred."""
        return list(self._found.values())


class RunReport:
    """Writes the report page of a run: at its start, after evaluations, and at its end.

    If writing fails, one warning is given until it succeeds again, and the run goes on.

    Args:
        path: Path of the page; None to write no page.
        clock: Returns the seconds since some fixed time.
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

    def begin(self, trainer: Trainer, records: Path, gather: Callable[[datetime], RunFacts]) -> None:
        """Gather the facts known before the first step, and write the page.

        Args:
            trainer: The trainer.
            records: The JSON lines of the run.
            gather: Returns the facts of the run, given the time at which the program was started.
        """
        self._trainer, self._follower = trainer, RecordFollower(records)
        self._times_back = trainer.progression.times_back
        if self.path is None:
            return
        with OptionalOutput(self.path):
            self._facts = gather(self._started)
        self._write("running", "Training begins.")

    def refresh(self, report: EpochReport) -> None:
        """Write the page again after an evaluation, unless that would take too much of the run's time."""
        self._validated = report
        if self._clock() < self._due_at:
            return
        state = self._trainer.progression if self._facts is not None else None
        if state is not None:
            self._write(
                "running",
                f"Training goes on: epoch {state.epoch} of {total_epochs(self._trainer.settings)} comes next.",
            )

    def measured(self, stage: str, epoch: int | None, metrics: SetErrors, predicted: list[PredictedSet]) -> None:
        """Add the errors and predictions of the final model of a stage to the page."""
        if self._facts is not None:
            with OptionalOutput(self.path):
                self._stages.append(self._measured(stage, epoch, metrics, predicted))
        self._write("running", "Training is complete; the models are being measured.")

    def ended(self, condition: Condition, sentence: str = "") -> None:
        """Write the page for the last time.

        Args:
            condition: How the run ended.
            sentence: Why it ended; for a finished run this is written here.
        """
        if not sentence and self._facts is not None:
            state = self._trainer.progression
            best = ", ".join(f"epoch {epoch} (stage {stage})" for stage, epoch in state.best_epochs.items())
            sentence = "Nothing was trained, by --max_num_epochs=0; the model is as it started."
            if best:
                sentence = f"Training is complete; the models hold the weights of {best}."
                if state.finished and state.epoch < total_epochs(self._trainer.settings):
                    sentence += " It ended early, by --patience."
        self._write(condition, sentence)
        if self._facts is not None and not self._output.failed:
            _LOGGER.info("The report on the run is in %s", self.path)

    def __enter__(self) -> RunReport:
        """Start collecting warnings."""
        if self.path is not None:
            logging.getLogger("mace").addHandler(self._collector)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the reason to the page if the run ended early, and stop collecting warnings."""
        if isinstance(error, RunInterrupted):
            self.ended("stopped", f"Stopped: {error}")
        elif isinstance(error, UserError):
            self.ended("failed", str(error))
        elif isinstance(error, KeyboardInterrupt):
            self.ended("stopped", "Stopped by the keyboard.")
        elif error is not None:
            self.ended("failed", f"An error of the program ended the run: {type(error).__name__}: {error}")
        logging.getLogger("mace").removeHandler(self._collector)

    def _measured(
        self, stage: str, epoch: int | None, metrics: SetErrors, predicted: list[PredictedSet]
    ) -> MeasuredStage:
        worst, heads = worst_structures(predicted), tuple(self._trainer.valid_sets)
        predictions = summarize_predictions(predicted)
        head_of = {one.name: one.head for one in predicted}
        return MeasuredStage(stage, epoch, metrics, predictions, worst, heads, head_of)

    def _latest(self) -> MeasuredStage | None:
        """Return the last validation results, unless a finished model has been evaluated."""
        report = self._validated
        if self._stages or report is None or report.epoch is None:
            return None
        rows = {head: table_row("valid", head) for head in report.evaluations}
        predicted = [
            PredictedSet(shown_name(rows[head]), "valid", self._trainer.valid_sets[head], found.details)
            for head, found in report.evaluations.items()
            if found.details is not None
        ]
        if not predicted:
            return None
        metrics = {rows[head]: found.metrics for head, found in report.evaluations.items()}
        return self._measured("two" if report.stage_two else "one", report.epoch, metrics, predicted)

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
