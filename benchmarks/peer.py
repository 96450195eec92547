"""Worker of mace-torch, run by an interpreter that has it; it builds and trains models as its command line does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from molecules import read_box, read_molecules
from moving_box import moving, through_calculator
from workers import Settings, Task, describe_calculator, serve


def prepare(settings: Settings) -> Task:
    """Build what the settings ask for; write the random weights and the results on the first structures."""
    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    facts = identity()
    model = build_model(settings["model"])
    np.savez(settings["weights"], **{name: value.numpy() for name, value in model.state_dict().items()})
    tasks = {"training": _training, "batch": _evaluation, "box": _calculator, "weights": _nothing}
    task = tasks[settings["task"]](settings, model)
    task.facts.update(facts, parameters=sum(p.numel() for p in model.parameters()))
    return task


def identity() -> dict[str, Any]:
    """Return the versions."""
    try:
        package = f"mace-torch {version('mace-torch')}"
    except PackageNotFoundError:
        raise RuntimeError("this interpreter has no mace-torch: pip install torch mace-torch==0.3.16") from None
    return {"package": package, "torch": torch.__version__, "threads": torch.get_num_threads()}


def build_model(plan: Settings) -> torch.nn.Module:
    """Build a model as the word MACE of its command line does, with random weights."""
    import_module("mace")  # prepares the import of e3nn
    irreps, modules = import_module("e3nn.o3").Irreps, import_module("mace.modules")
    blocks = modules.interaction_classes
    torch.manual_seed(plan["seed"])
    model: torch.nn.Module = modules.ScaleShiftMACE(
        r_max=plan["r_max"],
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=plan["l_max"],
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
        num_interactions=plan["layers"],
        num_elements=len(plan["elements"]),
        hidden_irreps=irreps(plan["hidden"]),
        MLP_irreps=irreps("16x0e"),
        atomic_energies=np.array([plan["reference_energies"]]),
        avg_num_neighbors=plan["avg_num_neighbors"],
        atomic_numbers=plan["elements"],
        correlation=plan["correlation"],
        gate=modules.gate_dict["silu"],
        radial_MLP=[64, 64, 64],
        radial_type="bessel",
        atomic_inter_scale=plan["scale"],
        atomic_inter_shift=[0.0],
        heads=["Default"],
    )
    return model


def read_dataset(settings: Settings) -> list[Any]:
    """Return the structures of the settings with their neighbors."""
    data, elements = import_module("mace.data"), import_module("mace.tools").AtomicNumberTable
    table = elements(settings["model"]["elements"])
    configurations = [
        data.Configuration(
            atomic_numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=tuple(atoms.pbc),
            properties={"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()},
            property_weights={"energy": 1.0, "forces": 1.0},
        )
        for atoms in read_molecules(Path(settings["data"]))
    ]
    return [data.AtomicData.from_config(c, z_table=table, cutoff=settings["model"]["r_max"]) for c in configurations]


def make_loader(settings: Settings, items: list[Any], shuffle: bool = True) -> Any:
    """Return a loader of batches of the size of the settings."""
    loader = import_module("mace.tools.torch_geometric.dataloader").DataLoader
    generator = torch.Generator().manual_seed(settings["model"]["seed"])
    return loader(items, batch_size=settings["batch_size"], shuffle=shuffle, drop_last=True, generator=generator)


def _evaluate(model: torch.nn.Module, batch: Any, stress: bool) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = model(
        batch.to_dict(), training=False, compute_force=True, compute_virials=False, compute_stress=stress
    )
    return result


def _batched(settings: Settings, model: torch.nn.Module) -> tuple[Any, dict[str, Any]]:
    """Return an endless iterator of shuffled batches, and facts about them; write the results on the first batch."""
    items = read_dataset(settings)
    shuffled = make_loader(settings, items)
    first = _evaluate(model, next(iter(make_loader(settings, items, shuffle=False))), stress=False)
    energies, forces = first["energy"].detach().numpy(), first["forces"].detach().numpy()
    np.savez(settings["results"], energies=energies, forces=forces)
    size, n = settings["batch_size"], len(items)
    facts = {
        "atoms": size * sum(item.num_nodes for item in items) / n,
        "edges": size * sum(item.edge_index.shape[1] for item in items) / n,
    }
    return itertools.chain.from_iterable(itertools.repeat(shuffled)), facts


def _training(settings: Settings, model: torch.nn.Module) -> Task:
    """One step of its training loop, the collation of its data loader included."""
    batches, facts = _batched(settings, model)
    take = training_step(settings, model, torch.device("cpu"))
    return Task(lambda: take(next(batches)), facts | {"what": "its take_step and data loader"})


def training_step(settings: Settings, model: torch.nn.Module, device: torch.device) -> Callable[[Any], Any]:
    """Return a function that takes a step of its training loop on a batch."""
    scripts, take_step = import_module("mace.tools.scripts_utils"), import_module("mace.tools.train").take_step
    moving_average = import_module("torch_ema").ExponentialMovingAverage
    options = SimpleNamespace(
        lr_params_factors="{}",
        freeze=None,
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        amsgrad=True,
        beta=0.9,
        optimizer="adam",
    )
    weights = settings["loss_weights"]
    loss = import_module("mace.modules").WeightedEnergyForcesLoss(weights["energy"], weights["forces"])
    optimizer = scripts.get_optimizer(options, scripts.get_params_options(options, model))
    average = moving_average(model.parameters(), decay=settings["ema_decay"])
    outputs = {"forces": True, "virials": False, "stress": False}

    def step(batch: Any) -> Any:
        return take_step(
            model=model,
            loss_fn=loss,
            batch=batch,
            optimizer=optimizer,
            ema=average,
            output_args=outputs,
            max_grad_norm=settings["clip_grad"],
            device=device,
        )

    return step


def _evaluation(settings: Settings, model: torch.nn.Module) -> Task:
    """Energies and forces of one batch as its validation computes them, the collation included."""
    model.requires_grad_(False)
    batches, facts = _batched(settings, model)

    def step() -> None:
        _evaluate(model, next(batches), settings["stress"])["forces"].detach().numpy()

    return Task(step, facts | {"what": "its model and data loader"})


def _nothing(settings: Settings, model: torch.nn.Module) -> Task:
    """Have written the weights, where the structure is too large to be evaluated here."""
    return Task(lambda: None)


def _calculator(settings: Settings, model: torch.nn.Module) -> Task:
    """Energy and forces of a box through its calculator, from positions that differ every time."""
    file = settings["weights"] + ".model"
    torch.save(model, file)
    calculator = import_module("mace.calculators").MACECalculator(
        model_paths=file, device="cpu", default_dtype=settings["dtype"]
    )
    if not settings["stress"]:
        _switch_stress_off(calculator.models[0])
    atoms = read_box(settings["box"])
    step = moving(settings, atoms, through_calculator(settings, atoms, calculator))
    edges = int(calculator._atoms_to_batch(atoms).edge_index.shape[1])
    return Task(step, {"atoms": len(atoms), "edges": edges, "what": describe_calculator(calculator.results)})


def _switch_stress_off(model: torch.nn.Module) -> None:
    """Leave the stress out: the calculator has no switch and always asks for it, which would be extra work."""
    forward = model.forward

    def without_stress(*arguments: Any, **words: Any) -> Any:
        return forward(*arguments, **(words | {"compute_stress": False}))

    model.forward = without_stress


if __name__ == "__main__":
    serve(prepare)
