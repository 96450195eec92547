"""What is measured of a finished model: error tables of all sets and parity plots."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from mace.graphs.batching import GraphDataset
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.settings import TrainingSettings
from mace.structures.configuration import Configuration
from mace.training.evaluation import Evaluation, evaluate, join_pairs
from mace.training.folders import RunFolders
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit
from mace.training.plots import plot_parity
from mace.training.preparation import Preparation
from mace.training.progress import TrainingProgress
from mace.training.tables import error_table

_LOGGER = logging.getLogger(__name__)


def write_final_report(
    model: MACE,
    loss: Loss,
    preparation: Preparation,
    settings: TrainingSettings,
    folders: RunFolders,
    stage: str,
    table: str,
    progress: TrainingProgress,
) -> dict[str, dict[str, float]]:
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
        Errors by the name of the set.
    """
    sets = {"train_Default": preparation.train, "valid_Default": preparation.valid, **preparation.tests}
    results = {name: _evaluate(model, dataset, loss, settings, name, progress) for name, dataset in sets.items()}
    learned = {name: result.metrics for name, result in results.items() if name in ("train_Default", "valid_Default")}
    tested = {name: result.metrics for name, result in results.items() if name not in learned}
    _LOGGER.info("Error-table on TRAIN and VALID:\n%s", error_table(table, learned))
    if tested:
        _LOGGER.info("Error-table on TEST:\n%s", error_table(table, tested))
    _tell_types(results, table, model.plan)
    if settings.plot:
        _plot(results, model, sets, folders, stage)
    return {name: result.metrics for name, result in results.items()}


def _evaluate(
    model: MACE, dataset: GraphDataset, loss: Loss, settings: TrainingSettings, name: str, progress: TrainingProgress
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
        keep_pairs=True,
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
    suffix = "stressvirials" if "stressvirials" in table else ""
    for measure in ("RMSE", "MAE"):
        kinds = [f"PerAtom{measure}{suffix}"] * plan.predicts_energy + [f"Dipole{measure}"] * plan.predicts_dipole
        for kind in kinds:
            _LOGGER.info("%s by config_type:\n%s", measure, error_table(kind, rows))


def _plot(
    results: dict[str, Evaluation],
    model: MACE,
    sets: dict[str, GraphDataset],
    folders: RunFolders,
    stage: str,
) -> None:
    """Draw predictions against labels, energies without the isolated atoms."""
    energies = dict(zip(model.plan.atomic_numbers, model.plan.reference_energies, strict=model.plan.predicts_energy))
    joined: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for name, result in results.items():
        group = joined.setdefault({"train_Default": "train", "valid_Default": "valid"}.get(name, "test"), {})
        for quantity, pair in result.pairs.items():
            if quantity == "energy":
                pair = _without_references(pair, sets[name].configurations, energies)
                quantity = "interaction_energy"
            if quantity != "virials":
                group.setdefault(quantity, []).append(pair)
    data = {name: {q: join_pairs(parts) for q, parts in group.items()} for name, group in joined.items() if group}
    path = folders.results / f"{folders.tag}_parity_{stage}.png"
    plot_parity(data, path, title=f"{folders.tag}, {stage.replace('_', ' ')}")
    _LOGGER.info("Saved plot to %s", path)


def _without_references(
    pair: tuple[np.ndarray, np.ndarray], configurations: list[Configuration], energies: dict[int, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the mean reference energy per atom of every labelled structure with weight."""
    labelled = [c for c in configurations if c.has_weight("energy")]
    offset = np.array([np.mean([energies[z] for z in c.atomic_numbers.tolist()]) for c in labelled])
    return pair[0] - offset, pair[1] - offset
