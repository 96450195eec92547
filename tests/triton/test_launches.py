"""How many launches does a training step take on a device?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import operations
import pytest

pytest.importorskip("triton")

from mace.kernels import gather
from mace.kernels.triton_backend import TRITON
from mace.kernels.triton_source.launching import DeviceKernel
from mace.model.mace import MACE

LIBRARY = {"_products", "_sums"}
"""Kernels that take the place of a library's products of matrices."""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel is launched, none of which does anything."""
    names = Counter[str]()

    def run(self: DeviceKernel, pointers: Sequence[Any], dimensions: Sequence[int | float]) -> None:
        names[self.function.fn.__name__] += all(self.grid(dimensions))

    monkeypatch.setattr(DeviceKernel, "run", run)
    monkeypatch.setattr(gather, "has_kernels", lambda values: True)
    return names


def test_a_training_step_takes_few_launches(launched: Counter[str]) -> None:
    def choose(model: MACE) -> None:
        model.use_backend(TRITON)

    step = operations.training_step(choose)
    launched.clear()
    counted = operations.count(step)
    table = f"{counted.table()}\n{launched}"
    products = sum(launched[name] for name in LIBRARY)
    assert 40 < products < 60, table
    assert launched.total() - products + counted.total <= 80, table
