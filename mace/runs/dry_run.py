"""Dry run: the plan of a run, with time and memory measured on its first batch."""

from __future__ import annotations

import time

import numpy as np
from rich import box
from rich.table import Table

from mace.elements import chemical_symbol
from mace.finetuning.freezing import moved_in_words
from mace.graphs.batch_size import plan_batches, spreads, training_batch
from mace.preparation.preparation import Preparation
from mace.processes.devices import peak_memory, synchronize
from mace.runs.context import RunContext
from mace.settings import TrainingSettings
from mace.training.loop import selection_rule
from mace.training.optimization import MovedParameters
from mace.training.stages import stage_two_start, total_epochs
from mace.training.step import loss_gradient


def show_plan(run: RunContext, preparation: Preparation, moved: MovedParameters) -> None:
    """Print, on the first process, the decisions of a run and the time and memory it will take.

    Args:
        run: The context of the run.
        preparation: The data and plan that training would start from.
        moved: What would be trained, with the model on its device.
    """
    if not run.team.is_first:
        return
    settings, losses, model = run.settings, preparation.data.losses, moved.model
    plan, train = model.plan, preparation.train
    size, batches = training_batch(settings), plan_batches(settings, train, preparation.sampling, run.team.size)
    # compute the gradient of the first batch twice (once to warm up), without changing the model
    shares = next(batches.steps(0)).batches
    first = np.arange(min(size.amount, len(train))) if shares is None else max(shares, key=len)
    batch = train.batch(first).to(run.device)
    loss_gradient(model, batch, losses[0])
    synchronize(run.device)
    start = time.perf_counter()
    loss_gradient(model, batch, losses[0])
    synchronize(run.device)
    epoch = (time.perf_counter() - start) / max(batch.graph.n_edges, 1)
    moved.forget_gradients()
    sampling = preparation.sampling
    epoch *= sum(preparation.train_of(h).n_edges * n / sampling.sizes[h] for h, n in sampling.draws.items())
    energies = "none: the model predicts no energy"
    if preparation.energies:
        energies = "; ".join(
            f"{head}: " * bool(plan.heads)
            + ", ".join(f"{chemical_symbol(z)} {e:.6f}" for z, e in one.energies.items())
            + f" ({one.source})"
            for head, one in preparation.energies.items()
        )
    of_heads = {"reference_energies", "heads", "scale", "shift"}
    table = Table(title=f"Plan of the run {settings.name}", box=box.ASCII, show_header=False, title_justify="left")
    rows = {
        "structures": f"{len(train)} training, {sum(map(len, preparation.valid.values()))} validation, "
        f"{sum(len(c) for c in preparation.tests.values())} test",
        "elements": ", ".join(chemical_symbol(z) for z in plan.atomic_numbers),
        "E0s / eV": energies,
        **_rows_of_heads(settings, preparation),
        "neighbors": f"{plan.avg_num_neighbors:.2f} on average within {plan.r_max} Angstrom",
        "parameters": moved_in_words(moved, settings),
        "loss": str(losses[0]),
        "stage two": "none" if losses[1] is None else f"{losses[1]} from epoch {stage_two_start(settings)}",
        "batches per epoch": f"{batches.steps_per_epoch} of {size.in_words}",
        "in a batch": "; ".join(map(str, spreads(batches, train))),
        "epochs": str(settings.max_num_epochs),
        "time per epoch": f"about {_duration(epoch)}, validation not counted (first batch measured)",
        "L-BFGS": f"{settings.lbfgs_steps} iterations after that" if settings.lbfgs else "none",
        "time of all epochs": f"about {_duration(epoch * total_epochs(settings))}",
        "memory": f"about {peak_memory(run.device) / 1e6:.0f} MB (first batch measured)",
        "plan": plan.model_dump_json(exclude=of_heads if plan.heads else {"reference_energies"}),
    }
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    run.console.print(table, highlight=False)


def _rows_of_heads(settings: TrainingSettings, preparation: Preparation) -> dict[str, str]:
    """Say what is special about each head, if there are several."""
    plan, data, sampling = preparation.plan, preparation.data, preparation.sampling
    if not plan.heads:
        return {}
    rows = {}
    what = "sampling" if settings.head_sampling == "weight" else "loss"
    for head in plan.heads:
        tests = sum(len(c) for c in preparation.tests.values() if c[0].head == head.name)
        rows[f"head {head.name}"] = (
            f"{sampling.sizes[head.name]} training, {sampling.draws[head.name]} of them in an epoch, "
            f"{len(preparation.valid[head.name])} validation, {tests} test; weight in {what} "
            f"{data.heads[head.name].weight:g}; scale {head.scale:.6g} eV, shift {head.shift:.6g} eV per atom"
        )
    return rows | {
        "head sampling": settings.head_sampling,
        "best model": f"the lowest {selection_rule(settings.select_by, sampling.shares)}",
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
