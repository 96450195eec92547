"""Dipoles, energies, losses, gradients and optimizer steps of models with dipoles are those of mace-torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mace.model.prediction import Prediction, predict
from mace.training.loss import Loss, make_loss
from mace.training.step import loss_gradient
from mace.units import DEBYE_OF_MACE_TORCH

SILICON, SLAB = 1, 2
pytestmark = pytest.mark.usefixtures("kernels")

TOLERANCE = 1e-10
STEP_TOLERANCE = 1e-8

Loader = Callable[[str], Any]


@pytest.fixture
def prediction(dipole_case: Any) -> Prediction:
    """Our results for the three structures in one batch."""
    return predict(dipole_case.model(), dipole_case.dataset().batch([0, 1, 2]).graph, stress=True)


def loss_of(case: Any) -> Loss:
    """The loss that was stored; dipoles are in Debye there."""
    word = "energy_forces_dipole" if "energy" in case.plan.outputs else "dipole"
    return make_loss(word, {"energy": 2.0, "forces": 50.0, "dipole": 3.0 / DEBYE_OF_MACE_TORCH**2})


def assert_close(ours: torch.Tensor | None, theirs: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert ours is not None and ours.dtype == torch.float64 and tuple(ours.shape) == theirs.shape
    deviation = np.abs(ours.detach().numpy() - theirs).max() / np.abs(theirs).max()
    assert deviation < tolerance


def test_dipole(dipole_case: Any, prediction: Prediction) -> None:
    assert_close(prediction.dipole / DEBYE_OF_MACE_TORCH, dipole_case.data["output/dipole"])


def test_atomic_dipoles(dipole_case: Any, prediction: Prediction) -> None:
    assert_close(prediction.atomic_dipoles / DEBYE_OF_MACE_TORCH, dipole_case.data["output/atomic_dipoles"])


def test_charges_times_positions_are_part_of_it(dipole_case: Any, prediction: Prediction) -> None:
    for i, c in enumerate(dipole_case.configurations):
        atoms = dipole_case.dataset().batch([0, 1, 2]).graph.structure_of_atom == i
        learned = prediction.atomic_dipoles[atoms].sum(0).numpy()
        assert np.abs(c.charges @ c.positions).max() > 0.1
        np.testing.assert_allclose(prediction.dipole[i].numpy(), learned + c.charges @ c.positions, atol=1e-12)


def test_energy_and_its_derivatives(dipole_case: Any, prediction: Prediction) -> None:
    if "energy" not in dipole_case.plan.outputs:
        assert prediction.energy is None and prediction.forces is None and prediction.stress is None
        return
    # the original adds what it learned to thousands of eV, so that some of its digits are lost
    assert np.abs(prediction.energy.numpy() - dipole_case.data["output/energy"]).max() < TOLERANCE
    assert_close(prediction.forces, dipole_case.data["output/forces"])
    assert_close(prediction.virials, dipole_case.data["output/virials"])
    for i in (SILICON, SLAB):
        volume = abs(np.linalg.det(dipole_case.configurations[i].cell))
        theirs = dipole_case.data["output/stress"][i] * dipole_case.data["output/volume"][i]
        assert_close(prediction.stress[i] * volume, theirs)


def test_loss(dipole_case: Any) -> None:
    batch, loss = dipole_case.dataset().batch([0, 1, 2]), loss_of(dipole_case)
    value = float(loss(predict(dipole_case.model(), batch.graph), batch.targets))
    assert value == pytest.approx(float(dipole_case.data[f"loss/{loss.name}"]), rel=1e-10)


def test_gradients(dipole_case: Any) -> None:
    model = dipole_case.model()
    loss_gradient(model, dipole_case.dataset().batch([0, 1, 2]), loss_of(dipole_case))
    ours = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    sys.modules["parity_cases"].assert_as_stored(dipole_case, "gradients", ours, STEP_TOLERANCE)


def test_three_steps(dipole_case: Any) -> None:
    cases, model = sys.modules["parity_cases"], dipole_case.model()
    average = cases.three_steps(dipole_case, model, loss_of(dipole_case))
    # the original lets weights that reach no dipole decay; here they stay as they are
    used = {key: parameter for key, parameter in model.named_parameters() if parameter.grad is not None}
    gradients = cases.original_weights(dipole_case, "gradients")
    assert not any(gradients[key].any() for key in gradients.keys() - used.keys())
    cases.assert_as_stored(dipole_case, "stepped", used, STEP_TOLERANCE, used.keys())
    with average.applied():
        cases.assert_as_stored(dipole_case, "averaged", used, STEP_TOLERANCE, used.keys())


def test_the_last_layer_of_the_original_adds_nothing_without_gates(load_case: Loader) -> None:
    """Vectors alone reach its last readout, so its gates are zero; the layer is alive here once it has scalars."""
    case = load_case("dipoles/atomic_vector_l3_c3_t2")
    model, graph = case.model(), case.dataset().batch([0, 1, 2]).graph
    stored = predict(model, graph).atomic_dipoles
    with torch.no_grad():
        model.dipole_readouts[1].weight.mul_(2.0)
    assert torch.equal(predict(model, graph).atomic_dipoles, stored)
    model.initialize(torch.Generator().manual_seed(1))
    alive = predict(model, graph).atomic_dipoles
    with torch.no_grad():
        model.dipole_readouts[1].weight.mul_(2.0)
    assert not torch.equal(predict(model, graph).atomic_dipoles, alive)


def test_every_kind_of_model_is_stored() -> None:
    cases = sys.modules["parity_cases"]
    plans = [cases.load_case(name).plan for name in cases.dipole_reference_names()]
    for model in ("AtomicDipolesMACE", "EnergyDipolesMACE"):
        chosen = [plan for plan in plans if plan.model == model]
        assert {plan.hidden_l for plan in chosen} == {(0, 1), (0, 1, 2)}
        assert {plan.n_layers for plan in chosen} == {1, 2, 3}
    assert {plan.gate for plan in plans} == {"silu", "tanh", "abs", "None"}
