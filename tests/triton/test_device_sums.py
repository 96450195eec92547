"""Are sums on devices those of torch, with their derivatives, and do they depend on what is added up alone?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mace.graphs.graph import Graph, pair_vectors
from mace.kernels import device_sums, gather
from mace.kernels.triton_source import segments as kernels
from mace.model.mace import MACE
from mace.model.prediction import predict, sum_over_structures
from tests.kernels.conftest import graph, graph_of  # noqa: F401
from tests.kernels.test_geometry import plan_of

DTYPES = (torch.float64, torch.float32)
SMALL = 8
"""Rows of a chunk in these tests."""


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after whose call kernels are used, interpreted, for numbers in memory."""
    return lambda: monkeypatch.setattr(gather, "has_kernels", lambda values: True)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let segments have several parts although they are short."""
    import triton.language as tl

    monkeypatch.setattr(kernels, "CHUNK", SMALL)
    monkeypatch.setattr(kernels, "_CHUNK", tl.constexpr(SMALL))
    monkeypatch.setattr(kernels, "_SAMPLES", tl.constexpr(4))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def of_counts(*counts: int) -> Tensor:
    """Return the segment of each row."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))


@pytest.mark.parametrize("counts", [(3,), (0, 5, 0, 1, 9, 0), (16, 8, 17, 0), (), (0, 0), (40,)])
@pytest.mark.parametrize("shape", [(), (3, 3), (37,)])
@pytest.mark.usefixtures("small_chunks")
def test_sums_of_segments(counts: tuple[int, ...], shape: tuple[int, ...]) -> None:
    segments = of_counts(*counts)
    for dtype in DTYPES:
        values = draw(len(segments), *shape, dtype=dtype)
        found = device_sums.segment_sum(values, segments, len(counts))
        exact = values.new_zeros(len(counts), *shape, dtype=torch.float64).index_add(0, segments, values.double())
        torch.testing.assert_close(found, exact.to(dtype), rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.usefixtures("small_chunks")
def test_parts_of_segments() -> None:
    values, parts = draw(30, 1), torch.full((2, 4, 1), float("nan"), dtype=torch.float64)
    kernels.segment_parts(2, 1).run([values, of_counts(20, 10), parts], [30, 4, 1])
    exact = [values[a:b].sum() for a, b in ((0, 8), (8, 16), (16, 20), (0, 0), (20, 28), (28, 30), (0, 0), (0, 0))]
    torch.testing.assert_close(parts.flatten(), torch.stack(exact), rtol=0, atol=1e-14)


@pytest.mark.usefixtures("small_chunks")
def test_a_sum_depends_on_its_segment_alone() -> None:
    """Not on the place of its rows, on how many others there are, or on zeros behind them."""
    rows = draw(21, 2, dtype=torch.float32) * 10.0 ** draw(21, 1, seed=1)
    alone = device_sums.segment_sum(rows, of_counts(21), 1)[0]
    others = draw(40, 2, seed=2, dtype=torch.float32)
    among = device_sums.segment_sum(torch.cat([others[:5], rows, others]), of_counts(5, 21, 40), 3)
    longer = device_sums.segment_sum(torch.cat([rows, 0.0 * others[:30]]), of_counts(51), 1)
    assert torch.equal(among[1], alone) and torch.equal(longer[0], alone)
    # one step or two
    few = device_sums.segment_sum(rows[:SMALL], of_counts(SMALL), 1)
    assert torch.equal(few[0], device_sums.segment_sum(rows, of_counts(SMALL, 13), 2)[0])


def test_damage_stays_in_its_segment() -> None:
    values = draw(12, 2)
    values[3] = float("nan")
    found = device_sums.segment_sum(values, of_counts(3, 2, 7), 3)
    assert found.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prediction_of_a_model(graph: Graph, dtype: torch.dtype, on_device: Callable[[], None]) -> None:  # noqa: F811
    """Energies, forces, virials, and the derivatives of a sum of them by the parameters."""
    plan = plan_of(l_max=1, correlation=(2,))
    model = MACE(plan, dtype).initialize(torch.Generator().manual_seed(1))
    weights = {"energy": draw(graph.n_structures), "forces": draw(graph.n_atoms, 3), "virials": draw(1, 3, 3)}

    def evaluate() -> list[Tensor]:
        found = predict(model, graph, stress=True, training=True, atomic_virials=True)
        total = sum((getattr(found, name) * weight).sum() for name, weight in weights.items())
        parameters = [value for value in model.parameters() if value.requires_grad]
        of_parameters = torch.autograd.grad(total, parameters, materialize_grads=True, allow_unused=True)
        return [getattr(found, name).detach() for name in (*weights, "atomic_virials")] + list(of_parameters)

    plain = evaluate()
    on_device()
    found = evaluate()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for values, exact in zip(found, plain, strict=True):
        scale = float(exact.abs().max())
        torch.testing.assert_close(values, exact, rtol=0, atol=tolerance * max(scale, 1e-3))
    # what an atom contributes to the virials adds up to those of its structure
    torch.testing.assert_close(
        torch.zeros_like(plain[2]).index_add(0, graph.structure_of_atom, plain[3]), plain[2], rtol=1e-4, atol=tolerance
    )


def test_derivatives(on_device: Callable[[], None]) -> None:
    """First and second ones are those of torch's operations, for padding whose gradient is zero."""
    graph = graph_of("batch")  # noqa: F811
    vectors = pair_vectors(graph, 2.5, torch.float64)
    pairs, atoms, structures = len(vectors), graph.n_atoms, graph.n_structures
    functions: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "forces": (lambda x: gather.forces_of_pairs(x, graph), pairs),
        "strain": (lambda x: gather.strain_of_pairs(x, vectors, graph), pairs),
        "sums": (lambda x: sum_over_structures(x, graph), atoms),
        "spread": (lambda x: gather.spread_segments(x, graph.structure_of_atom), structures),
    }

    def evaluate() -> list[Tensor]:
        found = []
        for function, rows in functions.values():
            x = draw(rows, 3)
            x[-1] *= rows != pairs
            x.requires_grad_(True)
            value = function(x)
            of_value = draw(*value.shape, seed=1).requires_grad_(True)
            (gradient,) = torch.autograd.grad(value, x, of_value, create_graph=True)
            (second,) = torch.autograd.grad(gradient, of_value, x.detach())
            found += [value.detach(), gradient.detach(), second]
        return found

    plain = evaluate()
    on_device()
    for values, exact in zip(evaluate(), plain, strict=True):
        torch.testing.assert_close(values, exact, rtol=0, atol=1e-13)


def test_numbers_in_memory_are_added_by_torch() -> None:
    assert not device_sums.has_kernels(torch.zeros(1)) and not device_sums.has_kernels(torch.zeros(1, device="meta"))
