"""Are whole programs with kernels in Triton those in C and those of torch, in whatever order their programs run?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.program_models import OF_HEADS, SMALL, Derivatives, batch, build, by_program, by_torch, relative

pytest.importorskip("triton")

from triton.runtime.interpreter import interpreter_builder  # noqa: E402

from mace.kernels.triton_backend import TRITON  # noqa: E402
from mace.model.compiled.runs import energies_and_gradient  # noqa: E402
from mace.program.workspace import Memory  # noqa: E402

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

MODELS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "residual": SMALL | {"residual": True},
    "density": SMALL | {"normalization": "density"},
    "heads": SMALL | OF_HEADS,
    "repulsion": SMALL | {"pair_repulsion": True},
    "transform": SMALL | {"distance_transform": "Agnesi", "radial_type": "gaussian"},
    "shared products": SMALL | {"product_of_all_elements": True},
    "three layers": SMALL | {"layers": 3},
    "two blocks": SMALL | {"n_channels": 40},
    "high degrees": SMALL | {"l_max": 3, "hidden_l": (0, 1, 2), "correlation": 3},
    "many channels": {"n_channels": 16, "l_max": 2, "correlation": 3, "radial_mlp": (16, 16, 16)},
}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with what is no number, so that it shows where kernels read what nobody wrote."""
    for name in ("reserve", "reserve_more"):
        reserve = getattr(Memory, name)

        def with_poison(self: Memory, n_bytes: int, reserve: Any = reserve) -> Tensor:
            before = self.n_bytes
            buffer: Tensor = reserve(self, n_bytes)
            if self.n_bytes > before:
                buffer.fill_(0xFF)
            return buffer

        monkeypatch.setattr(Memory, name, with_poison)


def compare(settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Compare energies, gradient, and derivatives of both by all weights."""
    model = build(dtype, **settings)
    graph = batch(model, (3, 1), heads=model.plan.head_names)
    expected: Derivatives = by_torch(model, graph)
    assert by_program(model.use_backend(TRITON), graph).differ(expected) < TOLERANCE[dtype]


def let_programs_run_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the programs of every launch run in the opposite order."""
    set_place = interpreter_builder.set_grid_idx

    def backwards(*place: int) -> None:
        set_place(*(n - 1 - i for i, n in zip(place, interpreter_builder.grid_dim, strict=True)))

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", backwards)


def test_derivatives() -> None:
    compare(SMALL, torch.float32)


def test_derivatives_where_programs_run_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, the programs of a launch run at once: nothing of one may depend on what another has written."""
    let_programs_run_backwards(monkeypatch)
    compare(SMALL | {"normalization": "density", "residual": True}, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(MODELS))
def test_derivatives_of_more_models(name: str, dtype: torch.dtype) -> None:
    compare(MODELS[name], dtype)


def test_evaluation_with_radial_tables() -> None:
    model = build(**SMALL).requires_grad_(False)
    graph = batch(model, (4, 1))
    expected = energies_and_gradient(model.use_radial_tables(64), graph, True, training=False)
    found = energies_and_gradient(model.use_backend(TRITON).use_radial_tables(64), graph, True, training=False)
    assert relative(found.energies, expected.energies, "energies") < 1e-12
    assert relative(found.gradient, expected.gradient, "gradient") < 1e-12


@pytest.mark.slow
def test_another_order_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(**SMALL | {"normalization": "density"}).use_backend(TRITON)
    graph = batch(model, (4, 1))
    in_order = by_program(model, graph)
    let_programs_run_backwards(monkeypatch)
    assert by_program(model, graph).equal(in_order)
