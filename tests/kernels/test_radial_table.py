"""Is a table the function it was made of, and do the compiled kernels read it as its definition does?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mace.graphs.graph import Graph
from mace.kernels.backend import TORCH, Backend, TabulatedRadial
from mace.kernels.c_backend import C
from mace.kernels.compiler import find_compiler
from mace.kernels.convolution import Convolution
from mace.kernels.radial_table import SHORTEST, RadialTable, tabulate

R_MAX = 2.5
compiled = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")


def wave(lengths: Tensor) -> Tensor:
    """Return six functions that end smoothly at the cutoff, ``[lengths, 6]``."""
    frequencies = torch.arange(1.0, 7.0, dtype=lengths.dtype)
    return torch.sin(frequencies * lengths.unsqueeze(1)) * ((R_MAX - lengths) ** 3).unsqueeze(1)


def deviation(n_nodes: int) -> tuple[float, float]:
    """Return the largest errors of values and derivatives."""
    lengths = torch.linspace(0.3, R_MAX - 1e-9, 997, dtype=torch.float64, requires_grad=True)
    table = tabulate(wave, 2, R_MAX, n_nodes)
    found, exact = table.evaluate(lengths).flatten(1), wave(lengths)
    slopes = [torch.autograd.grad(values.sum(), lengths)[0] for values in (found, exact)]
    found, exact = found.detach(), exact.detach()
    return float((found - exact).abs().max()), float((slopes[0] - slopes[1]).abs().max())


def test_errors_fall_with_the_sixth_power_of_the_step() -> None:
    coarse, fine = deviation(33), deviation(65)
    assert coarse[0] < 1e-5 and fine[0] < coarse[0] / 40  # 64 in the limit
    assert fine[1] < coarse[1] / 20  # the derivative is one order lower, 32 in the limit


def test_nodes_are_exact() -> None:
    table = tabulate(wave, 3, R_MAX, 17)
    nodes = torch.linspace(SHORTEST, R_MAX, 17, dtype=torch.float64)[:-1]
    torch.testing.assert_close(table.evaluate(nodes).flatten(1), wave(nodes), rtol=0, atol=1e-13)


def test_nothing_from_the_cutoff_on() -> None:
    table = tabulate(lambda r: 1.0 + wave(r), 3, R_MAX, 17)
    assert not table.evaluate(torch.tensor([R_MAX, R_MAX + 1.0], dtype=torch.float64)).any()
    assert table.evaluate(torch.tensor([R_MAX - 1e-6], dtype=torch.float64)).min() > 0.9


def test_derivative_is_that_of_the_interpolation() -> None:
    table = tabulate(wave, 2, R_MAX, 9)
    lengths = torch.tensor([0.005, 0.4, 1.23, 2.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(table.evaluate, (lengths,))


@compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("l_in", "l_max", "channels"), [((0,), 3, 7), ((0, 1), 3, 32), ((0, 1, 2), 2, 16)])
def test_compiled_convolution(
    graph: Graph, l_in: tuple[int, ...], l_max: int, channels: int, dtype: torch.dtype, tolerance: float, threads: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    convolution = Convolution(l_in, l_max).to(dtype)
    rows = torch.randn(9, 3, len(convolution.paths), channels, generator=generator, dtype=torch.float64).to(dtype)
    table = RadialTable(rows, R_MAX)
    filled = graph.pair_of_slot != len(graph.pair_sender) - 1
    lengths = torch.rand(len(graph.pair_sender), generator=generator, dtype=torch.float64) * R_MAX
    lengths[-1] = R_MAX
    harmonics = torch.randn(len(filled), (l_max + 1) ** 2, generator=generator, dtype=torch.float64)
    harmonics[:, 0] = 1.0
    features = [torch.randn(graph.n_atoms, 2 * l + 1, channels, generator=generator).to(dtype) for l in l_in]
    leaves = [x.detach().to(dtype).requires_grad_() for x in (lengths, harmonics, *features)]

    def by(backend: Backend) -> list[Tensor]:
        radial = TabulatedRadial(backend.prepare_table(table), leaves[0])
        features, masked = dict(zip(l_in, leaves[2:], strict=True)), leaves[1] * filled.unsqueeze(1)
        result = backend.convolve(convolution, features, radial, masked, graph)
        return [result[l] for l in range(l_max + 1)]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = by(C), by(TORCH)
        cotangents = [torch.randn(v.shape, generator=generator).to(dtype) for v in theirs]
        of_ours, of_theirs = (torch.autograd.grad(v, leaves, cotangents) for v in (ours, theirs))
    finally:
        torch.set_num_threads(before)
    of_ours[1][:, 0] = of_theirs[1][:, 0] = 0.0  # the first harmonic is constant
    for a, b in zip([*ours, *of_ours], [*theirs, *of_theirs], strict=True):
        assert float((a - b).detach().abs().max()) <= tolerance * max(float(b.detach().abs().max()), 1e-30)


@compiled
def test_the_compiled_convolution_is_differentiable_once(batch_graph: Graph) -> None:
    convolution = Convolution((0,), 1).float()
    table = RadialTable(torch.randn(9, 3, len(convolution.paths), 16), R_MAX)
    lengths = torch.rand(len(batch_graph.pair_sender), requires_grad=True)
    harmonics = torch.randn(len(batch_graph.sender_of_slot), 4)
    features = {0: torch.randn(batch_graph.n_atoms, 1, 16)}
    radial = TabulatedRadial(C.prepare_table(table), lengths)
    result = C.convolve(convolution, features, radial, harmonics, batch_graph)
    (gradient,) = torch.autograd.grad(result[0].sum(), lengths, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        torch.autograd.grad(gradient.sum(), lengths)
