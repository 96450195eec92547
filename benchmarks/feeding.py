"""Measure what threads that gather batches ahead (--num_workers) cost or save: steps with each number of them in turns.

python benchmarks/feeding.py --data ../shared/data/acac --threads 1

The step is that of the default model on batches of 10 molecules of acetylacetone, their batches from

* memory: the neighbors are known, a batch is a gather;
* search: the neighbors of a batch are searched when it is gathered;
* disk: the same, after waiting some milliseconds for each structure, as for a slow disk.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from molecules import read_molecules

from mace.elements import ElementTable
from mace.graphs.dataset import Dataset
from mace.graphs.feeding import Feeding
from mace.graphs.in_memory import InMemoryDataset
from mace.graphs.neighbors import Neighbors, find_all_neighbors
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.processes.devices import keep_freed_memory
from mace.settings import TrainingSettings
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.optimization import MovingAverage, make_optimizer
from mace.training.step import loss_gradient, update_parameters


class Searching(InMemoryDataset):
    """A data set that waits for every structure and searches the neighbors of each batch anew."""

    delay = 0.0

    def neighbors(self, structures: np.ndarray) -> Neighbors:
        """Search the neighbors of some structures."""
        time.sleep(self.delay * len(structures))
        return find_all_neighbors([self.structures[int(place)] for place in structures], self.r_max)


def _configurations(folder: Path) -> list[Configuration]:
    return [
        Configuration(
            atomic_numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=(False, False, False),
            energy=atoms.get_potential_energy(),
            forces=atoms.get_forces(),
        )
        for atoms in read_molecules(folder)
    ]


class Steps:
    """The steps of a model, whose batches come from a data set as a number of threads gathers them."""

    def __init__(self, channels: int) -> None:
        plan = ModelPlan(
            model="MACE",
            r_max=5.0,
            l_max=3,
            n_channels=channels,
            hidden_l=(0, 1),
            interactions=(InteractionPlan(residual=False), InteractionPlan(residual=True)),
            correlation=(3, 3),
            avg_num_neighbors=12.0,
            atomic_numbers=(1, 6, 8),
            reference_energies=(-13.57, -1026.85, -2037.80),
            scale=1.0,
        )
        self.model = MACE(plan)
        print("kernels:", choose_kernels(self.model))
        settings = TrainingSettings(name="benchmark", train_file=["unused"], amsgrad=True)
        self.optimizer = make_optimizer(self.model, settings)
        self.average = MovingAverage(self.model.parameters(), 0.99)
        self.loss = make_loss("weighted", {"energy": 1.0, "forces": 100.0})

    def take(self, dataset: Dataset, batches: list[np.ndarray], workers: int, idle: bool) -> tuple[float, float, float]:
        """Take steps; return seconds, seconds of processors and seconds of waiting, each per step."""
        start, busy = time.perf_counter(), time.process_time()
        with Feeding(workers).open(dataset, batches) as feed:
            for structures in feed:
                batch = feed.batch(structures)
                if not idle:
                    loss_gradient(self.model, batch, self.loss)
                    update_parameters(self.model, self.optimizer, 10.0, self.average)
        ends = time.perf_counter() - start, time.process_time() - busy, feed.waited
        return ends[0] / len(batches), ends[1] / len(batches), ends[2] / len(batches)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Steps with batches gathered ahead by threads.")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "acac")
    parser.add_argument("--source", choices=("memory", "search", "disk"), default="memory")
    parser.add_argument("--delay", type=float, default=5.0, help="milliseconds for each structure from disk")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--threads", type=int, default=1, help="of the step itself")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=15, help="of each round and number of workers")
    parser.add_argument("--without-steps", action="store_true", help="gather only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_default_dtype(torch.float32)
    keep_freed_memory()
    kind = InMemoryDataset if options.source == "memory" else Searching
    dataset = kind(_configurations(options.data), ElementTable((1, 6, 8)), 5.0)
    if isinstance(dataset, Searching) and options.source == "disk":
        dataset.delay = 1e-3 * options.delay
    steps, rng = Steps(options.channels), np.random.default_rng(0)
    steps.take(dataset, [np.arange(10)] * 5, 0, False)
    found: dict[int, list[tuple[float, float, float]]] = {workers: [] for workers in options.workers}
    for _ in range(options.rounds):
        for workers in rng.permutation(options.workers).tolist():
            batches = [rng.choice(len(dataset), 10, replace=False) for _ in range(options.steps)]
            found[workers].append(steps.take(dataset, batches, workers, options.without_steps))
    print(f"source {options.source}; milliseconds per step, medians of {options.rounds} rounds and best")
    for workers, times in found.items():
        wall, busy, waited = (1e3 * np.median(np.array(times), axis=0)).tolist()
        print(
            f"{workers:2d} workers: {wall:7.2f} (best {1e3 * min(times)[0]:7.2f}), processors {busy:7.2f}, "
            f"waiting {waited:6.2f} ({100 * waited / wall:.1f} %)"
        )
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
