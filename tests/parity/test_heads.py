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
from mace.model.prediction import Prediction, predict
from mace.training.loss import Loss, make_loss
from mace.training.step import loss_gradient
from mace.units import DEBYE_OF_MACE_TORCH

SILICON, SLAB = 1, 2
TOLERANCE = 1e-10
STEP_TOLERANCE = 1e-8
WEIGHTS = {"energy": 2.0, "forces": 50.0, "dipole": 3.0 / DEBYE_OF_MACE_TORCH**2}

pytestmark = pytest.mark.usefixtures("kernels")


def isolated_atoms(case: Any) -> np.ndarray:
    """Sum the reference energies of each structure, those of its head."""
    energies = {head.name: head.reference_energies for head in case.plan.heads}
    place = {number: i for i, number in enumerate(case.plan.atomic_numbers)}
    return np.array([sum(energies[c.head][place[z]] for z in c.atomic_numbers.tolist()) for c in case.configurations])


def assert_close(ours: torch.Tensor | None, theirs: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert ours is not None and ours.dtype == torch.float64 and tuple(ours.shape) == theirs.shape
    assert np.abs(ours.detach().numpy() - theirs).max() / np.abs(theirs).max() < tolerance


def assert_energies_close(prediction: Prediction, theirs: np.ndarray, isolated: np.ndarray) -> None:
    """Compare energies without those of isolated atoms, beside which the original rounds."""
    assert prediction.energy is not None
    deviation = np.abs(prediction.energy.detach().numpy() - theirs).max()
    assert deviation < TOLERANCE * np.abs(theirs - isolated).max() + 4 * np.spacing(np.abs(theirs).max())


def loss_of(case: Any) -> Loss:
    """The loss that was minimized; dipoles are in Debye there."""
    word = "energy_forces_dipole" if "dipole" in case.plan.outputs else "weighted"
    return make_loss(word, WEIGHTS)


def test_predictions(heads_case: Any) -> None:
    prediction = predict(heads_case.model(), heads_case.dataset().batch([0, 1, 2]).graph, stress=True)
    assert_energies_close(prediction, heads_case.data["output/energy"], isolated_atoms(heads_case))
    # the original's lack the readout of conditions, and those of models of dipoles are of isolated atoms
    if not heads_case.plan.condition_readout and "output/node_energy" in heads_case.data:
        assert_close(prediction.atomic_energies, heads_case.data["output/node_energy"])
    assert_close(prediction.forces, heads_case.data["output/forces"])
    if "dipole" in heads_case.plan.outputs:
        assert_close(prediction.dipole / DEBYE_OF_MACE_TORCH, heads_case.data["output/dipole"])
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
        assert_energies_close(prediction, heads_case.data["output/energy"][i : i + 1], isolated[i : i + 1])
        assert_close(prediction.forces, forces[ends[i] - configuration.n_atoms : ends[i]])


def test_loss_and_gradients(heads_case: Any) -> None:
    model, batch, loss = heads_case.model(), heads_case.dataset().batch([0, 1, 2]), loss_of(heads_case)
    value = float(loss(predict(model, batch.graph), batch.targets))
    assert value == pytest.approx(float(heads_case.data[f"loss/{loss.name}"]), rel=TOLERANCE)
    loss_gradient(model, batch, loss)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    sys.modules["parity_cases"].assert_as_stored(heads_case, "gradients", gradients, STEP_TOLERANCE)


def test_three_steps(heads_case: Any) -> None:
    cases, model = sys.modules["parity_cases"], heads_case.model()
    average = cases.three_steps(heads_case, model, loss_of(heads_case))
    cases.assert_as_stored(heads_case, "stepped", dict(model.named_parameters()), STEP_TOLERANCE)
    with average.applied():
        cases.assert_as_stored(heads_case, "averaged", dict(model.named_parameters()), STEP_TOLERANCE)
