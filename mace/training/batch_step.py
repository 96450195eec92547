"""One optimizer step on a batch, whatever it takes: in parts that fit into memory, by several processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mace.graphs.dataset import Dataset
from mace.processes.team import Team
from mace.settings import TrainingSettings
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit
from mace.training.phases import PhaseClock
from mace.training.state import TrainingState
from mace.training.step import loss_gradient, update_parameters


class StepNumbers(NamedTuple):
    """What is read of a step.

    Attributes:
        loss: Loss before the step.
        norm: Norm of the gradient before clipping.
        phases: Seconds of each phase.
        stop: Whether a process was asked to end.
        due: Whether the state is to be saved.
    """

    loss: float
    norm: float
    phases: dict[str, float]
    stop: bool
    due: bool


@dataclass(frozen=True)
class StepOutcome:
    """A step that was taken; its numbers may still be on their way.

    Attributes:
        structures: Indices of the structures of the batch, of all processes.
        loss: Loss before the step, on the device.
        n_atoms: Atoms of the batch.
        seconds: Time it took to hand the work to the device; on a CPU, to do it.
        learning_rate: Of the parts without a factor of their own.
        latency: How many steps later the numbers are best read.
    """

    structures: np.ndarray
    loss: Tensor
    n_atoms: int
    seconds: float
    learning_rate: float
    latency: int
    _clock: PhaseClock
    _numbers: Tensor
    _arrived: torch.cuda.Event | None
    _requests: tuple[bool, bool] | None

    def read(self) -> StepNumbers:
        """Return the numbers, waiting for the device if need be."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm, *requests = self._numbers.tolist()
        stop, due = self._requests if self._requests is not None else (requests[0] > 0.0, requests[1] > 0.0)
        return StepNumbers(loss, norm, self._clock.read(), stop, due)


class BatchStep:
    """Take steps.

    Args:
        state: What is trained.
        dataset: The training structures.
        limit: How much is computed at a time.
        settings: The settings; read only.
        team: The processes of the run.
    """

    def __init__(
        self, state: TrainingState, dataset: Dataset, limit: EdgeLimit, settings: TrainingSettings, team: Team
    ) -> None:
        self._state, self._dataset, self._limit, self._settings, self._team = state, dataset, limit, settings, team
        self._parameters = list(state.model.parameters())

    def take(self, structures: np.ndarray, loss: Loss, requests: tuple[bool, bool]) -> StepOutcome:
        """Take a step.

        Args:
            structures: Indices of those of the batch, of all processes.
            loss: The loss.
            requests: Whether this process was asked to end, and whether it finds that the state is to be saved.

        Returns:
            The outcome.
        """
        start, learning_rate = time.perf_counter(), self._state.learning_rate
        clock = PhaseClock(self._state.model.embedding.device)
        value, n_atoms = self._gradient(structures, loss, clock)
        team, on_device = self._team, self._state.model.embedding.device.type == "cuda"
        numbers = value.reshape(1)
        if team.size > 1:
            asked = torch.tensor(requests, dtype=value.dtype, device=value.device)
            sums = team.add_up(self._parameters, torch.cat([numbers, asked]), self._state.progression.stage)
            value, asked = sums[0], sums[1:]
            clock.mark("communication")
        norm = update_parameters(
            self._state.model, self._state.optimizer, self._settings.clip_grad, self._state.average
        )
        clock.mark("optimizer")
        numbers = torch.stack([value, norm.to(value.dtype)])
        if team.size > 1:
            numbers = torch.cat([numbers, asked])
        arrived = None
        if on_device:
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return StepOutcome(
            structures,
            value,
            n_atoms,
            time.perf_counter() - start,
            learning_rate,
            int(on_device),
            clock,
            numbers,
            arrived,
            None if team.size > 1 else requests,
        )

    def _gradient(self, structures: np.ndarray, loss: Loss, clock: PhaseClock) -> tuple[Tensor, int]:
        """Leave the gradient of this process's share in the parameters; return its part of the loss, and all atoms."""
        model, device, settings = self._state.model, self._state.model.embedding.device, self._settings
        own = self._team.share(structures, self._dataset.edges_of(structures))
        for parameter in self._parameters:
            parameter.grad = None
        counts: dict[str, Tensor] | None = None

        def of_part(part: np.ndarray) -> Tensor:
            nonlocal counts
            if counts is None and len(part) < len(structures):
                counts = loss.counts(self._dataset.targets(structures).to(device))
            batch = self._dataset.batch(part).to(device, pinned=settings.pin_memory)
            clock.mark("data")
            return loss_gradient(model, batch, loss, counts, add=True, mark=clock.mark)

        values = list(self._limit.work(self._dataset, own, of_part))
        total = torch.stack(values).sum() if values else torch.zeros((), dtype=torch.float64, device=device)
        return total, int(self._dataset.atoms_of(structures).sum())
