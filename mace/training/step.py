"""One optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from torch import Tensor

from mace.graphs.dataset import Batch
from mace.kernels.adam import CompiledStep
from mace.kernels.passes import Pass, differentiating_by
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.training.loss import Loss
from mace.training.optimization import MovedParameters, MovingAverage
from mace.training.phases import Mark, unmarked


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
    value, slopes = loss.value_and_slopes(prediction, batch.targets, counts)
    mark("forward")
    named = [
        (name, parameter) for name, parameter in model.programs.parameters(model).items() if parameter.requires_grad
    ]
    parameters = [parameter for _, parameter in named]
    gradients: Sequence[Tensor | None] = [None] * len(parameters)
    predicted = [getattr(prediction, name) for name in slopes]
    moving = [values.requires_grad for values in predicted]
    if any(moving):  # a batch may have no label that depends on what is not frozen
        outputs, cotangents = (list(compress(each, moving)) for each in (predicted, slopes.values()))
        with differentiating_by(Pass.PARAMETERS):
            gradients = torch.autograd.grad(outputs, parameters, cotangents, allow_unused=True)
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
    return value


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
    limit = norm_limit(clip_grad)
    if isinstance(optimizer, CompiledStep):
        return optimizer.update(limit, None if average is None else average.begin_update())
    norm = torch.nn.utils.clip_grad_norm_(moved.parameters(), max_norm=limit)
    optimizer.step()
    if average is not None:
        average.update()
    return norm


def norm_limit(clip_grad: float | None) -> float:
    """Return the largest norm of the gradient that is allowed, infinite if it is not limited."""
    return float("inf") if clip_grad is None else clip_grad
