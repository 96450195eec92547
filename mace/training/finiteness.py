"""Exceptions for training steps that give NaN or infinite numbers."""

from __future__ import annotations

import numpy as np

from mace.errors import UserError

RATE_FACTOR = 0.5
"""Factor on the learning rates each time a run goes back to an earlier state."""


class NotFinite(Exception):
    """The loss, the gradient or a weight has become NaN or infinite.

    Args:
        what: Which of them.
        structures: Indices of the structures in the batch.
    """

    def __init__(self, what: str, structures: np.ndarray) -> None:
        super().__init__(what)
        self.what, self.structures = what, structures


class Diverged(UserError):
    """A run gave NaN or infinite numbers, and going back to an earlier state did not help or was not allowed."""
