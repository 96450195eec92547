"""One optimizer step on a batch, computed in parts that fit into memory and shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mace.graphs.batch_plan import Step
from mace.graphs.dataset import Dataset
from mace.graphs.feeding import Feeding, Gather
from mace.graphs.graph import carry
from mace.processes.devices import widest
from mace.processes.team import Team
from mace.settings import TrainingSettings
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit, needing_memory
from mace.training.phases import PhaseClock
from mace.training.state import TrainingState
from mace.training.step import loss_gradient, update_parameters


class StepNumbers(NamedTuple):
    """Numbers read from a finished step.

    Attributes:
        loss: Loss before the step.
        norm: Norm of the gradient before clipping.
        phases: Seconds of each phase.
        stop: Whether any process was asked to stop.
        due: Whether the state should be saved now.
    """

    loss: float
    norm: float
    phases: dict[str, float]
    stop: bool
    due: bool


@dataclass(frozen=True)
class StepOutcome:
    """A step that was taken; its numbers may still be in transit from the device.

    Attributes:
        structures: Indices of the structures in the batch, over all processes.
        loss: Loss before the step, on the device.
        n_atoms: Number of atoms in the batch.
        seconds: Time to submit the work to the device; on a CPU, to do it.
        learning_rate: Learning rate of the parameter groups without a factor of their own.
        latency: How many steps to wait before reading the numbers, so that reading does not stall the device.
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
    _wait: Callable[[Callable[[], None]], None] = field(default=lambda work: work())

    def read(self) -> StepNumbers:
        """Return the numbers, waiting for the device if necessary."""
        if self._arrived is not None:
            self._wait(self._arrived.synchronize)
        loss, norm, *requests = self._numbers.tolist()
        stop, due = self._requests if self._requests is not None else (requests[0] > 0.0, requests[1] > 0.0)
        return StepNumbers(loss, norm, self._clock.read(), stop, due)


class BatchStep:
    """Takes optimizer steps.

    Args:
        state: The model, optimizer and averages being trained.
        dataset: The training structures.
        limit: Limit on the number of edges computed at a time.
        settings: The settings; read only.
        team: The processes of the run.
    """

    def __init__(
        self, state: TrainingState, dataset: Dataset, limit: EdgeLimit, settings: TrainingSettings, team: Team
    ) -> None:
        self._state, self._dataset, self._limit, self._settings, self._team = state, dataset, limit, settings, team
        self._parameters = list(state.moved.parameters())
        self._n_parameters = sum(parameter.numel() for parameter in self._parameters)

    def divide(self, step: Step) -> list[np.ndarray]:
        """Divide what this process computes of a step into the parts that fit into memory, as far as is known now."""
        return self._limit.split(self._dataset, self._share(step))

    def _share(self, step: Step) -> np.ndarray:
        if step.batches is not None:
            return step.batches[self._team.rank]
        return self._team.share(step.structures, self._dataset.edges_of(step.structures))

    def rehearsal(self, step: Step, loss: Loss) -> Callable[[], None]:
        """Return a function that computes the gradient of a step, or of the part that fits into memory, and forgets it.

        Args:
            step: The structures of all processes.
            loss: The loss.
        """
        model, moved = self._state.model, self._state.moved
        own = next((part for part in self.divide(step) if len(part)), step.structures)  # others may have all of it
        with Feeding().open(self._dataset, [step], self.divide) as feed:  # it names structures that are at fault
            batch = feed.batch(own).to(model.embedding.device)

        def gradient() -> None:
            try:
                loss_gradient(model, batch, loss)
            finally:
                moved.forget_gradients()

        return gradient

    def take(
        self,
        step: Step,
        loss: Loss,
        requests: tuple[bool, bool],
        gather: Gather | None = None,
        counts: Mapping[str, Tensor] | None = None,
    ) -> StepOutcome:
        """Take one optimizer step.

        Args:
            step: The structures of all processes.
            loss: The loss.
            requests: Whether this process was asked to stop, and whether it finds that a save is due.
            gather: Returns the batch of some structures; by default, the data set does.
            counts: Counts to divide the terms of the loss by; those of the step if None.

        Returns:
            The outcome.
        """
        start, learning_rate = time.perf_counter(), self._state.learning_rate
        model, dataset, team, settings = self._state.model, self._dataset, self._team, self._settings
        device = model.embedding.device
        clock = PhaseClock(device)
        gather = gather or dataset.batch
        moved = self._state.moved
        moved.forget_gradients()
        losses, structures = list[Tensor](), step.structures
        for part in self._limit.parts(dataset, self._share(step)):
            with part:
                if counts is None and len(part.structures) < len(structures):
                    counts = carry(loss.counts(dataset, structures), device, pinned=settings.pin_memory)
                batch = gather(part.structures).to(device, pinned=settings.pin_memory)
                clock.mark("data")
                losses.append(loss_gradient(model, batch, loss, counts, add=True, mark=clock.mark))
        moved.take_gradients()
        value = torch.stack(losses).sum() if losses else torch.zeros((), dtype=widest(device), device=device)
        asked = list[Tensor]()
        if team.size > 1:
            asked_here = carry(torch.tensor(requests, dtype=value.dtype), device, pinned=settings.pin_memory)
            own_numbers = torch.cat([value.reshape(1), asked_here])
            with needing_memory("the sum of the gradients of all processes", self._n_parameters):
                value, *asked = team.add_up(self._parameters, own_numbers, self._state.progression.stage)
            clock.mark("communication")
        with needing_memory("the step of the optimizer", self._n_parameters):
            norm = update_parameters(moved, self._state.optimizer, settings.clip_grad, self._state.average)
            moved.update_model()
        clock.mark("optimizer")
        numbers, arrived = torch.stack([value, norm.to(value.dtype), *asked]), None
        if device.type == "cuda":
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(device))
        return StepOutcome(
            structures=structures,
            loss=value,
            n_atoms=int(dataset.atoms_of(structures).sum()),
            seconds=time.perf_counter() - start,
            learning_rate=learning_rate,
            latency=0 if arrived is None else 1,
            _clock=clock,
            _numbers=numbers,
            _arrived=arrived,
            _requests=None if team.size > 1 else requests,
            _wait=team.unless_lost,  # a device waits in vain for one that is gone
        )
