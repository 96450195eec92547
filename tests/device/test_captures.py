"""Are steps from CUDA graphs those of the program to the last bit, and does memory that runs out end none?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.batch_plan import Step
from mace.graphs.in_memory import InMemoryDataset
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.potential.kernel_check import check_kernels
from mace.potential.potential import open_potential
from mace.processes.cuda_graphs import CudaGraphs
from mace.processes.team import Team
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.batch_step import BatchStep, CapturedSteps
from mace.training.loss import make_loss
from mace.training.memory import EdgeLimit
from mace.training.state import TrainingState
from tests.program_models import SMALL, build
from tests.training_runs import train, write_water

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics processor"),
]

LOSS = make_loss("weighted", {"energy": 1.0, "forces": 10.0})


def model_on(device: torch.device, dtype: torch.dtype = torch.float32) -> MACE:
    model = build(dtype, **SMALL).to(device)
    if choose_kernels(model) != "triton":
        pytest.skip("Triton is not installed")
    return model


def training(captured: bool, dtype: torch.dtype) -> tuple[BatchStep, TrainingState]:
    model = model_on(torch.device("cuda"), dtype)
    rng, made = np.random.default_rng(5), []
    for place in range(16):
        n = 3 + place % 3
        positions = 1.3 * np.arange(n)[:, None] * [1.0, 0.3, 0.1] + rng.uniform(-0.2, 0.2, (n, 3))
        labels: dict[str, Any] = {"energy": rng.normal(), "forces": rng.normal(size=(n, 3))}
        made.append(Configuration(rng.choice([1, 6, 8], n), positions, np.eye(3), (False,) * 3, **labels))
    settings = parse_training_settings(["--name=x", "--train_file=x.xyz", "--ema", "--clip_grad=1.0"])
    state = TrainingState(model, settings, (LOSS, None))
    dataset = InMemoryDataset(made, ElementTable(model.plan.atomic_numbers), model.plan.r_max)
    step = BatchStep(state, dataset, EdgeLimit(None, "training"), settings, Team())
    # the one without repeats nothing, but pads as the other one does
    recorder = CudaGraphs(torch.device("cuda"))
    step.captured = CapturedSteps(state, settings.clip_grad, recorder)
    if not captured:
        step.captured._captures.ready = lambda *_: None  # type: ignore[method-assign]
    return step, state


def course(captured: bool, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    step, state = training(captured, dtype)
    for epoch in range(4):
        order = np.random.default_rng(epoch).permutation(16)
        for chosen in np.split(order, 4):
            outcome = step.take(Step(chosen), LOSS, (False, False))
            numbers = outcome.read()
            yield torch.tensor([numbers.loss, numbers.norm])
        state.schedule.epoch_ended(None)
    assert step.captured is not None and bool(step.captured.counts.repeated) == captured
    assert state.average is not None
    yield from (value.detach().cpu() for value in (*state.model.parameters(), *state.average.averages))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_the_same_to_the_last_bit(dtype: torch.dtype) -> None:
    for place, (one, other) in enumerate(zip(course(True, dtype), course(False, dtype), strict=True)):
        assert torch.equal(one, other), place


def test_a_repeated_step_waits_for_nothing() -> None:
    step, _ = training(True, torch.float32)
    for _ in range(3):
        step.take(Step(np.arange(4)), LOSS, (False, False)).read()
    batch = step.captured.padded(step._dataset.batch(np.arange(4)))  # type: ignore[union-attr]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome = step.take(Step(np.arange(4)), LOSS, (False, False), gather=lambda structures: batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(outcome.read().loss)


def test_memory_that_runs_out_in_a_capture(caplog: pytest.LogCaptureFixture) -> None:
    step, _ = training(True, torch.float32)
    step.take(Step(np.arange(4)), LOSS, (False, False)).read()
    steps = step.captured
    assert steps is not None
    work, hog = steps._work, []

    def hungry(*arguments: Any) -> Any:
        hog.append(torch.empty(1 << 50, dtype=torch.uint8, device="cuda"))
        return work(*arguments)

    steps._work = hungry  # type: ignore[method-assign]
    for _ in range(3):
        assert np.isfinite(step.take(Step(np.arange(4)), LOSS, (False, False)).read().loss)
    assert "Memory ran out where a CUDA graph was captured for training" in caplog.text
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_predictions() -> None:
    model = model_on(torch.device("cuda"), torch.float64)
    plain = open_potential(build(torch.float64, **SMALL), "cpu", kernels="torch")
    fast = open_potential(model, "cuda")
    rng = np.random.default_rng(1)
    positions = 1.4 * np.arange(5)[:, None] * [1.0, 0.2, 0.1]
    for _ in range(5):
        positions = positions + rng.normal(0.0, 0.01, positions.shape)
        structure = Configuration(np.array([1, 6, 8, 1, 6]), positions, np.eye(3), (False,) * 3)
        (one,), (other,) = fast.evaluate([structure], follow=True), plain.evaluate([structure])
        assert one.forces is not None and other.forces is not None
        torch.testing.assert_close(one.forces.cpu(), other.forces, rtol=0.0, atol=1e-9)
    assert fast._captured is not None and fast._captured[0] is not None and fast._captured[0].counts.repeated


def test_kernels_are_believed_after_a_comparison() -> None:
    assert check_kernels(model_on(torch.device("cuda"))) == "triton"


def test_a_run_compares_before_it_begins(tmp_path: Path) -> None:
    data = write_water(tmp_path / "train.xyz")
    run = train(tmp_path, data, "--device=cuda", "--kernels=triton", "--cuda_graphs=on", "--default_dtype=float32")
    assert run.said("Kernels: triton; a step on the first batch deviates by")
    assert run.said("CUDA graphs: whole steps; after three steps weights deviate by")
    assert run.said(r"Steps: \d+ of \d+ from \d+ CUDA graphs")
