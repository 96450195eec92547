"""Setup of a trainer with its state, its files, its history and experiment trackers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mace.graphs.batch_plan import BatchPlan, EqualWork
from mace.graphs.batch_size import BatchSize, spreads, training_batch
from mace.graphs.dataset import Dataset
from mace.planning.objectives import Losses
from mace.preparation.preparation import Preparation
from mace.reporting.records import RecordWriter, results_path
from mace.reporting.tracking_services import make_trackers
from mace.runs.context import RunContext
from mace.runs.facts import gather_facts
from mace.runs.fast_path import choose_fast_path
from mace.runs.resuming import make_way, resume
from mace.runs.threads import settle_threads
from mace.settings import TrainingSettings
from mace.training.loop import Trainer, selection_rule
from mace.training.optimization import MovedParameters
from mace.training.saving import StateKeeper
from mace.training.stages import stage_two_start
from mace.training.state import TrainingState

_LOGGER = logging.getLogger(__name__)


@contextmanager
def open_trainer(run: RunContext, preparation: Preparation, moved: MovedParameters) -> Iterator[Trainer]:
    """Build a trainer, resume it from a saved state if there is one, and record its history inside a ``with`` block.

    Args:
        run: The context of the run.
        preparation: The data, plan and saved state that training starts from.
        moved: What is trained, with the model on its device.
    """
    settings, folders, team, saved = run.settings, run.folders, run.team, preparation.saved
    if team.is_first:
        make_way(settings, run.checkpoints, folders, saved)
    results = results_path(folders.results, settings.name, settings.seed)
    recorder = choose_fast_path(run, preparation, moved)
    state = TrainingState(moved.model, settings, preparation.data.losses, moved)
    with RecordWriter(results if team.is_first else None) as records:
        if saved is not None:
            resume(state, saved, preparation.digests, team.size)
            if saved["records"] is not None:
                records.go_back(saved["records"])
        identity = (saved or {}).get("run") or team.broadcast(run.ownership.run)
        _LOGGER.info("Run %s", identity)
        facts: dict[str, Any] = {"data": preparation.digests, "processes": team.size, "run": identity}
        keeper = StateKeeper(
            run.checkpoints, records, moved.model.plan, facts, settings.checkpoint_minutes, team.is_first, run.ownership
        )
        for stage, epoch in state.progression.best_epochs.items():
            keeper.keep_weights(state.best[stage], epoch, stage, best=True)
        trainer = Trainer(run, state, preparation.train, preparation.valid, keeper, preparation.sampling, recorder)
        facts["threads"] = settle_threads(run, trainer, saved)  # in every state that is saved from here on
        _log_optimizer(settings, preparation.data.losses, trainer.batch_plan.steps_per_epoch)
        _log_batches(trainer.batch_plan, preparation.train, training_batch(settings))
        shares = preparation.sampling.shares
        if len(shares) > 1:
            _LOGGER.info("The best model has the lowest %s", selection_rule(settings.select_by, shares))
        run.report.begin(trainer, results, lambda started: gather_facts(run, preparation, trainer, started))
        with make_trackers(settings, folders.results, folders.tag, identity, team.is_first) as trackers:
            records.follow(trackers)
            try:
                yield trainer
            finally:
                if trainer.watch is not None:
                    trainer.watch.close()


def _log_optimizer(settings: TrainingSettings, losses: Losses, batches_per_epoch: int) -> None:
    """Log the optimizer and the losses."""
    _LOGGER.info("===========OPTIMIZER INFORMATION===========")
    _LOGGER.info("Using %s as parameter optimizer, amsgrad: %s", settings.optimizer.upper(), settings.amsgrad)
    _LOGGER.info("Batch size: %s", training_batch(settings).in_words)
    if settings.ema:
        _LOGGER.info("Using Exponential Moving Average with decay: %s", settings.ema_decay)
    is_about = "about " * (training_batch(settings).unit != "structures")
    _LOGGER.info("Number of gradient updates: %s%d", is_about, batches_per_epoch * settings.max_num_epochs)
    _LOGGER.info("Learning rate: %s, weight decay: %s", settings.lr, settings.weight_decay)
    _LOGGER.info("%s", losses[0])
    if losses[1] is not None:
        _LOGGER.info(
            "Stage Two (after %d epochs) with loss function: %s and learning rate : %s",
            stage_two_start(settings),
            losses[1],
            settings.swa_lr,
        )
        if stage_two_start(settings) >= settings.max_num_epochs:
            _LOGGER.warning(
                "Stage Two is to begin at epoch %d, which this run of %d epochs does not reach; lower --start_swa or "
                "raise --max_num_epochs",
                stage_two_start(settings),
                settings.max_num_epochs,
            )
    if settings.lbfgs:
        _LOGGER.info(
            "L-BFGS after %d epochs: %d iterations, each from the %d before it",
            settings.max_num_epochs,
            settings.lbfgs_steps,
            settings.lbfgs_history,
        )
    if settings.clip_grad is not None:
        _LOGGER.info("Using gradient clipping with tolerance=%.3f", settings.clip_grad)


def _log_batches(plan: BatchPlan, train: Dataset, size: BatchSize) -> None:
    """Log how alike the batches are if they are filled by size, and which structures are too large for that."""
    if not isinstance(plan, EqualWork):
        return
    _LOGGER.info(
        "Batches of the first epoch, %d steps: %s", plan.steps_per_epoch, "; ".join(map(str, spreads(plan, train)))
    )
    larger = np.flatnonzero(plan.sizes > size.amount)
    if len(larger):
        largest = int(np.argmax(plan.sizes))
        _LOGGER.warning(
            "%d training structure%s more than --batch_%s=%d, and %s: the largest one is %s with %d",
            len(larger),
            " has" if len(larger) == 1 else "s have",
            size.unit,
            size.amount,
            "is a batch by itself" if len(larger) == 1 else "are batches by themselves",
            train.describe([largest]),
            int(plan.sizes[largest]),
        )
