"""Is a step of Adam with kernels in Triton that of torch, and does it go on where either stopped?"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from mace.kernels.adam import DeviceAdam, DeviceAdamW
from mace.training.step import update_parameters
from tests.kernels.test_adam import (
    ALWAYS_WITHOUT,
    CHOICES,
    FROZEN,
    SHAPES,
    Moved,
    carried,
    deviation,
)


class MovedOnDevice(Moved):
    """The same, moved with kernels in Triton."""

    ours = DeviceAdamW, DeviceAdam


MOST = [(True, True, 0.05, 10.0), (False, False, 0.0, None), (False, True, 0.05, 10.0)]
REST = [choice for choice in ((*c, limit) for c in CHOICES for limit in (None, 10.0)) if choice not in MOST]
EVERY = [*MOST, *(pytest.param(*choice, marks=pytest.mark.slow) for choice in REST)]


@pytest.mark.parametrize(("decoupled", "amsgrad", "decay", "limit"), EVERY)
def test_steps_are_those_of_torch(decoupled: bool, amsgrad: bool, decay: float, limit: float | None) -> None:
    ours, theirs = (MovedOnDevice(torch.float64, compiled, decoupled, amsgrad, decay) for compiled in (True, False))
    started = [value.clone() for value in ours.values()]
    for _ in range(4):
        assert float(ours.step(limit)) == pytest.approx(float(theirs.step(limit)), rel=1e-13)
    assert deviation(ours, theirs) < 1e-12
    changed = [not torch.equal(*pair) for pair in zip(ours.values(), started, strict=False)]
    still = (FROZEN, ALWAYS_WITHOUT, SHAPES.index((0, 4)))
    assert changed == [place not in still for place in range(len(SHAPES))] * 2


def test_float32_is_as_near_to_float64_as_that_of_torch() -> None:
    choice = (True, True, 0.05)
    ours, theirs = (MovedOnDevice(torch.float32, compiled, *choice) for compiled in (True, False))
    exact = MovedOnDevice(torch.float64, False, *choice)
    for _ in range(5):
        norms = [float(moved.step()) for moved in (ours, theirs, exact)]
        assert norms[0] == pytest.approx(norms[2], rel=1e-6)
    assert deviation(ours, exact) < 1.5 * deviation(theirs, exact) < 1e-4


def test_the_step_in_c_gives_the_same() -> None:
    device, processor = (kind(torch.float64, True, False, True, 0.05) for kind in (MovedOnDevice, Moved))
    for averaged in (True, False, True, True):
        assert float(device.step(1.0, averaged)) == pytest.approx(float(processor.step(1.0, averaged)), rel=1e-14)
    assert deviation(device, processor) < 1e-14


def test_the_same_bits_every_time() -> None:
    results = []
    for _ in range(2):
        moved = MovedOnDevice(torch.float32, True, False, True, 0.05)
        results.append([moved.step(), moved.step(), *moved.values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("compiled", [True, False])
def test_the_state_of_one_is_that_of_the_other(compiled: bool) -> None:
    choice = (False, True, 0.05)
    first, reference = (MovedOnDevice(torch.float64, c, *choice) for c in (compiled, not compiled))
    for _ in range(3):
        first.step(), reference.step()
    saved, expected = first.optimizer.state_dict(), reference.optimizer.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    for place, entries in expected["state"].items():
        kinds = [{k: (v.dtype, v.shape) for k, v in of.items()} for of in (saved["state"][place], entries)]
        assert list(kinds[0]) == list(kinds[1]) and kinds[0] == kinds[1]
    second, same = carried(first, not compiled, *choice), carried(first, compiled, *choice)
    for _ in range(2):
        first.step(), second.step(), same.step()
    assert deviation(first, second) < 1e-13
    assert deviation(first, same) == 0.0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_norm_that_is_not_finite_does_what_it_does_in_torch(value: float) -> None:
    ours, theirs = (MovedOnDevice(torch.float32, compiled, False, True, 0.05) for compiled in (True, False))
    for moved in (ours, theirs):
        moved.step()
        moved.spoiled = value
    norms = [moved.step() for moved in (ours, theirs)]
    assert torch.equal(*(norm.isfinite() for norm in norms)) and torch.equal(*(norm.isnan() for norm in norms))
    ours.optimizer.state.clear(), theirs.optimizer.state.clear()  # torch's depends on the place in the tensor
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_step_that_is_replayed_reads_what_was_prepared_last() -> None:
    """Also the rates and the weight of the average, while addresses stay as they are, as a graph has it."""
    replayed, usual = (MovedOnDevice(torch.float64, True, False, True, 0.05) for _ in range(2))
    replayed.step(), usual.step()
    for parameters in zip(replayed.all, usual.all, strict=True):
        gradient = None if parameters[0].grad is None else torch.full_like(parameters[0], 0.3)
        for parameter in parameters:
            parameter.grad = None if gradient is None else gradient.clone()
    for rate in (0.5, 0.25):
        for moved in (replayed, usual):
            for group in moved.optimizer.param_groups:
                group["lr"] = rate
        replayed.optimizer.prepare(float("inf"), replayed.average.begin_update())
        replayed.optimizer.move()
        update_parameters(usual, usual.optimizer, None, usual.average)  # type: ignore[arg-type]
    assert deviation(replayed, usual) == 0.0
