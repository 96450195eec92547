"""Are kernels that are wrong, fail or are slow on a device noticed, and is the user told?"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mace.errors import UserError
from mace.kernels.backend import TORCH, Backend
from mace.kernels.compiler import find_compiler
from mace.model import kernel_choice
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.potential import kernel_check, potential
from mace.potential.kernel_check import Verdict, check_kernels, compare
from mace.potential.potential import open_potential
from tests.program_models import SMALL, build

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")


class Faulty(Backend):
    """Kernels with a fault."""

    name = "triton"

    def __init__(self, factor: float = 1.0, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.factor, self.error, self.seconds = factor, error, seconds

    def contract(self, *arguments: Any, **named: Any) -> Any:
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds)
        return {degree: self.factor * rows for degree, rows in super().contract(*arguments, **named).items()}


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernel_check, "is_doubted", lambda device: True)
    kernel_check._CHECKED.clear()
    yield
    kernel_check._CHECKED.clear()


@pytest.fixture
def model() -> MACE:
    return build(torch.float64, **SMALL)


def test_right_ones_are_kept(model: MACE, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    weights = [value.clone() for value in model.parameters()]
    state = torch.get_rng_state()
    for _ in range(2):
        assert check_kernels(model) == "c"
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, weights, model.parameters()))
    (line,) = caplog.messages  # once in a process
    assert "deviates by" in line and "ms instead of" in line


@pytest.mark.parametrize("faulty", [Faulty(factor=1.001), Faulty(factor=float("nan"))])
def test_wrong_ones(model: MACE, faulty: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert check_kernels(model.use_backend(faulty)) == "torch" and model.backend is TORCH
    assert all("deviate by" in line and "--kernels=auto" in line for line in caplog.messages)
    assert len(caplog.messages) == 2
    with pytest.raises(UserError, match="--kernels=triton is not possible.*deviate.*--kernels=torch"):
        check_kernels(model.use_backend(faulty), "triton")


def test_failing_ones(model: MACE, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Faulty(error=RuntimeError("no kernel image\nis available"))
    assert check_kernels(model.use_backend(faulty)) == "torch"
    assert "no kernel image" in caplog.text and "is available" not in caplog.text
    monkeypatch.setenv("MACE_KERNELS", "triton")
    with pytest.raises(UserError, match="they fail"):
        check_kernels(model.use_backend(faulty))


def test_slow_ones(model: MACE) -> None:
    slow = Faulty(seconds=0.05)
    assert check_kernels(model.use_backend(slow)) == "torch"
    assert check_kernels(model.use_backend(slow), "triton") == "triton"


def test_memory_that_runs_out_is_no_fault(model: MACE) -> None:
    faulty = Faulty(error=torch.cuda.OutOfMemoryError("out of memory"))
    assert check_kernels(model.use_backend(faulty)) == "triton"


def test_torch_is_compared_with_the_cpu(model: MACE, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert check_kernels(model.use_backend(TORCH)) == "torch"
    assert "torch" in caplog.text


def test_times_and_words() -> None:
    verdict = compare(lambda: {"x": torch.ones(2)}, lambda: {"x": torch.tensor([1.0, 1.1])}, 0.01, torch.device("cpu"))
    assert verdict is not None and not verdict.is_right and verdict.worst == "x"
    assert "9.1e-02" in str(verdict) and verdict.fast > 0.0
    assert Verdict({}, 0.1).is_right


def test_every_opened_model_is_checked(model: MACE, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def choose(model: MACE, wanted: str) -> str:
        asked.append(wanted)
        model.use_backend(Faulty(factor=1.001))
        return "triton"

    monkeypatch.setattr(potential, "choose_kernels", choose)
    opened = open_potential(model)
    assert asked == ["auto"] and opened.members[0].kernels == "torch"
    with pytest.raises(UserError, match="--kernels=triton"):
        open_potential(model, kernels="triton")


@pytest.mark.parametrize("wanted", ["triton", "auto"])
def test_without_triton(model: MACE, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(kernel_choice, "has_triton", lambda: False)
    monkeypatch.setattr(kernel_choice, "DEVICES", ("meta",))
    model = model.to("meta")
    if wanted == "auto":
        assert choose_kernels(model, wanted) == "torch"
    else:
        with pytest.raises(UserError, match="triton is not installed; pip install triton"):
            choose_kernels(model, wanted)


def test_triton_on_a_device(model: MACE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "has_triton", lambda: True)
    monkeypatch.setattr(kernel_choice, "DEVICES", ("meta",))
    assert choose_kernels(model.to("meta")) == "triton"


def test_triton_on_a_cpu(model: MACE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UserError, match="--kernels=triton is not possible, because Triton has no kernels for cpu"):
        choose_kernels(model, "triton")
