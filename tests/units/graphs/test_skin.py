"""Is a reused neighbor list the one a new search gives?"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from mace.graphs.neighbors import Neighbors, find_neighbors
from mace.graphs.skin import SkinNeighbors
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
    assert len(search(structure, R_MAX).edge_sender) == 0
    moved = replace(structure, positions=positions + [[step, 0.0, 0.0], [-step, 0.0, 0.0]])
    found = search(moved, R_MAX)
    assert_same(found, find_neighbors(moved.positions, moved.cell, moved.pbc, R_MAX))
    assert len(found.edge_sender) == 2


def test_small_moves_are_not_searched_again() -> None:
    structure, search = crystal(), SkinNeighbors(0.5)
    search(structure, R_MAX)
    search(replace(structure, positions=structure.positions + [0.24, 0.0, 0.0]), R_MAX)
    assert search.n_searches == 1
