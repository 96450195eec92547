"""A whole training run: prepare, train, write the model, measure it."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import mace
from mace.errors import UserError
from mace.inspection.findings import check_allowed
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.model_file import ModelMetadata, save_model
from mace.model.plan import ModelPlan
from mace.settings import TrainingSettings, provided
from mace.training.checkpoints import CheckpointFolder, differing_fields, load_safely
from mace.training.devices import PRECISIONS, choose_device, keep_freed_memory, set_threads
from mace.training.dry_run import describe_plan
from mace.training.final_report import write_final_report
from mace.training.folders import RunFolders, make_folders
from mace.training.logging_setup import close_logging, epoch_line, log_path, setup_logging
from mace.training.loop import EpochReport, Trainer, has_stage_two, stage_two_start
from mace.training.loss import FITTED, Loss, make_loss
from mace.training.model_choices import settings_for_model
from mace.training.optimization import require_optimizer
from mace.training.planning import hidden_features, readout_widths
from mace.training.plots import plot_learning_curves
from mace.training.preparation import Preparation, prepare
from mace.training.progress import TrainingProgress
from mace.training.records import RecordWriter, results_path

_LOGGER = logging.getLogger(__name__)

FIXED_SETTINGS = ("E0s", "scaling", "mean", "std", "compute_avg_num_neighbors", "avg_num_neighbors")
"""Settings that became constants of the model when a run was started, and cannot change when it is resumed."""


def run_training(settings: TrainingSettings, console: Console | None = None) -> None:
    """Do what ``mace_run_train`` does.

    Args:
        settings: The settings.
        console: Where to show; standard output if None.

    Raises:
        UserError: If settings or data do not allow it.
    """
    console = console or Console()
    keep_freed_memory()
    settings, notes = settings_for_model(settings)
    losses = make_losses(settings)
    require_optimizer(settings)
    check_allowed(settings.allow)
    # words for the model that make no sense are refused before anything is read
    hidden_features(settings)
    readout_widths(settings)
    device = choose_device(settings.device, settings.default_dtype)
    folders = make_folders(settings)
    setup_logging(settings.log_level, log_path(folders.log, settings.name, settings.seed), console)
    try:
        _tell_environment(settings, device)
        for note in notes:
            _LOGGER.info("%s", note)
        with TrainingProgress(console, settings.progress, error_table=reported_table(settings)) as progress:
            _run(settings, losses, device, folders, console, progress)
    except UserError as error:
        logging.getLogger("mace").debug("stopped: %s", error)
        raise
    finally:
        close_logging()


def make_losses(settings: TrainingSettings) -> tuple[Loss, Loss | None]:
    """Build the loss of stage one and, with ``--swa`` or ``--start_swa``, of stage two, which is of the same kind.

    Raises:
        UserError: If nothing is left to minimize, or forces are needed but not computed.
    """
    weights: dict[str, float] = {p: getattr(settings, f"{p}_weight") for p in FITTED}
    if settings.loss == "ef":
        # the original's word for equal weights; weights that are typed count
        typed = provided(settings)
        weights |= {p: 1.0 for p in ("energy", "forces") if f"{p}_weight" not in typed}
    one = make_loss(settings.loss, weights, settings.huber_delta)
    two = None
    if has_stage_two(settings):
        second = {p: getattr(settings, f"swa_{p}_weight") for p in weights}
        two = make_loss(settings.loss, second, settings.huber_delta)
    for loss in (one, two):
        if loss is not None and not loss.terms:
            raise UserError(f"--loss={settings.loss}: all its weights are zero; give one of them a positive weight.")
        if loss is not None and loss.needs_forces and not settings.compute_forces:
            raise UserError("--compute_forces=False needs --forces_weight=0 and, with --swa, --swa_forces_weight=0.")
    return one, two


def reported_table(settings: TrainingSettings) -> str:
    """Return the error table to show: a loss with stress or virials adds their errors, as in the original."""
    table = settings.error_table
    if settings.loss in ("stress", "virials", "huber", "universal") and "stressvirials" not in table:
        return "PerAtomRMSEstressvirials" if "RMSE" in table else "PerAtomMAEstressvirials"
    return table


def _tell_environment(settings: TrainingSettings, device: torch.device) -> None:
    """Log versions, machine and settings."""
    threads = set_threads(settings.num_threads)
    _LOGGER.info("===========VERIFYING SETTINGS===========")
    _LOGGER.info("MACE version: %s", mace.__version__)
    _LOGGER.info(
        "Python %s, torch %s, ase %s, %s", platform.python_version(), version("torch"), version("ase"), sys.platform
    )
    _LOGGER.info("Using %s, %s, %d threads", device, settings.default_dtype, threads)
    _LOGGER.info("Settings: %s", {name: getattr(settings, name) for name in sorted(provided(settings))})


def _run(
    settings: TrainingSettings,
    losses: tuple[Loss, Loss | None],
    device: torch.device,
    folders: RunFolders,
    console: Console,
    progress: TrainingProgress,
) -> None:
    _LOGGER.info("===========LOADING INPUT DATA===========")
    preparation = prepare(settings, [loss for loss in losses if loss is not None], folders, progress)
    checkpoints = CheckpointFolder(
        folders.checkpoints, folders.tag, settings.keep_checkpoints or settings.save_all_checkpoints
    )
    saved = _find_state(settings, checkpoints, preparation.plan, device)
    plan = preparation.plan if saved is None else ModelPlan.model_validate_json(saved["plan"])
    model = build_model(plan, settings, device)
    _LOGGER.info("Kernels: %s", choose_kernels(model, settings.kernels))
    _tell_model(model, settings)
    if settings.dry_run:
        console.print(describe_plan(model, preparation, losses, settings), highlight=False)
        return
    results = results_path(folders.results, settings.name, settings.seed)
    if saved is None:
        _set_earlier_run_aside(checkpoints, results)
    with RecordWriter(results) as records:
        trainer = Trainer(model, losses, settings, preparation.train, preparation.valid, checkpoints, records, progress)
        if saved is not None:
            _resume(trainer, saved, settings, checkpoints.last)
        _tell_optimizer(trainer, settings, losses)
        _train(trainer, settings, folders, progress)
    _finish(trainer, preparation, settings, folders, progress)


def build_model(plan: ModelPlan, settings: TrainingSettings, device: torch.device) -> MACE:
    """Build a model with weights drawn from the seed."""
    model = MACE(plan).to_precision(PRECISIONS[settings.default_dtype])
    return model.initialize(torch.Generator().manual_seed(settings.seed)).to(device)


def _find_state(
    settings: TrainingSettings, checkpoints: CheckpointFolder, plan: ModelPlan, device: torch.device
) -> dict[str, Any] | None:
    """Read the state to go on from, if that is asked for and there is one."""
    if not settings.restart_latest:
        return None
    if not checkpoints.last.exists():
        _LOGGER.info("--restart_latest: there is no %s yet; starting from the beginning", checkpoints.last)
        return None
    saved = load_safely(checkpoints.last, device)
    started_with = ModelPlan.model_validate_json(saved["plan"])
    if fields := differing_fields(started_with, plan) + _fixed_changes(saved, settings):
        raise UserError(
            f"{checkpoints.last}: the run was started with another model ({'; '.join(fields)}); set these back to go "
            "on with it, or choose another --name to start afresh."
        )
    if started_with != plan:
        _LOGGER.warning(
            "The data now give other reference energies, scale or number of neighbors; the model keeps those it was "
            "started with"
        )
    return saved


def _fixed_changes(saved: dict[str, Any], settings: TrainingSettings) -> list[str]:
    """Describe what cannot change in a resumed run, besides the shape of the model."""
    before = TrainingSettings.model_validate_json(saved["settings"])
    names = list(FIXED_SETTINGS)
    if "schedulefree" in (before.optimizer, settings.optimizer):
        names.append("optimizer")  # its state means something else than that of the others
    return [
        f"{name} {getattr(before, name)} -> {getattr(settings, name)}"
        for name in names
        if getattr(before, name) != getattr(settings, name)
    ]


def _resume(trainer: Trainer, saved: dict[str, Any], settings: TrainingSettings, path: Path) -> None:
    """Restore the state and say what is different now."""
    before = TrainingSettings.model_validate_json(saved["settings"])
    changes = [
        f"{name} {getattr(before, name)} -> {getattr(settings, name)}"
        for name in TrainingSettings.model_fields
        if getattr(before, name) != getattr(settings, name) and name not in ("restart_latest", "config")
    ]
    trainer.restore(saved)
    _LOGGER.info("Restarting from %s at epoch %d", path, trainer.progression.epoch)
    if changes:
        _LOGGER.info("continuing with: %s", ", ".join(changes))


def _set_earlier_run_aside(checkpoints: CheckpointFolder, results: Any) -> None:
    """Move checkpoints and results of an earlier run of the same name away, so that they never mix with this one."""
    target = checkpoints.set_aside()
    if target is not None:
        _LOGGER.warning("An earlier run had the same name and seed; its checkpoints were moved to %s", target)
    if results.exists():
        number = 1
        while (moved := results.with_name(f"{results.stem}_earlier-{number}{results.suffix}")).exists():
            number += 1
        results.rename(moved)
        _LOGGER.warning("The results of the earlier run were moved to %s", moved)


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
    if not plan.interactions[0].residual and "Residual" in settings.interaction_first:
        why = "so that an isolated atom has exactly its E0" if plan.predicts_energy else "as in all models but one"
        _LOGGER.info("--model=%s: the first interaction has no residual, %s", plan.model, why)


def _tell_optimizer(trainer: Trainer, settings: TrainingSettings, losses: tuple[Loss, Loss | None]) -> None:
    """Log the optimizer and the losses."""
    _LOGGER.info("===========OPTIMIZER INFORMATION===========")
    _LOGGER.info("Using %s as parameter optimizer, amsgrad: %s", settings.optimizer.upper(), settings.amsgrad)
    _LOGGER.info("Batch size: %d", settings.batch_size)
    if settings.ema:
        _LOGGER.info("Using Exponential Moving Average with decay: %s", settings.ema_decay)
    _LOGGER.info("Number of gradient updates: %d", trainer.batches_per_epoch * settings.max_num_epochs)
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


def _train(trainer: Trainer, settings: TrainingSettings, folders: RunFolders, progress: TrainingProgress) -> None:
    """Run the loop and tell about every epoch."""
    _LOGGER.info("===========TRAINING===========")
    _LOGGER.info("Started training, reporting errors on validation set")
    progress.start(settings.max_num_epochs, trainer.batches_per_epoch, trainer.progression.epoch)
    for report in trainer.train():
        if report.valid_loss is not None:
            table = reported_table(settings)
            _LOGGER.info(epoch_line(report.epoch, "Default", report.valid_loss, report.metrics, table))
        if settings.plot and _plot_is_due(report, settings):
            _plot_curves(settings, folders, trainer)
    progress.finish()
    _LOGGER.info("Training complete")


def _plot_is_due(report: EpochReport, settings: TrainingSettings) -> bool:
    every = settings.plot_frequency
    return every > 0 and report.epoch is not None and report.epoch > 0 and report.epoch % every == 0


def _plot_curves(settings: TrainingSettings, folders: RunFolders, trainer: Trainer) -> None:
    start = trainer.progression.stage_two_start
    plot_learning_curves(
        results_path(folders.results, settings.name, settings.seed),
        folders.results / f"{folders.tag}_learning_curves.png",
        stage_two_epoch=start if start is not None and start < settings.max_num_epochs else None,
    )


def _finish(
    trainer: Trainer,
    preparation: Preparation,
    settings: TrainingSettings,
    folders: RunFolders,
    progress: TrainingProgress,
) -> None:
    """Write the models of all stages first; then measure them and draw."""
    _LOGGER.info("===========RESULTS===========")
    if settings.save_cpu:
        _LOGGER.info("--save_cpu changes nothing: model files always hold tensors that any device can load")
    best = sorted(trainer.progression.best_epochs.items())
    if not best:
        raise UserError(
            f"{settings.name}: no epoch had a validation loss that is a number, so there is no model to write; lower "
            "--lr, and check the labels."
        )
    if trainer.progression.stage_two and "two" not in trainer.progression.best_epochs:
        _LOGGER.warning(
            "No epoch of Stage Two had a validation loss that is a number, so there is no model of it; lower --swa_lr"
        )
    for stage, epoch in best:
        _load_best(trainer, folders, stage, epoch)
        path = save_model(
            _model_path(settings, folders, stage), trainer.model, _metadata(settings, preparation, epoch, stage, {})
        )
        _LOGGER.info("Saved model to %s", path)
    for stage, epoch in best:
        _load_best(trainer, folders, stage, epoch)
        _LOGGER.info("Loaded Stage %s model from epoch %d for evaluation", stage, epoch)
        metrics = write_final_report(
            trainer.model,
            trainer.loss_of(stage),
            preparation,
            settings,
            folders,
            f"stage_{stage}",
            reported_table(settings),
            progress,
        )
        path = _model_path(settings, folders, stage)
        save_model(path, trainer.model, _metadata(settings, preparation, epoch, stage, metrics))
    if settings.plot:
        _plot_curves(settings, folders, trainer)
    _LOGGER.info("Done")


def _load_best(trainer: Trainer, folders: RunFolders, stage: str, epoch: int) -> None:
    """Give the model the weights with the lowest validation loss of a stage."""
    suffix = "_swa" if stage == "two" else ""
    content = load_safely(folders.checkpoints / f"{folders.tag}_epoch-{epoch}{suffix}.pt")
    trainer.model.load_state_dict(content["weights"])


def _model_path(settings: TrainingSettings, folders: RunFolders, stage: str) -> Path:
    return folders.model / f"{settings.name}{'_stagetwo' if stage == 'two' else ''}.model"


def _metadata(
    settings: TrainingSettings,
    preparation: Preparation,
    epoch: int,
    stage: str,
    metrics: Mapping[str, Mapping[str, float]],
) -> ModelMetadata:
    return ModelMetadata(
        name=settings.name,
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        data_hash=preparation.digest,
        epoch=epoch,
        stage=stage,
        metrics={name: dict(values) for name, values in metrics.items()},
    )
