"""One optimizer step, and steps that are captured on a device and repeated there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace.graphs.dataset import Batch
from mace.kernels.adam import CompiledStep
from mace.kernels.passes import Pass, differentiating_by
from mace.model.captured import Captures, Use, basis_of, bucket_of, key_of
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.processes.cuda_graphs import Recorder
from mace.training.loss import Loss
from mace.training.optimization import MovedParameters, MovingAverage
from mace.training.phases import Mark, unmarked
from mace.training.state import TrainingState


def loss_gradient(
    model: MACE,
    batch: Batch,
    loss: Loss,
    counts: Mapping[str, Tensor] | None = None,
    add: bool = False,
    mark: Mark = unmarked,
) -> Tensor:
    """Evaluate the loss of a batch and store its gradient in the parameters.

    The loss is differentiated only by trainable parameters, so the adjoint of the geometry is never computed twice.

    Args:
        model: The model.
        batch: A batch on its device.
        loss: The loss.
        counts: If the batch is part of a larger one, the counts of the whole; see `Loss`.
        add: Whether to add to the existing gradients.
        mark: Called when the phases ``forward`` and ``backward`` end.

    Returns:
        The loss, detached, still on the device.
    """
    prediction = predict(model, batch.graph, loss.needs_forces, loss.needs_stress, training=True)
    value = loss(prediction, batch.targets, counts)
    mark("forward")
    named = [
        (name, parameter) for name, parameter in model.programs.parameters(model).items() if parameter.requires_grad
    ]
    parameters = [parameter for _, parameter in named]
    gradients: Sequence[Tensor | None] = [None] * len(parameters)
    if value.requires_grad:  # a batch may have no label that depends on what is not frozen
        with differentiating_by(Pass.PARAMETERS):
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        # fused optimizers read memory in the order in which that of the parameter is
        gradients = [None if gradient is None else gradient.contiguous() for gradient in gradients]
    # of a head without structures in the batch it is zero, and the optimizer goes on with its momentum, whichever
    # process has the structures of which head; memory may run out until all are there, and the first is added then
    gradients = [
        torch.zeros_like(parameter) if gradient is None and model.roles[name].head is not None else gradient
        for (name, parameter), gradient in zip(named, gradients, strict=True)
    ]
    for (_, parameter), gradient in zip(named, gradients, strict=True):
        if add and parameter.grad is not None:
            if gradient is not None:
                parameter.grad += gradient
        else:
            parameter.grad = gradient
    mark("backward")
    return value.detach()


def update_parameters(
    moved: MACE | MovedParameters,
    optimizer: torch.optim.Optimizer,
    clip_grad: float | None = None,
    average: MovingAverage | None = None,
) -> Tensor:
    """Update the parameters with their gradients, which are left clipped or as they were.

    Args:
        moved: The model, or what is moved in its place.
        optimizer: The optimizer.
        clip_grad: Largest gradient norm allowed; None for no limit.
        average: Moving average to update, if any.

    Returns:
        Norm of the gradient before clipping, still on the device, as reading it here would wait for the device.
    """
    limit = _limit(clip_grad)
    if isinstance(optimizer, CompiledStep):
        return optimizer.update(limit, None if average is None else average.begin_update())
    norm = torch.nn.utils.clip_grad_norm_(moved.parameters(), max_norm=limit)
    optimizer.step()
    if average is not None:
        average.update()
    return norm


def _limit(clip_grad: float | None) -> float:
    return float("inf") if clip_grad is None else clip_grad


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

    Attributes:
        counts: What was captured and repeated so far.
    """

    def __init__(self, state: TrainingState, clip_grad: float | None, recorder: Recorder) -> None:
        self._state, self._limit = state, _limit(clip_grad)
        self._captures = Captures(recorder, state.model.embedding.device, "training")
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
            state.moved.take_gradients()
            return value, None
        for parameter, gradient in zip(self._parameters, captured.results.gradients, strict=True):
            parameter.grad = gradient
        if moves and isinstance(optimizer, CompiledStep):
            optimizer.prepare(self._limit, None if state.average is None else state.average.begin_update())
        captured.repeat()
        mark("graph")
        numbers = captured.results.numbers.clone()  # as the next step writes to the same place
        if not moves:
            return numbers[0], None
        state.moved.forget_gradients()
        return numbers[0], numbers[1]

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
