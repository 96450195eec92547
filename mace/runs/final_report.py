"""What is measured of a finished model: error tables of all sets and parity plots."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from mace.console.optional_outputs import OptionalOutput
from mace.console.progress import TrainingProgress
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.pages.plots import plot_parity
from mace.preparation.preparation import Preparation
from mace.properties import PROPERTIES
from mace.reporting.predictions import PredictedSet, per_atom_values
from mace.reporting.set_names import shown_name
from mace.reporting.tables import error_table, tables_of
from mace.runs.folders import RunFolders
from mace.settings import TrainingSettings
from mace.training.evaluation import Evaluation, evaluate
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit

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
    results: dict[str, Evaluation] = {}
    predicted: list[PredictedSet] = []
    errors: dict[str, dict[str, dict[str, float]]] = {"train": {}, "valid": {}, "test": {}}
    for row, (role, dataset) in preparation.sets().items():
        results[row] = evaluate(
            model,
            dataset,
            loss,
            settings.valid_batch_size,
            stress=loss.needs_stress or settings.compute_stress,
            forces=settings.compute_forces,
            keep_details=True,
            progress=lambda batches, total, row=row: progress.track(batches, f"Evaluating {row}", total),  # type: ignore[misc]
            limit=EdgeLimit(settings.max_edges_per_batch, f"evaluating {row}"),
        )
        errors[role][row] = results[row].metrics
        predicted.append(PredictedSet(shown_name(row), role, dataset, results[row].compared))
    # the first two tables come last, as in mace-torch: programs that read logs take the last table there is
    _log_types(results, table, model.plan, errors["test"].keys())
    _LOGGER.info("Error-table on TRAIN and VALID:\n%s", error_table(table, errors["train"] | errors["valid"]))
    if errors["test"]:
        _LOGGER.info("Error-table on TEST:\n%s", error_table(table, errors["test"]))
    if settings.plot:
        _plot(predicted, model.plan, settings, folders, stage)
    return FinalErrors({row: result.metrics for row, result in results.items()}, predicted)


def _log_types(results: dict[str, Evaluation], table: str, plan: ModelPlan, tests: Collection[str]) -> None:
    """Log RMSE and MAE of every set, divided by config_type."""
    rows = {}
    for row, result in results.items():
        name = row if row in tests else shown_name(row)
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
    interaction = settings.plot_interaction_e
    parts: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for one in predicted:
        for name, compared in one.compared.items():
            reference, prediction = compared.reference, compared.prediction
            if name == "energy":
                reference, error = per_atom_values(name, one, energies if interaction else dict.fromkeys(energies, 0.0))
                prediction = reference + error
            if not PROPERTIES[name].derived:
                shown = "interaction_energy" if name == "energy" and interaction else name
                parts.setdefault(one.role, {}).setdefault(shown, []).append((reference, prediction))
    data = {
        role: {
            name: (np.concatenate([r for r, _ in of]), np.concatenate([p for _, p in of])) for name, of in by.items()
        }
        for role, by in parts.items()
    }
    path = folders.results / f"{folders.tag}_parity_{stage}.png"
    with OptionalOutput(path):
        plot_parity(data, path, title=f"{folders.tag}, {stage.replace('_', ' ')}")
        _LOGGER.info("Saved plot to %s", path)
