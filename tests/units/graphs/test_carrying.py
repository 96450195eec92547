"""Does what is carried to a device arrive whole, in a single copy?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mace.elements import ElementTable
from mace.graphs import graph
from mace.graphs.dataset import Batch
from mace.graphs.graph import carry, page_locked
from mace.graphs.in_memory import InMemoryDataset
from mace.processes import devices
from mace.structures.configuration import Configuration


class Copies(TorchDispatchMode):
    """Counts the copies from the CPU to another device."""

    n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        moved = isinstance(result, Tensor) and not result.is_cpu
        self.n += moved and any(isinstance(each, Tensor) and each.is_cpu for each in args)
        return result


def batch() -> Batch:
    rng = np.random.default_rng(3)
    structures = [
        Configuration(
            np.resize([1, 6, 8], n), rng.uniform(0, 4, (n, 3)), 6.0 * np.eye(3), (True,) * 3, energy=1.0,
            forces=rng.normal(size=(n, 3)),
        )
        for n in (4, 1, 3)
    ]  # fmt: skip
    return InMemoryDataset(structures, ElementTable((1, 6, 8)), 3.0).batch([0, 1, 2])


def described(value: Any) -> list[tuple[torch.dtype, torch.Size]]:
    return [(tensor.dtype, tensor.shape) for tensor in graph._tensors(value)]


def test_a_batch_is_carried_in_a_single_copy() -> None:
    given = batch()
    with Copies() as copies:
        moved = given.to("meta")
    assert copies.n == 1
    assert described(moved) == described(given) and len(described(given)) > 30
    assert all(tensor.is_meta for tensor in graph._tensors(moved))
    assert moved.graph.elements_present == given.graph.elements_present
    assert moved.graph.max_neighbors == given.graph.max_neighbors
    assert carry(moved, "meta").graph.n_atoms == given.graph.n_atoms  # what is there already stays


def test_what_is_packed_is_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory needs a GPU, but how tensors lie in it does not."""
    empty, buffers = torch.empty, list[Tensor]()

    def locked(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        buffers.append(empty(*args, **kwargs))
        return buffers[-1]

    monkeypatch.setattr(graph.torch, "empty", locked)
    given = batch()
    found = page_locked(given)
    monkeypatch.undo()
    (buffer,) = buffers
    for a, b in zip(graph._tensors(found), graph._tensors(given), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b) and a.data_ptr() % 64 == buffer.data_ptr() % 64
        assert a.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    # and from there it is carried as it lies
    monkeypatch.setattr(torch.UntypedStorage, "is_pinned", lambda storage: True)
    monkeypatch.setattr(graph, "_packed", None)
    with Copies() as copies:
        there = carry(found, "meta")
    assert copies.n == 1 and described(there) == described(given)


def test_a_device_without_double_precision_gets_single(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_widest", lambda kind, index: torch.float32 if kind == "meta" else torch.float64)
    moved = batch().to("meta")
    assert torch.float64 not in {dtype for dtype, _ in described(moved)}
    assert moved.graph.positions.dtype == moved.targets.values["forces"].dtype == torch.float32


def test_nothing_is_carried_too() -> None:
    assert carry({}, "meta") == {}
    assert carry({"a": torch.zeros(0, 3)}, "meta")["a"].shape == (0, 3)
    assert carry(torch.ones(2, 2).t(), "meta").shape == (2, 2)
