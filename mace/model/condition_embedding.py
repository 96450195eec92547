"""Embedding of conditions: channels that are added to the element embedding.

Source:
    The joint embedding of mace-torch 0.3.16, as used in MACE-OMOL-0; no publication defines it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mace.conditions import Condition
from mace.graphs.graph import Graph
from mace.model.plan import ModelPlan
from mace.model.roles import learned


class ClassChannels(nn.Module):
    """A learned embedding of the classes of a categorical condition.

    Args:
        condition: A categorical condition.
    """

    def __init__(self, condition: Condition) -> None:
        super().__init__()
        self.offset = condition.offset
        self.table = learned(condition.n_classes, condition.width, group="conditions")

    def forward(self, values: Tensor) -> Tensor:
        """Embed class numbers, ``[atoms, 1]`` to ``[atoms, width]``."""
        # on devices, the derivative of an embedding is added up in a fixed order, unlike that of other selections
        return functional.embedding(values.squeeze(1).round().long() + self.offset, self.table)


class ValueChannels(nn.Module):
    """An embedding of a continuous condition by a network with one hidden layer.

    Args:
        condition: A continuous condition.
    """

    def __init__(self, condition: Condition) -> None:
        super().__init__()
        width = condition.width
        self.first = learned(condition.n_values, width, group="conditions")
        self.second = learned(width, width, group="conditions")
        self.first_bias, self.second_bias = (
            learned(width, group="conditions") if condition.has_biases else None for _ in range(2)
        )

    def forward(self, values: Tensor) -> Tensor:
        """Embed values, ``[atoms, values]`` to ``[atoms, width]``."""
        hidden = functional.silu(functional.linear(values.to(self.first.dtype), self.first.T, self.first_bias))
        return functional.linear(hidden, self.second.T, self.second_bias)


class ConditionChannels(nn.Module):
    """The embeddings of all conditions, concatenated and mixed by one layer.

    Args:
        plan: The model's plan.
    """

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__()
        self.names = tuple(condition.name for condition in plan.conditions)
        self.parts = nn.ModuleList(
            (ClassChannels if condition.kind == "categorical" else ValueChannels)(condition)
            for condition in plan.conditions
        )
        width = sum(condition.width for condition in plan.conditions)
        self.mixing = learned(width, plan.n_channels, group="conditions")

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw class embeddings from a unit normal, and network weights and biases uniformly, as torch does."""
        for part in self.parts:
            if isinstance(part, ClassChannels):
                _draw(part.table, generator, None)
                continue
            assert isinstance(part, ValueChannels)
            for weight, bias in ((part.first, part.first_bias), (part.second, part.second_bias)):
                _draw(weight, generator, len(weight))
                if bias is not None:
                    _draw(bias, generator, len(weight))
        _draw(self.mixing, generator, len(self.mixing))

    def forward(self, graph: Graph) -> Tensor:
        """Embed the conditions of every atom, rows sorted by element, ``[atoms, channels]``.

        Raises:
            ValueError: If the structures lack a condition.
        """
        missing = [name for name in self.names if name not in graph.conditions]
        if missing:
            raise ValueError(f"the graph has no values of {', '.join(missing)}; give its configurations conditions")
        values = (graph.conditions[name].index_select(0, graph.atoms_by_element) for name in self.names)
        channels = [part(rows) for part, rows in zip(self.parts, values, strict=True)]
        return functional.silu(torch.cat(channels, dim=1) @ self.mixing)


def _draw(parameter: Tensor, generator: torch.Generator, fan_in: int | None) -> None:
    """Draw values from a unit normal or, given the number of inputs, uniformly within plus or minus fan_in**-0.5."""
    if fan_in is None:
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    else:
        values = (2.0 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 1.0) * fan_in**-0.5
    parameter.copy_(values)
