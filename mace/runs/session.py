"""What a training run has from beginning to end."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mace.console.interruption import Interruption
from mace.console.progress import TrainingProgress
from mace.files.ownership import Ownership
from mace.processes.team import Team
from mace.runs.folders import RunFolders
from mace.settings import TrainingSettings
from mace.training.loss import Loss


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
