"""Do parameters move by their gradients, and gradients grow no longer than allowed?"""

from __future__ import annotations

from typing import Any

import numpy as np
import original_files as files
import pytest
import torch
from torch import nn

from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.optimization import MovingAverage
from mace.training.step import loss_gradient, update_parameters


def move(length: float, clip_grad: float | None) -> tuple[float, float]:
    """Move by a gradient of a given length with a rate of one; return how far, and what is told of the length."""
    model: Any = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(1, 1, bias=False)})
    before = [parameter.detach().clone() for parameter in model.parameters()]
    count = sum(parameter.numel() for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, length / count**0.5)
    told = update_parameters(model, torch.optim.SGD(model.parameters(), lr=1.0), clip_grad)
    steps = [(p.detach() - old).flatten() for p, old in zip(model.parameters(), before, strict=True)]
    return float(torch.cat(steps).norm()), float(told)


@pytest.mark.parametrize("length", [0.5, 9.9, 11.0, 1000.0])
@pytest.mark.parametrize("limit", [None, 10.0, 3.0])
def test_gradients_are_shortened_to_the_limit_and_never_without_one(length: float, limit: float | None) -> None:
    moved, told = move(length, limit)
    assert moved == pytest.approx(length if limit is None else min(length, limit), rel=1e-5)
    assert told == pytest.approx(length, rel=1e-5)


def test_the_phases_of_a_step_are_told_in_their_order() -> None:
    structures = [Configuration(np.array([1, 8]), np.eye(3)[:2], np.zeros((3, 3)), (False,) * 3, energy=-1.0)]
    model, told = files.model(), list[str]()
    batch = InMemoryDataset(structures, ElementTable(model.plan.atomic_numbers), model.plan.r_max).batch([0])
    loss_gradient(model, batch, make_loss("weighted", {"energy": 1.0, "forces": 0.0}), mark=told.append)
    assert told == ["forward", "backward"]


def test_a_head_without_structures_in_the_batch_goes_on_with_its_momentum() -> None:
    """As in mace-torch, which masks it; without a gradient, the optimizer would leave it out, in one process only."""
    model = files.model(files.with_heads("low", "high"))
    loss, optimizer = make_loss("weighted", {"energy": 1.0, "forces": 0.0}), torch.optim.Adam(model.parameters())
    before = {}
    for head in ("high", "low"):
        structure = Configuration(
            np.array([1, 8]), np.eye(3)[:2], np.zeros((3, 3)), (False,) * 3, energy=-1.0, head=head
        )
        table = ElementTable(model.plan.atomic_numbers)
        batch = InMemoryDataset([structure], table, model.plan.r_max, heads=("low", "high")).batch([0])
        loss_gradient(model, batch, loss)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        update_parameters(model, optimizer)
    of_absent = [name for name, role in model.roles.items() if role.head == 1]
    for name in of_absent:
        parameter = model.get_parameter(name)
        assert parameter.grad is not None and not parameter.grad.any(), name
        assert not torch.equal(parameter.detach(), before[name]), name
    assert of_absent


def test_gradients_are_added_only_if_asked_for() -> None:
    structures = [Configuration(np.array([1, 8]), np.eye(3)[:2], np.zeros((3, 3)), (False,) * 3, energy=-1.0)]
    model, loss = files.model(), make_loss("weighted", {"energy": 1.0, "forces": 0.0})
    batch = InMemoryDataset(structures, ElementTable(model.plan.atomic_numbers), model.plan.r_max).batch([0])
    lengths = []
    for add in (False, False, True, True):
        loss_gradient(model, batch, loss, add=add)
        lengths.append(float(sum(p.grad.norm() for p in model.parameters() if p.grad is not None)))
    assert lengths[0] > 0.0
    assert lengths == pytest.approx([lengths[0] * times for times in (1, 1, 2, 3)], rel=1e-9)


@pytest.mark.parametrize("frozen", ["embedding", "interactions.", "products.", "interactions.0.radial"])
def test_what_is_frozen_is_not_differentiated_and_the_rest_as_before(kernels: str, load_case: Any, frozen: str) -> None:
    case = load_case("vector_l3_c3_t2")
    batch, loss = case.dataset().batch([0, 1]), make_loss("weighted", {"energy": 1.0, "forces": 10.0})
    whole, part = case.model(), case.model()
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    for model in (whole, part):
        loss_gradient(model, batch, loss)
    for name, parameter in part.named_parameters():
        expected = None if name.startswith(frozen) else whole.get_parameter(name).grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("word", ["None", "none", "null"])
def test_none_is_no_limit(word: str) -> None:
    assert parse_training_settings(["--name=a", "--train_file=a.xyz", f"--clip_grad={word}"]).clip_grad is None


def test_the_average_follows_after_the_step() -> None:
    model: Any = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = MovingAverage(model.parameters(), 0.99)
    model.weight.grad = torch.full((1, 1), -5.0)
    update_parameters(model, torch.optim.SGD(model.parameters(), lr=1.0), None, average)
    # the first of many updates has the short memory of (1 + 1) / (10 + 1)
    assert float(average.averages[0]) == pytest.approx(5.0 * (1.0 - 2.0 / 11.0))
