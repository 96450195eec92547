"""Roles of parameters: what must be known about them besides their values, declared where they are created."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

Group = Literal["embedding", "conditions", "interactions_decay", "interactions_no_decay", "products", "readouts"]


@dataclass(frozen=True)
class Role:
    """What optimizers, fine-tuning and the extraction of a head need to know about a parameter.

    Attributes:
        group: The optimizer's parameter group it belongs to.
        fan_in: Number of inputs; as results are divided by its square root, weights are rescaled when it changes.
        element_axis: The axis with one entry per element of the model; None if there is no such axis.
        head: Index of the head it belongs to; None if shared by all heads.
        start: Maps unit-normal random numbers to initial values; None to use the random numbers themselves.
        is_map: Whether its last two axes are inputs and outputs of linear maps, those before them number the maps.
    """

    group: Group
    fan_in: int = 1
    element_axis: int | None = None
    head: int | None = None
    start: Callable[[Tensor], Tensor] | None = None
    is_map: bool = False


def learned(
    *shape: int,
    group: Group,
    fan_in: int | None = None,
    element_axis: int | None = None,
    start: Callable[[Tensor], Tensor] | None = None,
    is_map: bool | None = None,
) -> nn.Parameter:
    """Create an uninitialized parameter with a role.

    Args:
        shape: Shape of the parameter.
        group: See `Role`.
        fan_in: See `Role`; by default the length of the last axis but one.
        element_axis: See `Role`.
        start: See `Role`; must be picklable.
        is_map: See `Role`; by default whether there are two axes.
    """
    parameter = nn.Parameter(torch.empty(shape))
    inputs = fan_in if fan_in is not None else shape[-2] if len(shape) > 1 else 1
    is_map = len(shape) > 1 if is_map is None else is_map
    parameter.role = Role(group, inputs, element_axis, None, start, is_map)  # type: ignore[attr-defined]
    return parameter


def assign_to_head(module: nn.Module, head: int) -> None:
    """Declare that all parameters of a module belong to one head."""
    for parameter in module.parameters():
        parameter.role = replace(parameter.role, head=head)  # type: ignore[attr-defined]


def declared_roles(module: nn.Module) -> dict[str, Role]:
    """Collect the roles of a module's parameters by name; copies of parameters lose their roles."""
    return {name: parameter.role for name, parameter in module.named_parameters()}  # type: ignore[attr-defined]
