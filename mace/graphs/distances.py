"""The shortest distance of every pair of elements: what training has seen, and what a simulation meets."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mace.elements import ElementTable, chemical_symbol
from mace.graphs.graph import Graph, pair_vectors


def shortest_distances(graphs: Iterable[Graph], elements: ElementTable, r_max: float) -> dict[str, float]:
    """Find the shortest distance of each pair of elements that comes within the cutoff.

    Args:
        graphs: Of the structures, on the CPU.
        elements: The table that their elements refer to.
        r_max: Cutoff in Angstrom.

    Returns:
        Angstrom, by symbols such as ``H-O``, the lighter element first.
    """
    n = len(elements.atomic_numbers)
    shortest = torch.full((n * n,), torch.inf, dtype=torch.float64)
    for graph in graphs:
        pair, lengths = elements_of_pairs(graph, n), pair_lengths(graph, r_max)
        shortest = shortest.scatter_reduce(0, pair, lengths, "amin")
    names = [chemical_symbol(number) for number in elements.atomic_numbers]
    return {
        f"{names[i]}-{names[j]}": round(float(shortest[i * n + j]), 6)
        for i in range(n)
        for j in range(i, n)
        if shortest[i * n + j] < torch.inf
    }


def distance_limits(shortest: dict[str, float], elements: ElementTable, r_max: float) -> Tensor:
    """Arrange shortest distances by pair of elements; a pair that is missing never came within the cutoff.

    Returns:
        Angstrom, ``[elements * elements]``.
    """
    names = [chemical_symbol(number) for number in elements.atomic_numbers]
    rows = [[min(shortest.get(f"{a}-{b}", r_max), shortest.get(f"{b}-{a}", r_max)) for b in names] for a in names]
    return torch.tensor(rows, dtype=torch.float64).flatten()


def pair_lengths(graph: Graph, r_max: float) -> Tensor:
    """Return the length of every pair in Angstrom, without the padding, ``[pairs]``."""
    return pair_vectors(graph, r_max, graph.positions.dtype)[:-1].norm(dim=-1)


def elements_of_pairs(graph: Graph, n_elements: int) -> Tensor:
    """Return the elements of every pair, ``lighter * n_elements + heavier``, without the padding, ``[pairs]``."""
    sender = graph.element.index_select(0, graph.pair_sender[:-1])
    receiver = graph.element.index_select(0, graph.pair_receiver[:-1])
    return torch.minimum(sender, receiver) * n_elements + torch.maximum(sender, receiver)
