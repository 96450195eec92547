"""Are the compiled kernels the torch ones, in value, first and second derivative?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.equivariant.symmetric_basis import symmetric_basis
from mace.graphs.graph import Graph, pair_vectors
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.c_source.parts import lanes
from mace.kernels.compiler import find_compiler
from mace.kernels.convolution import Convolution
from mace.kernels.passes import Pass, differentiating_by
from mace.kernels.symmetric_contraction import SymmetricContraction
from mace.model.prediction import predict
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.step import loss_gradient

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
CHANNELS = [1, 7, 16, 64, 128]
SHAPES = [
    ((0,), 0),
    ((0,), 3),
    ((0, 1), 1),
    ((0, 1, 2), 2),
    ((0, 1), 4),
    ((0, 2), 3),
    ((0, 1, 2, 3), 3),
    ((0, 1, 2, 3), 4),
]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Compare on the scale of the largest entry."""
    scale = max(float(theirs.detach().abs().max()) if theirs.numel() else 0.0, 1e-30)
    deviation = float((ours - theirs).detach().abs().max()) / scale if theirs.numel() else 0.0
    assert deviation < TOLERANCE[theirs.dtype], f"deviates by {deviation:.1e}"


def make_graph(kind: str) -> Graph:
    """Build graphs with and without edges."""
    rng = np.random.default_rng(3)
    atom = Configuration(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3)
    cell = np.eye(3) * 4.0 + 0.3 * rng.normal(size=(3, 3))
    crystal = Configuration(np.array([6, 1, 6]), rng.uniform(0, 4, (3, 3)), cell, (True,) * 3)
    kinds = {"atom": [atom], "crystal": [crystal], "mixed": [atom, crystal, atom]}
    return InMemoryDataset(kinds[kind], ElementTable((1, 6, 8)), 3.5).batch(range(len(kinds[kind]))).graph


def gradients(values: Any, leaves: list[Tensor], cotangents: list[Tensor], create_graph: bool = False) -> Any:
    """Differentiate; what nothing depends on, as where there are no edges, has a zero gradient."""
    chosen = [(v, c) for v, c in zip(values, cotangents, strict=True) if v.requires_grad]
    return torch.autograd.grad(
        [v for v, _ in chosen], leaves, [c for _, c in chosen], create_graph=create_graph, materialize_grads=True
    )


