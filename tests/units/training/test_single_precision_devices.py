"""Does nothing ask a device for double precision that has none, as those of Apple?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.dataset import Batch
from mace.graphs.in_memory import InMemoryDataset
from mace.model.heads import with_one_head
from mace.model.mace import MACE
from mace.model.model_file import carry_to
from mace.model.prediction import predict
from mace.processes import devices
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.lbfgs import LBFGS
from mace.training.loss import make_loss
from mace.training.optimization import MovingAverage, make_optimizer
from mace.training.step import loss_gradient, update_parameters

LOSSES = ("weighted", "universal", "stress", "huber", "l1l2energyforces")
WEIGHTS = {"energy": 1.0, "forces": 10.0, "stress": 1.0, "virials": 1.0}


class Refusing(TorchDispatchMode):
    """Refuses double precision outside of the CPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(each, Tensor) and not each.is_cpu and each.dtype == torch.float64:
                raise TypeError(f"{function}: the device has no float64")
        return result


@pytest.fixture(autouse=True)
def without_double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch's device without memory stand for one without double precision."""
    monkeypatch.setattr(devices, "_widest", lambda kind, _: torch.float32 if kind == "meta" else torch.float64)
    with Refusing():
        yield


def batch(model: MACE) -> Batch:
    rng, heads = np.random.default_rng(1), model.plan.head_names
    structures = [
        Configuration(
            np.array([1, 6, 8, 1]), rng.uniform(0.0, 3.0, (4, 3)), 5.0 * np.eye(3), (True,) * 3, energy=-1.0,
            forces=rng.normal(size=(4, 3)), stress=np.eye(3), head=head,
        )
        for head in heads
    ]  # fmt: skip
    dataset = InMemoryDataset(structures, ElementTable(model.plan.atomic_numbers), model.plan.r_max, heads=heads)
    return dataset.batch(np.arange(len(structures)))


def there(model: MACE) -> MACE:
    return carry_to(model, "meta", torch.float32)


def test_double_precision_is_refused() -> None:
    with pytest.raises(TypeError, match="the device has no float64"):
        torch.zeros(3, dtype=torch.float64).to("meta")
    with pytest.raises(UserError, match="meta has no float64"):
        carry_to(files.model(), "meta", torch.float64)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("heads", [(), ("low", "high")])
def test_a_step_of_training(loss: str, heads: tuple[str, ...]) -> None:
    model = there(files.model(files.with_heads(*heads)) if heads else files.model())
    settings = parse_training_settings(["--name=x", "--train_file=x.xyz", "--default_dtype=float32"])
    optimizer, average = make_optimizer(model, settings), MovingAverage(model.parameters(), 0.99)
    value = loss_gradient(model, batch(model).to("meta"), make_loss(loss, WEIGHTS))
    norm = update_parameters(model, optimizer, 10.0, average)
    assert value.dtype == norm.dtype == torch.float32 and value.is_meta
    assert sum(parameter.grad is not None for parameter in model.parameters()) > 10


def test_predictions() -> None:
    model = there(files.model())
    found = predict(model, batch(model).graph.to("meta"), stress=True, atomic_virials=True)
    assert found.energy is not None and found.energy.dtype == torch.float32
    assert model.reference_energies.dtype == torch.float32
    model.to_precision(torch.float32)
    assert model.reference_energies.dtype == torch.float32


def test_one_head_of_several() -> None:
    class Readable(TorchDispatchMode):
        """Lets weights be read from the device without memory."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
                return torch.zeros(args[0].shape, dtype=args[0].dtype)
            return function(*args, **(kwargs or {}))

    model = there(files.model(files.with_heads("low", "high")))
    with Readable():
        taken = with_one_head(model, "high")
    assert taken.reference_energies.dtype == torch.float32 and taken.embedding.is_meta


def test_vectors_of_minimization() -> None:
    state = vars(LBFGS(torch.zeros(3), 5)) | {"direction": torch.ones(3, dtype=torch.float64)}
    restored = LBFGS.restored(state, torch.device("meta"))
    assert restored.direction is not None and restored.direction.dtype == torch.float32
    assert restored._on_line(0.5).dtype == torch.float32
