"""Does padding change nothing: no bit of energies and forces by programs, and no gradient but for rounding?"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mace.graphs.bucket import Bucket
from mace.graphs.graph import Graph
from mace.kernels.backend import TORCH
from mace.kernels.compiler import find_compiler
from mace.kernels.passes import Pass, differentiating_by
from mace.model.mace import MACE
from mace.model.prediction import Prediction, predict, without_padding
from tests.program_models import HEADS, OF_HEADS, SMALL, batch, build

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")


def buckets(graph: Graph, model: MACE) -> list[Bucket]:
    """The bucket of a graph, and a larger one."""
    first = Bucket.of(graph, model.plan.n_elements, len(model.plan.head_names))
    more = {"atoms": 7, "neighbors": 3, "pairs": 11, "structures": 2}
    larger = {name: getattr(first, name) + number for name, number in more.items()}
    return [first, replace(first, **larger, elements=model.plan.n_elements)]


def results(model: MACE, graph: Graph, real: Bucket) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what is predicted for what is no padding, and gradients of a sum of squares of that."""
    prediction = predict(model, graph, stress=True, training=True)
    found = {}
    for name in ("energy", "virials", "stress", "dipole", "forces", "atomic_energies"):
        value = getattr(prediction, name)
        if value is not None:
            assert not value.isinf().any() and (name == "stress" or not value.isnan().any()), f"{name} of padding"
            found[name] = getattr(without_padding(prediction, graph), name)
            assert len(found[name]) == (real.atoms if name in ("forces", "atomic_energies") else real.structures)
    total = torch.stack([value.nan_to_num().square().sum() for value in found.values()]).sum()
    parameters = dict(model.named_parameters())
    with differentiating_by(Pass.PARAMETERS):
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return {name: value.detach() for name, value in found.items()}, {n: g for n, g in pairs if g is not None}


def check(model: MACE, graph: Graph, same_bits: bool) -> None:
    """Compare a graph with itself in two buckets."""
    expected, gradients = results(model, graph, graph.sizes)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient.numel())
    rounding = 1e-11 if model.dtype == torch.float64 else 2e-5
    for bucket in buckets(graph, model):
        found, of_parameters = results(model, graph.padded(bucket), graph.sizes)
        for name, value in expected.items():
            if same_bits:
                assert torch.equal(found[name].nan_to_num(), value.nan_to_num()), name
            largest = float(value.nan_to_num().abs().max())
            assert float((found[name] - value).nan_to_num().abs().max()) <= rounding * max(largest, 1e-3), name
            assert torch.equal(found[name].isnan(), value.isnan())
        for name, gradient in gradients.items():
            assert float((of_parameters[name] - gradient).abs().max()) <= rounding * scale, name


def test_stored_models(kernels: str, case: Any) -> None:
    model = case.strong_model()
    check(model, case.dataset().batch([2, 0, 1]).graph, same_bits=model.has_program)


def test_dipoles(kernels: str, dipole_case: Any) -> None:
    check(dipole_case.model(), dipole_case.dataset().batch([2, 0, 1]).graph, same_bits=False)


@needs_compiler
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "changes",
    [
        {"n_channels": 20},
        {"normalization": "density"},
        {"pair_repulsion": True, "distance_transform": "Agnesi"},
        {"product_of_all_elements": True, "residual": True},
        OF_HEADS,
    ],
)
def test_programs_never_read_what_nobody_wrote(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = build(dtype, **SMALL | changes)
    heads = ("two", "one") if "heads" in changes else ()
    check(model, batch(model, heads=heads), same_bits=True)
    assert model.has_program


@needs_compiler
@pytest.mark.usefixtures("poisoned_memory")
def test_what_memory_holds_does_not_matter() -> None:
    """The same memory serves graphs of several buckets, with and without padding, in any order."""
    model = build(**SMALL)
    small, large = batch(model, (5, 2)), batch(model, (15, 9, 1))
    graphs = [small, *(small.padded(each) for each in buckets(small, model)), large]
    expected = [results(model, graph, each.sizes)[0]["energy"] for each, graph in ((small, small), (large, large))]
    for _ in range(2):
        for place, graph in enumerate(graphs):
            for order in (graph, large):
                with torch.no_grad():
                    energy = predict(model, order).energy
                assert torch.equal(energy[: 2 if order is not large else 3], expected[int(order is large)]), place


@needs_compiler
def test_radial_tables() -> None:
    model = build(**SMALL)
    graph = batch(model)
    model.use_radial_tables(64)
    expected = predict(model, graph, stress=True)
    for bucket in buckets(graph, model):
        found = predict(model, graph.padded(bucket), stress=True)
        assert torch.equal(found.energy[:3], expected.energy)
        assert found.forces is not None and expected.forces is not None
        assert torch.equal(found.forces[: graph.n_atoms], expected.forces)


@needs_compiler
def test_a_batch_of_one_head() -> None:
    """Of a model of several; its padding does not make it another program's."""
    model = build(**SMALL | OF_HEADS)
    for head in HEADS:
        check(model, batch(model, heads=(head.name,)), same_bits=True)


def test_what_is_predicted_for_padding_is_left_out() -> None:
    """Of every kind of prediction, features of all layers too; without padding nothing is."""
    model = build(**SMALL).use_backend(TORCH)
    graph = batch(model)
    padded = graph.padded(buckets(graph, model)[1])
    options: dict[str, Any] = {"stress": True, "atomic_virials": True, "features": True}
    expected, found = predict(model, graph, **options), without_padding(predict(model, padded, **options), padded)
    assert without_padding(expected, graph) is expected
    for item in fields(Prediction):
        one, other = (getattr(each, item.name) for each in (expected, found))
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-13, equal_nan=True, msg=item.name)
