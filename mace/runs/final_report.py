"""What is measured of a finished model: error tables of all sets and parity plots."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mace.graphs.dataset import Dataset
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.reporting.predictions import PredictedSet, per_atom_values
from mace.settings import TrainingSettings
from mace.training.evaluation import Evaluation, evaluate
from mace.runs.folders import RunFolders
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit
from mace.console.optional_outputs import OptionalOutput
from mace.pages.plots import plot_parity
from mace.preparation.preparation import Preparation
from mace.console.progress import TrainingProgress
from mace.properties import PROPERTIES
from mace.reporting.tables import error_table, tables_of

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinalErrors:
    """What was measured of a model.

    Attributes:
        metrics: Errors by the name of the set.
        predicted: All sets with their predictions, in the order in which they are shown.
    """

    metrics: dict[str, dict[str, float]]
    predicted: list[PredictedSet]


def write_final_report(
    model: MACE,
    loss: Loss,
    preparation: Preparation,
    settings: TrainingSettings,
    folders: RunFolders,
    stage: str,
    table: str,
    progress: TrainingProgress,
) -> FinalErrors:
    """Evaluate all sets, log the tables, draw the parity plots.

    Args:
        model: The finished model.
        loss: Its loss.
        preparation: Data of the run.
        settings: The settings.
        folders: Where plots go.
        stage: Name of the stage in file names.
        table: Kind of the table.
        progress: What to show.

    Returns:
        What was measured.
    """
    sets = {"train_Default": preparation.train, "valid_Default": preparation.valid, **preparation.tests}
    results = {name: _evaluate(model, dataset, loss, settings, name, progress) for name, dataset in sets.items()}
    learned = {name: result.metrics for name, result in results.items() if name in ("train_Default", "valid_Default")}
    tested = {name: result.metrics for name, result in results.items() if name not in learned}
    # these two come last, as in mace-torch: programs that read logs take the last table there is
    _tell_types(results, table, model.plan)
    _LOGGER.info("Error-table on TRAIN and VALID:\n%s", error_table(table, learned))
    if tested:
        _LOGGER.info("Error-table on TEST:\n%s", error_table(table, tested))
    predicted = [_predicted(name, sets[name], result) for name, result in results.items()]
    if settings.plot:
        _plot(predicted, model.plan, settings, folders, stage)
    return FinalErrors({name: result.metrics for name, result in results.items()}, predicted)


def _predicted(name: str, dataset: Dataset, result: Evaluation) -> PredictedSet:
    role = {"train_Default": "train", "valid_Default": "valid"}.get(name, "test")
    return PredictedSet(name.removesuffix("_Default"), role, dataset, result.compared)


def _evaluate(
    model: MACE, dataset: Dataset, loss: Loss, settings: TrainingSettings, name: str, progress: TrainingProgress
) -> Evaluation:
    def tracked(batches: Iterable[int], total: int) -> Iterable[int]:
        return progress.track(batches, f"Evaluating {name}", total)

    return evaluate(
        model,
        dataset,
        loss,
        settings.valid_batch_size,
        stress=loss.needs_stress or settings.compute_stress,
        forces=settings.compute_forces,
        keep_details=True,
        progress=tracked,
        limit=EdgeLimit(settings.max_edges_per_batch, f"evaluating {name}"),
    )


def _tell_types(results: dict[str, Evaluation], table: str, plan: ModelPlan) -> None:
    """Log RMSE and MAE of every set, divided by config_type."""
    rows = {}
    for name, result in results.items():
        name = name.removesuffix("_Default") if name in ("train_Default", "valid_Default") else name
        for kind, metrics in result.by_type.items():
            # the sets of a test file are its types already
            rows[f"test/{kind}" if name.startswith(f"{kind}_") else f"{name}/{kind}"] = metrics
    for measure in ("RMSE", "MAE"):
        for kind in tables_of(plan.outputs, measure, stress="stressvirials" in table):
            _LOGGER.info("%s by config_type:\n%s", measure, error_table(kind, rows))


def _plot(
    predicted: list[PredictedSet], plan: ModelPlan, settings: TrainingSettings, folders: RunFolders, stage: str
) -> None:
    """Draw predictions against labels, energies with or without those of the isolated atoms."""
    energies = dict(zip(plan.atomic_numbers, plan.reference_energies, strict="energy" in plan.outputs))
    joined: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for one in predicted:
        group = joined.setdefault(one.role, {})
        for name in one.compared:
            if name == "energy" and settings.plot_interaction_e:
                group.setdefault("interaction_energy", []).append(_pair(name, one, energies))
            elif name == "energy":
                group.setdefault(name, []).append(_pair(name, one, dict.fromkeys(energies, 0.0)))
            elif not PROPERTIES[name].derived:
                compared = one.compared[name]
                group.setdefault(name, []).append((compared.reference, compared.prediction))
    data = {role: {name: _join(parts) for name, parts in group.items()} for role, group in joined.items() if group}
    path = folders.results / f"{folders.tag}_parity_{stage}.png"
    with OptionalOutput(path):
        plot_parity(data, path, title=f"{folders.tag}, {stage.replace('_', ' ')}")
        _LOGGER.info("Saved plot to %s", path)


def _pair(name: str, one: PredictedSet, energies: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    reference, error = per_atom_values(name, one, energies)
    return reference, reference + error


def _join(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
