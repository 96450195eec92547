"""Steps with kernels in Triton that are taken again and again in the same memory, beside those in C."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from standing_in import Rerun

from mace.elements import ElementTable
from mace.graphs.dataset import Batch
from mace.graphs.in_memory import InMemoryDataset
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.batch_step import CapturedSteps
from mace.training.loss import make_loss
from mace.training.phases import unmarked
from mace.training.state import TrainingState
from mace.training.step import update_parameters
from tests.program_models import SMALL, build

pytest.importorskip("triton")

from mace.kernels.adam import DeviceStep  # noqa: E402
from mace.kernels.triton_backend import TRITON  # noqa: E402

LOSS = make_loss("weighted", {"energy": 1.0, "forces": 10.0})


@pytest.mark.slow
def test_repeated_steps() -> None:
    model = build(torch.float64, **SMALL)
    settings = parse_training_settings(["--name=x", "--train_file=x.xyz", "--ema", "--clip_grad=1.0"])
    states = [TrainingState(each, settings, (LOSS, None)) for each in (deepcopy(model), model.use_backend(TRITON))]
    assert isinstance(states[1].optimizer, DeviceStep)

    def changing() -> Any:
        yield from states[1].model.parameters()
        for moments in states[1].optimizer.state.values():
            yield from moments.values()
        yield from states[1].average.averages if states[1].average is not None else ()

    recorder = Rerun(changing)
    both = [CapturedSteps(state, 1.0, recorder) for state in states]
    both[0]._captures.ready = lambda *_: None  # type: ignore[method-assign]

    for place in range(3):
        rng = np.random.default_rng(place)
        labels: dict[str, Any] = {"energy": 1.0, "forces": rng.normal(size=(3, 3))}
        positions = 1.2 * np.arange(3)[:, None] * [1.0, 0.3, 0.1] + rng.uniform(-0.1, 0.1, (3, 3))
        structure = Configuration(np.array([1, 6, 8]), positions, np.eye(3), (False,) * 3, **labels)
        table = ElementTable(model.plan.atomic_numbers)
        batch: Batch = InMemoryDataset([structure], table, model.plan.r_max).batch([0])
        losses = []
        for steps, state in zip(both, states, strict=True):
            state.moved.forget_gradients()
            loss, norm = steps.take(batch, LOSS, None, unmarked, complete=True)
            if norm is None:
                update_parameters(state.moved, state.optimizer, 1.0, state.average)
            losses.append(float(loss))
        assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert recorder.repetitions == 2
    for one, other in zip(*(state.model.parameters() for state in states), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-8)
