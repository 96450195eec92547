"""Whole programs with kernels in Triton, beside those in C and beside torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.program_models import SMALL, Derivatives, batch, build, by_program, by_torch

pytest.importorskip("triton")

from mace.kernels.triton_backend import TRITON  # noqa: E402

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

MODELS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "residual": SMALL | {"residual": True},
    "density": SMALL | {"normalization": "density"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(MODELS))
def test_derivatives(name: str, dtype: torch.dtype) -> None:
    model = build(dtype, **MODELS[name])
    graph = batch(model, (4, 1))
    expected: Derivatives = by_torch(model, graph)
    assert by_program(model.use_backend(TRITON), graph).differ(expected) < TOLERANCE[dtype]
