"""Which structures go into which batch."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mace.graphs.filling import pack, windows


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
class Step:
    """The structures of a step.

    Attributes:
        structures: Their indices, of all processes.
        batches: Those of each process; None if they are to be shared by `mace.processes.team.Team.share`.
    """

    structures: np.ndarray
    batches: tuple[np.ndarray, ...] | None = None


class BatchPlan(ABC):
    """The batches of every epoch, in an order that depends on the data, the seed and the epoch alone.

    Attributes:
        sampling: How often the structures of each head are used.
        seed: Of the run.
    """

    sampling: HeadSampling
    seed: int

    @property
    def n_structures(self) -> int:
        """Number of structures gone through in an epoch."""
        return self.sampling.structures_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in the first epoch; in others there may be a few more or less, see `n_steps`."""
        return self.n_steps(0)

    @abstractmethod
    def n_steps(self, epoch: int) -> int:
        """Count the optimizer steps of an epoch."""

    @abstractmethod
    def steps_done(self, epoch: int, done: int) -> int:
        """Count the steps after which a number of structures of the epoch have been gone through."""

    @abstractmethod
    def steps(self, epoch: int, done: int = 0) -> Iterator[Step]:
        """Yield the steps of an epoch.

        Args:
            epoch: Counted from zero.
            done: How many structures of the epoch have been gone through already.
        """

    @abstractmethod
    def batches(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the structures of an epoch, in order, and how many each of its batches has.

        They are those of each process, or of all together where `Step.batches` does not tell.
        """

    def fingerprint(self, epoch: int) -> int:
        """Return a number that differs where the steps of an epoch cannot be gone on with; 0 if all have one order."""
        return 0


@dataclass(frozen=True)
class EqualNumbers(BatchPlan):
    """As many structures in every step; the last one of an epoch may have fewer.

    Attributes:
        sampling: How often the structures of each head are used.
        seed: Of the run.
        structures_per_step: How many structures all processes together go through in a step.
    """

    sampling: HeadSampling
    seed: int
    structures_per_step: int

    def n_steps(self, epoch: int) -> int:
        """Count the optimizer steps of an epoch."""
        return -(-self.n_structures // self.structures_per_step)

    def steps_done(self, epoch: int, done: int) -> int:
        """Count the steps after which a number of structures of the epoch have been gone through."""
        return done // self.structures_per_step

    def steps(self, epoch: int, done: int = 0) -> Iterator[Step]:
        """Yield the steps of an epoch."""
        return map(Step, consecutive(self.sampling.draw(self.seed, epoch)[done:], self.structures_per_step))

    def batches(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the structures of an epoch, in order, and how many each of its batches has."""
        starts = np.arange(0, self.n_structures, self.structures_per_step)
        return self.sampling.draw(self.seed, epoch), np.diff(starts, append=self.n_structures)


class _Packed(NamedTuple):
    """The batches of an epoch: its structures, and where in them the batches end, ``[steps, processes]``."""

    epoch: int
    structures: np.ndarray
    ends: np.ndarray


class EqualWork(BatchPlan):
    """About the same work in every batch, and thus for every process: so many edges, or atoms.

    The random order of the epoch is cut into windows worth some tens of steps. The structures of a window are packed
    into batches (`mace.graphs.filling.pack`), of which those of about equal size form a step, one for each process;
    the steps of the window follow in random order.

    Args:
        sampling: How often the structures of each head are used.
        seed: Of the run.
        sizes: Size of each structure of the training set, at least 1, ``[structures]``.
        capacity: The largest size of a batch; a larger structure is a batch by itself.
        processes: Number of processes.
    """

    def __init__(self, sampling: HeadSampling, seed: int, sizes: np.ndarray, capacity: int, processes: int = 1) -> None:
        self.sampling, self.seed, self.sizes, self.capacity, self._processes = (
            sampling,
            seed,
            sizes,
            capacity,
            processes,
        )
        self._last: _Packed | None = None

    def _packed(self, epoch: int) -> _Packed:
        """Return the batches of an epoch; those asked for last are kept."""
        if self._last is None or self._last.epoch != epoch:
            self._last = self._pack(epoch)
        return self._last

    def _pack(self, epoch: int) -> _Packed:
        drawn = self.sampling.draw(self.seed, epoch)
        sizes, rng = self.sizes[drawn], np.random.default_rng([self.seed, epoch, 2])
        structures, counts = list[np.ndarray](), list[np.ndarray]()
        for window in windows(sizes, self.capacity * self._processes):
            batch, number = pack(sizes[window], self.capacity, self._processes)
            by_size = np.argsort(-np.bincount(batch, sizes[window], number), kind="stable")
            steps = rng.permuted(rng.permutation(by_size.reshape(-1, self._processes)), axis=1)
            place = np.empty(number, dtype=np.int64)
            place[steps.ravel()] = np.arange(number)
            structures.append(drawn[window[np.argsort(place[batch], kind="stable")]])
            counts.append(np.bincount(batch, minlength=number)[steps])
        of_steps = np.concatenate(counts)
        of_steps = of_steps[of_steps.any(1)]
        return _Packed(epoch, np.concatenate(structures), np.cumsum(of_steps.ravel()).reshape(of_steps.shape))

    def n_steps(self, epoch: int) -> int:
        """Count the optimizer steps of an epoch."""
        return len(self._packed(epoch).ends)

    def steps_done(self, epoch: int, done: int) -> int:
        """Count the steps after which a number of structures of the epoch have been gone through."""
        return int(np.searchsorted(self._packed(epoch).ends[:, -1], done, side="right"))

    def steps(self, epoch: int, done: int = 0) -> Iterator[Step]:
        """Yield the steps of an epoch."""
        _, structures, ends = self._packed(epoch)
        for of_step in ends[self.steps_done(epoch, done) :]:
            batches = np.split(structures[done : of_step[-1]], of_step[:-1] - done)
            yield Step(structures[done : of_step[-1]], tuple(batches))
            done = int(of_step[-1])

    def batches(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the structures of an epoch, in order, and how many each of its batches has."""
        _, structures, ends = self._packed(epoch)
        return structures, np.diff(ends.ravel(), prepend=0)

    def fingerprint(self, epoch: int) -> int:
        """Return a checksum of the batches: settings, number of processes and all sizes decide."""
        _, structures, ends = self._packed(epoch)
        return zlib.crc32(ends.astype("<i8").tobytes(), zlib.crc32(structures.astype("<i8").tobytes()))

    def expected_count(self, epoch: int, counts: np.ndarray) -> float:
        """Return the mean number of labeled entries of the steps of the epoch that have any.

        Let ``s(i)`` be the weighted penalties of structure i and ``c(i)`` the number of its labeled entries, and
        ``S(B)`` and ``C(B)`` their sums over a step B. With steps of equally many structures drawn at random, a term of
        the loss is ``S(B) / C(B)``. To first order in the differences between steps, its mean over the K steps of an
        epoch is ``K'/K S/C``, where S and C are sums over the epoch and K' is the number of steps with any such label:
        each structure counts by its own labels, and a label so rare that few steps have it counts in those.

        Here the number of structures, and so C(B), follows from the sizes of the structures. In ``S(B) / C(B)`` a
        molecule that fills a gap beside a large cell would count more than one in a batch of molecules. Divided by
        ``C / K'``, the mean of C(B) over the steps with any label, it counts the same in any company: the mean over the
        epoch is ``1/K sum_B S(B) / (C/K') = K'/K S/C`` again, exactly. With labels in every step K' is K, and it is the
        loss of all structures at once. The same holds for the gradients.

        Args:
            epoch: Counted from zero.
            counts: Number of labeled entries of each structure of the training set, ``[structures]``.
        """
        _, structures, ends = self._packed(epoch)
        of_steps = np.add.reduceat(counts[structures], ends[:, -1] - np.diff(ends[:, -1], prepend=0))
        return float(of_steps.sum() / max(1, np.count_nonzero(of_steps)))


def consecutive(structures: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Divide indices of structures into batches, the last one as large as what is left."""
    return (structures[start : start + batch_size] for start in range(0, len(structures), batch_size))
