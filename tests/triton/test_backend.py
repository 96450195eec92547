"""Models without a program, with kernels in Triton for convolution and contraction, beside the same models in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mace.graphs.bucket import Bucket
from mace.graphs.graph import Graph
from mace.kernels.backend import TORCH
from mace.kernels.compiled import Kernel
from mace.kernels.passes import Pass, differentiating_by
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.model.prediction import predict, without_padding
from tests.program_models import SMALL, batch, relative

pytest.importorskip("triton")

from mace.kernels import triton_backend  # noqa: E402
from mace.kernels.triton_backend import TRITON  # noqa: E402

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
PREDICTED = ("energy", "forces", "virials", "dipole")

LINEAR = InteractionPlan(residual=True)
ATTENTION = InteractionPlan(residual=True, messages="attention")
NONLINEAR = InteractionPlan(residual=True, normalization="density", messages="nonlinear")
DIPOLES = {"model": "EnergyDipolesMACE", "readout_vectors": 3}
MODELS: dict[str, dict[str, Any]] = {
    "attention": {"interactions": (LINEAR, ATTENTION)},
    "non-linear": {"interactions": (NONLINEAR,) * 2, "cutoff_after_network": True},
    "dipoles": DIPOLES,
    "product of all elements": {"cutoff_after_network": True, "product_of_all_elements": True},
    "two blocks of channels": {"interactions": (ATTENTION,), "n_channels": 33},
}
TRAINING = {
    *("conv_forward", "conv_backward_full", "conv_backward_parameters", "conv_second"),
    *("contraction_forward", "contraction_backward_features", "contraction_backward_full", "contraction_second"),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of the kernels in Triton that run."""
    names, kernel_of = set[str](), triton_backend.device_kernel

    def noted(kernel: Kernel, tf32: bool) -> Any:
        names.add(kernel.name)
        return kernel_of(kernel, tf32)

    monkeypatch.setattr(triton_backend, "device_kernel", noted)
    return names


def build(changes: dict[str, Any], dtype: torch.dtype = torch.float64) -> MACE:
    """Make a model that has no program."""
    settings = {"model": "ScaleShiftMACE", "interactions": (LINEAR,) * 2, **SMALL} | changes
    settings["correlation"] = (settings["correlation"],) * len(settings["interactions"])
    energies = (0.0, 0.5, -1.0)
    plan = ModelPlan(
        r_max=4.0,
        avg_num_neighbors=8.0,
        hidden_l=(0, 1),
        atomic_numbers=(1, 6, 8),
        reference_energies=energies,
        **settings,
    )
    model = MACE(plan, dtype).initialize(torch.Generator().manual_seed(0)).use_backend(TRITON)
    assert not model.has_program
    return model


def derivatives(model: MACE, graph: Graph, training: bool = True) -> dict[str, Tensor]:
    """Predict everything and, in training, differentiate a random sum of it by the parameters."""
    prediction = without_padding(predict(model, graph, stress=True, training=training), graph)
    found = {name: getattr(prediction, name) for name in PREDICTED}
    found = {name: value for name, value in found.items() if value is not None}
    if training:
        generator = torch.Generator().manual_seed(1)
        factors = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) for v in found.values()]
        total = sum((f * v).sum().double() for f, v in zip(factors, found.values(), strict=True))
        with differentiating_by(Pass.PARAMETERS):
            gradients = torch.autograd.grad(total, list(model.parameters()), materialize_grads=True)
        names = (f"gradient by {name}" for name, _ in model.named_parameters())
        found |= dict(zip(names, gradients, strict=True))
    return {name: value.detach() for name, value in found.items()}


def deviation(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys() and {"energy", "forces"} <= found.keys()
    return max(relative(found[name], expected[name], name) for name in found)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float64) for name in MODELS), ("attention", torch.float32)], ids=str
)
def test_as_in_torch(name: str, dtype: torch.dtype, run: set[str]) -> None:
    model = build(MODELS[name], dtype)
    graph = batch(model, (4, 1))
    found = derivatives(model, graph)
    assert run == TRAINING
    expected = derivatives(model.use_backend(TORCH), graph)
    assert deviation(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("changes", [{"interactions": (ATTENTION,)}, DIPOLES], ids=["edges", "pairs"])
def test_padding_reaches_nothing(changes: dict[str, Any]) -> None:
    model = build(changes)
    graph = batch(model, (3, 1))
    bucket = Bucket(atoms=6, neighbors=4, pairs=len(graph.pair_sender) + 3, elements=3, structures=4)
    padded = graph.padded(bucket)
    assert deviation(derivatives(model, padded), derivatives(model, graph)) < 1e-12


def test_radial_tables_as_in_torch(run: set[str]) -> None:
    model = build(DIPOLES)
    graph, results = batch(model, (4, 1)), []
    for backend in (TRITON, TORCH):
        model.use_backend(backend).use_radial_tables(32)
        results.append(derivatives(model, graph, training=False))
    assert {"conv_forward_tabulated", "conv_backward_tabulated"} <= run
    assert deviation(*results) < TOLERANCE[torch.float64]


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics processor that torch can use")
@pytest.mark.parametrize("name", list(MODELS))
def test_on_a_device(name: str) -> None:
    model = build(MODELS[name])
    graph = batch(model, (4, 1))
    expected = derivatives(model.use_backend(TORCH), graph)
    found = derivatives(model.to("cuda").use_backend(TRITON), graph.to("cuda"))
    assert deviation({key: value.cpu() for key, value in found.items()}, expected) < TOLERANCE[torch.float64]
