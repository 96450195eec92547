"""What has to be known of a parameter besides its values, declared where it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

Group = Literal["embedding", "conditions", "interactions_decay", "interactions_no_decay", "products", "readouts"]


@dataclass(frozen=True)
class Role:
    """What optimizers, fine-tuning and models of one head have to know of a parameter.

    Attributes:
        group: Which of the optimizer's groups it belongs to.
        fan_in: Number of inputs; where results are divided by its root, weights are rescaled when it changes.
        element_axis: The axis with one entry per element of the model; None for none.
        head: Index of the head it belongs to; None for what all heads share.
        start: Turns unit-normal numbers into the values at the start of a training; None where these are they.
    """

    group: Group
    fan_in: int = 1
    element_axis: int | None = None
    head: int | None = None
    start: Callable[[Tensor], Tensor] | None = None


def learned(
    *shape: int,
    group: Group,
    fan_in: int | None = None,
    element_axis: int | None = None,
    start: Callable[[Tensor], Tensor] | None = None,
) -> nn.Parameter:
    """Make a parameter without values, of a certain role.

    Args:
        shape: Its shape.
        group: See `Role`.
        fan_in: See `Role`; the last axis but one if it is not given.
        element_axis: See `Role`.
        start: See `Role`; something that can be pickled.
    """
    parameter = nn.Parameter(torch.empty(shape))
    inputs = fan_in if fan_in is not None else shape[-2] if len(shape) > 1 else 1
    parameter.role = Role(group, inputs, element_axis, None, start)  # type: ignore[attr-defined]
    return parameter


def assign_to_head(module: nn.Module, head: int) -> None:
    """Declare that all parameters of a module belong to one head."""
    for parameter in module.parameters():
        parameter.role = replace(parameter.role, head=head)  # type: ignore[attr-defined]


def declared_roles(module: nn.Module) -> dict[str, Role]:
    """Collect the roles of a module's parameters by name; copies of parameters no longer know them."""
    return {name: parameter.role for name, parameter in module.named_parameters()}  # type: ignore[attr-defined]
