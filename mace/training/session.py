"""What a training run has from beginning to end."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mace.settings import TrainingSettings
from mace.training.distributed import Team
from mace.training.folders import RunFolders
from mace.training.interruption import Interruption
from mace.training.loss import Loss
from mace.training.ownership import Ownership
from mace.training.progress import TrainingProgress


@dataclass(frozen=True)
class Session:
    """What a run has from beginning to end.

    Attributes:
        settings: The settings; read only.
        losses: Loss of stage one and, if there is a stage two, of stage two.
        device: Where this process computes.
        team: The processes of the run.
        interruption: Whether a signal has come.
        folders: Where files go.
        ownership: Whether they are this run's own.
        progress: What is shown.
    """

    settings: TrainingSettings
    losses: tuple[Loss, Loss | None]
    device: torch.device
    team: Team
    interruption: Interruption
    folders: RunFolders
    ownership: Ownership
    progress: TrainingProgress
