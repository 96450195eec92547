"""The model as a whole: weights, precision, isolated atoms, what is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.assembly import build_graph
from mace.graphs.graph import Graph
from mace.model.mace import LARGEST_ELEMENT_EMBEDDING, MACE
from mace.model.nonlinear import START_OF_ALPHA, START_OF_BETA
from mace.model.plan import ModelPlan
from mace.model.prediction import predict, sum_over_structures
from mace.structures.configuration import Configuration

FREE = (False, False, False)


@pytest.fixture
def graph(case: Any) -> Graph:
    """The three structures in one batch."""
    return case.dataset().batch([0, 1, 2]).graph


def test_every_weight_is_stored_and_used(case: Any, graph: Graph) -> None:
    """No weight of ours is left out by the names of the original, and each moves energy or forces."""
    model = case.model()
    assert set(case.weights) == {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == set(case.weights), "constants must not be saved as weights"
    prediction = predict(model, graph, training=True)
    assert prediction.forces is not None
    value = prediction.energy.sum() + (prediction.forces**2).sum()
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    unused = {n for (n, _), g in zip(model.named_parameters(), gradients, strict=True) if g is None or not g.any()}
    # with a single factor the scalars of the last layer come from scalars alone; the original keeps the rest too
    last = case.plan.n_layers - 1
    degrees = range(1, case.plan.l_max + 1) if case.plan.correlation[last] == 1 else ()
    expected = {f"interactions.{last}.linear.{degree}" for degree in degrees}
    if case.plan.interactions[last].residual is False:
        assert unused <= expected | {f"interactions.{last}.skip"}
    else:
        assert unused == expected


def _bound_at_the_start(plan: ModelPlan, name: str) -> float | None:
    """Return a bound of weights that begin as in the original, but not normally distributed; None for the others."""
    if name.startswith("readouts.") and name.endswith("bias"):
        return 0.0
    part, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    if part != "interactions" or plan.interactions[int(layer)].messages != "nonlinear":
        return None
    if rest in ("source_embedding", "target_embedding"):
        return LARGEST_ELEMENT_EMBEDDING
    if rest in ("mixing.alpha", "mixing.beta"):
        return {"mixing.alpha": START_OF_ALPHA, "mixing.beta": START_OF_BETA}[rest]
    return 1.0 if rest.startswith(("radial.", "mixing.density.")) else None


def test_initialize_depends_on_the_generator_alone(case: Any) -> None:
    def draw(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return MACE(case.plan, dtype).initialize(torch.Generator().manual_seed(seed)).state_dict()

    one, same, other, rounded = (
        draw(1, torch.float64),
        draw(1, torch.float64),
        draw(2, torch.float64),
        draw(1, torch.float32),
    )
    for name, values in one.items():
        assert torch.equal(values, same[name]) and torch.equal(values.float(), rounded[name])
        if (bound := _bound_at_the_start(case.plan, name)) is not None:
            assert float(values.abs().max()) <= bound, name
            continue
        assert not torch.equal(values, other[name])
        spread = float((values**2).mean() ** 0.5)
        expected = 1.0 / values.shape[1] if ".weights.l" in name else 1.0
        assert spread == pytest.approx(expected, rel=5.0 / values.numel() ** 0.5), name


def test_what_is_not_asked_for_is_none(load_case: Any) -> None:
    case = load_case("vector_l2_c2_t3")
    model, graph = case.model(), case.dataset().batch([0, 1]).graph
    energy_only = predict(model, graph, forces=False)
    assert energy_only.forces is energy_only.stress is energy_only.virials is None
    stress_only = predict(model, graph, forces=False, stress=True)
    assert stress_only.forces is None and stress_only.stress is not None and stress_only.virials is not None
    everything = predict(model, graph, stress=True)
    assert torch.equal(energy_only.energy, everything.energy)
    assert torch.equal(stress_only.stress, everything.stress) or torch.isnan(everything.stress[0]).all()
    assert not energy_only.energy.requires_grad and not everything.forces.requires_grad
    assert predict(model, graph, training=True).forces.requires_grad


def test_features_of_every_layer(case: Any, graph: Graph) -> None:
    features = predict(case.model(), graph, forces=False, features=True).features
    assert len(features) == case.plan.n_layers
    for layer, of_layer in enumerate(features):
        assert tuple(of_layer) == case.plan.l_out(layer)
        for degree, values in of_layer.items():
            assert values.shape == (graph.n_atoms, 2 * degree + 1, case.plan.n_channels)


def test_energies_of_atoms_sum_to_those_of_structures(case: Any, graph: Graph) -> None:
    prediction = predict(case.model(), graph)
    torch.testing.assert_close(sum_over_structures(prediction.atomic_energies, graph), prediction.energy)
    split = prediction.atomic_energies.split(graph.atoms_per_structure().tolist())
    torch.testing.assert_close(torch.stack([s.sum() for s in split]), prediction.energy)


def test_isolated_atoms_of_residual_models(load_case: Any) -> None:
    """What is left of an isolated atom are its residuals, the scale and the shift; written out for two layers."""
    case = load_case("tensor_l2_c3_t2")
    plan, w = case.plan, case.weights
    assert all(kind.residual for kind in plan.interactions)
    for place, number in enumerate(plan.atomic_numbers):
        n = plan.n_channels
        features = w["embedding"][place] / plan.n_elements**0.5
        features = features @ w["interactions.0.skip"][0, place] / (n * plan.n_elements) ** 0.5
        energy = float(features @ w["readouts.0.weight"][:, 0]) / n**0.5
        features = features @ w["interactions.1.skip"][0, place] / (n * plan.n_elements) ** 0.5
        hidden = features @ w["readouts.1.hidden"] / n**0.5
        hidden = 1.6791767923989418 * hidden / (1.0 + np.exp(-hidden))
        energy += float(hidden @ w["readouts.1.weight"][:, 0]) / plan.readout_channels**0.5
        atom = Configuration(np.array([number]), np.zeros((1, 3)), np.zeros((3, 3)), FREE)
        found = predict(case.model(), build_graph(atom, ElementTable(plan.atomic_numbers), plan.r_max)).energy
        expected = plan.reference_energies[place] + plan.scale * energy + plan.shift
        assert found.item() == pytest.approx(expected, abs=1e-11)


def test_default_precision_is_torchs(load_case: Any) -> None:
    plan = load_case("scalar_l1_c1_t1").plan
    assert MACE(plan).dtype == torch.get_default_dtype()
    model = MACE(plan, torch.float32)
    assert model.dtype == torch.float32 and model.reference_energies.dtype == torch.float64
    assert {buffer.dtype for name, buffer in model.named_buffers() if buffer.is_floating_point()} == {
        torch.float32,
        torch.float64,
    }
    assert model.to_precision(torch.float64).dtype == torch.float64


def test_reference_energies_keep_their_digits_in_single_precision(load_case: Any) -> None:
    case = load_case("scalar_l1_c1_t1")
    model = case.model().to_precision(torch.float32)
    atom = Configuration(np.array([8]), np.zeros((1, 3)), np.zeros((3, 3)), FREE)
    energy = predict(model, build_graph(atom, ElementTable(case.plan.atomic_numbers), case.plan.r_max)).energy
    assert energy.item() == -2041.8
