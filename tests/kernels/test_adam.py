"""Does the compiled step do what torch does, with any number of threads, and go on with the state of torch's?"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mace.kernels import adam
from mace.kernels.adam import CompiledAdam, CompiledAdamW, CompiledStep
from mace.kernels.compiler import find_compiler
from mace.training.optimization import MovingAverage
from mace.training.step import update_parameters

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")

SHAPES = [(1,), (3, 5), (7, 11, 13), (4096,), (4097,), (3, 4099), (0, 4), (64, 65), ()]
FROZEN, RARE, ALWAYS_WITHOUT, SPOILED, TRANSPOSED = 1, 2, 3, 5, 7
"""Places of parameters that are frozen, have a gradient in every third step or never, or an unusual one."""

CHOICES = list(itertools.product([False, True], [False, True], [0.0, 0.05]))


class Moved(nn.Module):
    """Parameters of many shapes with an optimizer, whose gradients depend on them and on the number of the step."""

    ours: tuple[type[CompiledStep], type[CompiledStep]] = CompiledAdamW, CompiledAdam

    def __init__(self, dtype: torch.dtype, compiled: bool, decoupled: bool, amsgrad: bool, decay: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        self.all = nn.ParameterList([nn.Parameter(value.to(dtype)) for value in drawn])
        self.all[FROZEN].requires_grad_(False)
        theirs = torch.optim.AdamW if decoupled else torch.optim.Adam
        ours: Any = self.ours[not decoupled]
        own = list(self.all)
        groups = [{"params": own[:4], "weight_decay": decay, "lr": 0.03}, {"params": own[4:], "weight_decay": 0.0}]
        self.optimizer = (ours if compiled else theirs)(groups, lr=0.01, betas=(0.8, 0.99), amsgrad=amsgrad, fused=True)
        self.average = MovingAverage(self.parameters(), 0.9)
        self.count, self.compiled, self.spoiled = 0, compiled, 0.0

    def step(self, limit: float | None = 10.0, averaged: bool = True) -> Tensor:
        """Take a step with a learning rate of its own."""
        self.count += 1
        for place, parameter in enumerate(self.all):
            without = place in (FROZEN, ALWAYS_WITHOUT) or (place == RARE and self.count % 3)
            parameter.grad = None if without else self.gradient(place, parameter)
        for group, rate in zip(self.optimizer.param_groups, (0.03, 0.01), strict=True):
            group["lr"] = rate / self.count**0.5
        return update_parameters(self, self.optimizer, limit, self.average if averaged else None)  # type: ignore[arg-type]

    def gradient(self, place: int, parameter: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.count + place)
        value = parameter.detach() + torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(
            parameter
        )
        if place == SPOILED and self.spoiled:
            value[0, 0] = self.spoiled
        # of strides, torch's fused step takes no notice
        return value.T.contiguous().T if place == TRANSPOSED and self.compiled else value

    def values(self) -> Iterator[Tensor]:
        """Yield everything that a step changes."""
        yield from (parameter.detach() for parameter in self.all)
        yield from self.average.averages
        for parameter in self.all:
            yield from self.optimizer.state.get(parameter, {}).values()


def deviation(moved: Moved, other: Moved) -> float:
    pairs = list(zip(moved.values(), other.values(), strict=True))
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())


@pytest.mark.parametrize("limit", [None, 10.0])
@pytest.mark.parametrize(("decoupled", "amsgrad", "decay"), CHOICES)
def test_fifty_steps_are_those_of_torch(decoupled: bool, amsgrad: bool, decay: float, limit: float | None) -> None:
    ours, theirs = (Moved(torch.float64, compiled, decoupled, amsgrad, decay) for compiled in (True, False))
    started = [value.clone() for value in ours.values()]
    for _ in range(50):
        assert float(ours.step(limit)) == pytest.approx(float(theirs.step(limit)), rel=1e-13)
    assert deviation(ours, theirs) < 1e-12
    changed = [not torch.equal(*pair) for pair in zip(ours.values(), started, strict=False)]
    still = (FROZEN, ALWAYS_WITHOUT, SHAPES.index((0, 4)))
    assert changed == [place not in still for place in range(len(SHAPES))] * 2


@pytest.mark.parametrize(("decoupled", "amsgrad", "decay"), CHOICES)
def test_float32_is_as_near_to_float64_as_that_of_torch(decoupled: bool, amsgrad: bool, decay: float) -> None:
    ours, theirs = (Moved(torch.float32, compiled, decoupled, amsgrad, decay) for compiled in (True, False))
    exact = Moved(torch.float64, False, decoupled, amsgrad, decay)
    for _ in range(50):
        norms = [float(moved.step()) for moved in (ours, theirs, exact)]
        assert norms[0] == pytest.approx(norms[2], rel=1e-6)
    assert deviation(ours, exact) < 1.5 * deviation(theirs, exact) < 1e-4


def test_averages_follow_what_has_no_gradient() -> None:
    ours, theirs = (Moved(torch.float64, compiled, False, True, 0.0) for compiled in (True, False))
    for moved in (ours, theirs):
        with torch.no_grad():
            moved.all[ALWAYS_WITHOUT].fill_(3.0)
            moved.all[FROZEN].fill_(4.0)  # is its own average
        moved.step()
        moved.step(averaged=False)
        moved.step()
    assert deviation(ours, theirs) < 1e-14
    assert 0.0 < float((ours.average.averages[ALWAYS_WITHOUT] - 3.0).abs().max()) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "ENTRIES_OF_A_THREAD", 1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            moved = Moved(dtype, True, False, True, 0.05)
            norms = [moved.step() for _ in range(5)]
            results.append([*norms, *moved.values()])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


def carried(moved: Moved, compiled: bool, *choice: Any) -> Moved:
    """Write a state to a file and read it with another optimizer."""
    file = io.BytesIO()
    own = [parameter.detach() for parameter in moved.all]
    torch.save((own, moved.optimizer.state_dict(), moved.average.state_dict()), file)
    file.seek(0)
    values, state, averages = torch.load(file, weights_only=True)
    other = type(moved)(own[0].dtype, compiled, *choice)
    other.step()  # what it knew before must not remain
    with torch.no_grad():
        for parameter, value in zip(other.all, values, strict=True):
            parameter.copy_(value)
    other.optimizer.load_state_dict(state)
    other.average.load_state_dict(averages)
    other.count = moved.count
    return other


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("decoupled", "amsgrad", "decay"), CHOICES)
def test_the_state_of_one_is_that_of_the_other(compiled: bool, decoupled: bool, amsgrad: bool, decay: float) -> None:
    choice = (decoupled, amsgrad, decay)
    first, reference = Moved(torch.float64, compiled, *choice), Moved(torch.float64, not compiled, *choice)
    for _ in range(4):
        first.step(), reference.step()
    saved, expected = first.optimizer.state_dict(), reference.optimizer.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys()
    for place, entries in expected["state"].items():
        kinds = [{k: (v.dtype, v.shape) for k, v in of.items()} for of in (saved["state"][place], entries)]
        assert list(kinds[0]) == list(kinds[1]) and kinds[0] == kinds[1]
    second, same = carried(first, not compiled, *choice), carried(first, compiled, *choice)
    for _ in range(4):
        first.step(), second.step(), same.step()
    assert deviation(first, second) < 1e-13
    assert deviation(first, same) == 0.0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("limit", [None, 10.0])
def test_a_norm_that_is_not_finite_does_what_it_does_in_torch(value: float, limit: float | None) -> None:
    ours, theirs = (Moved(torch.float32, compiled, False, True, 0.05) for compiled in (True, False))
    for moved in (ours, theirs):
        moved.step()
        moved.spoiled = value
    norms = [moved.step(limit) for moved in (ours, theirs)]
    assert torch.equal(*(norm.isfinite() for norm in norms)) and torch.equal(*(norm.isnan() for norm in norms))
    ours.optimizer.state.clear(), theirs.optimizer.state.clear()  # torch's depends on the place in the tensor
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


class Counted(TorchDispatchMode):
    """Counts the operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names = list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.names.append(str(function))
        return function(*arguments, **(named or {}))


