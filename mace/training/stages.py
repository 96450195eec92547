"""Whether a run has a stage two and L-BFGS iterations, and when these begin."""

from __future__ import annotations

from mace.settings import TrainingSettings


def has_stage_two(settings: TrainingSettings) -> bool:
    """Return whether there is a stage two: if it is requested or its start is set, as in the original."""
    return settings.swa or settings.start_swa is not None


def stage_two_start(settings: TrainingSettings) -> int:
    """Return the epoch at which stage two begins: as set, or after four fifths of the epochs."""
    if settings.start_swa is not None:
        return settings.start_swa
    return max(1, int(round(settings.max_num_epochs * 0.8)))


def total_epochs(settings: TrainingSettings) -> int:
    """Return the number of all epochs; each L-BFGS iteration counts as one after the ``max_num_epochs`` others."""
    return settings.max_num_epochs + (settings.lbfgs_steps if settings.lbfgs else 0)
