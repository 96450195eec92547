"""Work on a batch in parts that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch

from mace.errors import UserError
from mace.graphs.dataset import Dataset
from mace.processes.devices import is_out_of_memory

_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class EdgeLimit:
    """How many directed edges are computed at a time: what the user allows, less where memory runs out.

    Args:
        edges: Highest number allowed; None for no limit.
        purpose: The work, for messages, for example ``training``.
    """

    def __init__(self, edges: int | None, purpose: str) -> None:
        self.edges, self._purpose = edges, purpose

    def parts(self, dataset: Dataset, structures: np.ndarray) -> list[np.ndarray]:
        """Divide a batch into consecutive parts within the limit; a structure above it is a part of its own.

        Args:
            dataset: The structures.
            structures: Indices of those of the batch.

        Returns:
            Indices of the structures of each part, in the same order.
        """
        if self.edges is None or len(structures) < 2:
            return [structures] if len(structures) else []
        parts, begin, total = [], 0, 0
        for place, edges in enumerate(dataset.edges_of(structures).tolist()):
            if place > begin and total + edges > self.edges:
                parts.append(structures[begin:place])
                begin, total = place, 0
            total += edges
        return [*parts, structures[begin:]]

    def work(
        self, dataset: Dataset, structures: np.ndarray, task: Callable[[np.ndarray], _Result]
    ) -> Iterator[_Result]:
        """Do a task for all parts of a batch; where memory runs out, divide the part and lower the limit.

        Args:
            dataset: The structures.
            structures: Indices of those of the batch.
            task: Gets the indices of a part. If it fails, nothing may have changed.

        Returns:
            The results of the parts, in order.

        Raises:
            UserError: If a single structure does not fit.
        """
        waiting = self.parts(dataset, structures)
        while waiting:
            part = waiting.pop(0)
            # the error is gone when the next attempt is made: its traceback holds all the tensors
            failed, result = _attempt(task, part)
            if not failed:
                yield result  # type: ignore[misc]  # None only where it failed
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            edges = dataset.edges_of(part)
            if len(part) == 1:
                alone = dataset[int(part[0])]
                raise UserError(
                    f"{alone.where()} ({alone.n_atoms} atoms, {int(edges[0])} edges) alone does not fit into memory in "
                    f"{self._purpose}; take it out, or choose a smaller model, a shorter --r_max, "
                    "--default_dtype=float32 or a machine with more memory."
                )
            self.edges = max(int(edges.sum()) // 2, int(edges.max()))
            _LOGGER.warning(
                "Out of memory in %s with %d structures of %d edges; from now on at most %d edges are computed at a "
                "time, and the parts of a batch are added up to the same loss",
                self._purpose,
                len(part),
                int(edges.sum()),
                self.edges,
            )
            middle = len(part) // 2
            waiting = [part[:middle], part[middle:], *waiting]


def _attempt(task: Callable[[np.ndarray], _Result], part: np.ndarray) -> tuple[bool, _Result | None]:
    """Return whether memory ran out, and the result if not."""
    try:
        return False, task(part)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return True, None
