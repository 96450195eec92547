"""Dipoles, energies, losses, gradients and optimizer steps of models with dipoles are those of mace-torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mace.compat.weights import weights_from_original
from mace.model.derivatives import Prediction, predict
from mace.training.loss import Loss, make_loss
from mace.training.optimization import MovingAverage, parameter_groups
from mace.training.step import loss_gradient, train_step
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
    word = "energy_forces_dipole" if case.plan.predicts_energy else "dipole"
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
    if not dipole_case.plan.predicts_energy:
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


def _stored(case: Any, prefix: str) -> dict[str, np.ndarray]:
    """Take the arrays of a prefix, by our names."""
    arrays = {key.removeprefix(prefix + "/"): value for key, value in case.data.items() if key.startswith(prefix + "/")}
    return weights_from_original(arrays, case.plan)


def _assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(np.abs(array).max() for array in theirs.values())
    for name, array in theirs.items():
        deviation = np.abs(ours[name] - array).max(initial=0.0) / scale
        assert deviation < STEP_TOLERANCE, f"{name} deviates by {deviation:.1e} of the largest"


def test_gradients(dipole_case: Any) -> None:
    model = dipole_case.model()
    loss_gradient(model, dipole_case.dataset().batch([0, 1, 2]), loss_of(dipole_case))
    ours = {
        key: np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        for key, parameter in model.named_parameters()
    }
    _assert_equal(ours, _stored(dipole_case, "gradients"))


def test_three_steps(dipole_case: Any) -> None:
    model, loss = dipole_case.model(), loss_of(dipole_case)
    groups = parameter_groups(model, lr=0.01, weight_decay=5e-3, factors={})
    optimizer = torch.optim.Adam(groups, lr=0.01, amsgrad=True, fused=True)
    average = MovingAverage(model.parameters(), decay=0.99)
    batch = dipole_case.dataset().batch([0, 1, 2])
    for _ in range(3):
        train_step(model, batch, loss, optimizer, clip_grad=10.0, average=average)
    # the original lets weights that reach no dipole decay; here they stay as they are
    used = {key: parameter for key, parameter in model.named_parameters() if parameter.grad is not None}
    gradients = _stored(dipole_case, "gradients")
    assert not any(gradients[key].any() for key in gradients.keys() - used.keys())

    def compare(prefix: str) -> None:
        ours = {key: parameter.detach().numpy().copy() for key, parameter in used.items()}
        _assert_equal(ours, {key: value for key, value in _stored(dipole_case, prefix).items() if key in used})

    compare("stepped")
    with average.applied():
        compare("averaged")


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
    import sys

    cases = sys.modules["parity_cases"]
    plans = [cases.load_case(name).plan for name in cases.dipole_reference_names()]
    for model in ("AtomicDipolesMACE", "EnergyDipolesMACE"):
        chosen = [plan for plan in plans if plan.model == model]
        assert {plan.hidden_l for plan in chosen} == {(0, 1), (0, 1, 2)}
        assert {plan.n_layers for plan in chosen} == {1, 2, 3}
    assert {plan.gate for plan in plans} == {"silu", "tanh", "abs", "None"}
