"""Energies, losses, gradients and optimizer steps of models with several heads are those of mace-torch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.assembly import build_graph
from mace.model.heads import with_one_head
from mace.model.prediction import predict
from mace.training.loss import make_loss
from mace.training.step import loss_gradient

SILICON, SLAB = 1, 2
TOLERANCE = 1e-10
STEP_TOLERANCE = 1e-8
WEIGHTS = {"energy": 2.0, "forces": 50.0}

pytestmark = pytest.mark.usefixtures("kernels")


def isolated_atoms(case: Any) -> np.ndarray:
    """Sum the reference energies of each structure, those of its head."""
    energies = {head.name: head.reference_energies for head in case.plan.heads}
    place = {number: i for i, number in enumerate(case.plan.atomic_numbers)}
    return np.array([sum(energies[c.head][place[z]] for z in c.atomic_numbers.tolist()) for c in case.configurations])


def assert_close(ours: torch.Tensor | None, theirs: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert ours is not None and ours.dtype == torch.float64 and tuple(ours.shape) == theirs.shape
    assert np.abs(ours.detach().numpy() - theirs).max() / np.abs(theirs).max() < tolerance


def assert_as_stored(case: Any, prefix: str, ours: dict[str, torch.Tensor]) -> None:
    sys.modules["parity_cases"].assert_as_stored(case, prefix, ours, STEP_TOLERANCE)


def test_predictions(heads_case: Any) -> None:
    prediction = predict(heads_case.model(), heads_case.dataset().batch([0, 1, 2]).graph, stress=True)
    isolated = isolated_atoms(heads_case)
    assert_close(prediction.energy - torch.tensor(isolated), heads_case.data["output/energy"] - isolated)
    if not heads_case.plan.condition_readout:  # which the original's lack
        assert_close(prediction.atomic_energies, heads_case.data["output/node_energy"])
    assert_close(prediction.forces, heads_case.data["output/forces"])
    assert_close(prediction.virials, heads_case.data["output/virials"])
    for i in (SILICON, SLAB):
        volume = abs(np.linalg.det(heads_case.configurations[i].cell))
        theirs = heads_case.data["output/stress"][i] * heads_case.data["output/volume"][i]
        assert_close(prediction.stress[i] * volume, theirs)


def test_one_head_alone(heads_case: Any) -> None:
    """A model made of one head says of its structures what the original says."""
    isolated, forces = isolated_atoms(heads_case), heads_case.data["output/forces"]
    ends = np.cumsum([c.n_atoms for c in heads_case.configurations])
    for i, configuration in enumerate(heads_case.configurations):
        model = with_one_head(heads_case.model(), configuration.head)
        assert not model.plan.heads
        graph = build_graph(configuration, ElementTable(model.plan.atomic_numbers), model.plan.r_max)
        prediction = predict(model, graph)
        assert_close(prediction.energy - isolated[i], heads_case.data["output/energy"][i : i + 1] - isolated[i])
        assert_close(prediction.forces, forces[ends[i] - configuration.n_atoms : ends[i]])


def test_loss_and_gradients(heads_case: Any) -> None:
    model, batch, loss = heads_case.model(), heads_case.dataset().batch([0, 1, 2]), make_loss("weighted", WEIGHTS)
    value = float(loss(predict(model, batch.graph), batch.targets))
    assert value == pytest.approx(float(heads_case.data["loss/weighted"]), rel=TOLERANCE)
    loss_gradient(model, batch, loss)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_as_stored(heads_case, "gradients", gradients)


def test_three_steps(heads_case: Any) -> None:
    model = heads_case.model()
    average = sys.modules["parity_cases"].three_steps(heads_case, model, make_loss("weighted", WEIGHTS))
    assert_as_stored(heads_case, "stepped", dict(model.named_parameters()))
    with average.applied():
        assert_as_stored(heads_case, "averaged", dict(model.named_parameters()))
