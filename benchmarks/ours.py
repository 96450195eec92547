"""Worker of this package; it takes over the weights the other worker has written, so that both do the same work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from molecules import read_box, read_molecules
from moving_box import moving, through_calculator
from workers import Settings, Task, describe_calculator, serve

import mace
from mace.compat.weights import weights_from_original
from mace.elements import ElementTable
from mace.equivariant.irreps import parse_irreps
from mace.graphs.assembly import build_graph
from mace.graphs.dataset import Batch
from mace.graphs.in_memory import InMemoryDataset
from mace.model.kernel_choice import VARIABLE, choose_kernels
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.model.prediction import Prediction, predict
from mace.processes.devices import keep_freed_memory
from mace.settings import TrainingSettings
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.optimization import MovingAverage, make_optimizer
from mace.training.phases import PhaseClock
from mace.training.step import loss_gradient, update_parameters


def prepare(settings: Settings) -> Task:
    """Build what the settings ask for; write the results on the first structures."""
    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    model = _build_model(settings)
    if settings["kernels"] != "auto":
        os.environ[VARIABLE] = settings["kernels"]  # the calculator, which loads a model of its own, reads it too
    kernels = choose_kernels(model)
    task = {"training": _training, "batch": _evaluation, "box": _box}[settings["task"]](settings, model)
    task.facts.update(
        package=f"mace-train {mace.__version__} ({kernels} kernels)",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        parameters=sum(p.numel() for p in model.parameters()),
    )
    return task


def make_plan(wanted: Settings) -> ModelPlan:
    """Return the plan of a model from the settings of both workers."""
    irreps = parse_irreps(wanted["hidden"])
    return ModelPlan(
        model="MACE",
        r_max=wanted["r_max"],
        l_max=wanted["l_max"],
        n_channels=irreps[0][0],
        hidden_l=tuple(irrep.l for _, irrep in irreps),
        interactions=tuple(InteractionPlan(residual=layer > 0) for layer in range(wanted["layers"])),
        correlation=(wanted["correlation"],) * wanted["layers"],
        avg_num_neighbors=wanted["avg_num_neighbors"],
        atomic_numbers=tuple(wanted["elements"]),
        reference_energies=tuple(wanted["reference_energies"]),
        scale=wanted["scale"],
    )


def _build_model(settings: Settings) -> MACE:
    """Build the model with the other worker's weights."""
    model = MACE(make_plan(settings["model"]))
    load_weights(model, settings["weights"])
    return model


def load_weights(model: MACE, file: str) -> None:
    """Take over the weights the other worker has written."""
    with np.load(file) as stored:
        weights = weights_from_original(dict(stored), model.plan)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()})


def configuration(atoms: Atoms, labeled: bool) -> Configuration:
    """Return a structure, with its labels if wanted."""
    return Configuration(
        atomic_numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        energy=atoms.get_potential_energy() if labeled else None,
        forces=atoms.get_forces() if labeled else None,
    )


def _shuffled(dataset: InMemoryDataset, size: int, seed: int) -> Iterator[Batch]:
    """Yield full batches for ever, in a new random order in every round."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(dataset))
        yield from dataset.batches(size, order[: len(order) - len(order) % size])


def _batched(settings: Settings, model: MACE) -> tuple[Iterator[Batch], dict[str, float]]:
    """Return an endless iterator of shuffled batches, and facts about them; write the results on the first batch."""
    structures = [configuration(atoms, labeled=True) for atoms in read_molecules(Path(settings["data"]))]
    dataset = InMemoryDataset(structures, ElementTable(model.plan.atomic_numbers), model.plan.r_max)
    size, n = settings["batch_size"], len(dataset)
    _write_results(settings, predict(model, dataset.batch(range(size)).graph))
    facts = {"atoms": size * dataset.n_atoms / n, "edges": size * dataset.n_edges / n}
    return _shuffled(dataset, size, settings["model"]["seed"]), facts


def _write_results(settings: Settings, prediction: Prediction) -> None:
    assert prediction.forces is not None
    energies, forces = prediction.energy.detach().numpy(), prediction.forces.detach().numpy()
    np.savez(settings["results"], energies=energies, forces=forces)


def _training(settings: Settings, model: MACE) -> Task:
    """One step of training, the collation included, in a process prepared as a run prepares it."""
    keep_freed_memory()
    batches, facts = _batched(settings, model)
    wanted = TrainingSettings(
        name="benchmark",
        train_file=["unused"],
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        amsgrad=True,
    )
    optimizer = make_optimizer(model, wanted)
    loss, average = (
        make_loss("weighted", settings["loss_weights"]),
        MovingAverage(model.parameters(), settings["ema_decay"]),
    )

    def step() -> None:
        clock = PhaseClock(model.embedding.device)
        batch = next(batches)
        clock.mark("data")
        value = loss_gradient(model, batch, loss, mark=clock.mark)
        update_parameters(model, optimizer, settings["clip_grad"], average)
        value.item()
        clock.mark("optimizer")
        task.phases.append(clock.read())

    task = Task(step, facts | {"what": "loss_gradient, update_parameters and InMemoryDataset.batch"})
    return task


def _evaluation(settings: Settings, model: MACE) -> Task:
    """Energies and forces of one batch, the collation included."""
    model.requires_grad_(False)
    batches, facts = _batched(settings, model)

    def step() -> None:
        prediction = predict(model, next(batches).graph, stress=settings["stress"])
        assert prediction.forces is not None
        prediction.forces.numpy()

    return Task(step, facts | {"what": "predict and InMemoryDataset.batch"})


def _box(settings: Settings, model: MACE) -> Task:
    """Energy and forces of a box from positions that differ every time."""
    model.requires_grad_(False)
    atoms = read_box(settings["box"])
    edges = build_graph(configuration(atoms, False), ElementTable(model.plan.atomic_numbers), model.plan.r_max).n_edges
    evaluate, what = {"calculator": _through_calculator, "predict": _through_predict}[settings["through"]](
        settings, model, atoms
    )
    return Task(moving(settings, atoms, evaluate), {"atoms": len(atoms), "edges": edges, "what": what})


def _through_predict(settings: Settings, model: MACE, atoms: Atoms) -> tuple[Callable[[], None], str]:
    """Evaluate with the functions under the calculator: neighbors, graph, model."""
    elements = ElementTable(model.plan.atomic_numbers)

    def prediction() -> Prediction:
        graph = build_graph(configuration(atoms, False), elements, model.plan.r_max)
        return predict(model, graph, stress=settings["stress"])

    _write_results(settings, prediction())

    def evaluate() -> None:
        forces = prediction().forces
        assert forces is not None
        forces.numpy()

    return evaluate, f"build_graph and predict, stress {'computed too' if settings['stress'] else 'not computed'}"


def _through_calculator(settings: Settings, model: MACE, atoms: Atoms) -> tuple[Callable[[], None], str]:
    """Evaluate as users do: a model file, read by the calculator."""
    # imported here, so that everything else can be measured without them
    from mace.calculators import MACECalculator
    from mace.model.model_file import save_model

    file = Path(settings["results"]).with_suffix(".model")
    save_model(file, model)
    calculator = MACECalculator(model_paths=str(file), device="cpu", default_dtype=settings["dtype"])
    evaluate = through_calculator(settings, atoms, calculator)
    evaluate()
    return evaluate, describe_calculator(calculator.results)


if __name__ == "__main__":
    serve(prepare)
