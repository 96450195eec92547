"""Energies, forces, virials and stress of every stored case against the original's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mace.model.prediction import Prediction, predict
from mace.testing.laws import Structure, assert_forces_are_the_gradient

pytestmark = pytest.mark.usefixtures("kernels")

SILICON, SLAB = 1, 2


@pytest.fixture
def prediction(case: Any) -> Prediction:
    """Our results for the three structures in one batch."""
    return predict(case.model(), case.dataset().batch([0, 1, 2]).graph, stress=True)


def deviation(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """Largest difference over the largest magnitude."""
    assert ours.dtype == torch.float64
    assert tuple(ours.shape) == theirs.shape
    return float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())


def skip_without_derivative(case: Any) -> None:
    """Leave out the case whose forces the original does not know."""
    if case.plan.radial_type == "chebyshev":
        # torch.special.chebyshev_polynomial_t has no derivative: the original's forces lack what comes from the
        # radial basis and are not minus the gradient of its energy
        pytest.skip("the original has no derivative of this radial basis")


def test_energy(case: Any, prediction: Prediction) -> None:
    assert deviation(prediction.energy, case.data["output/energy"]) < 1e-12


def test_interaction_energy(case: Any, prediction: Prediction) -> None:
    isolated = case.reference_energies()
    assert deviation(prediction.energy - torch.tensor(isolated), case.data["output/energy"] - isolated) < 1e-10


def test_atomic_energies(case: Any, prediction: Prediction) -> None:
    isolated = np.concatenate(
        [
            [
                dict(zip(case.plan.atomic_numbers, case.plan.reference_energies, strict=True))[z]
                for z in c.atomic_numbers
            ]
            for c in case.configurations
        ]
    )
    ours = prediction.atomic_energies - torch.tensor(isolated)
    assert deviation(ours, case.data["output/node_energy"] - isolated) < 1e-10


def test_forces(case: Any, prediction: Prediction) -> None:
    skip_without_derivative(case)
    assert deviation(prediction.forces, case.data["output/forces"]) < 1e-10


def test_virials(case: Any, prediction: Prediction) -> None:
    skip_without_derivative(case)
    assert deviation(prediction.virials, case.data["output/virials"]) < 1e-9


def test_stress_times_volume(case: Any, prediction: Prediction) -> None:
    """Stress of bulk and slab; the original divides the slab's by the volume of an inflated cell."""
    skip_without_derivative(case)
    for i in (SILICON, SLAB):
        volume = abs(np.linalg.det(case.configurations[i].cell))
        theirs = case.data["output/stress"][i] * case.data["output/volume"][i]
        assert deviation(prediction.stress[i] * volume, theirs) < 1e-9


def test_stress_is_divided_by_the_volume_of_the_cell(case: Any, prediction: Prediction) -> None:
    for i in (SILICON, SLAB):
        volume = abs(np.linalg.det(case.configurations[i].cell))
        assert deviation(prediction.stress[i], -prediction.virials[i].numpy() / volume) < 1e-14
    inflated = case.data["output/volume"][SLAB] / abs(np.linalg.det(case.configurations[SLAB].cell))
    assert inflated > 2.0, "the stored slab no longer shows the difference"


def test_a_molecule_without_a_cell_has_virials_and_no_stress(prediction: Prediction) -> None:
    assert torch.isnan(prediction.stress[0]).all()
    assert torch.isfinite(prediction.virials[0]).all()


def test_forces_of_the_chebyshev_basis_are_the_gradient(load_case: Any) -> None:
    """Where the original has no derivative, ours is that of the energy both agree on."""
    case = load_case("chebyshev_l1_c1_t2")
    for c in case.configurations:
        structure = Structure(c.atomic_numbers, c.positions, c.cell, c.pbc)
        # a polynomial of degree 6 of lengths up to 4 is steep
        assert_forces_are_the_gradient(case.potential(), structure, step=1e-4)
    ours = predict(case.model(), case.dataset().batch([0, 1, 2]).graph).forces
    assert deviation(ours, case.data["output/forces"]) > 1e-3, "the original now has a derivative: compare the forces"


def test_every_kind_of_model_is_stored(reference_names: list[str], load_case: Any) -> None:
    plans = [load_case(name).plan for name in reference_names]
    assert {plan.model for plan in plans} == {"MACE", "ScaleShiftMACE"}
    assert {plan.radial_type for plan in plans} == {"bessel", "gaussian", "chebyshev"}
    assert {plan.distance_transform for plan in plans} == {"None", "Agnesi", "Soft"}
    assert {plan.gate for plan in plans} == {"silu", "tanh", "abs", "None"}
    assert {plan.pair_repulsion for plan in plans} == {True, False}
    assert {plan.interactions[0].normalization for plan in plans} == {"count", "density"}
    assert {kind.messages for plan in plans for kind in plan.interactions} == {"linear", "attention", "nonlinear"}
    for name in ("cutoff_after_network", "product_of_all_elements", "last_readout_only", "readout_biases"):
        assert {getattr(plan, name) for plan in plans} == {True, False}, name
    assert {plan.message_channels for plan in plans} > {None}
    assert {plan.n_layers for plan in plans} == {1, 2, 3}
    assert {plan.correlation[0] for plan in plans} == {1, 2, 3, 4}
    assert {plan.l_max for plan in plans} >= {1, 2, 3}
    assert {plan.hidden_l for plan in plans} == {(0,), (0, 1), (0, 1, 2)}
