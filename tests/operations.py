"""Counting the operations of torch: each costs microseconds, or a launch on a device, however little it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.optimization import MovedParameters, MovingAverage, make_optimizer
from mace.training.step import loss_gradient, update_parameters

NO_NUMBERS = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"),
    *("promote_types", "_record_function_enter_new", "_record_function_exit"),
}
"""Operators that allocate or reinterpret memory, besides those that torch itself calls views, or have no tensors."""


def computes(operator: Any) -> bool:
    """Tell whether an operator reads or writes numbers: it is no view or alias, and does more than allocate memory.

    Fills, copies, conversions and reading a number into Python count.
    """
    return not operator.is_view and operator.overloadpacket.__name__ not in NO_NUMBERS


class Operations(TorchDispatchMode):
    """Counts operations that compute inside a ``with`` block, those of backward passes included.

    A library called directly, such as a compiled kernel, is not seen.

    Attributes:
        by_name: How often each operator was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count an operation and do it."""
        if computes(func):
            self.by_name[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Number of all."""
        return self.by_name.total()

    def table(self) -> str:
        """Format the counts, the largest first."""
        return "\n".join(f"{count:5d} {name}" for name, count in [("total", self.total), *self.by_name.most_common()])


def acetylacetones(n: int, seed: int = 5) -> list[Configuration]:
    """Make labeled structures with the atoms of acetylacetone at disturbed sites of a grid."""
    rng = np.random.default_rng(seed)
    sites = 1.5 * np.argwhere(np.ones((4, 2, 2)))[:15]
    numbers = np.array([6, 8, 8, 6, 6, 6, 6, *[1] * 8])
    return [
        Configuration(
            numbers,
            sites + rng.normal(size=sites.shape) * 0.1,
            np.zeros((3, 3)),
            (False,) * 3,
            energy=rng.normal(),
            forces=rng.normal(size=sites.shape),
        )
        for _ in range(n)
    ]


def training_step(prepare: Callable[[MACE], object], n_channels: int = 128) -> Callable[[], None]:
    """Return the default training step: two layers, energies and forces of ten molecules of three elements, float32.

    Args:
        prepare: Called with the model, to choose its kernels.
        n_channels: Channels of each degree; operations do not depend on it.
    """
    plan = ModelPlan(
        model="MACE",
        r_max=5.0,
        l_max=3,
        n_channels=n_channels,
        hidden_l=(0, 1),
        interactions=(InteractionPlan(residual=False), InteractionPlan(residual=True)),
        correlation=(3, 3),
        avg_num_neighbors=14.0,
        atomic_numbers=(1, 6, 8),
        reference_energies=(-1.0, -2.0, -3.0),
        scale=0.8,
    )
    model = MACE(plan, torch.float32).initialize(torch.Generator().manual_seed(0))
    prepare(model)
    batch = InMemoryDataset(acetylacetones(10), ElementTable(plan.atomic_numbers), plan.r_max).batch(range(10))
    loss, moved = make_loss("weighted", {"energy": 1.0, "forces": 100.0}), MovedParameters(model)
    optimizer = make_optimizer(moved, parse_training_settings(["--name=a", "--train_file=a.xyz"]))
    average = MovingAverage(moved.parameters(), 0.99)

    def step() -> None:
        loss_gradient(model, batch, loss)
        update_parameters(moved, optimizer, 10.0, average)

    step()  # what is computed only once is not part of a step
    return step


def count(step: Callable[[], None]) -> Operations:
    """Count the operations of a step."""
    with Operations() as operations:
        step()
    return operations
