"""Which structures go into which batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HeadSampling:
    """How often the structures of each head are used, in the order of the heads in the training set.

    Attributes:
        sizes: Number of training structures of each head; those of a head stand together.
        draws: How many of them are drawn in an epoch; more than there are repeats some, fewer leaves some out.
    """

    sizes: Mapping[str, int]
    draws: Mapping[str, int]

    @property
    def structures_per_epoch(self) -> int:
        """Number of structures drawn in an epoch."""
        return sum(self.draws.values())

    @property
    def shares(self) -> dict[str, float]:
        """Share of each head in the structures of an epoch."""
        return {name: count / self.structures_per_epoch for name, count in self.draws.items()}

    def draw(self, seed: int, epoch: int) -> np.ndarray:
        """Draw the structures of an epoch in random order; seed and epoch alone decide.

        All structures of a head are taken as often as they fit. What is taken beyond goes on in the next epoch where
        this one ends, so that in the long run all are used equally often.

        Returns:
            Indices of the structures in the training set, ``[structures_per_epoch]``.
        """
        rng = np.random.default_rng([seed, epoch])
        if self.draws == self.sizes:
            return rng.permutation(self.structures_per_epoch)
        drawn, first = list[np.ndarray](), 0
        for head, (size, count) in enumerate(zip(self.sizes.values(), self.draws.values(), strict=True)):
            whole, rest = divmod(count, size)
            begin = epoch * rest
            passes = range(begin // size, -(-(begin + rest) // size))
            order = [np.random.default_rng([seed, head, number, 1]).permutation(size) for number in passes]
            start = begin - passes.start * size
            drawn += [first + np.arange(size)] * whole
            drawn += [first + np.concatenate(order)[start : start + rest]] if rest else []
            first += size
        return rng.permutation(np.concatenate(drawn))


def one_head(n_structures: int) -> HeadSampling:
    """Return the sampling of a training set for one head: every structure once."""
    return HeadSampling({"": n_structures}, {"": n_structures})


def sampled(sizes: Mapping[str, int], weights: Mapping[str, float] | None) -> HeadSampling:
    """Distribute the structures of an epoch among heads in proportion to weights; their total number stays.

    Args:
        sizes: Number of training structures of each head.
        weights: Weight of each head; None for as many as there are of each.

    Returns:
        The sampling, with at least one structure of each head.
    """
    if weights is None:
        return HeadSampling(dict(sizes), dict(sizes))
    total = sum(sizes.values())
    wanted = {name: total * weights[name] / sum(weights.values()) for name in sizes}
    draws = {name: max(1, int(count)) for name, count in wanted.items()}
    # what rounding leaves goes to those that lost most
    for name in sorted(sizes, key=lambda name: draws[name] - wanted[name])[: max(0, total - sum(draws.values()))]:
        draws[name] += 1
    return HeadSampling(dict(sizes), draws)


@dataclass(frozen=True)
class BatchPlan:
    """The batches of every epoch, in an order that depends on seed and epoch alone.

    Attributes:
        sampling: How often the structures of each head are used.
        seed: Of the run.
        structures_per_step: How many structures all processes together go through in a step.
    """

    sampling: HeadSampling
    seed: int
    structures_per_step: int

    @property
    def n_structures(self) -> int:
        """Number of structures gone through in an epoch."""
        return self.sampling.structures_per_epoch

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
        return consecutive(self.sampling.draw(self.seed, epoch)[done:], self.structures_per_step)


def consecutive(structures: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Divide indices of structures into batches, the last one as large as what is left."""
    return (structures[start : start + batch_size] for start in range(0, len(structures), batch_size))
