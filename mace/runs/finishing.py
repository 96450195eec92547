"""The end of a training run: model files, final errors, plots."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mace.console.optional_outputs import OptionalOutput
from mace.elements import ElementTable
from mace.errors import UserError
from mace.files.durable import free_name
from mace.graphs.distances import shortest_distances
from mace.model.model_file import ModelMetadata, save_model
from mace.pages.plots import plot_learning_curves
from mace.preparation.preparation import Preparation
from mace.reporting.records import results_path
from mace.runs.final_report import write_final_report
from mace.runs.folders import RunFolders, model_files
from mace.runs.resuming import seed_of_model
from mace.runs.run_report import RunReport
from mace.runs.session import Session
from mace.settings import TrainingSettings
from mace.training.loop import EpochReport, Trainer
from mace.training.saving import insist

_LOGGER = logging.getLogger(__name__)


def reported_table(settings: TrainingSettings) -> str:
    """Return the error table to show: a loss with stress or virials adds their errors, as in the original."""
    table = settings.error_table
    if settings.loss in ("stress", "virials", "huber", "universal") and "stressvirials" not in table:
        return "PerAtomRMSEstressvirials" if "RMSE" in table else "PerAtomMAEstressvirials"
    return table


def plot_is_due(report: EpochReport, settings: TrainingSettings) -> bool:
    """Whether ``--plot_frequency`` asks for a plot after this epoch."""
    every = settings.plot_frequency
    return every > 0 and report.epoch is not None and report.epoch > 0 and report.epoch % every == 0


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


def finish(trainer: Trainer, preparation: Preparation, session: Session, report: RunReport) -> None:
    """Write the models of all stages first; then measure them, draw, and write the page of the run."""
    settings, folders = session.settings, session.folders
    _LOGGER.info("===========RESULTS===========")
    if settings.save_cpu:
        _LOGGER.info("--save_cpu changes nothing: model files always hold tensors that any device can load")
    best = write_models(trainer, preparation, session)
    for stage, epoch in best:
        _load_best(trainer, stage)
        _LOGGER.info("Loaded Stage %s model from epoch %s for evaluation", stage, epoch)
        with OptionalOutput(f"Errors of the model of Stage {stage}"):
            errors = write_final_report(
                trainer.state.model,
                trainer.loss_of(stage),
                preparation,
                settings,
                folders,
                f"stage_{stage}",
                reported_table(settings),
                session.progress,
            )
            # with its errors in it; the one without them is good, should this fail
            _write_model(trainer, preparation, session, stage, epoch, errors.metrics)
            report.measured(stage, epoch, errors)
    if settings.plot:
        plot_curves(settings, folders, trainer)
    report.ended("finished")
    _LOGGER.info("Done")


def write_models(trainer: Trainer, preparation: Preparation, session: Session) -> list[tuple[str, int | None]]:
    """Write the best model of each stage.

    Returns:
        Each stage and the epoch its model is from; None for a model as it starts, if no epoch was asked for.

    Raises:
        UserError: If there is none.
    """
    settings, progression = session.settings, trainer.progression
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
        _LOGGER.info("Saved model to %s", _write_model(trainer, preparation, session, stage, epoch, {}))
    return best


def _write_model(
    trainer: Trainer,
    preparation: Preparation,
    session: Session,
    stage: str,
    epoch: int | None,
    metrics: Mapping[str, Mapping[str, float]],
) -> Path:
    if not session.ownership.look():
        trainer.save()  # which gives way
    metadata = _metadata(session.settings, preparation, epoch, stage, metrics)
    shared, own = model_files(session.settings, session.folders, stage)
    # under a name of this run's own first: a run of another seed may be writing the shared one
    beside = shared.with_name(f".{own.name}.new")
    for path in (own, beside):
        insist(partial(save_model, path, trainer.state.model, metadata), str(path))
    try:
        _keep_other_model(shared, session)
        os.replace(beside, shared)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{shared}: the model cannot be written there ({reason}); it is in {own}.") from error
    return shared


def _keep_other_model(path: Path, session: Session) -> None:
    """Move the model of a run with the same name and another seed away before it is replaced."""
    seed = seed_of_model(path)
    if seed in (None, session.settings.seed):
        return
    folders = session.folders
    copy = folders.checkpoints / path.name.replace(session.settings.name, f"{session.settings.name}_run-{seed}", 1)
    try:
        same = copy.exists() and copy.read_bytes() == path.read_bytes()
        if not same:
            target = free_name(folders.model, f"{path.stem}_run-{seed}_earlier-", ".model")
            os.replace(path, target)
    except FileNotFoundError:  # that run is doing the same at this moment
        return
    if same:
        _LOGGER.warning("%s held the model of seed %d, which is in %s too; it is replaced", path, seed, copy)
        return
    _LOGGER.warning("%s held the model of seed %d, which was moved to %s", path, seed, target)


def _load_best(trainer: Trainer, stage: str) -> None:
    """Give the model the weights with the lowest validation loss of a stage; it has them where no epoch was trained."""
    if trainer.progression.best_epochs:
        trainer.state.model.load_state_dict(trainer.state.best[stage])


def _metadata(
    settings: TrainingSettings,
    preparation: Preparation,
    epoch: int | None,
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
        shortest_distances=_shortest_distances(preparation),
    )


def _shortest_distances(preparation: Preparation) -> dict[str, float]:
    """Find how close the atoms of the training structures come."""
    elements = ElementTable(preparation.plan.atomic_numbers)
    graphs = (batch.graph for batch in preparation.train.batches(64))
    return shortest_distances(graphs, elements, preparation.plan.r_max)
