"""Is the convolution the sum over edges that its equation says, with its derivatives?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mace.equivariant.coupling import coupling_coefficients
from mace.graphs.graph import Graph
from mace.kernels.convolution import Convolution, ConvolutionPath, convolution_paths, coupling_matrix

CHANNELS = 3
TIGHT = {"atol": 1e-8, "rtol": 1e-6}
"""What polynomials of low degree allow; the tolerances of torch would let an error of 0.1 % pass."""


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def edge_by_edge(
    features: dict[int, Tensor], radial: Tensor, harmonics: Tensor, paths: tuple[ConvolutionPath, ...], graph: Graph
) -> dict[int, Tensor]:
    """Loop over the filled slots one path at a time: the equation as it is written."""
    slots = torch.nonzero(graph.pair_of_slot != len(graph.pair_sender) - 1).flatten()
    receivers = slots // graph.max_neighbors
    results: dict[int, list[Tensor]] = {}
    for number, path in enumerate(paths):
        coefficients = torch.as_tensor(coupling_coefficients(path.l1, path.l2, path.l3) * (2 * path.l3 + 1) ** 0.5)
        message = torch.einsum(
            "abm,eac,eb,ec->emc",
            coefficients.to(radial.dtype),
            features[path.l1][graph.sender_of_slot[slots]],
            harmonics[slots, path.l2**2 : (path.l2 + 1) ** 2],
            radial[graph.pair_of_slot[slots], number],
        )
        total = radial.new_zeros(graph.n_atoms, 2 * path.l3 + 1, radial.shape[-1])
        results.setdefault(path.l3, []).append(total.index_add(0, receivers, message))
    return {degree: torch.stack(values) for degree, values in results.items()}


def inputs(
    graph: Graph, l_in: tuple[int, ...], l_max: int, dtype: torch.dtype = torch.float64
) -> tuple[dict[int, Tensor], Tensor, Tensor]:
    """Draw features, radial weights that are zero for the padding, and harmonics that are not."""
    generator = torch.Generator().manual_seed(5)
    n_paths = len(convolution_paths(l_in, l_max))
    features = {l: random(generator, graph.n_atoms, 2 * l + 1, CHANNELS, dtype=dtype) for l in l_in}
    radial = random(generator, len(graph.pair_sender), n_paths, CHANNELS, dtype=dtype)
    radial[-1] = 0.0
    harmonics = random(generator, graph.n_atoms * graph.max_neighbors, (l_max + 1) ** 2, dtype=dtype)
    return features, radial, harmonics


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("l_in", "l_max"), [((0,), 0), ((0,), 3), ((0, 1), 1), ((0, 1, 2), 2), ((0, 1), 4), ((0, 2), 3)]
)
def test_values(graph: Graph, l_in: tuple[int, ...], l_max: int, dtype: torch.dtype) -> None:
    paths = convolution_paths(l_in, l_max)
    features, radial, harmonics = inputs(graph, l_in, l_max, dtype)
    found = Convolution(l_in, l_max).to(dtype)(features, radial, harmonics, graph)
    expected = edge_by_edge(features, radial, harmonics, paths, graph)
    assert sorted(found) == list(range(l_max + 1))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for degree, values in expected.items():
        stacked = torch.stack(found[degree].split(CHANNELS, dim=2))
        assert stacked.dtype == dtype
        torch.testing.assert_close(stacked, values, atol=tolerance, rtol=tolerance)


def test_derivatives(graph: Graph) -> None:
    l_in, l_max = (0, 1), 1
    features, radial, harmonics = inputs(graph, l_in, l_max)
    convolution = Convolution(l_in, l_max)
    real = (torch.arange(len(radial)) < len(radial) - 1).to(radial.dtype).view(-1, 1, 1)

    def through(scalars: Tensor, vectors: Tensor, radial: Tensor, harmonics: Tensor) -> Tensor:
        result = convolution({0: scalars, 1: vectors}, radial * real, harmonics, graph)
        return torch.cat([result[degree].flatten() for degree in sorted(result)])

    arguments = tuple(t.requires_grad_() for t in (features[0], features[1], radial, harmonics))
    assert gradcheck(through, arguments, fast_mode=True, **TIGHT)
    assert gradgradcheck(through, arguments, fast_mode=True, **TIGHT)


@pytest.mark.parametrize(("l_in", "l_max"), [((0,), 2), ((0, 1), 2), ((0, 1, 2), 4)])
def test_paths_are_all_and_only_those_of_natural_parity(l_in: tuple[int, ...], l_max: int) -> None:
    expected = {
        (l1, l2, l3)
        for l1 in l_in
        for l2 in range(l_max + 1)
        for l3 in range(l_max + 1)
        if abs(l1 - l2) <= l3 <= l1 + l2 and (-1) ** (l1 + l2) == (-1) ** l3
    }
    listed = [(path.l1, path.l2, path.l3) for path in convolution_paths(l_in, l_max)]
    assert len(listed) == len(set(listed)) and set(listed) == expected
    assert listed == sorted(listed, key=lambda path: (path[2], path[0], path[1]))


def test_paths_keep_the_variance() -> None:
    """Features and harmonics of unit variance per component give results of unit variance per component."""
    rng = np.random.default_rng(0)
    for path in convolution_paths((0, 1, 2), 3):
        n1, n2, n3 = 2 * path.l1 + 1, 2 * path.l2 + 1, 2 * path.l3 + 1
        matrix = coupling_matrix((path,), 3)[path.l2**2 : (path.l2 + 1) ** 2].reshape(n2, n3, n1)
        products = np.einsum("bma,sa,sb->sm", matrix, rng.normal(size=(20000, n1)), rng.normal(size=(20000, n2)))
        assert np.abs(products.var(axis=0) - 1.0).max() < 0.15
