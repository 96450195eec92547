"""How fast this machine trains a model: some real steps, an evaluation and a saved state, timed."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mace.console.progress import TrainingProgress
from mace.elements import ElementTable
from mace.graphs.batch_plan import BatchPlan
from mace.graphs.in_memory import InMemoryDataset
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.preparation.data_report import DataSets
from mace.preparation.preparation import Preparation, decide
from mace.processes.devices import choose_device, keep_freed_memory, set_threads
from mace.processes.team import Team
from mace.reporting.records import RecordWriter
from mace.runs.run import build_model
from mace.settings import TrainingSettings
from mace.structures.configuration import Configuration
from mace.structures.reading import ReadResult
from mace.training.batch_step import BatchStep
from mace.training.checkpoints import CheckpointFolder
from mace.training.evaluation import evaluate
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit
from mace.training.saving import StateKeeper
from mace.training.state import TrainingState

FEWEST_STEPS = 3
"""Steps that are timed at least, after one to warm up."""

ENOUGH_SECONDS = 5.0
"""Seconds after which no more steps are timed; with structures of all sizes, few steps say little."""

_MOST_STEPS = 200
_LARGEST_SAMPLE = 1000
_MOST_EVALUATED = 20
"""Batches of an evaluation that are timed."""


@dataclass(frozen=True)
class Pace:
    """What each part of a training takes, in seconds.

    Attributes:
        prepare: Searching neighbors and building the model.
        step: A gradient step, on average over the training set.
        steps: How many were timed.
        evaluation: An evaluation of the validation set.
        final: The evaluations of all sets with the model of one stage at the end.
        save: Saving the state after an epoch.
        updates: Gradient steps of an epoch.
        training_structures: How many there are to train on.
        parameters: Of the model.
        memory: Bytes in use at the peak.
    """

    prepare: float
    step: float
    steps: int
    evaluation: float
    final: float
    save: float
    updates: int
    training_structures: int
    parameters: int
    memory: int


def measure_pace(
    settings: TrainingSettings, losses: tuple[Loss, Loss | None], sets: DataSets, progress: TrainingProgress
) -> Pace:
    """Build the model of some settings and time it on its data, or on a part of them if they are many.

    Args:
        settings: All that decides model and batches; its epochs do not count.
        losses: The losses of both stages.
        sets: What was read, and checked.
        progress: What to show.

    Raises:
        UserError: If data or settings do not allow a training.
    """
    keep_freed_memory()
    set_threads(settings.num_threads)
    device = choose_device(settings.device, settings.default_dtype)
    start = time.perf_counter()
    preparation = decide(settings, losses, _sampled(sets, settings.seed), progress, writes=False)
    model = build_model(preparation.plan, settings, device)
    seconds = time.perf_counter() - start
    choose_kernels(model, settings.kernels)  # not in the time: what is compiled here is there when the training starts
    state = TrainingState(model, settings, two_stages=losses[1] is not None)
    step, n_steps = _time_steps(state, preparation, losses[0], settings)
    per_edge = _time_evaluation(state, preparation, losses[0], settings)
    scale = _Scale(sets, preparation, settings)
    edges = (
        scale.train * preparation.train.n_edges,
        scale.valid * sum(valid.n_edges for valid in preparation.valid.values()),
    )
    tests = sum(dataset.n_edges for dataset in preparation.tests.values())
    return Pace(
        prepare=seconds * scale.train,
        step=step,
        steps=n_steps,
        evaluation=per_edge * edges[1],
        final=per_edge * (sum(edges) + scale.tests * tests),
        save=_time_saving(state, Path(settings.work_dir)),
        updates=-(-scale.training_structures // settings.batch_size),
        training_structures=scale.training_structures,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        memory=_peak_memory(model),
    )


class _Scale:
    """How much larger the sets are than the part of them that was timed.

    Args:
        sets: All.
        preparation: Of the part.
        settings: The settings.
    """

    def __init__(self, sets: DataSets, preparation: Preparation, settings: TrainingSettings) -> None:
        total = len(sets.training.configurations)
        valid = max(1, int(settings.valid_fraction * total)) if sets.validation is None else 0
        self.training_structures = total - valid
        self.train = max(1.0, self.training_structures / len(preparation.train))
        n_valid = valid if sets.validation is None else len(sets.validation.configurations)
        self.valid = max(1.0, n_valid / sum(map(len, preparation.valid.values())))
        n_tests = sum(len(result.configurations) for result in sets.tests.values())
        self.tests = max(1.0, n_tests / max(1, sum(len(dataset) for dataset in preparation.tests.values())))


def _sampled(sets: DataSets, seed: int) -> DataSets:
    """Take some structures at random where there are very many."""
    rng = np.random.default_rng(seed)

    def some(result: ReadResult) -> ReadResult:
        configurations: Sequence[Configuration] = result.configurations
        if len(configurations) <= _LARGEST_SAMPLE:
            return result
        places = np.sort(rng.choice(len(configurations), _LARGEST_SAMPLE, replace=False))
        return replace(result, configurations=[configurations[place] for place in places.tolist()])

    validation = some(sets.validation) if sets.validation is not None else None
    return DataSets(some(sets.training), validation, {name: some(result) for name, result in sets.tests.items()})


def _time_steps(
    state: TrainingState, preparation: Preparation, loss: Loss, settings: TrainingSettings
) -> tuple[float, int]:
    """Take steps as in the first epochs; return seconds of an average step of an epoch, and how many were timed."""
    dataset = preparation.train
    limit = EdgeLimit(settings.max_edges_per_batch, "training")
    steps = BatchStep(state, dataset, limit, settings, Team())
    state.optimizer_mode("train")
    plan = BatchPlan(len(dataset), settings.seed, settings.batch_size)
    epoch = list(plan.steps(0))
    order, size = np.concatenate(epoch), len(epoch[0])
    spent, edges, done = 0.0, 0, 0
    steps.take(order[:size], loss, (False, False)).read()  # to warm up: the first one is slow
    while done < FEWEST_STEPS or (spent < ENOUGH_SECONDS and done < _MOST_STEPS):
        structures = np.take(order, np.arange(done * size, (done + 1) * size), mode="wrap")
        start = time.perf_counter()
        steps.take(structures, loss, (False, False)).read()  # reading the numbers waits for the device
        spent += time.perf_counter() - start
        edges += int(dataset.edges_of(structures).sum())
        done += 1
    return spent * max(dataset.n_edges, 1) / max(edges, 1) / plan.steps_per_epoch, done


def _time_evaluation(state: TrainingState, preparation: Preparation, loss: Loss, settings: TrainingSettings) -> float:
    """Evaluate structures of the validation set; return seconds for each edge."""
    dataset = next(iter(preparation.valid.values()))
    most = _MOST_EVALUATED * settings.valid_batch_size
    if len(dataset) > most:
        elements = ElementTable(preparation.plan.atomic_numbers)
        dataset = InMemoryDataset(dataset[:most], elements, dataset.r_max)
    state.optimizer_mode("eval")
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        with state.validated_weights():
            evaluate(
                state.model,
                dataset,
                loss,
                settings.valid_batch_size,
                stress=loss.needs_stress or settings.compute_stress,
                forces=settings.compute_forces,
                limit=EdgeLimit(settings.max_edges_per_batch, "validation"),
            )
        spent.append(time.perf_counter() - start)
    return spent[-1] / max(dataset.n_edges, 1)


def _time_saving(state: TrainingState, work_dir: Path) -> float:
    """Save the state twice, as after epochs, on the disk that the run will use; return seconds of the second time."""
    parent = next((folder for folder in (work_dir, *work_dir.absolute().parents) if folder.is_dir()), None)
    spent = 0.0
    with tempfile.TemporaryDirectory(prefix=".mace_quickstart-", dir=parent) as folder, RecordWriter(None) as records:
        checkpoints = CheckpointFolder(Path(folder), "timing")
        keeper = StateKeeper(checkpoints, records, state.model.plan, "timing", minutes=60.0)
        for epoch in range(2):
            start = time.perf_counter()
            state.progression.best_epochs["one"] = epoch
            state.best["one"] = state.copy_of_validated_weights()
            keeper.keep_weights(state.best["one"], epoch, "one", best=True)
            keeper.save(state.state_dict() | {"data": {}, "processes": 1})
            spent = time.perf_counter() - start
    return spent


def _peak_memory(model: MACE) -> int:
    """Bytes that were in use at the most, on the GPU or of this process."""
    device = model.embedding.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
