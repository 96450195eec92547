"""Do models on a device say what they say in float64 on a CPU, do they obey the laws, and is it the same every time?"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.graphs.assembly import graph_of_structures
from mace.graphs.bucket import Bucket, padded
from mace.graphs.dataset import Batch
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.backend import TORCH, Backend
from mace.model.mace import MACE
from mace.model.prediction import Prediction, predict
from mace.structures.configuration import Configuration
from mace.testing.laws import (
    Result,
    Structure,
    assert_forces_are_the_gradient,
    assert_permutation,
    assert_rotation,
    assert_stress_is_the_strain_derivative,
    assert_translation,
)
from mace.training.loss import make_loss
from mace.training.optimization import MovedParameters, MovingAverage, parameter_groups
from mace.training.step import loss_gradient, update_parameters
from tests.program_models import OF_HEADS, SMALL, batch, build, relative

DEFAULT: dict[str, Any] = {"n_channels": 128, "l_max": 3, "correlation": 3, "radial_mlp": (64, 64, 64)}
MODELS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "small": (SMALL, torch.float64),
    "float32": (SMALL, torch.float32),
    "two blocks of channels": (SMALL | {"n_channels": 40, "residual": True}, torch.float64),
    "degree two": (SMALL | {"hidden_l": (0, 1, 2), "l_max": 2}, torch.float64),
    "density": (SMALL | {"normalization": "density"}, torch.float64),
    "heads": (SMALL | OF_HEADS, torch.float64),
    "one layer": (SMALL | {"layers": 1}, torch.float64),
    "many elements": (SMALL | {"atomic_numbers": tuple(range(1, 41))}, torch.float64),
    "default": (DEFAULT, torch.float32),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5}


def crystals(model: MACE, count: int = 3) -> list[Configuration]:
    """Draw labeled crystals."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*(np.arange(2),) * 3), axis=-1).reshape(-1, 3)
    found = []
    for number in range(count):
        n_atoms = 8 - number % 3
        positions = 2.0 * grid[:n_atoms] + rng.uniform(-0.3, 0.3, (n_atoms, 3))
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(n_atoms, 3)), "stress": np.eye(3) * 0.1}
        cell = np.eye(3) * 4.2 + rng.uniform(-0.1, 0.1, (3, 3))
        numbers = rng.choice(model.plan.atomic_numbers, n_atoms)
        head = model.plan.head_names[number % len(model.plan.head_names)]
        found.append(Configuration(numbers, positions, cell, (True,) * 3, head=head, **labels))
    return found


def batch_of(model: MACE, structures: list[Configuration]) -> Batch:
    """Make a batch."""
    dataset = InMemoryDataset(
        structures, ElementTable(model.plan.atomic_numbers), model.plan.r_max, heads=model.plan.head_names
    )
    return dataset.batch(range(len(structures)))


