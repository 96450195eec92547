"""Do functions know what a backward pass is for in whatever thread it runs, as on devices?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels import passes
from mace.kernels.passes import Pass, current_pass, differentiating_by
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.step import loss_gradient

GRADIENT = torch.autograd.grad


class Count(TorchDispatchMode):
    """Counts operations; it is known to the thread alone that enters it."""

    n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Count.n += 1
        return function(*args, **(kwargs or {}))


def counted(*args: Any, **kwargs: Any) -> Any:
    with Count():
        return GRADIENT(*args, **kwargs)


def counted_elsewhere(*args: Any, **kwargs: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(counted, *args, **kwargs).result()


def gradients(monkeypatch: pytest.MonkeyPatch, gradient: Callable[..., Any]) -> tuple[list[torch.Tensor], int]:
    """Compute those of a loss with torch kernels, and count the operations of both backward passes."""
    rng, model = np.random.default_rng(0), files.model()
    structure = Configuration(
        np.array([1, 6, 8, 1]), rng.uniform(0.0, 3.0, (4, 3)), np.zeros((3, 3)), (False,) * 3, energy=-1.0,
        forces=rng.normal(size=(4, 3)),
    )  # fmt: skip
    batch = InMemoryDataset([structure], ElementTable(model.plan.atomic_numbers), model.plan.r_max).batch([0])
    Count.n = 0
    monkeypatch.setattr(torch.autograd, "grad", gradient)
    loss_gradient(model, batch, make_loss("weighted", {"energy": 1.0, "forces": 10.0}))
    monkeypatch.undo()
    return [p.grad for p in model.parameters() if p.grad is not None], Count.n


def test_backward_passes_in_another_thread_do_no_more_than_here(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, n = gradients(monkeypatch, counted)
    found, n_elsewhere = gradients(monkeypatch, counted_elsewhere)
    torch.testing.assert_close(found, expected)
    assert n_elsewhere == n
    # nothing else would show that passes are told apart
    monkeypatch.setattr(passes.Purpose, "kind", property(lambda _: Pass.EVERYTHING, lambda *_: None), raising=False)
    _, n_of_everything = gradients(pytest.MonkeyPatch(), counted)
    assert n_of_everything > n


def test_computations_side_by_side_have_their_own_purposes() -> None:
    with ThreadPoolExecutor(1) as pool, differentiating_by(Pass.GEOMETRY):
        assert pool.submit(current_pass).result() is Pass.EVERYTHING
        assert current_pass() is Pass.GEOMETRY
    assert current_pass() is Pass.EVERYTHING
