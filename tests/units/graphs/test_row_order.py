"""Are the rows of large structures ordered by place, and is nothing else different?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs import assembly
from mace.graphs.assembly import MANY_ATOMS, build_graph, graph_of_structures
from mace.graphs.graph import Graph
from mace.graphs.skin import MovingStructures
from mace.structures.configuration import Configuration

ELEMENTS = ElementTable((1, 6, 8))
CELLS = {"box": (np.diag([20.0, 22.0, 24.0]), (True,) * 3), "flat": (np.diag([20.0, 22.0, 0.0]), (True, True, False))}
CELLS |= {"none": (np.zeros((3, 3)), (False,) * 3), "thin": (np.diag([20.0, 22.0, 1e-9]), (False,) * 3)}


def crowd(kind: str, count: int = MANY_ATOMS) -> Configuration:
    """Atoms in no order."""
    cell, pbc = CELLS[kind]
    rng = np.random.default_rng(0)
    return Configuration(rng.choice([1, 6, 8], count), rng.uniform(0.0, 20.0, (count, 3)), cell, pbc)


def row_distance(graph: Graph) -> float:
    """How many rows apart neighbors of the same element are, in the mean."""
    sender, receiver = graph.pair_sender[:-1], graph.pair_receiver[:-1]
    same = graph.element[sender] == graph.element[receiver]
    return float((graph.row_of_atom[sender] - graph.row_of_atom[receiver])[same].abs().double().mean())


@pytest.mark.parametrize("kind", CELLS)
def test_neighbors_have_rows_near_each_other(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = build_graph(crowd(kind), ELEMENTS, 3.0)
    monkeypatch.setattr(assembly, "MANY_ATOMS", MANY_ATOMS + 1)
    given = build_graph(crowd(kind), ELEMENTS, 3.0)
    assert row_distance(ordered) < 0.6 * row_distance(given)
    for graph in (ordered, given):
        assert (graph.element[graph.atoms_by_element].diff() >= 0).all()
        assert torch.equal(graph.row_of_atom[graph.atoms_by_element], torch.arange(graph.n_atoms))
    for name in ("pair_sender", "pair_receiver", "pair_shift", "element", "positions"):
        assert torch.equal(getattr(ordered, name), getattr(given, name)), name
    counts = (graph.neighbor_count[graph.row_of_atom] for graph in (ordered, given))
    assert torch.equal(*counts)


def test_images_of_atoms_have_the_rows_of_the_atoms() -> None:
    inside, rng = crowd("box"), np.random.default_rng(1)
    outside = replace(inside, positions=inside.positions + rng.integers(-2, 3, (MANY_ATOMS, 3)) @ inside.cell)
    ours, theirs = (build_graph(c, ELEMENTS, 3.0).atoms_by_element for c in (inside, outside))
    assert torch.equal(ours, theirs)


def test_each_structure_of_a_batch_has_its_rows_together() -> None:
    structures = [crowd("none", 5), crowd("box"), crowd("none"), crowd("box", 7)]
    graph = graph_of_structures(structures, ELEMENTS, 2.0)
    of_rows = graph.structure_of_atom[graph.atoms_by_element]
    element = graph.element[graph.atoms_by_element]
    assert ((element * 4 + of_rows).diff() >= 0).all()
    assert row_distance(graph) < 0.6 * MANY_ATOMS / 9  # of numbers drawn from a third of them: a third of that


def test_rows_follow_atoms_that_move() -> None:
    following = MovingStructures(ELEMENTS, 3.0, ("Default",), 0.5, torch.device("cpu"))
    structure, rng = crowd("box"), np.random.default_rng(2)
    for size in (0.0, 1e-6, 0.1, 30.0):
        structure = replace(structure, positions=structure.positions + size * rng.normal(size=(MANY_ATOMS, 3)))
        ours, fresh = following.graph([structure]), build_graph(structure, ELEMENTS, 3.0)
        for name in ("positions", "atoms_by_element", "sender_of_slot", "reverse_of_slot"):
            assert torch.equal(getattr(ours, name), getattr(fresh, name)), (size, name)
