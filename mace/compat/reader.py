"""Looks things up in a file of mace-torch, and says what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mace.compat.modules import Module, Original
from mace.model.plan import InteractionPlan, ModelPlan


class CannotConvert(Exception):
    """The file is sound, but its model has something that does not exist here; the message says what."""


@dataclass(frozen=True)
class Known:
    """What shapes alone do not tell, for checkpoints; None where it has to come from the file.

    Attributes:
        avg_num_neighbors: What messages are divided by.
        gate: Activation of the last readout.
        interactions: Kind of each layer.
        heads: Names of the heads.
        plan: Of a model of the same run, for all else.
    """

    avg_num_neighbors: float | None = None
    gate: str | None = None
    interactions: tuple[InteractionPlan, ...] | None = None
    heads: tuple[str, ...] | None = None
    plan: ModelPlan | None = None


class Reader:
    """Looks things up in a file and says what is missing.

    Args:
        original: The file.
        known: What is known besides.
    """

    def __init__(self, original: Original, known: Known) -> None:
        self.original, self.known = original, known
        self.state = original.state
        self.tree = original.tree

    def array(self, name: str) -> np.ndarray:
        """Return a weight or buffer.

        Raises:
            CannotConvert: If the file has none of this name.
        """
        if name not in self.state:
            raise CannotConvert(f"it has no '{name}'")
        return self.state[name]

    def scalar(self, name: str) -> float:
        """Return a buffer of one value."""
        values = self.array(name)
        if values.size != 1:
            raise CannotConvert(f"'{name}' has {values.size} values instead of one")
        return float(values.reshape(-1)[0])

    def attribute(self, path: str, name: str) -> Any:
        """Return an attribute of a module, None if there is none."""
        module = self.module(path)
        return module.attributes.get(name) if module is not None else None

    def module(self, path: str) -> Module | None:
        """Return a module by its dotted path, None if there is none."""
        if self.tree is None:
            return None
        return self.tree.find(path) if path else self.tree

    def count(self, prefix: str) -> int:
        """Count the parts of a list of modules."""
        found = {name[len(prefix) :].partition(".")[0] for name in self.state if name.startswith(prefix)}
        if found != {str(i) for i in range(len(found))}:
            raise CannotConvert(f"the parts of '{prefix.rstrip('.')}' are not numbered in a row")
        return len(found)

    def contraction(self, layer: int, place: int) -> str:
        """Return what the names of one symmetric contraction begin with."""
        return f"products.{layer}.symmetric_contractions.contractions.{place}."

    def degrees(self, layer: int) -> tuple[int, ...]:
        """Return the degrees a layer gives out, from the shapes of its coupling coefficients."""
        n = self.count(f"products.{layer}.symmetric_contractions.contractions.")
        degrees = []
        for place in range(n):
            shape = self.array(self.contraction(layer, place) + "U_matrix_1").shape
            degrees.append(0 if len(shape) == 2 else (shape[0] - 1) // 2)
        return tuple(degrees)


def exact(total: int, divisor: int, what: str) -> int:
    """Divide what has to be a multiple.

    Raises:
        CannotConvert: If it is none.
    """
    if divisor < 1 or total % divisor or not total:
        raise CannotConvert(f"the {total} weights of {what} do not fit {divisor} elements or channels")
    return total // divisor