def gradients(model: MACE, one: Batch) -> dict[str, Tensor]:
    """Differentiate a loss of energies, forces and stress."""
    loss_gradient(model, one, make_loss("stress", {"energy": 1.0, "forces": 10.0, "stress": 5.0}))
    found = {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def on(device: torch.device, model: MACE, kernels: Backend, dtype: torch.dtype | None = None) -> MACE:
    """Copy a model to a device."""
    copy = deepcopy(model)
    return (copy.to_precision(dtype) if dtype else copy).to(device).use_backend(kernels)


def numbers(prediction: Prediction) -> dict[str, Tensor]:
    """Return what is predicted of crystals, in float64 on the CPU."""
    names = ("energy", "forces", "stress", "virials")
    found = {name: getattr(prediction, name) for name in names}
    return {name: value.detach().cpu().double() for name, value in found.items() if value is not None}


@pytest.mark.parametrize("name", MODELS)
def test_predictions_and_gradients_are_those_of_float64(name: str, device: torch.device, backend: Backend) -> None:
    settings, dtype = MODELS[name]
    plain = build(**settings).use_backend(TORCH)
    model, one = on(device, plain, backend, dtype), batch_of(plain, crystals(plain))
    there = one.to(device)
    expected = numbers(predict(plain, one.graph, stress=True))
    found = numbers(predict(model, there.graph, stress=True))
    assert found.keys() == expected.keys()
    for what in expected:
        assert relative(found[what], expected[what], what) < TOLERANCE[dtype], what
    slopes, true_slopes = gradients(model, there), gradients(plain, one)
    assert slopes.keys() == true_slopes.keys()
    for what, slope in slopes.items():
        assert relative(slope.double(), true_slopes[what], what) < 10.0 * TOLERANCE[dtype], what


def test_stored_cases(device: torch.device, backend: Backend, load_case: Any, reference_names: list[str]) -> None:
    for name in reference_names[::7]:
        case = load_case(name)
        graph, model = case.dataset().batch(range(3)).graph, case.model().use_backend(TORCH)
        expected = numbers(predict(model, graph, stress=True))
        found = numbers(predict(on(device, model, backend), graph.to(device), stress=True))
        for what in ("energy", "forces"):
            assert relative(found[what], expected[what], what) < 1e-9, (name, what)


def potential(model: MACE) -> Any:
    """Return a model as a function of a structure."""
    elements = ElementTable(model.plan.atomic_numbers)

    def evaluate(atomic_numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: Any) -> Result:
        structure = Configuration(atomic_numbers, positions, cell, pbc)
        graph = graph_of_structures([structure], elements, model.plan.r_max).to(model.embedding.device)
        found = predict(model, graph, stress=True)
        assert found.energy is not None and found.forces is not None and found.stress is not None
        return float(found.energy), found.forces.detach().cpu().numpy(), found.stress[0].detach().cpu().numpy()

    return evaluate


@pytest.mark.parametrize(
    "law",
    [
        assert_rotation,
        assert_translation,
        assert_permutation,
        assert_forces_are_the_gradient,
        assert_stress_is_the_strain_derivative,
    ],
)
def test_laws(law: Any, device: torch.device, backend: Backend) -> None:
    model = on(device, build(**SMALL), backend)
    crystal = crystals(model)[0]
    law(potential(model), Structure(crystal.atomic_numbers, crystal.positions, crystal.cell, crystal.pbc))


def trained(model: MACE, one: Batch, steps: int = 4) -> list[Tensor]:
    """Take some steps; return the weights."""
    moved = MovedParameters(model)
    optimizer = torch.optim.Adam(parameter_groups(moved, 0.01, 1e-3, {}), amsgrad=True)
    average, loss = MovingAverage(model.parameters(), 0.9), make_loss("weighted", {"energy": 1.0, "forces": 10.0})
    for _ in range(steps):
        loss_gradient(model, one, loss)
        update_parameters(moved, optimizer, 10.0, average)
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["small", "default"])
def test_the_same_bits_every_time(name: str, device: torch.device, fast: Backend) -> None:
    settings, dtype = MODELS[name]
    plain = build(dtype, **settings)
    one = batch_of(plain, crystals(plain, 6)).to(device)
    first, second = (on(device, plain, fast) for _ in range(2))
    for _ in range(3):
        results = [numbers(predict(model, one.graph, stress=True)) for model in (first, second)]
        assert all(torch.equal(results[0][what], results[1][what]) for what in results[0])
        slopes = [gradients(model, one) for model in (first, second)]
        assert all(torch.equal(slopes[0][what], slopes[1][what]) for what in slopes[0])
    weights = [trained(model, one) for model in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_padding_changes_nothing(device: torch.device, fast: Backend) -> None:
    plain = build(**SMALL)
    model, graph = on(device, plain, fast), batch(plain, (9, 4, 1))
    least = Bucket.of(graph, plain.plan.n_elements)
    larger = Bucket(least.atoms + 24, least.neighbors + 8, least.pairs + 200, least.elements, least.structures + 3)
    one, other = (predict(model, padded(graph, bucket).to(device)) for bucket in (least, larger))
    expected = predict(model, graph.to(device))
    assert one.energy is not None and other.energy is not None and expected.energy is not None
    assert one.forces is not None and other.forces is not None and expected.forces is not None
    assert torch.equal(one.energy[:3], other.energy[:3])
    assert torch.equal(one.forces[: graph.n_atoms], other.forces[: graph.n_atoms])
    assert relative(one.energy[:3], expected.energy, "energy") < 1e-12
    assert relative(one.forces[: graph.n_atoms], expected.forces, "forces") < 1e-10


@pytest.mark.usefixtures("only_on_device")
def test_memory_does_not_grow(device: torch.device, backend: Backend) -> None:
    plain = build(torch.float32, **SMALL)
    model, loss = on(device, plain, backend), make_loss("weighted", {"energy": 1.0, "forces": 10.0})
    batches = [batch_of(plain, crystals(plain, count)).to(device) for count in (2, 5, 3)]
    taken = []
    for number in range(50):
        loss_gradient(model, batches[number % 3], loss)
        taken.append(torch.cuda.memory_allocated(device))
    assert max(taken[-10:]) <= max(taken[6:16])


@pytest.mark.usefixtures("only_on_device")
def test_a_step_never_waits(device: torch.device, backend: Backend) -> None:
    plain = build(torch.float32, **SMALL)
    model, one = on(device, plain, backend), batch_of(plain, crystals(plain))
    moved, loss = MovedParameters(model), make_loss("weighted", {"energy": 1.0, "forces": 10.0})
    optimizer = torch.optim.Adam(parameter_groups(moved, 0.01, 0.0, {}), fused=True)
    average = MovingAverage(model.parameters(), 0.9)

    def step() -> None:
        loss_gradient(model, one.to(device, pinned=True), loss)
        update_parameters(moved, optimizer, 10.0, average)

    for _ in range(2):
        step()
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_products_are_not_rounded(device: torch.device) -> None:
    """TensorFloat-32 keeps 11 bits of each factor."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    expected = a.double() @ b.double()
    assert relative((a.to(device) @ b.to(device)).cpu().double(), expected, "product") < 1e-5
