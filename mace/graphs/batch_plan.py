"""Which structures go into which batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchPlan:
    """The batches of every epoch: all structures once, in an order that depends on seed and epoch alone.

    Attributes:
        n_structures: Of the training set.
        seed: Of the run.
        structures_per_step: How many structures all processes together go through in a step.
    """

    n_structures: int
    seed: int
    structures_per_step: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last one may be smaller."""
        return -(-self.n_structures // self.structures_per_step)

    def steps(self, epoch: int, done: int = 0) -> Iterator[np.ndarray]:
        """Yield the indices of the structures of each step, of all processes.

        Args:
            epoch: Counted from zero.
            done: How many structures of the epoch have been gone through already.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(self.n_structures)
        return consecutive(order[done:], self.structures_per_step)


def consecutive(structures: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Divide indices of structures into batches, the last one as large as what is left."""
    return (structures[start : start + batch_size] for start in range(0, len(structures), batch_size))
