"""The number of threads of a run: set by somebody, kept from before, or measured at its start."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from mace.processes.cores import is_number_set, usable_cores
from mace.processes.devices import set_threads
from mace.processes.thread_choice import choose_threads
from mace.settings import TrainingSettings
from mace.training.context import TrainingContext
from mace.training.loop import Trainer

_LOGGER = logging.getLogger(__name__)


def is_measured(settings: TrainingSettings, device: torch.device) -> bool:
    """Return whether the number of threads is left to a measurement."""
    return device.type == "cpu" and not is_number_set(settings.num_threads, os.environ)


def settle_threads(run: TrainingContext, trainer: Trainer, saved: Mapping[str, Any] | None) -> list[int | None]:
    """Set the number of threads, unless somebody has set it.

    A run that is resumed keeps the number that was measured at its start, since the last bits of results depend on it.
    One that began without a measurement keeps PyTorch's choice.

    Args:
        run: The context of the run.
        trainer: The trainer, before its first step.
        saved: The state from which the run is resumed, if any.

    Returns:
        By process, the number that was measured; None where it was not.
    """
    before: list[int | None] = [None] if saved is None else saved.get("threads") or [None]
    own = before[run.team.rank] if len(before) == run.team.size else None
    if not is_measured(run.settings, run.device):
        own = None
    elif own is not None and own <= usable_cores():
        set_threads(own)
        _LOGGER.info("Threads: %d, as measured when the run began; --num_threads sets another number", own)
    elif saved is None or any(before):
        own = _measure(trainer)
    return run.team.gather(own)


def _measure(trainer: Trainer) -> int | None:
    """Choose the number of threads by timing the gradient of the first batch; nothing of the run is changed."""
    most = min(torch.get_num_threads(), usable_cores())
    if most == 1:
        return set_threads(1)
    try:
        first = next(trainer.batch_plan.steps(trainer.progression.epoch))
        gradient = trainer.batch_step.rehearsal(first, trainer.state.loss)
        choice = choose_threads(gradient, most, trainer.watch.look if trainer.watch else lambda: None)
    except (RuntimeError, MemoryError) as error:  # perhaps too little memory, for which steps take smaller parts
        _LOGGER.debug("The number of threads could not be measured", exc_info=error)
        set_threads(most)
        return None
    _LOGGER.info("Threads: %s; --num_threads sets another number", choice)
    return choice.threads
