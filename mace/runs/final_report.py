"""What is measured of a finished model: error tables of all sets and parity plots."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.reporting.predictions import PredictedSet, per_atom_values
from mace.training.evaluation import Evaluation, evaluate
from mace.planning.model_choices import reported_table
from mace.runs.context import RunContext
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit
from mace.console.optional_outputs import OptionalOutput
from mace.pages.plots import plot_parity
from mace.preparation.preparation import Preparation
from mace.reporting.tables import error_table

_LOGGER = logging.getLogger(__name__)


def write_final_report(
    run: RunContext, preparation: Preparation, model: MACE, loss: Loss, stage: str
) -> tuple[dict[str, dict[str, float]], list[PredictedSet]]:
    """Evaluate all sets, log the tables, draw the parity plots.

    Args:
        run: What the run has around it.
        preparation: What training started from.
        model: The finished model.
        loss: Its loss.
        stage: ``one`` or ``two``.

    Returns:
        Errors by the name of the set, and all sets with their predictions, in the order in which they are shown.
    """
    settings, table = run.settings, reported_table(run.settings)
    sets = {"train_Default": preparation.train, "valid_Default": preparation.valid, **preparation.tests}
    roles = {"train_Default": "train", "valid_Default": "valid"}
    results, predicted = dict[str, Evaluation](), list[PredictedSet]()
    for name, dataset in sets.items():
        results[name] = evaluate(
            model,
            dataset,
            loss,
            settings.valid_batch_size,
            stress=settings.compute_stress,
            forces=settings.compute_forces,
            keep_details=True,
            progress=partial(run.progress.track, description=f"Evaluating {name}"),
            limit=EdgeLimit(settings.max_edges_per_batch, f"evaluating {name}"),
        )
        short, role = name.removesuffix("_Default"), roles.get(name, "test")
        predicted.append(PredictedSet(short, role, dataset.configurations, results[name].compared))
    _log_types(results, table, model.plan)
    # those of whole sets come last, as in mace-torch: programs that read logs take the last table there is
    metrics = {name: result.metrics for name, result in results.items()}
    tested = {name: errors for name, errors in metrics.items() if name not in roles}
    _LOGGER.info("Error-table on TRAIN and VALID:\n%s", error_table(table, {name: metrics[name] for name in roles}))
    if tested:
        _LOGGER.info("Error-table on TEST:\n%s", error_table(table, tested))
    if settings.plot:
        _plot(predicted, model.plan, run, stage)
    return metrics, predicted


def _log_types(results: dict[str, Evaluation], table: str, plan: ModelPlan) -> None:
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


def _plot(predicted: list[PredictedSet], plan: ModelPlan, run: RunContext, stage: str) -> None:
    """Draw predictions against labels, energies with or without those of the isolated atoms."""
    energies = dict(zip(plan.atomic_numbers, plan.reference_energies, strict=plan.predicts_energy))
    joined: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for one in predicted:
        group = joined.setdefault(one.role, {})
        for name in one.compared:
            if name == "energy" and run.settings.plot_interaction_e:
                group.setdefault("interaction_energy", []).append(_pair(name, one, energies))
            elif name == "energy":
                group.setdefault(name, []).append(_pair(name, one, dict.fromkeys(energies, 0.0)))
            elif name != "virials":
                compared = one.compared[name]
                group.setdefault(name, []).append((compared.reference, compared.prediction))
    data = {role: {name: _join(parts) for name, parts in group.items()} for role, group in joined.items() if group}
    path = run.folders.results / f"{run.folders.tag}_parity_stage_{stage}.png"
    with OptionalOutput(path):
        plot_parity(data, path, title=f"{run.folders.tag}, stage {stage}")
        _LOGGER.info("Saved plot to %s", path)


def _pair(name: str, one: PredictedSet, energies: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    reference, error = per_atom_values(name, one, energies)
    return reference, reference + error


def _join(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
