"""Graphs that make kernels stumble: several elements, uneven numbers of neighbors, one atom, no edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.program.workspace import Memory
from mace.structures.configuration import Configuration

ELEMENTS = ElementTable((1, 6, 8, 14))
R_MAX = 2.5


def configuration(numbers: list[int], positions: np.ndarray, edge: float = 0.0) -> Configuration:
    """Make a molecule, or a cubic crystal if an edge is given."""
    pbc = (edge > 0.0,) * 3
    return Configuration(np.array(numbers), np.asarray(positions, dtype=float), np.eye(3) * edge, pbc)


def graph_of(name: str) -> Graph:
    """Build one of the named graphs; silicon never occurs, so one element is always absent."""
    rng = np.random.default_rng(3)
    chain = configuration([6, 1, 8, 1, 6], np.cumsum(rng.normal(size=(5, 3)) * 0.3 + [0.9, 0.2, 0.0], axis=0))
    crystal = configuration([8, 6], np.array([[0.1, 0.0, 0.2], [1.4, 1.2, 1.6]]), 2.4)
    atom = configuration([6], np.zeros((1, 3)))
    far = configuration([1, 8], np.array([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0]]))
    members = {
        "one atom": [atom],
        "no edges": [far, atom],
        "one pair": [configuration([6, 8], np.array([[0.0, 0.0, 0.0], [0.5, 1.0, 0.3]]))],
        "molecule": [chain],
        "own image": [configuration([6], np.zeros((1, 3)), 2.2)],
        "batch": [chain, atom, crystal, far],
    }[name]
    return InMemoryDataset(members, ELEMENTS, R_MAX).batch(range(len(members))).graph


@pytest.fixture(params=["one atom", "no edges", "one pair", "molecule", "own image", "batch"])
def graph(request: pytest.FixtureRequest) -> Graph:
    """Each of the graphs in turn."""
    return graph_of(request.param)


@pytest.fixture
def batch_graph() -> Graph:
    """The largest of the graphs."""
    return graph_of("batch")


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory of programs with what is no number, so that it shows where kernels read what nobody wrote."""
    reserve = Memory.reserve

    def with_poison(self: Memory, n_bytes: int) -> Tensor:
        before = self.n_bytes
        buffer = reserve(self, n_bytes)
        if self.n_bytes > before:
            buffer.fill_(0xFF)
        return buffer

    monkeypatch.setattr(Memory, "reserve", with_poison)


@pytest.fixture
def threads_given_back() -> Iterator[None]:
    """Give torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
