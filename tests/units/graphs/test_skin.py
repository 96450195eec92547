"""Are a reused neighbor list and a reused graph those that a new search gives?"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.assembly import graph_of_structures
from mace.graphs.graph import Graph
from mace.graphs.neighbors import Neighbors, find_neighbors
from mace.graphs.skin import MovingStructures, SkinNeighbors
from mace.structures.configuration import Configuration

R_MAX = 3.0


def assert_same(ours: Neighbors, fresh: Neighbors) -> None:
    for field in fields(Neighbors):
        assert np.array_equal(getattr(ours, field.name), getattr(fresh, field.name)), field.name


def crystal(pbc: tuple[bool, bool, bool] = (True, True, True)) -> Configuration:
    rng = np.random.default_rng(0)
    cell = 4.0 * np.eye(3) + 0.4 * rng.normal(size=(3, 3))
    return Configuration(np.full(9, 6), rng.uniform(-3.0, 7.0, (9, 3)), cell, pbc)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, False)])
def test_a_walk_is_followed_exactly(pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(1)
    structure, search = crystal(pbc), SkinNeighbors(0.5)
    for _ in range(60):
        structure = replace(structure, positions=structure.positions + 0.03 * rng.normal(size=(9, 3)))
        assert_same(search(structure, R_MAX), find_neighbors(structure.positions, structure.cell, structure.pbc, R_MAX))
    assert 1 < search.n_searches < 40


def test_one_far_move_is_noticed() -> None:
    structure, search = crystal(), SkinNeighbors(0.5)
    search(structure, R_MAX)
    positions = structure.positions.copy()
    positions[4] += [1.5, 0.0, 0.0]
    moved = replace(structure, positions=positions)
    assert_same(search(moved, R_MAX), find_neighbors(moved.positions, moved.cell, moved.pbc, R_MAX))
    assert search.n_searches == 2


@pytest.mark.parametrize("change", ["cell", "pbc", "atoms", "cutoff"])
def test_any_other_structure_is_searched_anew(change: str) -> None:
    structure, search, r_max = crystal(), SkinNeighbors(0.5), R_MAX
    search(structure, r_max)
    if change == "cell":
        structure = replace(structure, cell=structure.cell * 1.01)
    elif change == "pbc":
        structure = replace(structure, pbc=(True, True, False))
    elif change == "atoms":
        structure = replace(structure, positions=structure.positions[:5], atomic_numbers=structure.atomic_numbers[:5])
    else:
        r_max = 3.7
    assert_same(search(structure, r_max), find_neighbors(structure.positions, structure.cell, structure.pbc, r_max))
    assert search.n_searches == 2


def test_without_a_skin_every_call_searches() -> None:
    structure, search = crystal(), SkinNeighbors(0.0)
    for _ in range(3):
        assert_same(search(structure, R_MAX), find_neighbors(structure.positions, structure.cell, structure.pbc, R_MAX))
    assert search.n_searches == 3


@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, True)])
@pytest.mark.parametrize(("skin", "step"), [(0.5, 0.3), (0.4, 0.25), (1.0, 0.51)])
def test_two_atoms_that_approach_each_other_are_found(skin: float, step: float, pbc: tuple[bool, bool, bool]) -> None:
    """Each moves by more than half the skin and less than the whole: together they come from beyond it."""
    positions = np.array([[0.0, 0.0, 0.0], [R_MAX + skin + 0.01, 0.0, 0.0]])
    structure, search = Configuration(np.array([6, 6]), positions, 30.0 * np.eye(3), pbc), SkinNeighbors(skin)
    assert len(search(structure, R_MAX).pair_sender) == 0
    moved = replace(structure, positions=positions + [[step, 0.0, 0.0], [-step, 0.0, 0.0]])
    found = search(moved, R_MAX)
    assert_same(found, find_neighbors(moved.positions, moved.cell, moved.pbc, R_MAX))
    assert len(found.pair_sender) == 1


def test_small_moves_are_not_searched_again() -> None:
    structure, search = crystal(), SkinNeighbors(0.5)
    search(structure, R_MAX)
    search(replace(structure, positions=structure.positions + [0.24, 0.0, 0.0]), R_MAX)
    assert search.n_searches == 1


ELEMENTS, HEADS = ElementTable((1, 6, 8)), ("one", "two")


def moving(skin: float = 0.5) -> MovingStructures:
    return MovingStructures(ELEMENTS, R_MAX, HEADS, skin, torch.device("cpu"))


def assert_same_graph(ours: Graph, structures: list[Configuration]) -> None:
    fresh = graph_of_structures(structures, ELEMENTS, R_MAX, HEADS)
    for field in fields(Graph):
        old, new = getattr(ours, field.name), getattr(fresh, field.name)
        if field.name == "real":
            assert old is new is None
            continue
        of_same_names = [(old, new)] if field.name != "conditions" else [(old[name], new[name]) for name in new]
        for one, other in of_same_names:
            assert one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num()), field.name
    assert ours.elements_present == fresh.elements_present and ours.heads_present == fresh.heads_present


def labeled(structure: Configuration) -> Configuration:
    charged = replace(structure, charges=np.linspace(-1.0, 1.0, 9), conditions={"spin": np.array([1.0])})
    return replace(charged, head="one")


@pytest.mark.parametrize("skin", [0.0, 0.5])
@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, False)])
@pytest.mark.parametrize("count", [1, 2])
def test_the_graph_of_a_walk_is_that_of_every_step(count: int, pbc: tuple[bool, bool, bool], skin: float) -> None:
    rng = np.random.default_rng(2)
    structures, following, kept = [labeled(crystal(pbc)) for _ in range(count)], moving(skin), 0
    last = following.graph(structures)
    for step in range(40):
        size = 0.003 if step % 2 else 0.05
        structures = [replace(c, positions=c.positions + size * rng.normal(size=(9, 3))) for c in structures]
        graph = following.graph(structures)
        kept += graph.pair_sender is last.pair_sender
        last = graph
        assert_same_graph(graph, structures)
    assert (kept > 3) == (skin > 0.0 and (count == 1 or any(pbc)))


def test_whatever_else_changes_is_in_the_next_graph() -> None:
    structure, following = labeled(crystal()), moving()
    changes = [
        {"atomic_numbers": np.array([1, 8] + 7 * [6])},
        {"charges": np.linspace(0.0, 1.0, 9)},
        {"charges": None},
        {"charges": np.zeros(9)},
        {"conditions": {"spin": np.array([3.0])}},
        {"conditions": {"temperature": np.array([3.0])}},
        {"conditions": {}},
        {"head": "two"},
        {"cell": 4.1 * np.eye(3)},
        {"pbc": (True, True, False)},
    ]
    assert_same_graph(following.graph([structure]), [structure])
    for change in changes:
        structure = replace(structure, **change)
        assert_same_graph(following.graph([structure]), [structure])
    for given in ([structure, structure], [structure], [labeled(crystal())]):
        assert_same_graph(following.graph(given), given)
    structure.atomic_numbers[:] = 8  # in place, so that the structure of the last call has changed too
    structure.cell[0, 0] += 0.01
    assert_same_graph(following.graph([structure]), [structure])


def test_what_a_new_graph_refuses_is_refused_after_a_move_too() -> None:
    structure = labeled(replace(crystal((False, False, False)), cell=np.zeros((3, 3))))
    following = moving()
    graph = following.graph([structure])
    for wrong in ({"stress": np.eye(3)}, {"head": "three"}, {"atomic_numbers": np.full(9, 7)}):
        with pytest.raises(UserError):
            following.graph([replace(structure, **wrong)])
    assert following.graph([structure]).pair_sender is graph.pair_sender
