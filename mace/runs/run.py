"""A whole training run: prepare, train, write the model, measure it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mace import __version__
from mace.console.interruption import Interruption
from mace.console.logs import close_logging, log_path, setup_logging, setup_logging_of_others
from mace.console.progress import TrainingProgress
from mace.console.terminal import PlainConsole
from mace.errors import RunInterrupted, UserError
from mace.finetuning.foundation import Foundation, open_foundation, start_from, tell_foundation
from mace.inspection.findings import check_allowed
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.planning.model_choices import notes_on, settings_for_model
from mace.planning.model_plan import hidden_features, readout_widths, sent_features
from mace.planning.objectives import make_losses
from mace.preparation.preparation import Preparation, prepare
from mace.processes.devices import PRECISIONS, choose_device, keep_freed_memory
from mace.processes.launch import find_launch
from mace.processes.team import make_team, own_device
from mace.reporting.records import RecordWriter, results_path
from mace.reporting.tables import epoch_line, errors_in_words
from mace.reporting.trackers import make_trackers, require_trackers
from mace.runs.dry_run import describe_plan
from mace.runs.environment import tell_environment
from mace.runs.finishing import finish, plot_curves, plot_is_due, reported_table, write_models
from mace.runs.folders import make_folders, own_files
from mace.runs.resuming import StartingWeights, find_state, make_way, resume
from mace.runs.run_report import RunReport
from mace.runs.session import Session
from mace.settings import TrainingSettings
from mace.training.checkpoints import CheckpointFolder, file_digests
from mace.training.finiteness import Diverged
from mace.training.loop import Trainer
from mace.training.loss import Loss
from mace.training.optimization import require_optimizer
from mace.training.saving import StateKeeper
from mace.training.stages import stage_two_start
from mace.training.state import TrainingState

_LOGGER = logging.getLogger(__name__)


def run_training(settings: TrainingSettings, console: Console | None = None) -> None:
    """Do what ``mace_run_train`` does.

    Args:
        settings: The settings.
        console: Where to show; standard output if None.

    Raises:
        UserError: If settings or data do not allow it.
        RunInterrupted: If a signal asked for the end; the state is saved then.
    """
    keep_freed_memory()
    warnings = notes_on(settings)
    settings, notes = settings_for_model(settings)
    losses = make_losses(settings)
    require_optimizer(settings)
    require_trackers(settings)
    check_allowed(settings.allow)
    # words for the model that make no sense are refused before anything is read
    sent_features(settings, hidden_features(settings))
    readout_widths(settings)
    launch = find_launch(settings.distributed, settings.launcher, os.environ)
    device = choose_device(own_device(settings.device, launch), settings.default_dtype)
    with Interruption() as interruption, make_team(launch, device) as team:
        team.require_agreement("settings", settings_facts(settings))
        chosen = console or PlainConsole(quiet=not team.is_first)
        folders = make_folders(settings, create=team.is_first)
        mode = settings.progress if team.is_first and not settings.quiet else "off"
        progress = TrainingProgress(chosen, mode, errors_in_words=errors_in_words(reported_table(settings)))
        with own_files(folders, settings, launch, team.is_first) as ownership:
            session = Session(settings, losses, device, team, interruption, folders, ownership, progress)
            _with_log(session, notes, [*warnings, *ownership.notes], chosen)


def _with_log(session: Session, notes: Sequence[str], warnings: Sequence[str], console: Console) -> None:
    """Train; only the first process writes to terminal and log file."""
    settings, folders, team = session.settings, session.folders, session.team
    if team.is_first:
        setup_logging(settings.log_level, log_path(folders.log, settings.name, settings.seed), console, settings.quiet)
    else:
        setup_logging_of_others(team.rank)
    writes_page = team.is_first and settings.report and not settings.dry_run
    page = folders.results / f"{folders.tag}.html" if writes_page else None
    try:
        tell_environment(settings, session.device, team)
        for note in notes:
            _LOGGER.info("%s", note)
        for warning in warnings:
            _LOGGER.warning("%s", warning)
        with RunReport(page) as report, session.progress, session.team.explaining():
            _run(session, report, console)
    except (UserError, RunInterrupted) as error:
        logging.getLogger("mace").debug("stopped: %s", error)
        raise
    finally:
        close_logging()


def settings_facts(settings: TrainingSettings) -> dict[str, str]:
    """Return what must be the same in all processes of a run."""
    values = settings.model_dump(mode="json", exclude={"config"})
    return {"the version of mace": __version__} | {f"--{name}": json.dumps(value) for name, value in values.items()}


def model_inputs(settings: TrainingSettings) -> list[str]:
    """Return the files that a model begins with, besides the data."""
    named = (settings.foundation_model, settings.init_from, settings.E0s)
    return [name for name in named if isinstance(name, str) and os.path.isfile(name)]


def _run(session: Session, report: RunReport, console: Console) -> None:
    settings, folders, team = session.settings, session.folders, session.team
    _LOGGER.info("===========LOADING INPUT DATA===========")
    starting = StartingWeights(Path(settings.init_from)) if settings.init_from is not None else None
    foundation = open_foundation(settings, PRECISIONS[settings.default_dtype])
    preparation = prepare(
        settings, session.losses, folders.results / folders.tag, session.progress, team.is_first, foundation
    )
    session = replace(session, losses=preparation.losses)
    team.require_agreement("data", preparation.digests | file_digests(model_inputs(settings)))
    _LOGGER.info("Hash of the training and validation files: %s", preparation.digest)
    checkpoints = CheckpointFolder(
        folders.checkpoints, folders.tag, settings.keep_checkpoints or settings.save_all_checkpoints
    )
    plan = preparation.plan
    # the first process alone reads, so that all go on from the same state
    saved = team.broadcast(find_state(settings, checkpoints, plan, torch.device("cpu")) if team.is_first else None)
    if saved is not None:
        plan = ModelPlan.model_validate_json(saved["plan"])
    elif starting is not None:
        plan = starting.adapted(plan)
    model = build_model(plan, settings, session.device, foundation)
    if saved is None and starting is not None:
        model.load_state_dict(starting.weights)
        _LOGGER.info("Starting from the weights of %s", starting.path)
    _LOGGER.info("Kernels: %s", choose_kernels(model, settings.kernels))
    _tell_model(model, settings)
    if saved is None and foundation is not None:
        tell_foundation(settings, foundation, model)
    if settings.dry_run:
        if team.is_first:
            console.print(describe_plan(model, preparation, session.losses, settings), highlight=False)
        team.leave()
        return
    trainer = _train_all(session, report, model, preparation, checkpoints, saved)
    team.leave()
    if team.is_first:
        finish(trainer, preparation, session, report)


def _train_all(
    session: Session,
    report: RunReport,
    model: MACE,
    preparation: Preparation,
    checkpoints: CheckpointFolder,
    saved: dict[str, Any] | None,
) -> Trainer:
    """Train to the end, from the saved state if there is one."""
    settings, team, folders = session.settings, session.team, session.folders
    if team.is_first:
        make_way(settings, checkpoints, folders, saved)
    results = results_path(folders.results, settings.name, settings.seed) if team.is_first else None
    state = TrainingState(model, settings, two_stages=session.losses[1] is not None)
    with RecordWriter(results) as records:
        if saved is not None:
            resume(state, saved, preparation.digests, team.size)
            if saved["records"] is not None:
                records.go_back(saved["records"])
        run = (saved or {}).get("run") or team.broadcast(session.ownership.run)
        _LOGGER.info("Run %s", run)
        keeper = StateKeeper(
            checkpoints, records, model.plan, run, settings.checkpoint_minutes, team.is_first, session.ownership
        )
        for stage, epoch in state.progression.best_epochs.items():
            keeper.keep_weights(state.best[stage], epoch, stage, best=True)
        trainer = Trainer(
            state,
            session.losses,
            settings,
            preparation.train,
            preparation.valid,
            keeper,
            records,
            session.progress,
            team,
            session.interruption,
            {"data": preparation.digests, "processes": team.size},
        )
        _tell_optimizer(trainer, settings, session.losses)
        report.begin(session, preparation, trainer)
        with make_trackers(settings, folders.results, folders.tag, run, team.is_first) as trackers:
            records.follow(trackers)
            _train_or_save(trainer, preparation, session, report)
    return trainer


def _train_or_save(trainer: Trainer, preparation: Preparation, session: Session, report: RunReport) -> None:
    """Train; if numbers give out, write the best model so far before giving up."""
    try:
        _train(trainer, session, report)
    except Diverged as error:
        # what was good before is not lost
        if session.team.is_first and trainer.progression.best_epochs:
            _LOGGER.error("%s", error)
            write_models(trainer, preparation, session)
        raise


def build_model(
    plan: ModelPlan, settings: TrainingSettings, device: torch.device, foundation: Foundation | None = None
) -> MACE:
    """Build a model with weights drawn from the seed, or those of a foundation model."""
    model = MACE(plan).to_precision(PRECISIONS[settings.default_dtype])
    model.initialize(torch.Generator().manual_seed(settings.seed))
    if foundation is not None:
        start_from(foundation, model, settings.foundation_model_readout)
    return model.to(device)


def _tell_model(model: MACE, settings: TrainingSettings) -> None:
    """Log the model in words."""
    plan = model.plan
    _LOGGER.info("===========MODEL DETAILS===========")
    hidden = " + ".join(f"{plan.n_channels}x{degree}{'eo'[degree % 2]}" for degree in plan.hidden_l)
    _LOGGER.info("Message passing with %d channels and max_L=%d (%s)", plan.n_channels, plan.hidden_l[-1], hidden)
    _LOGGER.info(
        "%d layers, correlation orders %s (body orders %s), spherical harmonics up to: l=%d",
        plan.n_layers,
        list(plan.correlation),
        [order + 1 for order in plan.correlation],
        plan.l_max,
    )
    _LOGGER.info(
        "%d radial basis functions, cutoff polynomial of order %d", plan.num_radial_basis, plan.num_cutoff_basis
    )
    _LOGGER.info(
        "Radial cutoff: %s A (total receptive field for each atom: %s A)", plan.r_max, plan.r_max * plan.n_layers
    )
    _LOGGER.info("Distance transform for radial basis functions: %s", plan.distance_transform)
    _LOGGER.info("Number of parameters: %d", sum(p.numel() for p in model.parameters()))
    if settings.edge_irreps is not None:
        sent = [plan.channels_of_messages(layer) for layer in range(plan.n_layers)]
        degrees = ", ".join(map(str, plan.l_of_messages(plan.n_layers - 1)))
        _LOGGER.info("Neighbors send %s channels, layer by layer, of the degrees %s that atoms have", sent, degrees)
    if any(kind.is_directed for kind in plan.interactions) and not plan.cutoff_after_network:
        _LOGGER.warning(
            "Radial weights that depend on atoms are not zero where the radial functions are: energies jump when an "
            "atom crosses r_max, as in mace-torch; --apply_cutoff=False makes them smooth"
        )
    if not plan.interactions[0].residual and "Residual" in settings.interaction_first:
        why = "so that an isolated atom has exactly its E0" if "energy" in plan.outputs else "as in all models but one"
        _LOGGER.info("--model=%s: the first interaction has no residual, %s", plan.model, why)


def _tell_optimizer(trainer: Trainer, settings: TrainingSettings, losses: tuple[Loss, Loss | None]) -> None:
    """Log the optimizer and the losses."""
    _LOGGER.info("===========OPTIMIZER INFORMATION===========")
    _LOGGER.info("Using %s as parameter optimizer, amsgrad: %s", settings.optimizer.upper(), settings.amsgrad)
    _LOGGER.info("Batch size: %d", settings.batch_size)
    if settings.ema:
        _LOGGER.info("Using Exponential Moving Average with decay: %s", settings.ema_decay)
    _LOGGER.info("Number of gradient updates: %d", trainer.batch_plan.steps_per_epoch * settings.max_num_epochs)
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
    if settings.clip_grad is not None:
        _LOGGER.info("Using gradient clipping with tolerance=%.3f", settings.clip_grad)


def _train(trainer: Trainer, session: Session, page: RunReport) -> None:
    """Run the loop and tell about every epoch."""
    settings, progress = session.settings, session.progress
    _LOGGER.info("===========TRAINING===========")
    _LOGGER.info("Started training, reporting errors on validation set")
    progress.start(settings.max_num_epochs, trainer.batch_plan.steps_per_epoch, trainer.progression.epoch)
    with session.interruption.patient():
        for report in trainer.train():
            if report.valid_loss is not None:
                table = reported_table(settings)
                for head, found in report.evaluations.items():
                    _LOGGER.info(epoch_line(report.epoch, head, found.loss, found.metrics, table))
                page.refresh(report)
            if settings.plot and plot_is_due(report, settings) and session.team.is_first:
                plot_curves(settings, session.folders, trainer)
    progress.finish()
    session.interruption.advice = "training is complete; the same command with --restart_latest finishes the report"
    if session.team.any(session.interruption.requested):
        raise session.interruption.error(session.interruption.advice)
    _LOGGER.info("Training complete")
