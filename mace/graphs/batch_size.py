"""How much goes into a batch, as the settings say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mace.graphs.batch_plan import BatchPlan, EqualNumbers, EqualWork, HeadSampling, consecutive
from mace.graphs.dataset import Dataset
from mace.settings import TrainingSettings, provided


@dataclass(frozen=True)
class BatchSize:
    """How much a process works on at a time.

    Attributes:
        amount: So many structures, or at most so many directed edges or atoms; a single structure may have more.
        unit: What is counted. Where edges are, a structure without any counts as one.
    """

    amount: int
    unit: Literal["structures", "edges", "atoms"] = "structures"

    @property
    def in_words(self) -> str:
        """As shown in logs and tables, a bare number if it is one of structures."""
        return str(self.amount) if self.unit == "structures" else f"up to {self.amount} {self.unit}"

    def sizes(self, dataset: Dataset, structures: np.ndarray) -> np.ndarray:
        """Return how much each of some structures counts, ``[structures]``."""
        if self.unit == "structures":
            return np.ones(len(structures), dtype=np.int64)
        return np.maximum(1, (dataset.edges_of if self.unit == "edges" else dataset.atoms_of)(structures))

    def divide(self, dataset: Dataset, structures: np.ndarray, processes: int = 1) -> list[np.ndarray]:
        """Divide structures, in their order, into what a number of processes work on at a time."""
        if self.unit == "structures":
            return list(consecutive(structures, self.amount * processes))
        ends, starts = np.cumsum(self.sizes(dataset, structures)), [0]
        while starts[-1] < len(structures):
            before = ends[starts[-1] - 1] if starts[-1] else 0
            following = int(np.searchsorted(ends, before + self.amount * processes, side="right"))
            starts.append(max(starts[-1] + 1, following))
        return np.split(structures, starts[1:-1]) if len(structures) else []


def training_batch(settings: TrainingSettings) -> BatchSize:
    """Return how much each process works on in a step of training."""
    if settings.batch_edges is not None:
        return BatchSize(settings.batch_edges, "edges")
    return BatchSize(settings.batch_size) if settings.batch_atoms is None else BatchSize(settings.batch_atoms, "atoms")


def validation_batch(settings: TrainingSettings) -> BatchSize:
    """Return how much each process works on at a time in an evaluation."""
    if settings.valid_batch_edges is not None:
        return BatchSize(settings.valid_batch_edges, "edges")
    if settings.valid_batch_atoms is not None:
        return BatchSize(settings.valid_batch_atoms, "atoms")
    size = training_batch(settings)
    if size.unit == "structures" or "valid_batch_size" in provided(settings):
        return BatchSize(settings.valid_batch_size)
    return size


def plan_batches(settings: TrainingSettings, train: Dataset, sampling: HeadSampling, processes: int) -> BatchPlan:
    """Plan the batches of a training.

    Args:
        settings: The settings.
        train: The training structures.
        sampling: How often the structures of each head are used.
        processes: Number of processes.
    """
    size = training_batch(settings)
    if size.unit == "structures":
        return EqualNumbers(sampling, settings.seed, size.amount * processes)
    return EqualWork(sampling, settings.seed, size.sizes(train, np.arange(len(train))), size.amount, processes)


@dataclass(frozen=True)
class Spread:
    """How different the batches of an epoch are.

    Attributes:
        what: What is counted.
        mean: Their mean number.
        deviation: Standard deviation.
        least: The smallest number.
        most: The largest number.
    """

    what: str
    mean: float
    deviation: float
    least: int
    most: int

    @classmethod
    def of(cls, what: str, numbers: np.ndarray) -> Spread:
        """Measure it."""
        return cls(what, float(numbers.mean()), float(numbers.std()), int(numbers.min()), int(numbers.max()))

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.mean:.4g} \u00b1 {self.deviation:.3g} {self.what} ({self.least} to {self.most})"


def spreads(plan: BatchPlan, train: Dataset) -> list[Spread]:
    """Measure edges, atoms and structures of the batches of the first epoch; of each process if the plan has them."""
    structures, lengths = plan.batches(0)
    ends, found = np.cumsum(lengths), list[Spread]()
    for what, counts in (("edges", train.edges_of(structures)), ("atoms", train.atoms_of(structures))):
        totals = np.concatenate([[0], np.cumsum(counts)])
        found.append(Spread.of(what, totals[ends] - totals[ends - lengths]))
    return [*found, Spread.of("structures", lengths)]
