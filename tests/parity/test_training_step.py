"""Loss, parameter gradients and optimizer steps are those of mace-torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mace.graphs.dataset import Batch, Targets
from mace.model.prediction import predict
from mace.training.loss import make_loss
from mace.training.optimization import parameter_groups
from mace.training.step import loss_gradient, update_parameters

pytestmark = pytest.mark.usefixtures("kernels")

WEIGHTS = {"energy": 2.0, "forces": 50.0, "stress": 10.0, "virials": 10.0}
TOLERANCE = 1e-8

Loader = Callable[[str], Any]

# torch has no derivative of the Chebyshev polynomials the original calls: its forces there are not those of its energy
NAMES = sorted(
    path.stem
    for path in (Path(__file__).parent / "references").glob("*.npz")
    if path.stem != "structures" and not path.stem.startswith("chebyshev")
)


def _assert_as_stored(case: Any, prefix: str, ours: dict[str, torch.Tensor]) -> None:
    sys.modules["parity_cases"].assert_as_stored(case, prefix, ours, TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "word", ["weighted", "forces_only", "virials", "stress", "huber", "universal", "l1l2energyforces"]
)
def test_loss(name: str, word: str, load_case: Loader) -> None:
    case = load_case(name)
    batch = case.dataset().batch([0, 1, 2])
    # the original divides the virials of what is not periodic everywhere by a volume of its own making
    graph = replace(batch.graph, volume=torch.tensor(case.data["output/volume"]))
    prediction = predict(case.model(), graph, stress=True)
    value = float(make_loss(word, WEIGHTS, huber_delta=0.3)(prediction, _targets(batch, word, case)))
    assert value == pytest.approx(float(case.data[f"loss/{word}"]), rel=TOLERANCE)


def _targets(batch: Batch, word: str, case: Any) -> Targets:
    """Give the molecule the stress it has in the original, and take away weights that the original does not look at."""
    stress = torch.tensor(case.data["labels/stress"])
    labeled = torch.ones(len(stress), dtype=torch.bool)
    targets = batch.targets
    targets = replace(
        targets, values=targets.values | {"stress": stress}, labeled=targets.labeled | {"stress": labeled}
    )
    if word in ("huber", "universal"):
        targets = replace(targets, weight=torch.ones_like(targets.weight))
    if word == "huber":
        ones = {key: torch.ones_like(value) for key, value in targets.property_weights.items()}
        targets = replace(targets, property_weights=ones)
    if word == "l1l2energyforces":  # forces without any weight
        ones = torch.ones_like(targets.weight)
        targets = replace(targets, property_weights=targets.property_weights | {"forces": 1.0 / targets.weight})
    return targets


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, load_case: Loader) -> None:
    case = load_case(name)
    model = case.model()
    loss_gradient(model, case.dataset().batch([0, 1, 2]), make_loss("weighted", WEIGHTS))
    _assert_as_stored(case, "gradients", {key: p.grad for key, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("name", NAMES)
def test_three_steps(name: str, load_case: Loader) -> None:
    case = load_case(name)
    model = case.model()
    average = sys.modules["parity_cases"].three_steps(case, model, make_loss("weighted", WEIGHTS))
    _assert_as_stored(case, "stepped", dict(model.named_parameters()))
    with average.applied():
        _assert_as_stored(case, "averaged", dict(model.named_parameters()))


def test_a_wrong_decay_is_noticed(load_case: Loader) -> None:
    case = load_case("vector_l3_c3_t2")
    model = case.model()
    optimizer = torch.optim.Adam(parameter_groups(model, lr=0.01, weight_decay=0.0, factors={}), lr=0.01, amsgrad=True)
    batch, loss = case.dataset().batch([0, 1, 2]), make_loss("weighted", WEIGHTS)
    for _ in range(3):
        loss_gradient(model, batch, loss)
        update_parameters(model, optimizer, clip_grad=10.0)
    with pytest.raises(AssertionError, match="deviates"):
        _assert_as_stored(case, "stepped", dict(model.named_parameters()))
