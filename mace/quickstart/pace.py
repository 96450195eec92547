"""How fast this machine trains a model: some real steps, an evaluation and a saved state, timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mace.console.interruption import Interruption
from mace.console.progress import TrainingProgress
from mace.elements import ElementTable
from mace.graphs.batch_size import training_batch
from mace.graphs.dataset import Dataset
from mace.graphs.in_memory import InMemoryDataset
from mace.model.kernel_choice import choose_kernels
from mace.preparation.preparation import prepare
from mace.preparation.reading import DataSets, InputData
from mace.processes.devices import choose_device, keep_freed_memory, peak_memory, set_threads, using
from mace.processes.team import Team
from mace.reporting.records import RecordWriter
from mace.runs.initial_model import initial_model
from mace.settings import TrainingSettings
from mace.structures.reading import ReadResult
from mace.training.checkpoints import CheckpointFolder
from mace.training.context import TrainingContext
from mace.training.loop import Trainer
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


def measure_pace(settings: TrainingSettings, data: InputData, progress: TrainingProgress) -> Pace:
    """Build the model of some settings and time it on its data, or on a part of them if they are many.

    Args:
        settings: All that decides model and batches; its epochs do not count.
        data: What was read, and checked.
        progress: What to show.

    Raises:
        UserError: If data or settings do not allow a training.
    """
    keep_freed_memory()
    set_threads(settings.num_threads)
    device = choose_device(settings.device, settings.default_dtype)
    start = time.perf_counter()
    (sets,) = data.sets.values()  # proposals have one head
    sample = replace(data, sets=dict.fromkeys(data.sets, _sampled(sets, settings.seed)))
    preparation = prepare(settings, sample, progress, writes=False)
    model = initial_model(preparation.plan, settings, device)
    seconds = time.perf_counter() - start
    choose_kernels(model, settings.kernels)  # not in the time: what is compiled here is there when the training starts
    context = TrainingContext(settings, device, Team(), Interruption(), progress)
    state = TrainingState(model, settings, data.losses)
    # on the disk that the run will use
    work_dir = Path(settings.work_dir)
    parent = next((folder for folder in (work_dir, *work_dir.absolute().parents) if folder.is_dir()), None)
    with (
        using(device),
        tempfile.TemporaryDirectory(prefix=".mace_quickstart-", dir=parent) as folder,
        RecordWriter(None) as records,
    ):
        facts = {"data": {}, "processes": 1, "run": "timing"}
        keeper = StateKeeper(CheckpointFolder(Path(folder), "timing"), records, model.plan, facts, minutes=60.0)
        trainer = Trainer(context, state, preparation.train, preparation.valid, keeper)
        step, n_steps = _time_steps(trainer)
        per_edge = _time_evaluation(trainer)
        save = _time_saving(trainer)
    # how much larger the sets are than the part of them that was timed
    total, validation = len(sets.training.configurations), sets.validation
    n_split = max(1, int(settings.valid_fraction * total)) if validation is None else 0
    n_train, n_valid = total - n_split, n_split if validation is None else len(validation.configurations)
    n_tests = sum(len(result.configurations) for result in sets.tests.values())
    edges = [
        _scaled_edges(n_train, [preparation.train]),
        _scaled_edges(n_valid, list(preparation.valid.values())),
        _scaled_edges(n_tests, list(preparation.tests.values())),
    ]
    return Pace(
        prepare=seconds * max(1.0, n_train / len(preparation.train)),
        step=step,
        steps=n_steps,
        evaluation=per_edge * edges[1],
        final=per_edge * sum(edges),
        save=save,
        updates=_updates(settings, trainer, n_train),
        training_structures=n_train,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        memory=peak_memory(device),
    )


def _updates(settings: TrainingSettings, trainer: Trainer, n_train: int) -> int:
    """Count the steps of an epoch of so many structures, from those of the part of them that was timed."""
    size = training_batch(settings)
    if size.unit == "structures":
        return -(-n_train // size.amount)
    return -(-n_train * trainer.batch_plan.steps_per_epoch // len(trainer.train_set))


def _scaled_edges(count: int, timed: Sequence[Dataset]) -> float:
    """Return how many edges a number of structures has, from those of the part of them that was timed."""
    return max(1.0, count / max(1, sum(map(len, timed)))) * sum(dataset.n_edges for dataset in timed)


def _sampled(sets: DataSets, seed: int) -> DataSets:
    """Take some structures at random where there are very many."""
    rng = np.random.default_rng(seed)

    def some(result: ReadResult) -> ReadResult:
        configurations = result.configurations
        if len(configurations) <= _LARGEST_SAMPLE:
            return result
        places = np.sort(rng.choice(len(configurations), _LARGEST_SAMPLE, replace=False))
        return replace(result, configurations=configurations.take(places))

    validation = some(sets.validation) if sets.validation is not None else None
    return DataSets(some(sets.training), validation, {name: some(result) for name, result in sets.tests.items()})


def _time_steps(trainer: Trainer) -> tuple[float, int]:
    """Take steps as in the first epochs; return seconds of an average step of an epoch, and how many were timed."""
    dataset, state = trainer.train_set, trainer.state
    state.optimizer_mode("train")
    epoch = list(trainer.batch_plan.steps(0))
    spent, edges, done = 0.0, 0, 0
    trainer.batch_step.take(epoch[0], state.loss, (False, False)).read()  # to warm up: the first one is slow
    while done < FEWEST_STEPS or (spent < ENOUGH_SECONDS and done < _MOST_STEPS):
        step = epoch[done % len(epoch)]
        start = time.perf_counter()
        # reading the numbers waits for the device
        trainer.batch_step.take(step, state.loss, (False, False)).read()
        spent += time.perf_counter() - start
        edges += int(dataset.edges_of(step.structures).sum())
        done += 1
    return spent * max(dataset.n_edges, 1) / max(edges, 1) / trainer.batch_plan.steps_per_epoch, done


def _time_evaluation(trainer: Trainer) -> float:
    """Evaluate structures of the validation set; return seconds for each edge."""
    dataset = next(iter(trainer.valid_sets.values()))
    settings, state = trainer.settings, trainer.state
    most = _MOST_EVALUATED * settings.valid_batch_size
    if len(dataset) > most:
        elements = ElementTable(state.model.plan.atomic_numbers)
        dataset = InMemoryDataset(dataset[:most], elements, dataset.r_max)
    state.optimizer_mode("eval")
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        trainer.evaluate(dataset)
        spent.append(time.perf_counter() - start)
    return spent[-1] / max(dataset.n_edges, 1)


def _time_saving(trainer: Trainer) -> float:
    """Save the state twice, as after epochs; return seconds of the second time."""
    spent, state = 0.0, trainer.state
    for epoch in range(2):
        start = time.perf_counter()
        state.progression.best_epochs["one"] = epoch
        state.best["one"] = state.copy_of_validated_weights()
        trainer.keeper.keep_weights(state.best["one"], epoch, "one", best=True)
        trainer.save()
        spent = time.perf_counter() - start
    return spent