def draw(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def blocks(radial: Tensor) -> Tensor:
    """Lay radial weights out as the kernels read them."""
    padded = torch.nn.functional.pad(radial, (0, -radial.shape[-1] % lanes(radial.dtype)))
    return padded.view(*radial.shape[:2], -1, lanes(radial.dtype)).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", ["atom", "crystal", "mixed"])
def test_convolution(kind: str, channels: int, dtype: torch.dtype) -> None:
    shapes = SHAPES if channels == 7 else SHAPES[3:4]
    for l_in, l_max in shapes:
        _compare_convolutions(make_graph(kind), l_in, l_max, channels, dtype)


def _compare_convolutions(graph: Graph, l_in: tuple[int, ...], l_max: int, channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    convolution = Convolution(l_in, l_max).to(dtype)
    n_pairs, n_slots = len(graph.pair_sender), len(graph.sender_of_slot)
    filled = (graph.pair_of_slot != n_pairs - 1).to(dtype).unsqueeze(1)
    real = torch.ones(n_pairs, 1, 1, dtype=dtype)
    real[-1] = 0.0
    harmonics = draw(generator, n_slots, (l_max + 1) ** 2, dtype=dtype)
    radial = draw(generator, n_pairs, len(convolution.paths), channels, dtype=dtype)
    features = [draw(generator, graph.n_atoms, 2 * l + 1, channels, dtype=dtype) for l in l_in]
    leaves = [harmonics, radial, *features]

    given = dict(zip(l_in, features, strict=True))

    def in_torch() -> list[Tensor]:
        result = TORCH.convolve(convolution, given, radial * real, harmonics * filled, graph)
        return [result[l] for l in range(l_max + 1)]

    def in_c() -> list[Tensor]:
        result = C.convolve(convolution, given, blocks(radial * real), harmonics * filled, graph)
        return [result[l] for l in range(l_max + 1)]

    _compare(in_torch, in_c, leaves, second=leaves[1:], generator=generator)


@pytest.mark.parametrize("threads", [1, 2])
def test_convolution_is_differentiated_exactly(threads: int) -> None:
    """Finite differences know nothing of either implementation."""
    graph, convolution, dtype = make_graph("mixed"), Convolution((0, 1), 2), torch.float64
    generator = torch.Generator().manual_seed(5)
    n_pairs = len(graph.pair_sender)
    filled = (graph.pair_of_slot != n_pairs - 1).to(dtype).unsqueeze(1)
    real = (torch.arange(n_pairs) < n_pairs - 1).to(dtype).view(-1, 1, 1, 1)
    leaves = [
        draw(generator, len(filled), 9, dtype=dtype),
        draw(generator, n_pairs, 2, len(convolution.paths), lanes(dtype), dtype=dtype),
        *(draw(generator, graph.n_atoms, 2 * l + 1, 2 * lanes(dtype), dtype=dtype) for l in (0, 1)),
    ]

    def through(harmonics: Tensor, radial: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip((0, 1), features, strict=True))
        return tuple(C.convolve(convolution, given, radial * real, harmonics * filled, graph).values())

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.autograd.gradcheck(through, leaves, fast_mode=True)
        fixed = leaves[0].detach()
        with differentiating_by(Pass.PARAMETERS):  # the second derivative by the harmonics does not exist
            assert torch.autograd.gradgradcheck(lambda *x: through(fixed, *x), leaves[1:], fast_mode=True)
    finally:
        torch.set_num_threads(before)


def test_strided_input() -> None:
    """Views that are not contiguous give what copies of them give."""
    graph, convolution = make_graph("mixed"), Convolution((0, 1), 1)
    generator = torch.Generator().manual_seed(6)
    n_slots, n_pairs, n = len(graph.sender_of_slot), len(graph.pair_sender), 2 * lanes(torch.float64)
    wide = [
        draw(generator, n_slots, 8, dtype=torch.float64),
        draw(generator, n_pairs, len(convolution.paths), 2, n // 2, dtype=torch.float64),
        *(draw(generator, graph.n_atoms, n, 2 * l + 1, dtype=torch.float64) for l in (0, 1)),
    ]
    views = [wide[0][:, ::2], wide[1].transpose(1, 2), *(x.transpose(1, 2) for x in wide[2:])]
    assert not any(view.is_contiguous() for view in (views[0], views[1], views[3]))
    results = []
    for given in (views, [view.contiguous() for view in views]):
        value = C.convolve(convolution, dict(enumerate(given[2:])), given[1], given[0], graph)
        gradient = torch.autograd.grad([v.sum() for v in value.values()], wide, create_graph=True)
        with differentiating_by(Pass.PARAMETERS):
            second = torch.autograd.grad([g.square().sum() for g in gradient[1:]], wide[1:])
        results.append([*value.values(), *gradient, *second])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def _compare(
    in_torch: Callable[[], list[Tensor]],
    in_c: Callable[[], list[Tensor]],
    leaves: list[Tensor],
    second: list[Tensor],
    generator: torch.Generator,
    geometry: list[Tensor] | None = None,
) -> None:
    """Compare values, gradients and gradients of gradients."""
    geometry = leaves if geometry is None else geometry
    theirs, ours = in_torch(), in_c()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)
    cotangents = [draw(generator, *value.shape, dtype=value.dtype) for value in theirs]
    for a, b in zip(gradients(in_c(), leaves, cotangents), gradients(in_torch(), leaves, cotangents), strict=True):
        assert_close(a, b)
    with differentiating_by(Pass.GEOMETRY):
        first = gradients(ours, geometry, cotangents, create_graph=True)
    expected = gradients(theirs, geometry, cotangents, create_graph=True)
    tangents = [draw(generator, *value.shape, dtype=value.dtype).detach() for value in expected]
    with differentiating_by(Pass.PARAMETERS):
        found = gradients(first, [*second, *cotangents], tangents)
    for a, b in zip(found, gradients(expected, [*second, *cotangents], tangents), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
    ("l_max", "l_out", "correlation"), [(0, (0,), 1), (1, (0, 1), 4), (2, (0, 1, 2), 2), (2, (0, 2), 3), (3, (0, 1), 3)]
)
def test_contraction(l_max: int, l_out: tuple[int, ...], correlation: int, channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    contraction = SymmetricContraction(l_max, l_out, correlation).to(dtype)
    element, counts = torch.tensor([0, 0, 0, 2]), (3, 1)  # element 1 of three is absent
    graph = replace(make_graph("mixed"), element=element, pair_of_slot=torch.zeros(4, dtype=torch.int64))
    keys = [
        (l, order) for l in l_out for order in range(1, correlation + 1) if symmetric_basis(l_max, l, order).n_paths
    ]
    weights = {key: draw(generator, 3, symmetric_basis(l_max, *key).n_paths, channels, dtype=dtype) for key in keys}
    features = draw(generator, sum(counts), (l_max + 1) ** 2, channels, dtype=dtype)

    def in_torch() -> list[Tensor]:
        result = TORCH.contract(contraction, features, weights, graph)
        return [result[l] for l in l_out]

    def in_c() -> list[Tensor]:
        result = C.contract(contraction, features, weights, graph)
        return [result[l] for l in l_out]

    leaves = [features, *(weights[key] for key in keys if symmetric_basis(l_max, *key).coefficients.any())]
    _compare(in_torch, in_c, leaves, second=leaves, generator=generator, geometry=[features])


def test_models(case: Any) -> None:
    """The whole training gradient, with stress, is the same."""
    batch = case.dataset().batch([0, 1, 2])
    loss = make_loss("weighted", {"energy": 2.0, "forces": 50.0})
    results = []
    for backend in (TORCH, C):
        model = case.model().use_backend(backend)
        prediction = predict(model, batch.graph, stress=True)
        value = loss_gradient(model, batch, loss)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([prediction.energy, prediction.forces, prediction.virials, value, *gradients])
    for a, b in zip(results[1], results[0], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_again(load_case: Any, threads: int) -> None:
    case = load_case("vector_l3_c3_t2")
    batch, before = case.dataset().batch([0, 1, 2]), torch.get_num_threads()
    loss = make_loss("weighted", {"energy": 2.0, "forces": 50.0})
    torch.set_num_threads(threads)
    try:
        runs = []
        for _ in range(2):
            model = case.model().use_backend(C)
            loss_gradient(model, batch, loss)
            runs.append([p.grad for p in model.parameters() if p.grad is not None])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_two_threads_are_one(load_case: Any) -> None:
    """Threads own blocks of channels; what is added over all blocks differs by rounding at most."""
    graph = make_graph("mixed")
    before, results = torch.get_num_threads(), []
    generator = torch.Generator().manual_seed(4)
    convolution = Convolution((0, 1), 2)
    harmonics = draw(generator, len(graph.sender_of_slot), 9, dtype=torch.float64)
    radial = draw(generator, len(graph.pair_sender), len(convolution.paths), 32, dtype=torch.float64)
    features = {l: draw(generator, graph.n_atoms, 2 * l + 1, 32, dtype=torch.float64) for l in (0, 1)}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            value = C.convolve(convolution, features, blocks(radial), harmonics, graph)
            leaves = [harmonics, radial, *features.values()]
            results.append([*value.values(), *torch.autograd.grad([v.sum() for v in value.values()], leaves)])
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_second_geometry_derivative_is_refused(load_case: Any) -> None:
    case = load_case("vector_l1_c3_t1")
    model = case.model().use_backend(C)
    graph = case.dataset().batch([0]).graph
    vectors = pair_vectors(graph, model.plan.r_max, model.dtype).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(graph, vectors).energies.sum(), vectors, create_graph=True)
    with pytest.raises(RuntimeError, match="torch kernels"):
        torch.autograd.grad(gradient.sum(), model.embedding)
