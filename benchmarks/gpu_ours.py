"""Worker of this package for `gpu.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from gpu_timing import Step, device_facts, serve, wait
from molecules import TRAINING_FILE, read_molecules
from ours import configuration, load_weights, make_plan

import mace
from mace.elements import ElementTable
from mace.graphs.dataset import Batch
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.backend import TORCH
from mace.kernels.triton_backend import TRITON
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.settings import TrainingSettings
from mace.training.loss import Loss, make_loss
from mace.training.state import TrainingState
from mace.training.step import loss_gradient, update_parameters


def identify(settings: dict[str, Any]) -> dict[str, Any]:
    """Return versions; an error if what is to be measured does not exist."""
    facts = {"package": f"mace-train {mace.__version__}, {settings['side']}"} | device_facts(settings["device"])
    if settings["kernels"] == "triton":
        import triton

        facts["triton"] = triton.__version__
    if settings["graphs"] and find_spec("mace.processes.cuda_graphs") is None:
        raise RuntimeError("this version does not capture steps")
    return facts


class _Task:
    """A step, with facts that are known once it has run.

    Args:
        step: Does the work.
        facts: What is told besides its times.
    """

    def __init__(self, step: Callable[[], object], facts: dict[str, Any]) -> None:
        self._step, self.facts = step, facts

    def __call__(self) -> object:
        """Do the work."""
        return self._step()


def prepare(settings: dict[str, Any], case: dict[str, Any]) -> Step:
    """Build what a case needs; compare with float64; write results."""
    device = torch.device(settings["device"])
    model = _build_model(case).to(device)
    chosen = _choose_kernels(model, settings["kernels"])
    dataset = _dataset(case)
    batches = _batches(dataset, case["batch_size"])
    facts: dict[str, Any] = {"kernels_chosen": chosen, "atoms": batches[0].graph.n_atoms}
    facts |= {"edges": batches[0].graph.n_edges, "parameters": sum(p.numel() for p in model.parameters())}
    if case.get("compare"):
        facts["deviation"] = _deviation(model, batches[0].to(device), case)
    else:
        _write(case["results"], model, batches[0].graph.to(device))
    tasks = {"training": _training, "evaluation": _evaluation, "calculator": _calculator}
    step = tasks[case["task"]](settings, case, model, batches, device)
    wait(device)
    return _Task(step, facts)


def _choose_kernels(model: MACE, wanted: str) -> str:
    """Take exactly the kernels that are to be measured; without a program of them there is nothing to measure."""
    if wanted != "triton":
        return choose_kernels(model, wanted)
    if not model.use_backend(TRITON).has_program:
        raise RuntimeError("there is no program of Triton's kernels for this model or device")
    return TRITON.name


def _build_model(case: dict[str, Any]) -> MACE:
    plan = make_plan(case["model"])
    model = MACE(plan, getattr(torch, case["dtype"])).initialize(torch.Generator().manual_seed(0))
    if Path(case["weights"]).exists():
        load_weights(model, case["weights"])
    return model


def _dataset(case: dict[str, Any]) -> InMemoryDataset:
    structures = [configuration(atoms, labeled=True) for atoms in read_molecules(Path(case["data"]))]
    return InMemoryDataset(structures, ElementTable(tuple(case["model"]["elements"])), case["model"]["r_max"])


def _batches(dataset: InMemoryDataset, size: int) -> list[Batch]:
    full = len(dataset) - len(dataset) % size
    return list(dataset.batches(size, np.arange(full)))


def _write(file: str, model: MACE, graph: Graph) -> None:
    found = predict(model, graph)
    assert found.energy is not None and found.forces is not None
    np.savez(file, energies=found.energy.double().cpu().numpy(), forces=found.forces.double().cpu().numpy())


def _deviation(model: MACE, batch: Batch, case: dict[str, Any]) -> dict[str, float]:
    """Return how far energies, forces and the gradient of the loss are from those of torch in float64."""
    loss = _loss(case)
    reference = deepcopy(model).to_precision(torch.float64).use_backend(TORCH)
    numbers = []
    for one in (model, reference):
        found = predict(one, batch.graph)
        loss_gradient(one, batch, loss)
        gradient = torch.cat([p.grad.double().reshape(-1) for p in one.parameters() if p.grad is not None])
        one.zero_grad(set_to_none=True)
        assert found.energy is not None and found.forces is not None
        numbers.append((found.energy.double(), found.forces.double(), gradient))
    _write(case["results"], model, batch.graph)
    (energies, forces, gradient), (energies_64, forces_64, gradient_64) = numbers
    return {
        "energy_per_atom_eV": float((energies - energies_64).abs().max()) / batch.graph.n_atoms * len(energies),
        "forces_relative": float((forces - forces_64).abs().max() / forces_64.pow(2).mean().sqrt()),
        "gradient_relative": float((gradient - gradient_64).abs().max() / gradient_64.abs().max()),
    }


def _loss(case: dict[str, Any]) -> Loss:
    return make_loss("weighted", case["loss_weights"])


def _settings(case: dict[str, Any]) -> TrainingSettings:
    names = ("lr", "weight_decay", "ema_decay", "clip_grad")
    return TrainingSettings(
        name="benchmark", train_file=["unused"], amsgrad=True, ema=True, **{name: case[name] for name in names}
    )


def _training(
    settings: dict[str, Any], case: dict[str, Any], model: MACE, batches: list[Batch], device: torch.device
) -> Callable[[], object]:
    """Return a step of training on batches that lie on the device, or that are padded and copied there if captured."""
    loss = _loss(case)
    state = TrainingState(model, _settings(case), (loss, None))
    if settings["graphs"]:
        return _captured(state, case, loss, batches, device)
    endless = itertools.cycle([batch.to(device) for batch in batches])

    def step() -> torch.Tensor:
        value = loss_gradient(model, next(endless), loss)
        update_parameters(state.moved, state.optimizer, case["clip_grad"], state.average)
        return value

    return step


def _captured(
    state: TrainingState, case: dict[str, Any], loss: Loss, batches: list[Batch], device: torch.device
) -> Callable[[], object]:
    """Return a step that is captured for each bucket, whose batches are padded before and copied in every step."""
    from mace.processes.cuda_graphs import recorder_for
    from mace.training.batch_step import CapturedSteps

    captured = CapturedSteps(state, case["clip_grad"], recorder_for(device))
    endless = itertools.cycle([captured.padded(batch) for batch in batches])

    def step() -> torch.Tensor:
        value, norm = captured.take(next(endless), loss, None, lambda phase: None, complete=True)
        if norm is None:
            update_parameters(state.moved, state.optimizer, case["clip_grad"], state.average)
        return value

    return step


def _evaluation(
    settings: dict[str, Any], case: dict[str, Any], model: MACE, batches: list[Batch], device: torch.device
) -> Callable[[], object]:
    """Return energies and forces of batches that lie on the device."""
    model.requires_grad_(False)
    endless = itertools.cycle([batch.graph.to(device) for batch in batches])
    return lambda: predict(model, next(endless)).forces


def _calculator(
    settings: dict[str, Any], case: dict[str, Any], model: MACE, batches: list[Batch], device: torch.device
) -> Callable[[], object]:
    """Return energies and forces of a structure that moves, through the calculator, neighbors included."""
    from mace.calculators import MACECalculator
    from mace.model.model_file import save_model

    file = Path(case["results"]).with_suffix(".model")
    save_model(file, deepcopy(model).to("cpu"))
    atoms = ase.io.read(Path(case["data"]) / TRAINING_FILE, 0)
    calculator = MACECalculator(str(file), device=settings["device"], default_dtype=case["dtype"])
    generator = np.random.default_rng(0)

    def step() -> np.ndarray:
        atoms.positions += generator.normal(0.0, 0.005, atoms.positions.shape)
        calculator.calculate(atoms, ["energy", "forces"])
        forces: np.ndarray = calculator.results["forces"]
        return forces

    return step


if __name__ == "__main__":
    serve(prepare, identify)
