"""Energies, gradients and optimizer steps of models that know of charges, spins and the like are mace-torch's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.model.prediction import Prediction, predict
from mace.training.loss import Loss, make_loss
from mace.training.optimization import parameter_groups
from mace.training.step import loss_gradient

pytestmark = pytest.mark.usefixtures("kernels")

SILICON, SLAB = 1, 2
STEP_TOLERANCE = 1e-8

Loader = Callable[[str], Any]


@pytest.fixture
def prediction(condition_case: Any) -> Prediction:
    """Our results for the three structures in one batch."""
    return predict(condition_case.model(), condition_case.dataset().batch([0, 1, 2]).graph, stress=True)


def weighted() -> Loss:
    return make_loss("weighted", {"energy": 2.0, "forces": 50.0})


def deviation(ours: torch.Tensor, theirs: np.ndarray) -> float:
    assert ours.dtype == torch.float64 and tuple(ours.shape) == theirs.shape
    return float(np.abs(ours.detach().numpy() - theirs).max() / np.abs(theirs).max())


def test_energies_and_derivatives(condition_case: Any, prediction: Prediction) -> None:
    isolated = condition_case.reference_energies()
    data = condition_case.data
    assert deviation(prediction.energy - torch.tensor(isolated), data["output/energy"] - isolated) < 1e-10
    assert deviation(prediction.forces, data["output/forces"]) < 1e-10
    assert deviation(prediction.virials, data["output/virials"]) < 1e-9
    for i in (SILICON, SLAB):
        volume = abs(np.linalg.det(condition_case.configurations[i].cell))
        theirs = data["output/stress"][i] * data["output/volume"][i]
        assert deviation(prediction.stress[i] * volume, theirs) < 1e-9


def test_energies_of_atoms_add_up(condition_case: Any, prediction: Prediction) -> None:
    """In the original they lack what is read from the conditions."""
    counts = [c.n_atoms for c in condition_case.configurations]
    sums = torch.stack([part.sum() for part in prediction.atomic_energies.split(counts)])
    torch.testing.assert_close(sums, prediction.energy, rtol=1e-13, atol=0.0)


def test_every_condition_matters(condition_case: Any, prediction: Prediction) -> None:
    for condition in condition_case.plan.conditions:
        low, _ = condition.bounds
        changed = [
            replace(c, conditions=c.conditions | {condition.name: np.full_like(c.conditions[condition.name], low)})
            for c in condition_case.configurations
        ]
        if condition.kind == "continuous":
            changed = [
                replace(c, conditions=c.conditions | {condition.name: c.conditions[condition.name] + 0.5})
                for c in condition_case.configurations
            ]
        dataset = InMemoryDataset(changed, ElementTable(condition_case.plan.atomic_numbers), condition_case.plan.r_max)
        moved = predict(condition_case.model(), dataset.batch([0, 1, 2]).graph).energy
        assert float((moved - prediction.energy).abs().min()) > 1e-6, condition.name


def test_batches_are_structures_one_by_one(condition_case: Any, prediction: Prediction) -> None:
    model, dataset = condition_case.model(), condition_case.dataset()
    single = [predict(model, dataset.graph([i])) for i in (2, 0, 1)]
    energies = torch.cat([single[1].energy, single[2].energy, single[0].energy])
    torch.testing.assert_close(energies, prediction.energy, rtol=1e-13, atol=0.0)
    forces = torch.cat([single[1].forces, single[2].forces, single[0].forces])
    torch.testing.assert_close(forces, prediction.forces, rtol=1e-10, atol=1e-12)


def _assert_as_stored(case: Any, prefix: str, ours: dict[str, torch.Tensor]) -> None:
    sys.modules["parity_cases"].assert_as_stored(case, prefix, ours, STEP_TOLERANCE)


def test_loss_and_gradients(condition_case: Any) -> None:
    model, batch = condition_case.model(), condition_case.dataset().batch([0, 1, 2])
    value = float(loss_gradient(model, batch, weighted()))
    assert value == pytest.approx(float(condition_case.data["loss/weighted"]), rel=1e-10)
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    _assert_as_stored(condition_case, "gradients", gradients)


def test_three_steps(condition_case: Any) -> None:
    model = condition_case.model()
    groups = parameter_groups(model, lr=0.01, weight_decay=5e-3, factors={})
    assert groups[-1]["name"] == "conditions" and groups[-1]["weight_decay"] == 0.0
    average = sys.modules["parity_cases"].three_steps(condition_case, model, weighted())
    _assert_as_stored(condition_case, "stepped", dict(model.named_parameters()))
    with average.applied():
        _assert_as_stored(condition_case, "averaged", dict(model.named_parameters()))


def test_conditions_of_structures_and_atoms_are_stored(load_case: Loader) -> None:
    cases = [load_case(name) for name in sys.modules["parity_cases"].condition_reference_names()]
    plans = [case.plan for case in cases]
    kinds = {(condition.kind, condition.per) for plan in plans for condition in plan.conditions}
    assert len(kinds) == 4
    assert {plan.condition_readout for plan in plans} == {True, False}
    assert {condition.has_biases for plan in plans for condition in plan.conditions} == {True, False}
