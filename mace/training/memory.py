"""Split batches into parts that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import numpy as np

from mace.errors import UserError
from mace.graphs.dataset import Dataset
from mace.processes.devices import is_out_of_memory, release_memory

_LOGGER = logging.getLogger(__name__)


class Part:
    """Structures of a batch that are computed together inside a ``with`` block, which ends if memory runs out.

    Attributes:
        structures: Indices of the structures.
        fits: Whether memory sufficed; if not, the block must have had no lasting effect.
    """

    def __init__(self, structures: np.ndarray) -> None:
        self.structures, self.fits = structures, True

    def __enter__(self) -> Part:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Suppress out-of-memory errors and note them in `fits`."""
        self.fits = error is None
        return error is not None and is_out_of_memory(error)


@contextmanager
def needing_memory(purpose: str, n_parameters: int) -> Iterator[None]:
    """Explain, in a ``with`` block whose work cannot be done in parts, that memory does not suffice for it.

    Args:
        purpose: Name of the work.
        n_parameters: Number of parameters of the model.

    Raises:
        UserError: If memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"Out of memory in {purpose}, which needs several numbers for each of the {n_parameters} parameters of the "
            "model, whatever the batch; choose a smaller model, --default_dtype=float32, or a machine with more memory "
            "that no other program uses. The same command with --restart_latest goes on from the last saved state."
        ) from error


class EdgeLimit:
    """Limit on the number of directed edges computed at a time: as set by the user, lowered if memory runs out.

    Args:
        edges: Highest number allowed; None for no limit.
        purpose: Name of the work in messages, for example ``training``.
    """

    def __init__(self, edges: int | None, purpose: str) -> None:
        self.edges, self._purpose = edges, purpose

    def split(self, dataset: Dataset, structures: np.ndarray) -> list[np.ndarray]:
        """Divide a batch into consecutive parts within the limit; a structure above the limit forms a part of its own.

        Args:
            dataset: The structures.
            structures: Indices of the structures in the batch.
        """
        if self.edges is None or len(structures) < 2:
            return [structures] if len(structures) else []
        starts, total = [0], 0
        for place, edges in enumerate(dataset.edges_of(structures).tolist()):
            if place > starts[-1] and total + edges > self.edges:
                starts.append(place)
                total = 0
            total += edges
        return np.split(structures, starts[1:])

    def parts(self, dataset: Dataset, structures: np.ndarray) -> Iterator[Part]:
        """Yield the parts of a batch one by one; see `split`.

        If a part does not fit into memory, the limit is lowered and the two halves of the part come next.

        Args:
            dataset: The structures.
            structures: Indices of the structures in the batch.

        Raises:
            UserError: If a single structure does not fit.
        """
        waiting = self.split(dataset, structures)
        while waiting:
            part = Part(waiting.pop(0))
            yield part
            if part.fits:
                continue
            release_memory()  # the error, whose traceback held all the tensors, is gone by now
            found, counts = part.structures, dataset.edges_of(part.structures)
            if len(found) == 1:
                alone = dataset[int(found[0])]
                raise UserError(
                    f"{alone.where()} ({alone.n_atoms} atoms, {int(counts[0])} edges) alone does not fit into memory "
                    f"in {self._purpose}; take it out, or choose a smaller model, a shorter --r_max, "
                    "--default_dtype=float32 or a machine with more memory."
                )
            self.edges = max(int(counts.sum()) // 2, int(counts.max()))
            _LOGGER.warning(
                "Out of memory in %s with %d structures of %d edges; from now on at most %d edges are computed at a "
                "time, and the parts of a batch are added up to the same loss",
                self._purpose,
                len(found),
                int(counts.sum()),
                self.edges,
            )
            middle = len(found) // 2
            waiting = [found[:middle], found[middle:], *waiting]
