"""The training loop: epochs, evaluations, stages, patience, and what interrupts them."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mace.console.interruption import Interruption
from mace.console.progress import TrainingProgress
from mace.graphs.batch_plan import BatchPlan
from mace.graphs.dataset import Dataset
from mace.processes.team import Team
from mace.reporting.records import RecordWriter
from mace.settings import TrainingSettings
from mace.training.batch_step import BatchStep, StepOutcome
from mace.training.checkpoints import decode
from mace.training.evaluation import Evaluation, evaluate
from mace.training.finiteness import Diverged, NotFinite
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit
from mace.training.saving import StateKeeper
from mace.training.state import Progression, TrainingState

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochReport:
    """What an epoch brought.

    Attributes:
        epoch: Counted from zero; None for the evaluation before training.
        stage_two: Whether it belongs to stage two.
        evaluations: What was found on the validation sets, by head; nothing if the epoch was not evaluated.
        improved: Whether the validation loss is the lowest of its stage.
    """

    epoch: int | None
    stage_two: bool
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    improved: bool = False

    @property
    def valid_loss(self) -> float | None:
        """Validation loss of all heads together; None if the epoch was not evaluated."""
        return sum(found.loss for found in self.evaluations.values()) if self.evaluations else None


class _StopRequested(Exception):
    """A signal came during a validation."""


class Trainer:
    """A run: what is trained, on what, and who is told.

    Args:
        state: The model and all that changes with it.
        losses: Loss of stage one and, if there is a stage two, of stage two.
        settings: The settings; read only.
        train_set: Structures to learn from.
        valid_sets: Structures to validate with, by head.
        keeper: Where states are kept.
        records: Where to write the JSON lines.
        progress: What to show.
        team: The processes of the run.
        interruption: Whether a signal has come.
        facts: What else belongs to a saved state, for the day when it is taken up again.

    Attributes:
        batch_plan: Which structures each step takes.
    """

    def __init__(
        self,
        state: TrainingState,
        losses: tuple[Loss, Loss | None],
        settings: TrainingSettings,
        train_set: Dataset,
        valid_sets: Mapping[str, Dataset],
        keeper: StateKeeper,
        records: RecordWriter,
        progress: TrainingProgress,
        team: Team,
        interruption: Interruption,
        facts: dict[str, Any],
    ) -> None:
        self.state, self.settings = state, settings
        self._losses = losses
        self._train_set, self._valid_sets = train_set, valid_sets
        self.keeper, self._records, self._progress = keeper, records, progress
        self._team, self._interruption, self._facts = team, interruption, facts
        limits = self.progression.edge_limits
        self._limits = {
            name: EdgeLimit(limits.get(name, settings.max_edges_per_batch), name) for name in ("training", "validation")
        }
        self.batch_plan = BatchPlan(len(train_set), settings.seed, settings.batch_size * team.size)
        self._batch_step = BatchStep(state, train_set, self._limits["training"], settings, team)

    @property
    def progression(self) -> Progression:
        """Where the run is."""
        return self.state.progression

    @property
    def loss(self) -> Loss:
        """The loss of the present stage."""
        return self.loss_of(self.progression.stage)

    def loss_of(self, stage: str) -> Loss:
        """Return the loss of stage ``one`` or ``two``."""
        return self._losses[1] if stage == "two" and self._losses[1] else self._losses[0]

    def train(self) -> Iterator[EpochReport]:
        """Run to the end, yielding a report after every epoch and one before the first.

        To be gone through inside `Interruption.patient`: a signal is looked for after every step.

        Raises:
            RunInterrupted: If a signal came; the state is saved then.
            Diverged: If loss, gradient or weights are not a number, and going back did not help or was not wanted.
        """
        self.save()  # from the first moment on there is something to go on from
        while not self._at_end():
            try:
                report = self._next()
            except NotFinite as event:
                self._go_back(event)
                continue
            yield report
            if self._team.any(self._interruption.requested):
                self._stop()
        self.save()  # the state before is now the same, so that no weights but the best are needed any more

    def _at_end(self) -> bool:
        state = self.progression
        return state.evaluated_at_start and (state.finished or state.epoch >= self.settings.max_num_epochs)

    def _next(self) -> EpochReport:
        """Do the evaluation before the first step, or what is left of the present epoch."""
        state = self.progression
        if not state.evaluated_at_start:
            report = self._validate(None)
            state.evaluated_at_start = True
            return report
        if state.stage_two_start is not None and state.epoch >= state.stage_two_start and not state.stage_two:
            self._begin_stage_two()
        epoch = state.epoch
        self._run_epoch(epoch)
        evaluated = epoch % self.settings.eval_interval == 0 or epoch == self.settings.max_num_epochs - 1
        report = self._validate(epoch) if evaluated else EpochReport(epoch, state.stage_two)
        if not state.stage_two:
            self.state.schedule.epoch_ended(report.valid_loss)
        state.epoch += 1
        state.structures_done = 0
        self._keep_weights(report)
        self.save()
        return report

    def _begin_stage_two(self) -> None:
        self.state.begin_stage_two()
        _LOGGER.info("Changing loss based on Stage Two Weights")
        _LOGGER.info("Stage Two: %s, learning rate %g", self.loss, self.state.learning_rate)

    def _run_epoch(self, epoch: int) -> None:
        """Take the steps that are left of an epoch."""
        state, size = self.progression, self.batch_plan.n_structures
        if state.structures_done and state.structures != size:
            _LOGGER.warning(
                "There were %d training structures, now %d: epoch %d begins anew", state.structures, size, epoch
            )
            state.structures_done = 0
        state.structures = size
        if state.structures_done < size:
            self.state.optimizer_mode("train")
        late: deque[StepOutcome] = deque()
        structures = np.zeros(0, dtype=np.int64)
        first = state.structures_done // self.batch_plan.structures_per_step
        for step, structures in enumerate(self.batch_plan.steps(epoch, state.structures_done), start=first):
            outcome = self._batch_step.take(structures, self.loss, (self._interruption.requested, self.keeper.due))
            state.structures_done += len(structures)
            self._progress.step(epoch, step, outcome.loss, outcome.n_atoms)
            late.append(outcome)
            # on an accelerator results are read one step late: reading one waits for the device
            stop, due = self._settle(late, epoch, left=outcome.latency)
            if (stop or due) and state.structures_done < size:
                self._settle(late, epoch)
                self._require_finite_weights(structures)
                self.save()
                if stop:
                    self._stop(saved=True)
        self._settle(late, epoch)
        self._require_finite_weights(structures)

    def _require_finite_weights(self, structures: np.ndarray) -> None:
        """Make sure that no state is kept to which nobody would want to go back."""
        if not self.state.is_finite():
            raise NotFinite("a weight", structures)

    def _settle(self, late: deque[StepOutcome], epoch: int, left: int = 0) -> tuple[bool, bool]:
        """Read the results of steps, write them down, and tell what they ask for."""
        stop = due = False
        while len(late) > left:
            outcome = late.popleft()
            numbers = outcome.read()
            if not math.isfinite(numbers.loss) or not math.isfinite(numbers.norm):
                raise NotFinite("the gradient" if math.isfinite(numbers.loss) else "the loss", outcome.structures)
            self._records.step(
                loss=numbers.loss,
                seconds=outcome.seconds,
                epoch=epoch,
                learning_rate=outcome.learning_rate,
                gradient_norm=numbers.norm,
                n_atoms=outcome.n_atoms,
                phases=numbers.phases,
                stage_two=self.progression.stage_two,
            )
            stop, due = stop or numbers.stop, due or numbers.due
        return stop, due

    def _validate(self, epoch: int | None) -> EpochReport:
        """Evaluate with averaged weights, write the records, and judge the progress."""
        state, evaluations = self.progression, dict[str, Evaluation]()
        self.state.optimizer_mode("eval")
        try:
            with self.state.validated_weights():
                for head, valid_set in self._valid_sets.items():
                    start = time.perf_counter()
                    found = evaluate(
                        self.state.model,
                        valid_set,
                        self.loss,
                        self.settings.valid_batch_size,
                        stress=self.loss.needs_stress or self.settings.compute_stress,
                        forces=self.settings.compute_forces,
                        keep_details=self.settings.report,
                        progress=self._watched,
                        limit=self._limits["validation"],
                        team=self._team,
                    )
                    seconds = time.perf_counter() - start
                    self._records.evaluation(
                        loss=found.loss, metrics=found.metrics, seconds=seconds, epoch=epoch, head=head
                    )
                    self._progress.evaluated(found.metrics)
                    evaluations[head] = found
        except _StopRequested:
            self._stop()
        report = EpochReport(epoch, epoch is not None and state.stage_two, evaluations)
        if epoch is not None and report.valid_loss is not None:
            report = replace(report, improved=self._judge(epoch, report.valid_loss))
        return report

    def _watched(self, batches: Iterable[int], total: int) -> Iterator[int]:
        """Show the progress of a validation, and end it at a signal; several processes end it together, later."""
        for batch in self._progress.track(batches, "Validating", total):
            if self._interruption.requested and self._team.size == 1:
                raise _StopRequested
            yield batch

    def _judge(self, epoch: int, valid_loss: float) -> bool:
        """Count patience; a loss that is not a number never counts as a gain."""
        state = self.progression
        if valid_loss < state.lowest_loss:
            state.lowest_loss, state.evaluations_without_gain = valid_loss, 0
            state.best_epochs[state.stage] = epoch
            state.lost.pop(state.stage, None)
            return True
        state.evaluations_without_gain += 1
        if state.evaluations_without_gain >= self.settings.patience:
            without = f"Stopping optimization after {state.evaluations_without_gain} epochs without improvement"
            reachable = state.stage_two_start is not None and state.stage_two_start < self.settings.max_num_epochs
            if state.stage_two_start is not None and reachable and not state.stage_two:
                _LOGGER.info("%s and starting Stage Two", without)
                state.epoch = max(epoch, state.stage_two_start - 1)  # the epochs in between are left out
            else:
                _LOGGER.info(without)
                state.finished = True
        return False

    def _keep_weights(self, report: EpochReport) -> None:
        """Keep the validated weights where they are the best or all are wanted."""
        if report.epoch is not None and (report.improved or self.settings.save_all_checkpoints):
            if report.valid_loss is not None:
                stage = "two" if report.stage_two else "one"
                weights = self.state.copy_of_validated_weights()
                if report.improved:
                    self.state.best[stage] = weights
                self.keeper.keep_weights(weights, report.epoch, stage, report.improved)

    def save(self) -> None:
        """Save the complete state, and what is the best of each stage."""
        state = self.progression
        state.edge_limits = {name: limit.edges for name, limit in self._limits.items()}
        self.keeper.save(self.state.state_dict() | self._facts)

    def _stop(self, saved: bool = False) -> None:
        """End the program because of a signal."""
        if not saved:
            self.save()
        state = self.progression
        done, size = state.structures_done, len(self._train_set)
        place = f"after {done} of {size} structures of epoch {state.epoch}" if done else f"before epoch {state.epoch}"
        error = self._interruption.error(f"saved {place}; the same command with --restart_latest goes on from there")
        _LOGGER.warning("%s", error)
        raise error

    def _go_back(self, event: NotFinite) -> None:
        """Be in the last good state again with a lower learning rate, or give up."""
        state, settings = self.progression, self.settings
        where = f"epoch {state.epoch}: {event.what} is not a finite number"
        if len(event.structures):
            where += f" with the batch of {self._train_set.describe(event.structures)}"
        way_out = "lower --lr, or look for wrong labels and overlapping atoms among these"
        if settings.nan_policy == "stop":
            raise Diverged(f"{where}; stopped because of --nan_policy=stop: {way_out}.")
        if state.times_back >= settings.nan_retries:
            raise Diverged(f"{where}, after going back {state.times_back} times (--nan_retries): {way_out}.")
        good = decode(self.keeper.last_good, "the last good state", self.state.model.embedding.device)
        self.state.go_back(good)
        self._records.go_back(good["records"])
        state = self.progression
        _LOGGER.warning(
            "%s; going back to epoch %d, structure %d, with the learning rate lowered to %g (%d of %d times)",
            where,
            state.epoch,
            state.structures_done,
            self.state.learning_rate,
            state.times_back,
            settings.nan_retries,
        )
        self.save()
