"""Everything that changes while a model is trained, and how it is saved and restored."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mace.model.mace import MACE
from mace.settings import TrainingSettings
from mace.training.finiteness import RATE_FACTOR
from mace.training.lbfgs import LBFGS, flat, trainable
from mace.training.loss import Loss
from mace.training.optimization import MovedParameters, MovingAverage, Schedule, make_optimizer
from mace.training.stages import stage_two_start, total_epochs

_LOGGER = logging.getLogger(__name__)

SET_BY_USER = ("weight_decay", "betas", "amsgrad", "decoupled_weight_decay", "lr_factor")
"""Entries of a parameter group that the settings determine; all others belong to the state of the optimizer."""


@dataclass
class Progression:
    """Progress of a run; saved with every checkpoint.

    Attributes:
        epoch: The current epoch, or the next one between epochs.
        structures_done: Number of structures already used for training in this epoch.
        structures: Number of structures of an epoch when it began; their order depends on it.
        draws: By head, how many structures it has and how many of them were drawn; empty if it was not recorded.
        batches: Fingerprint of the batches of the epoch, see `mace.graphs.batch_plan.BatchPlan.fingerprint`.
        evaluated_at_start: Whether the evaluation before the first step has been made.
        stage_two: Whether stage two has begun.
        stage_two_start: The epoch at which it begins; when patience ends stage one early, the run jumps there.
        lowest_loss: Lowest validation loss in the current stage.
        lowest_loss_of_stage_one: Lowest validation loss in stage one, once stage two has begun.
        evaluations_without_gain: Number of evaluations since `lowest_loss` was reached.
        lost: By stage, the epoch of best weights that could not be read when the run was resumed.
        finished: Whether training has ended.
        best_epochs: Epoch with the lowest validation loss in each stage, ``one`` and ``two``.
        times_back: How often the run went back because a number was not finite.
        rate_factor: Factor by which learning rates have been lowered because of that.
        edge_limits: Limits on the edges computed at a time, in training and in validation; None for no limit.
    """

    epoch: int = 0
    structures_done: int = 0
    structures: int = 0
    draws: list[list[int]] = field(default_factory=list)
    batches: int = 0
    evaluated_at_start: bool = False
    stage_two: bool = False
    stage_two_start: int | None = None
    lowest_loss: float = math.inf
    lowest_loss_of_stage_one: float = math.inf
    evaluations_without_gain: int = 0
    finished: bool = False
    best_epochs: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    times_back: int = 0
    rate_factor: float = 1.0
    edge_limits: dict[str, int | None] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """The current stage, ``one`` or ``two``."""
        return "two" if self.stage_two else "one"


def _judged_by(settings: TrainingSettings) -> tuple[str, str, list[float | None]]:
    """Return the settings by which the losses of the heads become one."""
    heads = settings.heads or {}
    return settings.select_by, settings.head_sampling, [head.weight for head in heads.values()]


class TrainingState:
    """The model and everything else that changes during training.

    Args:
        model: The model on its device, initialized.
        settings: The settings; read only.
        losses: Loss of stage one and, if there is one, of stage two.
        moved: What the optimizer moves; the parameters of the model if None.

    Attributes:
        moved: What the optimizer moves.
        best: For each stage, the validated weights with the lowest validation loss, on the CPU.
        lbfgs: The minimizer, once the last epoch before L-BFGS is done; there is no moving average then.
    """

    def __init__(
        self,
        model: MACE,
        settings: TrainingSettings,
        losses: tuple[Loss, Loss | None],
        moved: MovedParameters | None = None,
    ) -> None:
        self.model, self.settings, self._losses = model, settings, losses
        self.moved = moved or MovedParameters(model)
        self.optimizer = make_optimizer(self.moved, settings)
        self.schedule = Schedule(self.optimizer, settings)
        self.average = MovingAverage(self.moved.parameters(), settings.ema_decay) if settings.ema else None
        self.progression = Progression(stage_two_start=stage_two_start(settings) if losses[1] else None)
        self.best: dict[str, dict[str, Tensor]] = {}
        self.lbfgs: LBFGS | None = None

    @property
    def loss(self) -> Loss:
        """The loss of the current stage."""
        return self.loss_of(self.progression.stage)

    def loss_of(self, stage: str) -> Loss:
        """Return the loss of stage ``one`` or ``two``."""
        return self._losses[1] if stage == "two" and self._losses[1] else self._losses[0]

    @property
    def learning_rate(self) -> float:
        """Learning rate of the parameter groups without a factor of their own."""
        groups = self.optimizer.param_groups
        rate: float = next((group["lr"] for group in groups if group["lr_factor"] == 1.0), groups[0]["lr"])
        return rate

    def optimizer_mode(self, mode: str) -> None:
        """Switch a schedule-free optimizer to mode ``train`` or ``eval``; other optimizers have no modes."""
        if self.settings.optimizer == "schedulefree" and self.lbfgs is None:
            getattr(self.optimizer, mode)()
            self.moved.update_model()

    @contextmanager
    def validated_weights(self) -> Iterator[None]:
        """Give the model the weights used for validation inside a ``with`` block: averages if there are any."""
        if self.average is None:
            yield
            return
        try:
            with self.average.applied():
                self.moved.update_model()
                yield
        finally:
            self.moved.update_model()

    def copy_of_validated_weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights used for validation, by name, on the CPU."""
        with self.validated_weights():
            return {name: value.to("cpu", copy=True) for name, value in self.model.state_dict().items()}

    def is_finite(self) -> bool:
        """Return whether all weights are finite, waiting for the device only once."""
        with torch.no_grad():
            return bool(torch.stack([torch.isfinite(weight).all() for weight in self.model.parameters()]).all())

    def begin_stage_two(self) -> None:
        """Switch to stage two and its constant learning rate."""
        state = self.progression
        state.lowest_loss_of_stage_one = state.lowest_loss
        state.stage_two, state.lowest_loss, state.evaluations_without_gain = True, math.inf, 0
        self.schedule.set_constant(self.settings.swa_lr * state.rate_factor)

    def begin_lbfgs(self) -> int | None:
        """Switch to L-BFGS; the optimizer begins anew.

        It starts from the best validated weights of the stage, or the latest validated corrections.

        Returns:
            The epoch of the weights it starts from; None for the latest ones.
        """
        moves_weights = not self.moved.state_dict()  # corrections cannot be told from the weights they give
        best = self.progression.best_epochs.get(self.progression.stage) if moves_weights else None
        if moves_weights and self.progression.stage in self.best:
            self.model.load_state_dict(self.best[self.progression.stage])
        elif self.average is not None:
            self.average.assign()
            self.moved.update_model()
        self.progression.evaluations_without_gain = 0
        self.optimizer, self.average = make_optimizer(self.moved, self.settings), None
        self.schedule = Schedule(self.optimizer, self.settings)
        if self.progression.stage_two:
            self.schedule.set_constant(self.settings.swa_lr)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.progression.rate_factor
        self.lbfgs = LBFGS(flat(trainable(self.moved)), self.settings.lbfgs_history)
        return best

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to resume."""
        return {
            "plan": self.model.plan.model_dump_json(),
            "settings": self.settings.model_dump_json(),
            "weights": self.model.state_dict(),
            "moved": self.moved.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "progression": vars(self.progression),
            "best": self.best,
            "lbfgs": None if self.lbfgs is None else vars(self.lbfgs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["weights"])
        self.moved.load_state_dict(state.get("moved", {}))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        elif self.average is not None:
            self.average = MovingAverage(self.moved.parameters(), self.settings.ema_decay)
        self.progression = Progression(**state["progression"])
        self.best = {
            stage: {name: value.cpu() for name, value in weights.items()} for stage, weights in state["best"].items()
        }
        if state.get("lbfgs") is not None:
            history = {"history": self.settings.lbfgs_history}
            self.lbfgs = LBFGS.restored(state["lbfgs"] | history, self.model.embedding.device)
            self.average = None

    def go_back(self, state: dict[str, Any]) -> None:
        """Return to an earlier good state, with a lower learning rate each time."""
        times = self.progression.times_back + 1
        self.load_state_dict(state)
        factor = RATE_FACTOR ** (times - self.progression.times_back)
        self.progression.times_back = times
        self.progression.rate_factor *= factor
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def resume(self, state: dict[str, Any], before: TrainingSettings) -> None:
        """Resume from a saved state; settings that have changed since then take effect.

        Args:
            state: The saved state, as returned by `state_dict`.
            before: The settings when it was saved.
        """
        now, start = self.settings, self.progression.stage_two_start
        wanted = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.load_state_dict(state)
        progression = self.progression
        if (now.swa, now.start_swa, now.max_num_epochs) != (before.swa, before.start_swa, before.max_num_epochs):
            progression.stage_two_start = start
            if progression.stage_two and (start is None or progression.epoch < start):
                self._return_to_stage_one(wanted)
        rates = now.swa_lr != before.swa_lr if progression.stage_two else now.lr != before.lr
        if rates:
            progression.rate_factor = 1.0  # a newly chosen learning rate is used as it is
        for group, fresh in zip(self.optimizer.param_groups, wanted, strict=True):
            group |= {key: fresh[key] for key in SET_BY_USER if key in fresh}
            if not progression.stage_two and (now.lr, now.lr_params_factors) != (before.lr, before.lr_params_factors):
                group["lr"] = fresh["lr"] * progression.rate_factor
        if progression.stage_two and (now.swa_lr, now.lr_params_factors) != (before.swa_lr, before.lr_params_factors):
            self.schedule.set_constant(now.swa_lr * progression.rate_factor)
        if now.freeze != before.freeze:
            self._stop_frozen()
        if now.amsgrad and not before.amsgrad:
            for moments in filter(None, self.optimizer.state.values()):  # frozen parameters may have an empty state
                moments.setdefault("max_exp_avg_sq", moments["exp_avg_sq"].clone())
        if progression.finished and (total_epochs(now) > progression.epoch and now.patience > before.patience):
            progression.finished = False
        self._resume_lbfgs()
        if _judged_by(now) != _judged_by(before):  # losses judged otherwise cannot be compared
            progression.lowest_loss, progression.evaluations_without_gain = math.inf, 0
        if now.max_edges_per_batch != before.max_edges_per_batch:
            progression.edge_limits = {}

    def _resume_lbfgs(self) -> None:
        """Begin L-BFGS in a run that had ended before it was asked for, or end it in one with more epochs now."""
        state, now = self.progression, self.settings
        if self.lbfgs is None and now.lbfgs and state.finished:
            state.epoch, state.finished = max(state.epoch, now.max_num_epochs), False
        if self.lbfgs is not None and state.epoch < now.max_num_epochs:
            self.lbfgs = None
            self.average = MovingAverage(self.moved.parameters(), now.ema_decay) if now.ema else None
            _LOGGER.warning(
                "L-BFGS had begun already; with more epochs before it, the run goes on from its weights with "
                "--optimizer=%s at epoch %d, and with L-BFGS after that",
                now.optimizer,
                state.epoch,
            )

    def _stop_frozen(self) -> None:
        """Give parameters that are frozen from here on their validated values, and forget how they moved."""
        self.optimizer_mode("eval")
        for parameter in self.moved.parameters():
            if not parameter.requires_grad:
                self.optimizer.state.pop(parameter, None)
        self.moved.update_model()

    def _return_to_stage_one(self, wanted: list[dict[str, Any]]) -> None:
        """Undo the start of stage two, for a run whose stage two now begins later or not at all."""
        state = self.progression
        state.stage_two, state.lowest_loss, state.evaluations_without_gain = False, state.lowest_loss_of_stage_one, 0
        for of_stage in (state.best_epochs, state.lost, self.best):
            of_stage.pop("two", None)
        for group, fresh in zip(self.optimizer.param_groups, wanted, strict=True):
            group["lr"] = fresh["lr"] * state.rate_factor
        _LOGGER.warning(
            "The run was in Stage Two already; with these settings it goes back to Stage One at epoch %d", state.epoch
        )
