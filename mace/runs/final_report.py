"""Final report on a trained model: error tables of all data sets and parity plots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from mace.console.optional_outputs import OptionalOutput
from mace.graphs.batch_size import validation_batch
from mace.graphs.dataset import Dataset
from mace.graphs.feeding import Feeding
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.pages.plots import ParityPoints, plot_parity
from mace.planning.model_choices import reported_table
from mace.preparation.preparation import Preparation
from mace.properties import PROPERTIES
from mace.reporting.predictions import PredictedSet
from mace.reporting.set_errors import PropertyTally
from mace.reporting.set_names import shown_name, table_row
from mace.reporting.tables import error_table, tables_of
from mace.runs.context import RunContext
from mace.settings import TrainingSettings
from mace.training.evaluation import Evaluation, evaluate
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit

_LOGGER = logging.getLogger(__name__)


def write_final_report(
    run: RunContext, preparation: Preparation, model: MACE, loss: Loss, stage: str
) -> tuple[dict[str, dict[str, float]], list[PredictedSet]]:
    """Evaluate the model on all data sets, log the error tables and draw the parity plots.

    Args:
        run: The context of the run.
        preparation: The data and plan that training started from.
        model: The finished model.
        loss: The loss of its stage.
        stage: ``one`` or ``two``.

    Returns:
        Errors by name of the data set, and all sets with their predictions, in the order in which they are shown.
    """
    settings, table = run.settings, reported_table(run.settings)
    results: dict[str, Evaluation] = {}
    predicted: list[PredictedSet] = []
    errors: dict[str, dict[str, dict[str, float]]] = {"train": {}, "valid": {}, "test": {}}
    for row, (role, dataset) in _measured_sets(preparation, settings).items():
        results[row] = evaluate(
            model,
            dataset,
            loss,
            validation_batch(settings),
            stress=settings.compute_stress,
            forces=settings.compute_forces,
            keep_details=True,
            progress=partial(run.progress.track, description=f"Evaluating {row}"),
            limit=EdgeLimit(settings.max_edges_per_batch, f"evaluating {row}"),
            feeding=Feeding.of(settings, run.device),
        )
        errors[role][row] = results[row].metrics
        if (details := results[row].details) is not None:
            predicted.append(PredictedSet(shown_name(row), role, dataset, details))
    # the main error tables come last, as in mace-torch, because programs that read logs take the last table
    _log_types(predicted, results, table, model.plan)
    _LOGGER.info("Error-table on TRAIN and VALID:\n%s", error_table(table, errors["train"] | errors["valid"]))
    if errors["test"]:
        _LOGGER.info("Error-table on TEST:\n%s", error_table(table, errors["test"]))
    if settings.plot:
        for head in dict.fromkeys(one.head for one in predicted):
            of_head = "" if len(preparation.valid) == 1 else head
            _plot([one for one in predicted if one.head == head], run, stage, of_head)
    return {row: result.metrics for row, result in results.items()}, predicted


def _measured_sets(preparation: Preparation, settings: TrainingSettings) -> dict[str, tuple[str, Dataset]]:
    """Return the sets to be measured, without those of heads that ``--skip_evaluate_heads`` names."""
    heads, named = preparation.data.heads, {name.strip() for name in settings.skip_evaluate_heads.split(",")}
    skipped = named & heads.keys() if len(heads) > 1 else set[str]()
    if skipped == heads.keys():
        _LOGGER.warning("--skip_evaluate_heads names all heads, so none is left out")
        skipped = set()
    elif skipped:
        _LOGGER.info("--skip_evaluate_heads: %s is left out of the tables", ", ".join(sorted(skipped)))
    if unknown := named - heads.keys() - {"", "pt_head"}:
        _LOGGER.warning("--skip_evaluate_heads: there is no head %s", ", ".join(sorted(unknown)))
    return {
        row: (role, dataset) for row, (role, dataset) in preparation.sets().items() if dataset[0].head not in skipped
    }


def _log_types(predicted: Sequence[PredictedSet], results: dict[str, Evaluation], table: str, plan: ModelPlan) -> None:
    """Log RMSE and MAE of every data set, by config_type."""
    rows = {}
    for one, (row, result) in zip(predicted, results.items(), strict=True):
        for kind, metrics in result.by_type.items():
            # a test file is already split into sets by config_type
            is_split = one.role == "test" and row == table_row(kind, one.head)
            name = table_row("test", one.head) if is_split else row
            rows[f"{shown_name(name)}/{kind}"] = metrics
    for measure in ("RMSE", "MAE"):
        for kind in tables_of(plan.outputs, measure, stress="stressvirials" in table):
            _LOGGER.info("%s by config_type:\n%s", measure, error_table(kind, rows))


def _plot(predicted: Sequence[PredictedSet], run: RunContext, stage: str, head: str) -> None:
    """Plot predictions against labels; energies are total or interaction energies, depending on the settings.

    Args:
        predicted: The sets.
        run: The context of the run.
        stage: ``one`` or ``two``.
        head: Which head of several the sets are for; empty if there is only one.
    """
    settings, folders = run.settings, run.folders
    interaction = settings.plot_interaction_e
    tallies: dict[str, dict[str, list[PropertyTally]]] = {}
    for one in predicted:
        for name, tally in one.errors.tallies.items():
            if not PROPERTIES[name].derived:
                tallies.setdefault(one.role, {}).setdefault(name, []).append(tally)
    data = {
        role: {
            "interaction_energy" if name == "energy" and interaction else name: ParityPoints.chosen(of, interaction)
            for name, of in by_name.items()
        }
        for role, by_name in tallies.items()
    }
    path = folders.results / f"{folders.tag}{head and f'_{head}'}_parity_stage_{stage}.png"
    with OptionalOutput(path):
        plot_parity(data, path, title=f"{folders.tag}, {head and f'head {head}, '}stage {stage}")
        _LOGGER.info("Saved plot to %s", path)
