"""Do directed edges keep what belongs to each, forward and backward, and is padding never seen?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.c_source.parts import lanes
from mace.kernels.compiler import find_compiler
from mace.kernels.convolution import Convolution
from mace.kernels.gather import directed_edges, gather_edges, take_edges, to_both_directions
from mace.structures.configuration import Configuration


def make_graph(kind: str) -> Graph:
    """Build an atom alone, a small cell whose atoms see their own images, or both in one batch."""
    rng = np.random.default_rng(3)
    atom = Configuration(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3)
    cell = np.eye(3) * 3.0 + 0.2 * rng.normal(size=(3, 3))
    crystal = Configuration(np.array([6, 1]), rng.uniform(0, 3, (2, 3)), cell, (True,) * 3)
    kinds = {"atom": [atom], "crystal": [crystal], "mixed": [atom, crystal, atom]}
    return InMemoryDataset(kinds[kind], ElementTable((1, 6)), 3.3).batch(range(len(kinds[kind]))).graph


@pytest.mark.parametrize("kind", ["atom", "crystal", "mixed"])
def test_every_edge_has_its_slot(kind: str) -> None:
    graph = make_graph(kind)
    edges = directed_edges(graph)
    padding = len(graph.pair_sender) - 1
    assert len(edges.slots) == graph.n_edges + 1
    for edge in range(graph.n_edges):
        slot = int(edges.slots[edge])
        assert int(edges.of_slot[slot]) == edge
        assert int(graph.pair_of_slot[slot]) == edge % padding
        assert (int(graph.sign_of_slot[slot]) < 0) == (edge >= padding)
    filled = torch.arange(graph.max_neighbors) < graph.neighbor_count.unsqueeze(1)
    assert torch.equal(edges.of_slot == graph.n_edges, ~filled.flatten())


@pytest.mark.parametrize("kind", ["atom", "crystal", "mixed"])
def test_gathering_and_taking_are_adjoint(kind: str) -> None:
    graph, generator = make_graph(kind), torch.Generator().manual_seed(1)
    edges = directed_edges(graph)
    of_edges = torch.randn(len(edges.slots), 3, generator=generator, dtype=torch.float64)
    of_edges[-1] = 0.0
    of_slots = torch.randn(len(edges.of_slot), 3, generator=generator, dtype=torch.float64)
    left, right = (gather_edges(of_edges, edges) * of_slots).sum(), (of_edges * take_edges(of_slots, edges)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-13)
    assert not take_edges(of_slots, edges)[-1].any()
    values = of_slots.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: take_edges(v, edges) ** 2, values)
    assert torch.autograd.gradgradcheck(lambda v: take_edges(v, edges) ** 2, values)


def test_both_directions() -> None:
    pairs = torch.tensor([1.0, 2.0, 0.0])  # the last one is padding
    assert to_both_directions(pairs).tolist() == [1.0, 2.0, 1.0, 2.0, 0.0]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["atom", "mixed"])
def test_the_convolution_gives_each_direction_its_own_weights(kind: str, compiled: bool) -> None:
    """Against a loop over slots."""
    if compiled and find_compiler() is None:
        pytest.skip("there is no C compiler on this machine")
    graph, dtype, generator = make_graph(kind), torch.float64, torch.Generator().manual_seed(2)
    edges, l_max = directed_edges(graph), 2
    convolution, n = Convolution((0, 1), l_max), lanes(dtype)
    paths, coupling = convolution.paths, convolution.coupling

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    features = {l: draw(graph.n_atoms, 2 * l + 1, n) for l in (0, 1)}
    radial, harmonics = draw(len(edges.slots), len(paths), n), draw(len(edges.of_slot), (l_max + 1) ** 2)
    radial[-1] = 0.0
    summed = (
        C.convolve(convolution, features, radial.unsqueeze(1), harmonics, graph, edges)
        if compiled
        else TORCH.convolve(convolution, features, radial, harmonics, graph, edges)
    )
    found = {degree: values.unflatten(2, (-1, n)) for degree, values in summed.items()}
    expected = {degree: torch.zeros_like(values) for degree, values in found.items()}
    blocks = (harmonics @ coupling).split([(2 * p.l3 + 1) * (2 * p.l1 + 1) for p in paths], dim=1)
    for row in range(graph.n_atoms):
        for neighbor in range(int(graph.neighbor_count[row])):
            slot = row * graph.max_neighbors + neighbor
            place = dict.fromkeys(expected, 0)
            for p, path in enumerate(paths):
                matrix = blocks[p][slot].view(2 * path.l3 + 1, 2 * path.l1 + 1)
                sent = features[path.l1][graph.sender_of_slot[slot]] * radial[edges.of_slot[slot], p]
                expected[path.l3][row, :, place[path.l3]] += matrix @ sent
                place[path.l3] += 1
    for degree, values in expected.items():
        assert torch.allclose(found[degree], values, rtol=1e-12, atol=1e-12)
