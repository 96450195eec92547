"""Batches gathered ahead of the steps that compute with them, by threads.

What a batch holds follows from its structures alone, and steps take batches in the order in which they were planned, so
results are the same bit for bit whatever the number of threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from mace.errors import RunInterrupted, UserError
from mace.graphs.bucket import Bucket
from mace.graphs.dataset import Batch, Dataset
from mace.graphs.graph import Graph, page_locked
from mace.processes.devices import is_out_of_memory, using
from mace.settings import TrainingSettings

_LOGGER = logging.getLogger(__name__)

AHEAD_OF_EACH = 2
"""Batches that are gathered ahead for each thread: one that it works at, and one that waits."""

EDGES_AHEAD = 1_000_000
"""Directed edges of the batches gathered ahead beyond which no further batch is begun; some 100 MB."""

LOOK = 1.0
"""Seconds after which a step that waits for its batch looks whether there is a reason not to. Looks are counted, not
timed: a machine that sleeps stops the threads too."""

SLOW = 60
"""Looks after which a warning says what is waited for; the next one comes after twice as many."""

LONGEST = 600
"""Looks after which waiting is given up."""

CLOSING = 5.0
"""Seconds that threads are given to end; one that hangs in a file system is left behind, and the program ends without
it."""

_WAY_OUT = "the same command with --restart_latest goes on from the last saved state."

Gather = Callable[[np.ndarray], Batch]
"""Returns the batch of some structures."""

Step = TypeVar("Step")
"""What a pass consists of: the structures of a step, or a step that tells them."""

Divide = Callable[[Step], Sequence[np.ndarray]]
"""Returns what this process computes of a step, in the parts it will ask for."""


def _at_once(structures: Any) -> Sequence[np.ndarray]:
    return (structures,)


def _heedless() -> None:
    """Go on waiting."""


@dataclass(frozen=True)
class Feeding:
    """How the steps of a run get their batches.

    Attributes:
        workers: Number of threads that gather batches ahead; with none, steps gather them themselves. If None, there is
            one where that saves time: for what is read from a disk, and beside a GPU, which does the steps meanwhile.
        device: The CUDA device for whose copies they keep batches in page-locked memory, if any.
        heed: Called every second while a step waits for data; raises an exception to end that.
        bucket_of: Returns the bucket to which a batch with some graph is padded; None for batches without padding.
    """

    workers: int | None = 0
    device: torch.device | None = None
    heed: Callable[[], None] = _heedless
    bucket_of: Callable[[Graph], Bucket] | None = None

    @classmethod
    def of(cls, settings: TrainingSettings, device: torch.device, heed: Callable[[], None] = _heedless) -> Feeding:
        """Return what the settings of a run ask for."""
        is_locked = settings.pin_memory and device.type == "cuda"
        return cls(settings.num_workers, device if is_locked else None, heed)

    def threads_for(self, dataset: Dataset) -> int:
        """Return how many threads gather the batches of a data set."""
        return int(dataset.on_disk or self.device is not None) if self.workers is None else self.workers

    def gather(self, dataset: Dataset, structures: np.ndarray) -> Batch:
        """Gather a batch as steps want it: padded, page-locked, or as it is."""
        batch = dataset.batch(structures)
        if self.bucket_of is not None:
            batch = batch.padded(self.bucket_of(batch.graph))
        if self.device is None:
            return batch
        with using(self.device):  # the current device is set per thread
            return page_locked(batch)

    def open(self, dataset: Dataset, steps: Iterable[Step], divide: Divide[Step] = _at_once) -> Feed[Step]:
        """Return the batches of a pass through a data set, for a ``with`` statement.

        Args:
            dataset: The structures.
            steps: What the pass consists of.
            divide: Returns the parts of a step; by default, it is its structures and has one.
        """
        return Feed(dataset, steps, divide, self)


class _Task:
    """A batch to be gathered.

    Attributes:
        step: Number of the step it is for.
        structures: Its structures.
        n_edges: Number of their directed edges.
        batch: The batch, or what was raised instead, once there is one of them.
        worker: The thread that has taken it over.
    """

    def __init__(self, step: int, structures: np.ndarray, n_edges: int) -> None:
        self.step, self.structures, self.n_edges = step, structures, n_edges
        self.batch: Future[Batch] = Future()
        self.worker: threading.Thread | None = None


class Feed(Generic[Step]):
    """Hands out the batches of a pass through a data set, in a ``with`` block at whose end all threads end.

    Iterating over it gives each step, which asks `batch` for the parts it computes. Of the parts that
    are to be expected, a limited number is gathered ahead. A step that asks for other ones, because memory ran out
    meanwhile, gets them too; it gathers them itself.

    Attributes:
        waited: Seconds that steps have waited for their batches, gathering them included where they did it themselves.
    """

    def __init__(self, dataset: Dataset, steps: Iterable[Step], divide: Divide[Step], feeding: Feeding) -> None:
        self._dataset, self._pass, self._divide, self._feeding = dataset, steps, divide, feeding
        self._step, self._steps, self._tasks = 0, deque[Step](), deque[_Task]()
        self._plan = self._planned()
        self._queue, self._closing = SimpleQueue["_Task | None"](), threading.Event()
        self._workers = feeding.threads_for(dataset)
        self._threads, self._most_threads = list[threading.Thread](), self._workers
        self.waited = 0.0

    def __len__(self) -> int:
        """Return the number of steps, if it is known."""
        return len(self._pass)  # type: ignore[arg-type]  # raises an error where it is not

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps."""
        if not self._workers:
            yield from self._pass
            return
        while True:
            # parts may be left that were not asked for as they were planned
            while self._tasks and self._tasks[0].step < self._step:
                self._tasks.popleft()
            self._fill()
            if not self._steps:
                return
            yield self._steps.popleft()
            self._step += 1

    def batch(self, structures: np.ndarray) -> Batch:
        """Return a batch of some structures of the present step, on the CPU.

        Raises:
            UserError: If it cannot be gathered, with the names of the structures.
        """
        begin = time.perf_counter()
        try:
            if not self._tasks or not np.array_equal(self._tasks[0].structures, structures):
                return self._result(self._attempt(structures), structures)
            task = self._tasks.popleft()
            self._fill()
            self._await(task)
            return self._result(task.batch, structures)
        finally:
            self.waited += time.perf_counter() - begin

    def _planned(self) -> Iterator[_Task]:
        """Yield the tasks of all steps; those of a step are divided as memory allows when the first of them is due."""
        for number, step in enumerate(self._pass):
            self._steps.append(step)
            for part in self._divide(step):
                yield _Task(number, part, int(self._dataset.edges_of(part).sum()))

    def _fill(self) -> None:
        """Hand the threads as many tasks as may be gathered ahead, one at least."""
        most = AHEAD_OF_EACH * self._workers
        while not self._tasks or (len(self._tasks) < most and sum(task.n_edges for task in self._tasks) < EDGES_AHEAD):
            task = next(self._plan, None)
            if task is None:
                return
            if task.step >= self._step:
                self._tasks.append(task)
                self._queue.put(task)
                self._employ()

    def _employ(self) -> None:
        """Start one more thread unless there are enough for the tasks at hand."""
        if len(self._threads) >= min(self._most_threads, len(self._tasks)):
            return
        work = (self._dataset, self._feeding, self._queue, self._closing)
        name = f"mace feeding {len(self._threads)}"
        thread = threading.Thread(target=_work, args=work, daemon=True, name=name)
        try:
            thread.start()
        except RuntimeError as error:  # there is a limit on the processes and threads of a user
            wanted = f"--num_workers={self._workers}: only {len(self._threads)} threads can be started ({error})"
            if not self._threads:
                raise UserError(f"{wanted}; with --num_workers=0 none is needed.") from error
            self._most_threads = len(self._threads)
            _LOGGER.warning("%s", wanted)
        else:
            self._threads.append(thread)

    def _await(self, task: _Task) -> None:
        """Wait for a batch, not silently and not forever."""
        looks, shown = 0, SLOW
        while not wait([task.batch], LOOK).done:
            self._feeding.heed()
            looks += 1
            is_alive = task.worker.is_alive() if task.worker else any(thread.is_alive() for thread in self._threads)
            if not is_alive and not task.batch.done():
                raise UserError(f"The thread that was to read {self._named(task.structures)} has ended; {_WAY_OUT}")
            if looks in (shown, LONGEST):
                shown *= 2
                waiting = f"No answer for {looks * LOOK:.0f} s to the request for {self._named(task.structures)}"
                if looks == LONGEST:
                    raise UserError(f"{waiting}; see whether its disk can be reached; {_WAY_OUT}")
                _LOGGER.warning("%s; can its disk be reached?", waiting)

    def _named(self, structures: np.ndarray) -> str:
        """Name structures by file and index, or by their places if the disk does not even tell that."""
        named: Future[str] = Future()
        describe = self._dataset.describe
        threading.Thread(target=lambda: named.set_result(describe(structures)), daemon=True).start()
        if wait([named], LOOK).done:
            return named.result()
        return f"structures {', '.join(map(str, sorted(structures.tolist())))} of the set"

    def _attempt(self, structures: np.ndarray) -> Future[Batch]:
        """Gather a batch in this thread."""
        batch: Future[Batch] = Future()
        _gather(self._dataset, structures, self._feeding, batch)
        return batch

    def _result(self, batch: Future[Batch], structures: np.ndarray) -> Batch:
        """Return a batch; if it cannot be gathered, name the structures at fault, all of them if each can be alone."""
        error = batch.exception()
        if error is None:
            return batch.result()
        if isinstance(error, (RunInterrupted, KeyboardInterrupt)) or is_out_of_memory(error):
            raise error
        _LOGGER.debug("A batch cannot be gathered", exc_info=error)
        alone = [self._attempt(structures[[place]]).exception() for place in range(len(structures))]
        faulty = [found is not None for found in alone]
        named = self._dataset.describe(structures[faulty] if any(faulty) else structures)
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{named} cannot be made into a batch: {reason.rstrip('.')}.") from error

    def __enter__(self) -> Feed[Step]:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads; what they have gathered ahead is forgotten."""
        self._closing.set()
        self._tasks.clear()
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + CLOSING
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def _gather(dataset: Dataset, structures: np.ndarray, feeding: Feeding, batch: Future[Batch]) -> None:
    """Gather a batch, or keep what is raised instead."""
    try:
        batch.set_result(feeding.gather(dataset, structures))
    except BaseException as error:  # noqa: BLE001  # raised where the batch is asked for
        batch.set_exception(error)


def _work(dataset: Dataset, feeding: Feeding, tasks: SimpleQueue[_Task | None], closing: threading.Event) -> None:
    """Gather batches until told to end."""
    while (task := tasks.get()) is not None and not closing.is_set():
        task.worker = threading.current_thread()
        _gather(dataset, task.structures, feeding, task.batch)
        del task  # the batch belongs to who takes it
