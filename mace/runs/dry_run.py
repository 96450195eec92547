"""What a run would do: its plan, with time and memory measured on its first batch."""

from __future__ import annotations

import resource
import sys
import time

import torch
from rich import box
from rich.table import Table

from mace.elements import chemical_symbol
from mace.model.mace import MACE
from mace.preparation.preparation import Preparation
from mace.settings import TrainingSettings
from mace.training.loss import Loss
from mace.training.stages import stage_two_start
from mace.training.step import loss_gradient


def describe_plan(
    model: MACE, preparation: Preparation, losses: tuple[Loss, Loss | None], settings: TrainingSettings
) -> Table:
    """Collect the decisions of a run, after two gradients of its first batch that change nothing.

    Args:
        model: The model, on its device.
        preparation: Data of the run.
        losses: The losses of both stages.
        settings: The settings.

    Returns:
        A table to print.
    """
    plan, train = model.plan, preparation.train
    batches = -(-len(train) // settings.batch_size)
    seconds, megabytes = _measure(model, preparation, losses[0], settings)
    epoch = seconds * train.n_edges
    table = Table(title=f"Plan of the run {settings.name}", box=box.ASCII, show_header=False, title_justify="left")
    rows = {
        "structures": f"{len(train)} training, {sum(map(len, preparation.valid.values()))} validation, "
        f"{sum(len(c) for c in preparation.tests.values())} test",
        "elements": ", ".join(chemical_symbol(z) for z in plan.atomic_numbers),
        "E0s / eV": _energies(preparation),
        "neighbors": f"{plan.avg_num_neighbors:.2f} on average within {plan.r_max} Angstrom",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "loss": str(losses[0]),
        "stage two": "none" if losses[1] is None else f"{losses[1]} from epoch {stage_two_start(settings)}",
        "batches per epoch": f"{batches} of {settings.batch_size}",
        "epochs": str(settings.max_num_epochs),
        "time per epoch": f"about {_duration(epoch)}, validation not counted (first batch measured)",
        "time of all epochs": f"about {_duration(epoch * settings.max_num_epochs)}",
        "memory": f"about {megabytes:.0f} MB (first batch measured)",
        "plan": plan.model_dump_json(exclude={"reference_energies"}),
    }
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _energies(preparation: Preparation) -> str:
    """Say the reference energies in words."""
    if preparation.energies is None:
        return "none: the model predicts no energy"
    energies = ", ".join(f"{chemical_symbol(z)} {e:.6f}" for z, e in preparation.energies.energies.items())
    return f"{energies} ({preparation.energies.source})"


def _measure(model: MACE, preparation: Preparation, loss: Loss, settings: TrainingSettings) -> tuple[float, float]:
    """Return seconds per directed edge and the memory in use at the peak, in megabytes."""
    device = model.embedding.device
    batch = preparation.train.batch(range(min(settings.batch_size, len(preparation.train)))).to(device)
    loss_gradient(model, batch, loss)
    start = time.perf_counter()
    float(loss_gradient(model, batch, loss))  # reading the number waits for the device
    seconds = (time.perf_counter() - start) / max(batch.graph.n_edges, 1)
    for parameter in model.parameters():
        parameter.grad = None
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated(device) / 1e6
    # kilobytes on Linux, bytes on macOS
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
