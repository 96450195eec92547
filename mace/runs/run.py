"""A training run in six stages, each of which returns what the next ones need."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from rich.console import Console

from mace.finetuning.foundation import log_foundation
from mace.finetuning.freezing import choose_moved, log_moved
from mace.inspection.findings import check_allowed
from mace.model.kernel_choice import choose_kernels
from mace.model.plan import ModelPlan
from mace.planning.model_choices import notes_on, settings_for_model
from mace.planning.model_plan import hidden_features, readout_widths, sent_features
from mace.planning.objectives import Losses, make_losses
from mace.planning.statistics_file import with_statistics
from mace.preparation.preparation import Preparation, prepare
from mace.preparation.reading import InputData, read_and_check
from mace.processes.devices import choose_device, keep_freed_memory, using
from mace.processes.launch import check_size, find_launch
from mace.processes.team import own_device
from mace.reporting.tracking_services import require_trackers
from mace.runs.context import Choices, RunContext, run_context
from mace.runs.dry_run import show_plan
from mace.runs.fast_path import require_graphs
from mace.runs.finishing import measure_models, plot_curves, show_epoch, write_models
from mace.runs.initial_model import initial_model, log_model, model_inputs
from mace.runs.resuming import find_state, require_one_state
from mace.runs.trainer import open_trainer
from mace.settings import TrainingSettings
from mace.training.checkpoints import file_digests
from mace.training.finiteness import Diverged
from mace.training.loop import Trainer
from mace.training.optimization import MovedParameters, require_optimizer
from mace.training.stages import total_epochs

_LOGGER = logging.getLogger(__name__)


def run_training(settings: TrainingSettings, console: Console | None = None) -> None:
    """Train a model as ``mace_run_train`` does.

    Args:
        settings: The settings.
        console: Where to show output; standard output if None.

    Raises:
        UserError: If settings or data are not usable.
        RunInterrupted: If a signal to stop arrived; during training, the state has then been saved.
    """
    choices = settle_choices(settings)
    with using(choices.device), run_context(choices, console) as run:
        data = read_data(run, choices.losses)
        preparation = plan_model(run, data)
        moved = build_model(run, preparation)
        if settings.dry_run:
            show_plan(run, preparation, moved)
        else:
            trainer = train_model(run, preparation, moved)
        run.team.leave()
        if run.team.is_first and not settings.dry_run:
            write_results(run, preparation, trainer)


def settle_choices(settings: TrainingSettings) -> Choices:
    """Complete the settings, and reject those that make no sense before anything is read."""
    keep_freed_memory()
    warnings = notes_on(settings)
    settings, taken = with_statistics(settings)
    settings, notes = settings_for_model(settings)
    notes += taken
    losses = make_losses(settings)
    require_optimizer(settings)
    require_trackers(settings)
    check_allowed(settings.allow)
    sent_features(settings, hidden_features(settings))
    readout_widths(settings)
    launch = find_launch(settings.distributed, settings.launcher, os.environ)
    check_size(settings.devices, launch)
    device = choose_device(own_device(settings.device, launch), settings.default_dtype)
    require_graphs(settings, device)
    return Choices(settings, losses, launch, device, notes, warnings)


def read_data(run: RunContext, losses: Losses) -> InputData:
    """Read and check the structures and the model to start from, if any."""
    _LOGGER.info("===========LOADING INPUT DATA===========")
    page = run.folders.data_page if run.team.is_first else None
    return read_and_check(run.settings, losses, run.progress, page, run.team)


def plan_model(run: RunContext, data: InputData) -> Preparation:
    """Compute statistics of the data, plan the model, and find the state to resume from."""
    settings, team = run.settings, run.team
    preparation = prepare(settings, data, run.progress, team.is_first)
    team.require_agreement("data", preparation.digests | file_digests(model_inputs(settings)))
    _LOGGER.info("Hash of the training and validation files: %s", preparation.digest)
    if settings.restart_latest:
        require_one_state(team, run.checkpoints)
    # only the first process reads, so that all resume from the same state
    saved = team.broadcast(find_state(settings, run.checkpoints, preparation.plan) if team.is_first else None)
    if saved is not None:
        return replace(preparation, saved=saved, plan=ModelPlan.model_validate_json(saved["plan"]))
    return preparation if data.weights is None else replace(preparation, plan=data.weights.adapted(preparation.plan))


def build_model(run: RunContext, preparation: Preparation) -> MovedParameters:
    """Build the model with its initial weights, and choose which of them are moved."""
    settings, data = run.settings, preparation.data
    model = initial_model(preparation.plan, settings, run.device, data.foundation)
    if preparation.saved is None and data.weights is not None:
        model.load_state_dict(data.weights.weights)
        _LOGGER.info("Starting from the weights of %s", data.weights.path)
    model.tf32 = settings.tf32
    _LOGGER.info("Kernels: %s", choose_kernels(model, settings.kernels))
    log_model(model, settings)
    if preparation.saved is None and data.foundation is not None:
        log_foundation(settings, data.foundation, model)
    moved = choose_moved(model, settings)
    is_known = data.foundation is not None or data.weights is not None or preparation.saved is not None
    log_moved(moved, settings, starts_anew=not is_known)
    return moved


def train_model(run: RunContext, preparation: Preparation, moved: MovedParameters) -> Trainer:
    """Train to the end; if training diverges, write the best models so far before giving up."""
    with open_trainer(run, preparation, moved) as trainer:
        _LOGGER.info("===========TRAINING===========")
        _LOGGER.info("Started training, reporting errors on validation set")
        run.progress.start(total_epochs(run.settings), trainer.batch_plan.steps_per_epoch, trainer.progression.epoch)
        try:
            with run.interruption.patient():
                for report in trainer.train():
                    show_epoch(run, trainer, report)
        except Diverged as error:
            if run.team.is_first and trainer.progression.best_epochs:
                _LOGGER.error("%s", error)
                with run.team.writing():
                    write_models(run, preparation, trainer)
            run.team.together()
            raise
        run.progress.finish()
        run.interruption.advice = "training is complete; the same command with --restart_latest finishes the report"
        if run.team.any(run.interruption.requested):
            raise run.interruption.error(run.interruption.advice)
        waiting = max(run.team.gather(trainer.waiting.share))
        _LOGGER.info("Share of the time spent waiting for data: %.1f %%", 100.0 * waiting)
        if trainer.captured is not None:
            _LOGGER.info("Steps: %s", trainer.captured[0].counts)
            _LOGGER.info("Batches of evaluations: %s", trainer.captured[1].counts)
            trainer.capture_with(None)  # what comes needs the memory
        if kept := trainer.state.model.programs.n_bytes:
            _LOGGER.info("Memory for the arrays of compiled kernels: %.0f MB", kept / 1e6)
        _LOGGER.info("Training complete")
    return trainer


def write_results(run: RunContext, preparation: Preparation, trainer: Trainer) -> None:
    """Write the models of all stages; then evaluate them, draw plots and finish the report page."""
    _LOGGER.info("===========RESULTS===========")
    settings = run.settings
    if settings.save_cpu:
        _LOGGER.info("--save_cpu changes nothing: model files always hold tensors that any device can load")
    best = write_models(run, preparation, trainer)
    measure_models(run, preparation, trainer, best)
    if settings.plot:
        plot_curves(settings, run.folders, trainer)
    run.report.ended("finished")
    _LOGGER.info("Done")