def test_a_step_is_hardly_any_operation_of_torch() -> None:
    moved = Moved(torch.float32, True, False, True, 0.0)
    for _ in range(3):  # in the third one all have a gradient that ever have one
        moved.step()
    for parameter in moved.all:
        parameter.grad = None if parameter.grad is None else parameter.grad.contiguous()
    with Counted() as counted:
        update_parameters(moved, moved.optimizer, 10.0, moved.average)  # type: ignore[arg-type]
    assert len(counted.names) <= 2, counted.names


def test_what_is_written_has_another_version_and_gradients_stay() -> None:
    moved = Moved(torch.float32, True, False, True, 0.0)
    moved.step()
    versions = [parameter._version for parameter in moved.all]
    for place, parameter in enumerate(moved.all):
        parameter.grad = torch.full_like(parameter, 100.0) if place not in (FROZEN, ALWAYS_WITHOUT) else None
    update_parameters(moved, moved.optimizer, 0.1)  # type: ignore[arg-type]
    written = [parameter._version > version for parameter, version in zip(moved.all, versions, strict=True)]
    assert written == [place not in (FROZEN, ALWAYS_WITHOUT) for place in range(len(SHAPES))]
    assert all(bool((parameter.grad == 100.0).all()) for parameter in moved.all if parameter.grad is not None)


def test_a_schedule_knows_that_steps_were_taken() -> None:
    moved = Moved(torch.float32, True, False, True, 0.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(moved.optimizer, gamma=0.5)
    moved.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()


def test_parameters_that_lie_elsewhere_are_found() -> None:
    ours, theirs = (Moved(torch.float64, compiled, False, True, 0.0) for compiled in (True, False))
    for moved in (ours, theirs):
        moved.step()
        moved.all[0].data = moved.all[0].data.clone()
        moved.step()
    assert deviation(ours, theirs) < 1e-14
