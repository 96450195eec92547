"""The training loop: epochs, evaluations, stages, patience and interruptions."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from torch import Tensor

from mace.graphs.batch_plan import BatchPlan, EqualWork, HeadSampling, one_head
from mace.graphs.batch_size import plan_batches, validation_batch
from mace.graphs.dataset import Dataset
from mace.graphs.feeding import Feeding
from mace.model.captured import CapturedPredictions, bucket_of
from mace.processes.cuda_graphs import Recorder
from mace.processes.devices import widened
from mace.processes.slowdown import CoreWatch
from mace.training.batch_step import BatchStep, CapturedSteps, StepOutcome
from mace.training.checkpoints import decode
from mace.training.context import TrainingContext
from mace.training.evaluation import Evaluation, evaluate
from mace.training.finiteness import Diverged, NotFinite
from mace.training.lbfgs import LBFGS, FullBatch
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit
from mace.training.phases import COMPUTING, WaitingTime
from mace.training.saving import StateKeeper
from mace.training.stages import total_epochs
from mace.training.state import Progression, TrainingState

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochReport:
    """Results of an epoch.

    Attributes:
        epoch: Counted from zero; None for the evaluation before training.
        stage_two: Whether it belongs to stage two.
        evaluations: Results on the validation sets, by head; empty if the epoch was not evaluated.
        valid_loss: The validation loss by which models are compared, see `Trainer.judged_loss`; None if the epoch was
            not evaluated.
    """

    epoch: int | None
    stage_two: bool
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    valid_loss: float | None = None


def selection_rule(select_by: str, shares: Mapping[str, float]) -> str:
    """Name the validation loss by which models are compared.

    Args:
        select_by: The setting.
        shares: Share of each head in the structures of an epoch.
    """
    if len(shares) == 1:
        return "validation loss"
    if select_by != "all":
        return f"validation loss of head {select_by} (--select_by={select_by})"
    words = ", ".join(f"{head} {share:.3g}" for head, share in shares.items())
    return f"mean of the validation losses of the heads by their shares of an epoch, {words} (--select_by=all)"


def expected_counts(
    plan: BatchPlan, epoch: int, loss: Loss, dataset: Dataset, like: Tensor
) -> dict[str, Tensor] | None:
    """Return what the terms of a loss are divided by in every step of an epoch; None for the counts of the step.

    Args:
        plan: The batches.
        epoch: Counted from zero.
        loss: The loss.
        dataset: The training structures.
        like: Tensor with the device and precision of the result.
    """
    if not isinstance(plan, EqualWork):
        return None
    counts = loss.counts_of_each(dataset, np.arange(len(dataset)))
    expected = {name: plan.expected_count(epoch, of_each.numpy()) for name, of_each in counts.items()}
    return {name: like.new_tensor(count) for name, count in expected.items()}


class _StopRequested(Exception):
    """A signal to stop arrived during validation."""


class Trainer:
    """Train a model on a set of structures, epoch by epoch.

    Args:
        context: Settings, processes of the run, progress display and signals.
        state: The model and everything that changes during training.
        train_set: The training structures.
        valid_sets: The validation structures, by head.
        keeper: Saves states and holds the history.
        sampling: How often the structures of each head are used; every structure once if None.
        recorder: What captures steps and evaluations on the device, to repeat them; None if nothing does.

    Attributes:
        batch_plan: Which structures are used in each step.
        captured: The captured steps, and the captured predictions for evaluations; None if there are none.
        waiting: How much of its time this process has waited for data.
        watch: Follows the steps on a CPU, whose cores others may use too; None on other devices.
    """

    def __init__(
        self,
        context: TrainingContext,
        state: TrainingState,
        train_set: Dataset,
        valid_sets: Mapping[str, Dataset],
        keeper: StateKeeper,
        sampling: HeadSampling | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.settings, self._team, self._progress = context.settings, context.team, context.progress
        self._interruption, self._records = context.interruption, keeper.records
        self.state, self.train_set, self.valid_sets, self.keeper = state, train_set, valid_sets, keeper
        edges = {name: self.settings.max_edges_per_batch for name in ("training", "validation")}
        self._limits = {name: EdgeLimit(n, name) for name, n in (edges | self.progression.edge_limits).items()}
        sampling = sampling or one_head(len(train_set))
        self.batch_plan = plan_batches(self.settings, train_set, sampling, self._team.size)
        self.captured: tuple[CapturedSteps, CapturedPredictions] | None = None
        self._plain_feeding = self._feeding = Feeding.of(self.settings, context.device, self._heed)
        limit = self._limits["training"]
        self.batch_step = BatchStep(state, train_set, limit, self.settings, self._team)
        self.capture_with(recorder)
        self.waiting = WaitingTime(self._feeding.threads_for(train_set))
        self.watch = CoreWatch() if context.device.type == "cpu" else None
        feeding = self._plain_feeding
        self.full_batch = FullBatch(state.moved, train_set, limit, self.settings, self._team, sampling, feeding)

    def capture_with(self, recorder: Recorder | None) -> None:
        """Capture steps and evaluations from here on, or do so no more; what was captured is forgotten."""
        self.captured, self._feeding = None, self._plain_feeding
        if recorder is not None:
            steps = CapturedSteps(self.state, self.settings.clip_grad, recorder, strict=False)
            self.captured = steps, CapturedPredictions(self.state.model, recorder, "validation", strict=False)
            self._feeding = replace(self._plain_feeding, bucket_of=partial(bucket_of, self.state.model))
        self.batch_step.captured = None if self.captured is None else self.captured[0]

    @property
    def progression(self) -> Progression:
        """Progress of the run."""
        return self.state.progression

    def train(self) -> Iterator[EpochReport]:
        """Train to the end, yielding a report before the first epoch and after every epoch.

        Iterate over it inside `Interruption.patient`: signals are checked for after every step.

        Raises:
            RunInterrupted: If a signal arrived; the state has then been saved.
            Diverged: If loss, gradient or weights are not finite, and going back did not help or was not allowed.
        """
        last = total_epochs(self.settings) - 1
        self.save()  # so that the run can be resumed from the very start
        while True:
            state = self.progression
            if not state.evaluated_at_start:
                report = self._validate(None)
                state.evaluated_at_start = True
            elif state.finished or state.epoch > last or self._stuck:
                break
            else:
                epoch = state.epoch
                self._begin_stage(epoch)
                try:
                    if self.state.lbfgs is None:
                        self._run_epoch(epoch)
                    else:
                        self._run_iteration(epoch, self.state.lbfgs)
                except NotFinite as event:
                    self._go_back(event)
                    continue
                evaluated = epoch % self.settings.eval_interval == 0 or epoch == last or self._stuck
                report = self._validate(epoch) if evaluated else EpochReport(epoch, state.stage_two)
                if not state.stage_two and self.state.lbfgs is None:
                    self.state.schedule.epoch_ended(report.valid_loss)
                state.epoch += 1
                state.structures_done = 0
                self.save()
            yield report
            if self._team.any(self._interruption.requested):
                self._stop()
        self.save()  # the previous state now equals the last one, so only the best weights are still needed

    @property
    def _stuck(self) -> bool:
        """Whether L-BFGS has found a minimum."""
        return self.state.lbfgs is not None and self.state.lbfgs.stuck

    def _begin_stage(self, epoch: int) -> None:
        """Switch to stage two or to L-BFGS if one of them begins with an epoch."""
        state, settings = self.progression, self.settings
        if self.state.lbfgs is not None:
            return
        if settings.lbfgs and epoch >= settings.max_num_epochs:
            best = self.state.begin_lbfgs()
            _LOGGER.info(
                "L-BFGS: %s of all %d training structures at once, from the %s",
                self.state.loss,
                len(self.train_set),
                "present weights" if best is None else f"weights of epoch {best}",
            )
        elif state.stage_two_start is not None and epoch >= state.stage_two_start and not state.stage_two:
            self.state.begin_stage_two()
            _LOGGER.info("Changing loss based on Stage Two Weights")
            _LOGGER.info("Stage Two: %s, learning rate %g", self.state.loss, self.state.learning_rate)

    def _run_iteration(self, epoch: int, lbfgs: LBFGS) -> None:
        """Take an iteration of L-BFGS; between evaluations of the loss it can be stopped, and its state be saved."""
        start, team, state = time.perf_counter(), self._team, self.progression
        if state.structures_done:  # it was complete when its validation was stopped
            return

        def watched(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            for number, structures in enumerate(batches):
                self._heed()
                yield structures
                loss = lbfgs.loss if math.isfinite(lbfgs.loss) else None
                self._progress.step(epoch, number, loss, int(self.train_set.atoms_of(structures).sum()))

        try:
            while not self.full_batch.advance(lbfgs, self.state.loss, watched):
                stop = team.any(self._interruption.requested)
                if stop or team.any(self.keeper.due):
                    self.save()
                if stop:
                    self._stop(saved=True)
        except _StopRequested:
            self._stop()
        assert lbfgs.gradient is not None
        self._records.step(
            loss=lbfgs.loss,
            seconds=time.perf_counter() - start,
            epoch=epoch,
            gradient_norm=widened(lbfgs.gradient).norm(),
            n_atoms=lbfgs.evaluations * self.full_batch.n_atoms,
            phases=self.full_batch.phases,
            stage_two=state.stage_two,
            evaluations=lbfgs.evaluations,
        )
        self.waiting.add_phases(self.full_batch.phases)
        lbfgs.evaluations, self.full_batch.phases, state.structures_done = 0, {}, self.batch_plan.n_structures
        if lbfgs.stuck:
            _LOGGER.info("L-BFGS has ended: no step lowers the loss of the training set any more, to rounding")

    def _begin_epoch(self, epoch: int) -> None:
        """Begin an epoch, or go on within one if its batches are still the same."""
        state, plan = self.progression, self.batch_plan
        size, sampling, batches = plan.n_structures, plan.sampling, plan.fingerprint(epoch)
        draws = [[sampling.sizes[head], count] for head, count in sampling.draws.items()]
        if state.structures_done and (state.structures != size or state.draws not in ([], draws)):
            before, now = (state.structures, size) if state.structures != size else (state.draws, draws)
            _LOGGER.warning("There were %s training structures, now %s: epoch %d begins anew", before, now, epoch)
            state.structures_done = 0
        elif state.structures_done and state.batches != batches:
            _LOGGER.warning("The batches are filled in another way now: epoch %d begins anew", epoch)
            state.structures_done = 0
        state.structures, state.draws, state.batches = size, draws, batches
        if state.structures_done < size:
            self.state.optimizer_mode("train")
            self._progress.begin_epoch(plan.n_steps(epoch))

    def _run_epoch(self, epoch: int) -> None:
        """Take the remaining steps of an epoch."""
        self._begin_epoch(epoch)
        state, plan, loss = self.progression, self.batch_plan, self.state.loss
        counts = expected_counts(plan, epoch, loss, self.train_set, self.state.model.embedding)
        late: deque[StepOutcome] = deque()
        structures, is_stopped = np.zeros(0, dtype=np.int64), False
        first = plan.steps_done(epoch, state.structures_done)
        steps = plan.steps(epoch, state.structures_done)
        try:
            with self._feeding.open(self.train_set, steps, self.batch_step.divide) as feed:
                for number, step in enumerate(feed, start=first):
                    structures, requests = step.structures, (self._interruption.requested, self.keeper.due)
                    outcome = self.batch_step.take(step, loss, requests, feed.batch, counts)
                    state.structures_done += len(structures)
                    self._progress.step(epoch, number, outcome.loss, outcome.n_atoms)
                    late.append(outcome)
                    # on an accelerator, results are read one step late because reading one waits for the device
                    stop, due = self._settle(late, epoch, left=outcome.latency)
                    if (stop or due) and state.structures_done < plan.n_structures:
                        self._settle(late, epoch)
                        self._require_finite_weights(structures)
                        self.save()
                        if stop:
                            self._stop(saved=True)
        except _StopRequested:  # while a step waited for data; it has not changed anything
            is_stopped = True
        self._settle(late, epoch)
        self._require_finite_weights(structures)
        if is_stopped:
            self._stop()

    def _require_finite_weights(self, structures: np.ndarray) -> None:
        """Raise an error if a weight is not finite, so that no such state is ever saved."""
        if not self.state.is_finite():
            raise NotFinite("a weight", structures)

    def _settle(self, late: deque[StepOutcome], epoch: int, left: int = 0) -> tuple[bool, bool]:
        """Read and record the results of all but the latest `left` steps; return whether to stop and to save."""
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
            self.waiting.add_phases(numbers.phases)
            if self.watch is not None:
                self.watch.step(sum(numbers.phases.get(phase, 0.0) for phase in COMPUTING), outcome.n_atoms)
            stop, due = stop or numbers.stop, due or numbers.due
        return stop, due

    def _validate(self, epoch: int | None) -> EpochReport:
        """Evaluate the averaged weights, record the errors, update the patience count and keep the best weights."""
        state, evaluations = self.progression, dict[str, Evaluation]()
        self.state.optimizer_mode("eval")
        for head, valid_set in self.valid_sets.items():
            start = time.perf_counter()
            try:
                found = self.evaluate(valid_set)
            except _StopRequested:
                self._stop()
            seconds = time.perf_counter() - start
            self.waiting.add(found.waited, seconds)
            self._records.evaluation(loss=found.loss, metrics=found.metrics, seconds=seconds, epoch=epoch, head=head)
            self._progress.evaluated(found.metrics, head if len(self.valid_sets) > 1 else "")
            evaluations[head] = found
        is_stage_two = epoch is not None and state.stage_two
        judged = self.judged_loss(evaluations)
        if len(evaluations) > 1:
            self._records.selection(loss=judged, epoch=epoch, by=self.settings.select_by)
        report = EpochReport(epoch, is_stage_two, evaluations, judged)
        if epoch is not None and report.valid_loss is not None:
            improved = self._judge(epoch, report.valid_loss)
            if improved or self.settings.save_all_checkpoints:
                weights = self.state.copy_of_validated_weights()
                if improved:
                    self.state.best[state.stage] = weights
                self.keeper.keep_weights(weights, epoch, state.stage, improved)
        return report

    def judged_loss(self, evaluations: Mapping[str, Evaluation]) -> float:
        """Return the validation loss that chooses the best model, lowers the learning rate and counts patience.

        With ``--select_by=all`` it is the mean over the heads, each with its share of the structures of an epoch; the
        weights of heads are in their losses already.
        """
        chosen = self.settings.select_by
        if len(evaluations) > 1 and chosen == "all":
            shares = self.batch_plan.sampling.shares
            return sum(shares[head] * found.loss for head, found in evaluations.items())
        return (evaluations.get(chosen) or next(iter(evaluations.values()))).loss

    def evaluate(self, dataset: Dataset) -> Evaluation:
        """Evaluate the model on a set of structures, with the weights used for validation."""
        with self.state.validated_weights():
            return evaluate(
                self.state.model if self.captured is None else self.captured[1],
                dataset,
                self.state.loss,
                validation_batch(self.settings),
                stress=self.settings.compute_stress,
                forces=self.settings.compute_forces,
                keep_details=self.settings.report,
                progress=self._watched,
                limit=self._limits["validation"],
                team=self._team,
                feeding=self._feeding,
            )

    def _watched(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Show the progress of a validation; see `_heed`."""
        for batch in self._progress.track(batches, "Validating"):
            self._heed()
            yield batch

    def _heed(self) -> None:
        """Stop a single process at a signal; several stop together, after a step or a validation. Look at the cores."""
        if self.watch is not None:
            self.watch.heed()
        if self._interruption.requested and self._team.size == 1:
            raise _StopRequested

    def _judge(self, epoch: int, valid_loss: float) -> bool:
        """Return whether the loss is the lowest so far, and count patience; a NaN loss is never an improvement."""
        state = self.progression
        if valid_loss < state.lowest_loss:
            state.lowest_loss, state.evaluations_without_gain = valid_loss, 0
            state.best_epochs[state.stage] = epoch
            state.lost.pop(state.stage, None)
            return True
        state.evaluations_without_gain += 1
        if state.evaluations_without_gain >= self.settings.patience:
            without = f"Stopping optimization after {state.evaluations_without_gain} epochs without improvement"
            following = self._following_stage()
            if following is not None:
                name, begin = following
                _LOGGER.info("%s and starting %s", without, name)
                state.epoch = max(epoch, begin - 1)  # the epochs in between are skipped
            else:
                _LOGGER.info(without)
                state.finished = True
        return False

    def _following_stage(self) -> tuple[str, int] | None:
        """Return the name and first epoch of what comes after the current stage; None if nothing does."""
        start, last = self.progression.stage_two_start, self.settings.max_num_epochs
        if self.state.lbfgs is not None:
            return None
        if start is not None and start < last and not self.progression.stage_two:
            return "Stage Two", start
        return ("L-BFGS", last) if self.settings.lbfgs else None

    def save(self) -> None:
        """Save the complete state and the best weights of each stage."""
        state = self.progression
        state.edge_limits = {name: limit.edges for name, limit in self._limits.items()}
        with self._team.writing():
            self.keeper.save(self.state.state_dict())

    def _stop(self, saved: bool = False) -> None:
        """Save the state unless already saved, and end the run because of a signal."""
        if not saved:
            self.save()
        self._team.together()
        state = self.progression
        done, size = state.structures_done, self.batch_plan.n_structures
        place = f"after {done} of {size} structures of epoch {state.epoch}" if done else f"before epoch {state.epoch}"
        if self.state.lbfgs is not None and self.state.lbfgs.evaluations:
            place = f"after evaluation {self.state.lbfgs.evaluations} of L-BFGS in epoch {state.epoch}"
        error = self._interruption.error(f"saved {place}; the same command with --restart_latest goes on from there")
        _LOGGER.warning("%s", error)
        raise error

    def _go_back(self, event: NotFinite) -> None:
        """Return to the last good state with a lower learning rate, or give up."""
        state, settings = self.progression, self.settings
        where = f"epoch {state.epoch}: {event.what} is not a finite number"
        if len(event.structures):
            where += f" with the batch of {self.train_set.describe(event.structures)}"
        way_out = "lower --lr, or look for wrong labels and overlapping atoms among these"
        if settings.nan_policy == "stop":
            raise Diverged(f"{where}; stopped because of --nan_policy=stop: {way_out}.")
        if state.times_back >= settings.nan_retries:
            raise Diverged(f"{where}, after going back {state.times_back} times (--nan_retries): {way_out}.")
        good = decode(self.keeper.last_good, "the last good state")
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
