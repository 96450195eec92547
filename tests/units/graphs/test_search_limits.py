"""Is what a native search cannot do known before it, in the words of the user?"""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.in_memory import InMemoryDataset
from mace.graphs.neighbors import find_all_neighbors
from mace.graphs.pairs import find_pairs
from mace.graphs.skin import SkinNeighbors
from mace.structures.checks import check_geometry
from mace.structures.configuration import Configuration

FREE, ALL, SLAB = (False,) * 3, (True,) * 3, (True, True, False)
SEARCHES = {
    "many": lambda c, r_max: find_all_neighbors([c, c, c], r_max),
    "one": lambda c, r_max: find_all_neighbors([c], r_max),
    "skin": lambda c, r_max: SkinNeighbors()(c, r_max),
}


def structure(positions: object, cell: object = 0.0, pbc: tuple[bool, bool, bool] = FREE) -> Configuration:
    positions = np.array(positions, dtype=float)
    cell = np.diag([cell] * 3) if np.ndim(cell) == 0 else np.array(cell, dtype=float)
    return Configuration(np.ones(len(positions), dtype=int), positions, cell, pbc, file="data.xyz", index=4)


WRONG_PLACES = {
    "far": structure([[0, 0, 0], [1.0e6, 0, 0]]),
    "very far": structure([[0, 0, 0], [0, -3.0e12, 0]]),
    "in a crystal": structure([[0, 0, 0], [0, 0, 2.0e6]], 4.0, ALL),
    "not a number": structure([[0, 0, 0], [0, np.nan, 0]]),
    "infinite": structure([[0, 0, 0], [0, -np.inf, 0]], 4.0, SLAB),
    "infinite cell": structure([[0, 0, 0]], np.inf, ALL),
    "huge cell": structure([[0, 0, 0]], 1.0e10, ALL),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("wrong", WRONG_PLACES.values(), ids=WRONG_PLACES)
def test_places_without_sense_are_refused_by_name(wrong, search):
    with pytest.raises(UserError, match=r"data.xyz: structure 4 has a (position|cell) "):
        search(wrong, 3.0)
    with pytest.raises(UserError, match=r"data.xyz: structure 4 has a (position|cell) "):
        check_geometry(wrong)


ENDLESS = {
    "cutoff": (structure([[0, 0, 0]], 2.5, ALL), 1.0e6),
    "cutoff in a slab": (structure([[0, 0, 0]], 2.5, SLAB), 1.0e5),
    "cutoff in a wire": (structure([[0, 0, 0]], 2.5, (False, True, False)), 1.0e9),
    "flat cell": (structure([[0, 0, 0]], [[3, 0, 0], [3, 1e-3, 0], [0, 0, 3]], ALL), 5.0),
    "flat slab": (structure([[0, 0, 0]], [[3, 0, 0], [3, 1e-7, 0], [0, 0, 0]], SLAB), 5.0),
    "large and dense": (structure(np.random.default_rng(0).random((20_000, 3)) * 20.0), 20.0),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize(("dense", "r_max"), ENDLESS.values(), ids=ENDLESS)
def test_a_search_without_end_is_refused_at_once(dense, r_max, search):
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"data.xyz: structure 4 has about .* neighbors of each .*smaller --r_max"):
        search(dense, r_max)
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize("offset", [[9.0e5, 0, 0], [0, 1.0e3, 1.0e3], [3.0e3, 3.0e3, 0], [9.0e5, -9.0e5, 9.0e5]])
@pytest.mark.parametrize("pbc", [FREE, SLAB, (False, False, True)])
def test_a_stray_atom_changes_nothing(offset, pbc):
    """Such spaces have more bins than vesin makes, which some versions answer with the end of the program."""
    rng = np.random.default_rng(1)
    positions = rng.random((12, 3)) * 6.0
    offset = np.where(pbc, 0.0, offset)
    cell = np.eye(3) * 6.5
    expected = find_pairs(positions, cell, pbc, 3.0)
    found = find_pairs(np.vstack([positions, offset * (1 if np.any(offset) else 0) + 3.0]), cell, pbc, 3.0)
    inside = (found[0] < 12) & (found[1] < 12)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours[inside], theirs)


@pytest.mark.parametrize("lengths", [(4.0e5, 4.0, 4.0), (2.0e3, 3.0, 2.0e3), (5.0, 9.0e5, 900.0), (1.0e8, 4.0, 1.0e8)])
@pytest.mark.parametrize("skew", [0.0, 0.7])
def test_long_and_flat_cells_are_searched(lengths, skew):
    """Their empty space does not matter: the same pairs, with the same translations, as in one of 40 Angstrom."""
    cell = np.diag(lengths) + skew * np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    short = np.diag([1.0 if length < 40.0 else 40.0 / length for length in lengths]) @ cell
    positions = np.random.default_rng(3).uniform(-1.0, 1.0, (6, 3)) * np.minimum(lengths, 3.0)
    found, expected = (find_pairs(positions, matrix, ALL, 3.0) for matrix in (cell, short))
    assert len(found[0]) > 6
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("r_max", [50.0, 1.0e6, 1.0e12])
def test_a_cutoff_beyond_a_molecule_finds_all_pairs(r_max):
    molecule = structure(np.random.default_rng(2).random((9, 3)) * 4.0)
    assert find_all_neighbors([molecule] * 3, r_max).n_pairs.tolist() == [36] * 3
    assert len(SkinNeighbors()(molecule, r_max).pair_sender) == 36


def test_many_neighbors_are_worth_a_warning(caplog):
    caplog.set_level(logging.WARNING, "mace")
    crystal = structure([[0, 0, 0]], 2.5, ALL)
    InMemoryDataset([crystal], ElementTable((1,)), 15.0)
    assert not caplog.records
    InMemoryDataset([crystal] * 70, ElementTable((1,)), 22.0)
    assert len(caplog.records) == 1 and "data.xyz: structure 4 has an atom with" in caplog.text
