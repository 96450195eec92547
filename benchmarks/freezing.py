"""What a training step takes when parts of a model are frozen, or corrected by low-rank matrices.

    python benchmarks/freezing.py [--channels 128] [--dtype float32] [--rounds 20]

The steps of all variants are taken in turn in one process and one thread, so that other programs slow all of them
alike. Times are CPU time in milliseconds, of the fastest quarter of the steps the slowest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from ase.io import read

from mace.elements import ElementTable
from mace.finetuning.freezing import choose_moved
from mace.graphs.in_memory import InMemoryDataset
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.processes.devices import keep_freed_memory
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.state import TrainingState
from mace.training.step import loss_gradient, update_parameters

DATA = Path(__file__).resolve().parents[1] / "examples" / "methanol" / "methanol_train.xyz"
VARIANTS: dict[str, tuple[str, ...]] = {
    "everything trained": (),
    "embedding frozen (--freeze=1)": ("--freeze=1",),
    "interactions too (--freeze=5)": ("--freeze=5",),
    "products too (--freeze=6)": ("--freeze=6",),
    "first layer": ("--freeze=embedding,interactions.0,products.0",),
    "products": ("--freeze=products",),
    "--lora_rank=4": ("--lora=True", "--lora_rank=4"),
    "--lora_rank=16": ("--lora=True", "--lora_rank=16"),
    "--lora_rank=4, products frozen": ("--lora=True", "--lora_rank=4", "--freeze=products"),
}


@dataclass
class Variant:
    """A way to train, with the times of its steps in seconds."""

    step: Callable[[], dict[str, float]]
    moved: int
    state_bytes: int
    times: list[dict[str, float]] = field(default_factory=list)


def make_variant(flags: tuple[str, ...], plan: ModelPlan, dataset: InMemoryDataset, dtype: torch.dtype) -> Variant:
    """Build a model and the step that trains it."""
    settings = parse_training_settings(["--name=timing", f"--train_file={DATA}", *flags])
    model = MACE(plan, dtype).initialize(torch.Generator().manual_seed(1))
    choose_kernels(model)
    moved = choose_moved(model, settings)
    loss = make_loss("weighted", {"energy": 1.0, "forces": 100.0}, 0.01)
    state = TrainingState(model, settings, (loss, None), moved)
    batch = dataset.batch(range(10))

    def step() -> dict[str, float]:
        marks = [("start", time.process_time())]
        moved.forget_gradients()
        loss_gradient(model, batch, loss, mark=lambda name: marks.append((name, time.process_time())))
        moved.take_gradients()
        update_parameters(moved, state.optimizer, 10.0)
        moved.update_model()
        marks.append(("optimizer", time.process_time()))
        pairs = zip(marks[:-1], marks[1:], strict=True)
        return {name: end - start for (_, start), (name, end) in pairs}

    step()
    of_optimizer = [v for entry in state.optimizer.state.values() for v in entry.values() if torch.is_tensor(v)]
    size = sum(v.numel() * v.element_size() for v in of_optimizer)
    return Variant(step, sum(p.numel() for p in moved.parameters() if p.requires_grad), size)


def main() -> None:
    """Time all variants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    wanted = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    structures = [
        Configuration(
            atomic_numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=(False, False, False),
            energy=float(atoms.info["REF_energy"]),
            forces=atoms.arrays["REF_forces"],
        )
        for atoms in read(DATA, ":40")
        if len(atoms) > 1
    ]
    numbers = tuple(sorted({int(z) for each in structures for z in each.atomic_numbers}))
    plan = ModelPlan(
        model="ScaleShiftMACE",
        r_max=5.0,
        l_max=3,
        n_channels=wanted.channels,
        hidden_l=(0, 1),
        interactions=(InteractionPlan(residual=True), InteractionPlan(residual=True)),
        correlation=(3, 3),
        avg_num_neighbors=5.0,
        atomic_numbers=numbers,
        reference_energies=(0.0,) * len(numbers),
        scale=1.0,
    )
    dataset = InMemoryDataset(structures, ElementTable(numbers), plan.r_max)
    dtype = getattr(torch, wanted.dtype)
    variants = {name: make_variant(flags, plan, dataset, dtype) for name, flags in VARIANTS.items()}
    for _ in range(wanted.rounds):
        for variant in variants.values():
            variant.times.append(variant.step())
    print(f"{dataset.batch(range(10)).graph.n_edges} edges, {wanted.channels} channels, {wanted.dtype}")
    print("variant | trained | optimizer MB | forward | backward | optimizer | step")
    for name, variant in variants.items():
        phases = [np.array([times[phase] for times in variant.times]) for phase in ("forward", "backward", "optimizer")]
        fast = [f"{1e3 * float(np.quantile(values, 0.25)):.1f}" for values in (*phases, sum(phases))]
        print(" | ".join([name, f"{variant.moved:,}", f"{variant.state_bytes / 1e6:.1f}", *fast]))


if __name__ == "__main__":
    main()
