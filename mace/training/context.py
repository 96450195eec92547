"""What a training has around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mace.console.interruption import Interruption
from mace.console.progress import TrainingProgress
from mace.processes.team import Team
from mace.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingContext:
    """Who computes where, by which settings, who watches, and who may end it.

    Attributes:
        settings: The settings; read only.
        device: Where this process computes.
        team: The processes of the run.
        interruption: Whether a signal has come.
        progress: What is shown.
    """

    settings: TrainingSettings
    device: torch.device
    team: Team
    interruption: Interruption
    progress: TrainingProgress
