"""What is told, and raised, when a training step gives something that is not a number."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from mace.errors import UserError

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


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Tell whether all numbers of some tensors are finite, waiting for their device only once."""
    with torch.no_grad():
        return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())
