"""What a run shows after each epoch and writes at its end: model files, final errors and plots."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mace.console.optional_outputs import OptionalOutput
from mace.errors import UserError
from mace.files.durable import free_name
from mace.model.model_file import ModelMetadata, save_model
from mace.pages.plots import plot_learning_curves
from mace.planning.model_choices import reported_table
from mace.preparation.preparation import Preparation
from mace.reporting.records import results_path
from mace.reporting.tables import epoch_line
from mace.runs.context import RunContext
from mace.runs.final_report import write_final_report
from mace.runs.folders import RunFolders, model_files
from mace.runs.resuming import seed_of_model
from mace.settings import TrainingSettings
from mace.training.loop import EpochReport, Trainer
from mace.training.saving import insist

_LOGGER = logging.getLogger(__name__)


def show_epoch(run: RunContext, trainer: Trainer, report: EpochReport) -> None:
    """Log the results of an epoch, refresh the page, and draw learning curves every ``--plot_frequency`` epochs.

    Args:
        run: The context of the run.
        trainer: The trainer.
        report: The results of the epoch.
    """
    settings = run.settings
    every = settings.plot_frequency
    if report.valid_loss is not None:
        table = reported_table(settings)
        for head, found in report.evaluations.items():
            _LOGGER.info(epoch_line(report.epoch, head, found.loss, found.metrics, table))
        if len(report.evaluations) > 1:
            stage, start = trainer.progression.stage, "Initial" if report.epoch is None else f"Epoch {report.epoch}"
            lowest = report.epoch is not None and trainer.progression.best_epochs.get(stage) == report.epoch
            said = ", the lowest so far" if lowest else ""
            _LOGGER.info("%s: --select_by=%s: loss=%.8f%s", start, settings.select_by, report.valid_loss, said)
        run.report.refresh(report)
    if run.team.is_first and settings.plot and every > 0 and report.epoch and report.epoch % every == 0:
        plot_curves(settings, run.folders, trainer)


def plot_curves(settings: TrainingSettings, folders: RunFolders, trainer: Trainer) -> None:
    """Draw the learning curves."""
    start = trainer.progression.stage_two_start
    path = folders.results / f"{folders.tag}_learning_curves.png"
    with OptionalOutput(path):
        plot_learning_curves(
            results_path(folders.results, settings.name, settings.seed),
            path,
            stage_two_epoch=start if start is not None and start < settings.max_num_epochs else None,
        )


def measure_models(
    run: RunContext, preparation: Preparation, trainer: Trainer, best: Sequence[tuple[str, int | None]]
) -> None:
    """Evaluate the models that were written, report their errors, and add these to the model files.

    Args:
        run: The context of the run.
        preparation: The data and plan that training started from.
        trainer: The trainer, after training.
        best: Stages and epochs as returned by `write_models`.
    """
    for stage, epoch in best:
        _load_best(trainer, stage)
        _LOGGER.info("Loaded Stage %s model from epoch %s for evaluation", stage, epoch)
        with OptionalOutput(f"Errors of the model of Stage {stage}"):
            model, loss = trainer.state.model, trainer.state.loss_of(stage)
            errors, predicted = write_final_report(run, preparation, model, loss, stage)
            # write the file again, now with the errors; if this fails, the file without them is still valid
            _write_model(run, preparation, trainer, stage, epoch, errors)
            run.report.measured(stage, epoch, errors, predicted)


def write_models(run: RunContext, preparation: Preparation, trainer: Trainer) -> list[tuple[str, int | None]]:
    """Write the best model of each stage.

    Returns:
        Each stage with the epoch of its model; the epoch is None for an initial model, if zero epochs were requested.

    Raises:
        UserError: If there is no model to write.
    """
    settings, progression = run.settings, trainer.progression
    best: list[tuple[str, int | None]] = [*sorted(progression.best_epochs.items())]
    if not best and settings.max_num_epochs == 0:
        best = [("one", None)]
    if not best:
        raise UserError(
            f"{settings.name}: no epoch had a validation loss that is a number, so there is no model to write; lower "
            "--lr, and check the labels."
        )
    for stage, lost in progression.lost.items():
        _LOGGER.warning(
            "There is no model of Stage %s: the weights of its best epoch %d could not be read when the run was "
            "resumed",
            stage.capitalize(),
            lost,
        )
    if progression.stage_two and "two" not in progression.best_epochs.keys() | progression.lost.keys():
        _LOGGER.warning(
            "No epoch of Stage Two had a validation loss that is a number, so there is no model of it; lower --swa_lr"
        )
    for stage, epoch in best:
        _load_best(trainer, stage)
        _LOGGER.info("Saved model to %s", _write_model(run, preparation, trainer, stage, epoch, {}))
    return best


def _write_model(
    run: RunContext,
    preparation: Preparation,
    trainer: Trainer,
    stage: str,
    epoch: int | None,
    metrics: Mapping[str, Mapping[str, float]],
) -> Path:
    """Write the current model, both under the run's name and under its name with the seed."""
    if not run.ownership.look():
        trainer.save()  # raises an error, as another process owns the files
    settings = run.settings
    looked_through = partial(run.progress.track, description="Looking for the shortest distances")
    metadata = ModelMetadata(
        name=settings.name,
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        data_hash=preparation.digest,
        epoch=epoch,
        stage=stage,
        metrics={name: dict(values) for name, values in metrics.items()},
        shortest_distances=preparation.train.shortest_distances(looked_through),
    )
    shared, own = model_files(settings, run.folders, stage)
    # first under a name unique to this run: a run with another seed may be writing the shared file
    beside = shared.with_name(f".{own.name}.new")
    for path in (own, beside):
        insist(partial(save_model, path, trainer.state.model, metadata), str(path))
    try:
        _keep_other_model(shared, run)
        os.replace(beside, shared)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{shared}: the model cannot be written there ({reason}); it is in {own}.") from error
    return shared


def _keep_other_model(path: Path, run: RunContext) -> None:
    """Move away the model of a run with the same name and another seed before it is replaced."""
    seed = seed_of_model(path)
    if seed in (None, run.settings.seed):
        return
    folders = run.folders
    copy = folders.checkpoints / path.name.replace(run.settings.name, f"{run.settings.name}_run-{seed}", 1)
    try:
        same = copy.exists() and copy.read_bytes() == path.read_bytes()
        if not same:
            target = free_name(folders.model, f"{path.stem}_run-{seed}_earlier-", ".model")
            os.replace(path, target)
    except FileNotFoundError:  # the other run is doing the same at this moment
        return
    if same:
        _LOGGER.warning("%s held the model of seed %d, which is in %s too; it is replaced", path, seed, copy)
        return
    _LOGGER.warning("%s held the model of seed %d, which was moved to %s", path, seed, target)


def _load_best(trainer: Trainer, stage: str) -> None:
    """Load the weights with the lowest validation loss of a stage; if no epoch was trained, keep the current ones."""
    if trainer.progression.best_epochs:
        trainer.state.model.load_state_dict(trainer.state.best[stage])
