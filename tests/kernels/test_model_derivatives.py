"""Do derivatives of forces and stress with respect to the weights, which training needs, come out right?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.structures.configuration import Configuration

STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
"""Central first derivative of sixth order."""


def loss(model: MACE, graph: Graph, reference: Tensor, training: bool = False) -> Tensor:
    """Squares of everything a loss compares; structures without a volume have no stress."""
    prediction = predict(model, graph, stress=True, training=training)
    assert prediction.forces is not None and prediction.stress is not None
    stress = prediction.stress[~torch.isnan(graph.volume)]
    return ((prediction.energy - reference) ** 2).sum() + (prediction.forces**2).sum() + 1e3 * (stress**2).sum()


def nearby_energies(model: MACE, graph: Graph) -> Tensor:
    """Labels close to the prediction: energies of isolated atoms carry no weights and would only cost digits."""
    return predict(model, graph, forces=False).energy.round()


def derivative_along(model: MACE, graph: Graph, direction: dict[str, Tensor], step: float) -> float:
    """Differentiate the loss by a finite change of all weights."""
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    reference = nearby_energies(model, graph)

    def at(amount: float) -> float:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name] + amount * direction[name])
        return float(loss(model, graph, reference))

    result = sum(c * (at(k * step) - at(-k * step)) for k, c in STENCIL) / step
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(start[name])
    return result


def test_gradient_of_a_loss_of_forces_and_stress(case: Any) -> None:
    model, graph = case.strong_model(), case.dataset().batch([2, 0, 1]).graph
    names = [name for name, _ in model.named_parameters()]
    value = loss(model, graph, nearby_energies(model, graph), training=True)
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    generator = torch.Generator().manual_seed(4)
    signs = {
        name: torch.randint(0, 2, parameter.shape, generator=generator) * 2.0 - 1.0
        for name, parameter in model.named_parameters()
    }
    for chosen in ("embedding", "interactions", "products", "readouts"):
        direction = {name: s * name.startswith(chosen) for name, s in signs.items()}
        found = sum(
            float((g * direction[name]).sum()) for name, g in zip(names, gradients, strict=True) if g is not None
        )
        expected = derivative_along(model, graph, direction, 1e-4)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7), chosen


def isolated(n_structures: int) -> list[Configuration]:
    """Structures of one atom each, without neighbors."""
    none = (False, False, False)
    return [
        Configuration(np.array([z]), np.array([[float(z), 0.0, 0.0]]), np.zeros((3, 3)), none)
        for z in (1, 8, 1, 14)[:n_structures]
    ]


@pytest.mark.parametrize("n_structures", [1, 4])
def test_graphs_without_any_neighbor(case: Any, n_structures: int) -> None:
    dataset = InMemoryDataset(isolated(n_structures), ElementTable(case.plan.atomic_numbers), case.plan.r_max)
    graph = dataset.batch(range(n_structures)).graph
    assert graph.n_edges == 0 and graph.max_neighbors == 1 and len(graph.pair_sender) == 1
    model = case.model()
    prediction = predict(model, graph, stress=True, training=True)
    assert prediction.energy.shape == (n_structures,)
    assert prediction.forces is not None and not prediction.forces.any()
    assert prediction.virials is not None and not prediction.virials.any()
    ((prediction.energy**2).sum() + (prediction.forces**2).sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_what_fills_empty_slots_reaches_nothing(case: Any) -> None:
    """Neither value nor gradient changes when a lonely atom is given many more empty slots by its company."""
    dataset = InMemoryDataset(
        [*case.configurations, *isolated(4)], ElementTable(case.plan.atomic_numbers), case.plan.r_max
    )
    model = case.model()

    def evaluate(groups: list[list[int]]) -> tuple[Tensor, list[Tensor | None]]:
        energies, total = [], torch.zeros((), dtype=torch.float64)
        for group in groups:
            prediction = predict(model, dataset.batch(group).graph, training=True)
            assert prediction.forces is not None
            energies.append(prediction.energy)
            total = total + (prediction.forces**2).sum() + prediction.energy.sum()
        gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
        return torch.cat(energies).detach(), list(gradients)

    energies, gradients = evaluate([[0], [1], [2], [3], [4], [5], [6]])
    energies_together, gradients_together = evaluate([[0, 1, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(energies_together, energies, rtol=1e-13, atol=1e-12)
    for one, together in zip(gradients, gradients_together, strict=True):
        one = torch.zeros(1, dtype=torch.float64) if one is None else one
        together = torch.zeros(1, dtype=torch.float64) if together is None else together
        scale = float(one.abs().max())
        assert float((one - together).abs().max()) <= 1e-11 * max(scale, 1e-3)


def test_single_precision_is_double_precision_rounded(case: Any) -> None:
    graph = case.dataset().batch([0, 1, 2]).graph
    exact = predict(case.strong_model(), graph, stress=True)
    rough = predict(case.strong_model().to_precision(torch.float32), graph, stress=True)
    assert rough.energy.dtype == torch.float64 and rough.forces is not None and rough.forces.dtype == torch.float32
    assert exact.forces is not None
    deviation = float((rough.forces - exact.forces).abs().max())
    assert 0.0 < deviation < 1e-3


def test_constants_are_exact_after_a_detour_through_single_precision(case: Any) -> None:
    model = MACE(case.plan, torch.float32).to_precision(torch.float64)
    model.load_state_dict({name: torch.tensor(array) for name, array in case.weights.items()})
    graph = case.dataset().batch([0, 1, 2]).graph
    direct, detour = predict(case.model(), graph), predict(model, graph)
    assert torch.equal(direct.energy, detour.energy)
    assert direct.forces is not None and detour.forces is not None and torch.equal(direct.forces, detour.forces)
