"""The training loop: epochs, evaluations, stages, patience, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.graphs.batching import GraphDataset
from mace.model.mace import MACE
from mace.settings import TrainingSettings
from mace.training.checkpoints import CheckpointFolder
from mace.training.evaluation import evaluate
from mace.training.loss import Loss
from mace.training.optimization import MovingAverage, Schedule, make_optimizer
from mace.training.progress import TrainingProgress
from mace.training.records import RecordWriter
from mace.training.step import train_step

_LOGGER = logging.getLogger(__name__)

SET_BY_USER = ("weight_decay", "betas", "amsgrad", "decoupled_weight_decay", "lr_factor")
"""What settings decide about a group of parameters; all else in it belongs to the state of the optimizer."""


@dataclass(frozen=True)
class EpochReport:
    """What an epoch brought.

    Attributes:
        epoch: Counted from zero; None for the evaluation before training.
        stage_two: Whether it belongs to stage two.
        valid_loss: Validation loss; None if the epoch was not evaluated.
        metrics: Validation errors.
        improved: Whether the validation loss is the lowest of its stage.
    """

    epoch: int | None
    stage_two: bool
    valid_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    improved: bool = False


@dataclass
class Progression:
    """Where a run is; saved with every checkpoint.

    Attributes:
        epoch: The next epoch.
        stage_two: Whether stage two has begun.
        stage_two_start: The epoch at which it begins; when patience ends stage one early, the run jumps there.
        lowest_loss: Lowest validation loss of the present stage.
        lowest_loss_of_stage_one: The same of stage one, once stage two has begun.
        evaluations_without_gain: Evaluations since then.
        finished: Whether training has come to its end.
        best_epochs: Epoch with the lowest validation loss in each stage, ``one`` and ``two``.
    """

    epoch: int = 0
    stage_two: bool = False
    stage_two_start: int | None = None
    lowest_loss: float = math.inf
    lowest_loss_of_stage_one: float = math.inf
    evaluations_without_gain: int = 0
    finished: bool = False
    best_epochs: dict[str, int] = field(default_factory=dict)


class Trainer:
    """A run: the model and everything that changes with it.

    Args:
        model: The model on its device, initialized.
        losses: Loss of stage one and, if there is a stage two, of stage two.
        settings: The settings; read only.
        train_set: Structures to learn from.
        valid_set: Structures to validate with.
        checkpoints: Where to keep states.
        records: Where to write the JSON lines.
        progress: What to show.
    """

    def __init__(
        self,
        model: MACE,
        losses: tuple[Loss, Loss | None],
        settings: TrainingSettings,
        train_set: GraphDataset,
        valid_set: GraphDataset,
        checkpoints: CheckpointFolder,
        records: RecordWriter,
        progress: TrainingProgress,
    ) -> None:
        self.model, self.settings = model, settings
        self._losses = losses
        self._train_set, self._valid_set = train_set, valid_set
        self._checkpoints, self._records, self._progress = checkpoints, records, progress
        self.optimizer = make_optimizer(model, settings)
        self.schedule = Schedule(self.optimizer, settings)
        self.average = MovingAverage(model.parameters(), settings.ema_decay) if settings.ema else None
        self.progression = Progression(stage_two_start=stage_two_start(settings) if losses[1] else None)

    @property
    def loss(self) -> Loss:
        """The loss of the present stage."""
        return self.loss_of("two" if self.progression.stage_two else "one")

    def loss_of(self, stage: str) -> Loss:
        """Return the loss of stage ``one`` or ``two``."""
        return self._losses[1] if stage == "two" and self._losses[1] else self._losses[0]

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last one may be smaller."""
        return -(-len(self._train_set) // self.settings.batch_size)

    def train(self) -> Iterator[EpochReport]:
        """Run to the end, yielding a report after every epoch and one before the first."""
        state, settings = self.progression, self.settings
        if state.epoch == 0:
            yield self._validate(None)
        while state.epoch < settings.max_num_epochs and not state.finished:
            if state.stage_two_start is not None and state.epoch >= state.stage_two_start and not state.stage_two:
                self._begin_stage_two()
            self._run_epoch(state.epoch)
            evaluated = state.epoch % settings.eval_interval == 0 or state.epoch == settings.max_num_epochs - 1
            report = self._validate(state.epoch) if evaluated else EpochReport(state.epoch, state.stage_two)
            if not state.stage_two:
                self.schedule.epoch_ended(report.valid_loss)
            state.epoch += 1
            self._save(report)
            yield report

    def _begin_stage_two(self) -> None:
        state = self.progression
        state.lowest_loss_of_stage_one = state.lowest_loss
        state.stage_two, state.lowest_loss, state.evaluations_without_gain = True, math.inf, 0
        self.schedule.set_constant(self.settings.swa_lr)
        _LOGGER.info("Changing loss based on Stage Two Weights")
        _LOGGER.info("Stage Two: %s, learning rate %g", self.loss, self.settings.swa_lr)

    def _run_epoch(self, epoch: int) -> None:
        """Take one step for every batch, in an order that depends on seed and epoch alone."""
        settings, device = self.settings, self.model.embedding.device
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(self._train_set))
        self._optimizer_mode("train")
        groups = self.optimizer.param_groups
        lr = next((group["lr"] for group in groups if group["lr_factor"] == 1.0), groups[0]["lr"])
        pending: list[tuple[Tensor, float, int]] = []
        for number, batch in enumerate(self._train_set.batches(settings.batch_size, order)):
            start = time.perf_counter()
            moved = batch.to(device, pinned=settings.pin_memory)
            loss, _ = train_step(self.model, moved, self.loss, self.optimizer, settings.clip_grad, self.average)
            self._progress.step(epoch, number, loss, batch.graph.n_atoms)
            pending.append((loss, time.perf_counter() - start, epoch))
        # the losses are read once per epoch: reading one waits for the device
        for value, (_, seconds, _) in zip(torch.stack([p[0] for p in pending]).tolist(), pending, strict=True):
            self._records.step(loss=value, seconds=seconds, epoch=epoch, learning_rate=lr)

    def _optimizer_mode(self, mode: str) -> None:
        """Switch a schedule-free optimizer between its iterate and its average; others have no modes."""
        if self.settings.optimizer == "schedulefree":
            getattr(self.optimizer, mode)()

    def _validate(self, epoch: int | None) -> EpochReport:
        """Evaluate with averaged weights, write the record, and judge the progress."""
        state = self.progression
        start = time.perf_counter()
        self._optimizer_mode("eval")
        with self.validated_weights():
            result = evaluate(
                self.model,
                self._valid_set,
                self.loss,
                self.settings.valid_batch_size,
                stress=self.loss.needs_stress or self.settings.compute_stress,
                forces=self.settings.compute_forces,
                progress=lambda batches, total: self._progress.track(batches, "Validating", total),
            )
        self._records.evaluation(
            loss=result.loss, metrics=result.metrics, seconds=time.perf_counter() - start, epoch=epoch, head="Default"
        )
        self._progress.evaluated(result.metrics)
        if epoch is None:
            return EpochReport(None, False, result.loss, result.metrics)
        improved = self._judge(epoch, result.loss)
        return EpochReport(epoch, state.stage_two, result.loss, result.metrics, improved)

    def validated_weights(self) -> Any:
        """Let the model have the weights that are validated and kept, inside a ``with`` block."""
        return self.average.applied() if self.average is not None else nullcontext()

    def _judge(self, epoch: int, valid_loss: float) -> bool:
        """Count patience; a loss that is not a number never counts as a gain."""
        state = self.progression
        if valid_loss < state.lowest_loss:
            state.lowest_loss, state.evaluations_without_gain = valid_loss, 0
            state.best_epochs["two" if state.stage_two else "one"] = epoch
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

    def _save(self, report: EpochReport) -> None:
        """Keep the complete state, and the validated weights where they are the best or all are wanted."""
        if report.valid_loss is not None and (report.improved or self.settings.save_all_checkpoints):
            assert report.epoch is not None
            with self.validated_weights():
                weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self._checkpoints.save_weights(weights, self.model.plan, report.epoch, report.stage_two)
        self._checkpoints.save_last(self.state())
        if report.improved and report.epoch is not None:
            self._checkpoints.remove_earlier(report.epoch, report.stage_two)

    def state(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""
        return {
            "plan": self.model.plan.model_dump_json(),
            "settings": self.settings.model_dump_json(),
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "progression": vars(self.progression),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up where `state` left off; settings that were changed since then take effect.

        Args:
            state: What `state` returned.
        """
        self.model.load_state_dict(state["weights"])
        wanted = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        before = TrainingSettings.model_validate_json(state["settings"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        elif self.average is not None:
            self.average = MovingAverage(self.model.parameters(), self.settings.ema_decay)
        start = self.progression.stage_two_start
        self.progression = Progression(**state["progression"])
        self._apply_changes(before, wanted, start)

    def _apply_changes(
        self, before: TrainingSettings, wanted: list[dict[str, Any]], stage_two_start: int | None
    ) -> None:
        """Let settings that differ from those of the saved state win over the state."""
        now, progression = self.settings, self.progression
        if (now.swa, now.start_swa, now.max_num_epochs) != (before.swa, before.start_swa, before.max_num_epochs):
            progression.stage_two_start = stage_two_start
            if progression.stage_two and (stage_two_start is None or progression.epoch < stage_two_start):
                self._return_to_stage_one(wanted)
        for group, fresh in zip(self.optimizer.param_groups, wanted, strict=True):
            group |= {key: fresh[key] for key in SET_BY_USER if key in fresh}
            if not progression.stage_two and (now.lr, now.lr_params_factors) != (before.lr, before.lr_params_factors):
                group["lr"] = fresh["lr"]
        if progression.stage_two and (now.swa_lr, now.lr_params_factors) != (before.swa_lr, before.lr_params_factors):
            self.schedule.set_constant(now.swa_lr)
        if now.amsgrad and not before.amsgrad:
            for moments in self.optimizer.state.values():
                moments.setdefault("max_exp_avg_sq", moments["exp_avg_sq"].clone())
        if progression.finished and (now.max_num_epochs > progression.epoch and now.patience > before.patience):
            progression.finished = False

    def _return_to_stage_one(self, wanted: list[dict[str, Any]]) -> None:
        """Take back what the beginning of stage two changed, for a run that now has a later one or none."""
        state = self.progression
        state.stage_two, state.lowest_loss, state.evaluations_without_gain = False, state.lowest_loss_of_stage_one, 0
        state.best_epochs.pop("two", None)
        for group, fresh in zip(self.optimizer.param_groups, wanted, strict=True):
            group["lr"] = fresh["lr"]
        _LOGGER.warning(
            "The run was in Stage Two already; with these settings it goes back to Stage One at epoch %d", state.epoch
        )


def has_stage_two(settings: TrainingSettings) -> bool:
    """Tell whether there is a stage two: it is asked for, or its beginning is given, as in the original."""
    return settings.swa or settings.start_swa is not None


def stage_two_start(settings: TrainingSettings) -> int:
    """Return the epoch at which stage two begins: as set, or after four fifths of the epochs."""
    if settings.start_swa is not None:
        return settings.start_swa
    return max(1, int(round(settings.max_num_epochs * 0.8)))
