"""Does padding change no bit of what programs with kernels in Triton give, and no gradient but for rounding?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mace.graphs.bucket import Bucket
from mace.graphs.graph import Graph
from mace.kernels.passes import Pass, differentiating_by
from mace.model.mace import MACE
from mace.model.prediction import predict, without_padding
from tests.program_models import SMALL, batch, build

pytest.importorskip("triton")

from mace.kernels.triton_backend import TRITON  # noqa: E402


def results(model: MACE, graph: Graph) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Return what is predicted for what is no padding, and the gradient of a sum of squares of that."""
    prediction = without_padding(predict(model, graph, stress=True, training=True), graph)
    found = {name: getattr(prediction, name) for name in ("energy", "forces", "virials", "atomic_energies")}
    names, parameters = zip(*model.named_parameters(), strict=True)
    with differentiating_by(Pass.PARAMETERS):
        total = torch.stack([value.square().sum() for value in found.values()]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return found, dict(zip(names, gradients, strict=True))


def larger(graph: Graph, model: MACE) -> Bucket:
    """A bucket with room in every place."""
    bucket = Bucket.of(graph, model.plan.n_elements)
    more = {"atoms": 1, "neighbors": 1, "pairs": 40, "structures": 1}
    return replace(bucket, elements=3, **{name: getattr(bucket, name) + number for name, number in more.items()})


def test_no_bit_of_energies_and_forces_changes() -> None:
    model = build(torch.float32, layers=1, **SMALL).use_backend(TRITON)
    graph = batch(model, (2, 1))
    padded = graph.padded(larger(graph, model))
    expected, found = predict(model, graph), without_padding(predict(model, padded), padded)
    for name in ("energy", "forces"):
        assert torch.equal(getattr(found, name), getattr(expected, name)) and getattr(expected, name).any()


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "dtype"), [({}, torch.float64), ({"residual": True}, torch.float32)])
def test_no_gradient_changes_but_for_rounding(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = build(dtype, **SMALL | changes).use_backend(TRITON)
    graph = batch(model, (4, 1))
    (expected, gradients), rounding = results(model, graph), 1e-12 if dtype == torch.float64 else 1e-5
    scale = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None)
    for bucket in (Bucket.of(graph, model.plan.n_elements), larger(graph, model)):
        found, of_parameters = results(model, graph.padded(bucket))
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        for name, gradient in gradients.items():
            one = of_parameters[name]
            assert (one is None) == (gradient is None)
            assert one is None or gradient is None or float((one - gradient).abs().max()) <= rounding * scale, name
