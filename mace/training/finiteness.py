"""What is told, and raised, when a training step gives something that is not a number."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mace.errors import UserError
from mace.graphs.dataset import GraphDataset

RATE_FACTOR = 0.5
"""What learning rates are multiplied by each time a run goes back."""


class NotFinite(Exception):
    """Loss, gradient or weights have become NaN or infinite.

    Args:
        what: Which of them.
        structures: Indices of the structures of the batch.
    """

    def __init__(self, what: str, structures: np.ndarray) -> None:
        super().__init__(what)
        self.what, self.structures = what, structures


class Diverged(UserError):
    """A run that became not a number and could not, or was not to, go back."""


def name_structures(dataset: GraphDataset, structures: Iterable[int]) -> str:
    """Name structures by file and place, as in ``train.xyz: structures 3, 17``."""
    places: dict[str, list[int]] = {}
    for index in structures:
        configuration = dataset.configurations[int(index)]
        places.setdefault(configuration.file, []).append(configuration.index)
    named = []
    for file, found in places.items():
        numbers = ", ".join(str(number) for number in sorted(found))
        named.append(f"{file or 'given'}: structure{'s' if len(found) > 1 else ''} {numbers}")
    return "; ".join(named)
