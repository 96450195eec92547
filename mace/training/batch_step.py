"""One optimizer step on a batch, in parts that fit into memory, shared among processes, or captured on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mace.graphs.batch_plan import Step
from mace.graphs.dataset import Batch, Dataset
from mace.graphs.feeding import Feeding, Gather
from mace.graphs.graph import carry
from mace.kernels.adam import CompiledStep
from mace.model.captured import Captures, Use, basis_of, bucket_of, key_of
from mace.processes.cuda_graphs import Recorder
from mace.processes.devices import widest
from mace.processes.team import Team
from mace.settings import TrainingSettings
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit, needing_memory
from mace.training.phases import Mark, PhaseClock
from mace.training.state import TrainingState
from mace.training.step import loss_gradient, norm_limit, update_parameters


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


@dataclass(frozen=True)
class _Given:
    """What a step depends on besides the state of the training.

    Attributes:
        batch: The batch, padded.
        counts: Counts to divide the terms of the loss by; see `Loss`.
    """

    batch: Batch
    counts: dict[str, Tensor] | None


@dataclass(frozen=True)
class _Results:
    """What a captured step writes.

    Attributes:
        numbers: The loss, and the norm of the gradient before clipping if the step is taken.
        gradients: Gradients by what is moved.
    """

    numbers: Tensor
    gradients: list[Tensor | None]


class CapturedSteps:
    """Steps that are captured at the second use of their bucket, and repeated from then on.

    The first step in a bucket is taken by the program, with the padded batch. Captures change no weights, moments or
    averages, so a training takes the steps that it would take without. What is different in each step, such as the
    learning rate, is written to where the captured step reads it. Everything is forgotten where parameters, what is
    frozen, the optimizer with its moments, averages or kernels are others than before; steps of another loss are
    captured anew.

    Args:
        state: The model, optimizer and averages being trained.
        clip_grad: Largest gradient norm allowed; None for no limit.
        recorder: What captures the work.
        strict: See `mace.model.captured.Captures`.

    Attributes:
        counts: What was captured and repeated so far.
    """

    def __init__(self, state: TrainingState, clip_grad: float | None, recorder: Recorder, strict: bool = True) -> None:
        self._state, self._limit = state, norm_limit(clip_grad)
        self._captures = Captures(recorder, state.model.embedding.device, "training", strict)
        self._parameters = list(state.moved.parameters())
        self._places: dict[Tensor, Tensor] = {}
        self.counts = self._captures.counts

    def padded(self, batch: Batch) -> Batch:
        """Pad a batch that is not padded yet."""
        if batch.graph.real is not None:
            return batch
        return batch.padded(bucket_of(self._state.model, batch.graph))

    def take(
        self, batch: Batch, loss: Loss, counts: Mapping[str, Tensor] | None, mark: Mark, complete: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the gradient of a batch, and take the step too if it is captured with it.

        Args:
            batch: The batch, on the CPU.
            loss: The loss.
            counts: See `loss_gradient`.
            mark: Called when a phase ends.
            complete: Whether the gradient is that of the whole step, and not of the share of this process.

        Returns:
            The loss; and if the step was taken, the norm of the gradient before clipping. Both are read before the next
            step is taken.
        """
        state, optimizer = self._state, self._state.optimizer
        moves = complete and isinstance(optimizer, CompiledStep)
        given = _Given(self.padded(batch), None if counts is None else dict(counts))
        key = key_of(given.batch.graph), loss, None if counts is None else tuple(counts), moves
        # a state that was loaded has other moments
        basis = [*basis_of(state.model), optimizer, optimizer.state, state.average]
        use = self._captures.use(key, given, basis)
        mark("data")
        captured = self._captures.ready(use, lambda: self._work(use, loss, moves), lambda: self._rehearse(use, loss))
        if captured is None:
            value = loss_gradient(state.model, use.given.batch, loss, use.given.counts, mark=mark)
            return value, None
        results = captured.results
        if moves and isinstance(optimizer, CompiledStep):
            self._hand_over(results.gradients)
            optimizer.prepare(self._limit, None if state.average is None else state.average.begin_update())
        captured.repeat()
        state.moved.forget_gradients()
        mark("graph")
        numbers = results.numbers.clone()  # as the next step writes to the same place
        if moves:
            return numbers[0], numbers[1]
        self._hand_over(results.gradients)
        return numbers[0], None

    def _hand_over(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _work(self, use: Use[_Given], loss: Loss, moves: bool) -> _Results:
        """Do what is captured; its gradients are always in the same place."""
        state, optimizer = self._state, self._state.optimizer
        numbers, gradients = [self._differentiate(use, loss)], list[Tensor | None]()
        for parameter in self._parameters:
            gradients.append(None if parameter.grad is None else self._place_of(parameter))
        found = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_copy_([place for place in gradients if place is not None], found)
        if moves and isinstance(optimizer, CompiledStep):
            numbers.append(optimizer.move().to(numbers[0].dtype))
            state.moved.update_model()
        state.moved.forget_gradients()
        return _Results(torch.stack(numbers), gradients)

    def _rehearse(self, use: Use[_Given], loss: Loss) -> None:
        """Compute a gradient and forget it; gradients have their places from then on."""
        try:
            self._differentiate(use, loss)
            for parameter in self._parameters:
                if parameter.grad is not None:
                    self._place_of(parameter)
        finally:
            self._state.moved.forget_gradients()

    def _differentiate(self, use: Use[_Given], loss: Loss) -> Tensor:
        self._state.moved.forget_gradients()
        value = loss_gradient(self._state.model, use.given.batch, loss, use.given.counts)
        self._state.moved.take_gradients()
        return value

    def _place_of(self, parameter: Tensor) -> Tensor:
        """Return where captured steps write the gradient by a parameter."""
        if parameter not in self._places:
            self._places[parameter] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return self._places[parameter]


class BatchStep:
    """Takes optimizer steps.

    Args:
        state: The model, optimizer and averages being trained.
        dataset: The training structures.
        limit: Limit on the number of edges computed at a time.
        settings: The settings; read only.
        team: The processes of the run.

    Attributes:
        captured: Captures steps and repeats them; None if the program takes each step itself.
    """

    def __init__(
        self, state: TrainingState, dataset: Dataset, limit: EdgeLimit, settings: TrainingSettings, team: Team
    ) -> None:
        self.captured: CapturedSteps | None = None
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
        start, clock = time.perf_counter(), PhaseClock(self._state.model.embedding.device)
        dataset, state, pinned, gather = (
            self._dataset,
            self._state,
            self._settings.pin_memory,
            gather or self._dataset.batch,
        )
        device, own = state.model.embedding.device, self._share(step)
        state.moved.forget_gradients()
        losses, norm = list[Tensor](), None
        for part in self._limit.parts(dataset, own):
            with part:
                if counts is None and len(part.structures) < len(step.structures):
                    counts = carry(loss.counts(dataset, step.structures), device, pinned=pinned)
                batch = gather(part.structures)
                if self.captured is not None and len(part.structures) == len(own):
                    value, norm = self.captured.take(batch, loss, counts, clock.mark, complete=self._team.size == 1)
                    losses.append(value)
                    continue
                batch = batch.to(device, pinned=pinned)
                clock.mark("data")
                losses.append(loss_gradient(state.model, batch, loss, counts, add=True, mark=clock.mark))
        value = torch.stack(losses).sum() if losses else torch.zeros((), dtype=widest(device), device=device)
        return self._finish(step, value, norm, requests, clock, start)

    def _finish(
        self,
        step: Step,
        value: Tensor,
        norm: Tensor | None,
        requests: tuple[bool, bool],
        clock: PhaseClock,
        start: float,
    ) -> StepOutcome:
        """Add up what all processes have, update the parameters unless that was done, and send numbers on their way."""
        team, state, settings = self._team, self._state, self._settings
        device, learning_rate = state.model.embedding.device, state.learning_rate
        if norm is None:
            state.moved.take_gradients()
        asked = list[Tensor]()
        if team.size > 1:
            asked_here = carry(torch.tensor(requests, dtype=value.dtype), device, pinned=settings.pin_memory)
            own_numbers = torch.cat([value.reshape(1), asked_here])
            with needing_memory("the sum of the gradients of all processes", self._n_parameters):
                value, *asked = team.add_up(self._parameters, own_numbers, state.progression.stage)
            clock.mark("communication")
        if norm is None:
            with needing_memory("the step of the optimizer", self._n_parameters):
                norm = update_parameters(state.moved, state.optimizer, settings.clip_grad, state.average)
                state.moved.update_model()
            clock.mark("optimizer")
        numbers, arrived = torch.stack([value, norm.to(value.dtype), *asked]), None
        if device.type == "cuda":
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(device))
        return StepOutcome(
            structures=step.structures,
            loss=value,
            n_atoms=int(self._dataset.atoms_of(step.structures).sum()),
            seconds=time.perf_counter() - start,
            learning_rate=learning_rate,
            latency=0 if arrived is None else 1,
            _clock=clock,
            _numbers=numbers,
            _arrived=arrived,
            _requests=None if team.size > 1 else requests,
            _wait=team.unless_lost,  # a device waits in vain for one that is gone
        )
