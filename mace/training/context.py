"""The context in which a model is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mace.console.interruption import Interruption
from mace.console.progress import TrainingProgress
from mace.processes.team import Team
from mace.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingContext:
    """Settings, device, processes, signals and progress display of a training run.

    Attributes:
        settings: The settings; read only.
        device: Where this process computes.
        team: The processes of the run.
        interruption: Records whether a signal to stop has arrived.
        progress: The progress display.
    """

    settings: TrainingSettings
    device: torch.device
    team: Team
    interruption: Interruption
    progress: TrainingProgress
