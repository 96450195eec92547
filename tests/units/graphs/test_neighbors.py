"""Neighbors against a loop over images, in cells nobody drew."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mace.graphs.neighbors import Neighbors, find_all_neighbors, find_neighbors
from mace.graphs.small_structures import Cells
from mace.structures.configuration import Configuration

PBC = tuple(product((False, True), repeat=3))
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much], derandomize=True)


def brute_force(
    positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], r_max: float
) -> Counter[tuple[int, int, int, int, int]]:
    """Count every directed edge (sender, receiver, translation of the receiver) by looking at all images in reach."""
    if any(pbc):
        # how far an image can be in lattice coordinates: rows of the pseudo-inverse bound them
        repeating = cell[np.array(pbc)]
        inverse = np.linalg.pinv(repeating)
        spread = np.ptp(positions @ inverse, axis=0)
        reach = np.zeros(3, dtype=int)
        reach[np.array(pbc)] = np.ceil(spread + r_max * np.linalg.norm(inverse, axis=0)).astype(int)
    else:
        reach = np.zeros(3, dtype=int)
    shifts = np.array(list(product(*[range(-n, n + 1) for n in reach])))
    between = positions[None, :, :] - positions[:, None, :]
    near = np.linalg.norm(between + (shifts @ cell)[:, None, None, :], axis=3) < r_max
    near[(shifts == 0).all(axis=1)] &= ~np.eye(len(positions), dtype=bool)
    return Counter((int(i), int(j), *shifts[s].tolist()) for s, i, j in np.argwhere(near))


def directed(neighbors: Neighbors) -> Counter[tuple[int, int, int, int, int]]:
    """Write the edges as the brute-force search does."""
    pairs = np.column_stack([neighbors.pair_sender, neighbors.pair_receiver, neighbors.pair_shift])
    reverse = np.column_stack([neighbors.pair_receiver, neighbors.pair_sender, -neighbors.pair_shift])
    return Counter((i, j, *map(int, s)) for i, j, *s in np.concatenate([pairs, reverse]).tolist())  # type: ignore[misc]


def on_the_edge(positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], r_max: float) -> bool:
    """Whether rounding decides about an edge: a distance within 1e-9 of the cutoff."""
    near = brute_force(positions, cell, pbc, r_max - 1e-9)
    return near != brute_force(positions, cell, pbc, r_max + 1e-9)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[bool, bool, bool], float]:
    """Skewed and thin cells, down to a fraction of the cutoff, with atoms up to many cells away."""
    pbc = draw(st.sampled_from(PBC))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = [draw(st.floats(1.2, 8.0)) for _ in range(3)]
    skew = draw(st.sampled_from([0.0, 0.5, 3.0]))
    cell = np.diag(lengths) + skew * rng.uniform(-1.0, 1.0, size=(3, 3))
    cell = cell[:, draw(st.permutations(range(3)))]
    assume(abs(np.linalg.det(cell)) > 3.0)
    for d in range(3):
        if not pbc[d] and draw(st.booleans()):
            cell[d] = 0.0
    n_atoms = draw(st.integers(1, 5))
    positions = rng.uniform(-1.0, 1.0, size=(n_atoms, 3)) * draw(
        st.sampled_from([0.0 if n_atoms == 1 else 1.5, 4.0, 12.0])
    )
    return positions, cell, pbc, draw(st.floats(1.5, 4.5))


@QUICK
@given(boxes())
def test_neighbors_are_those_of_a_loop_over_images(
    box: tuple[np.ndarray, np.ndarray, tuple[bool, bool, bool], float],
) -> None:
    positions, cell, pbc, r_max = box
    assume(not on_the_edge(positions, cell, pbc, r_max))
    assert directed(find_neighbors(positions, cell, pbc, r_max)) == brute_force(positions, cell, pbc, r_max)


@QUICK
@given(boxes())
def test_edges_are_counted_atom_by_atom(box: tuple[np.ndarray, np.ndarray, tuple[bool, bool, bool], float]) -> None:
    n = find_neighbors(*box)
    # ranks count the edges into each atom from zero: those in the direction of their pairs first, in the order of pairs
    for atom in range(len(box[0])):
        into, out = n.pair_receiver == atom, n.pair_sender == atom
        ranks = [*n.pair_rank[into, 0].tolist(), *n.pair_rank[out, 1].tolist()]
        assert ranks == list(range(len(ranks)))


@pytest.mark.parametrize("pbc", PBC)
@pytest.mark.parametrize("far", [0.0, 1e3])
def test_one_atom(pbc: tuple[bool, bool, bool], far: float) -> None:
    """In a cell smaller than the cutoff an atom is its own neighbor, wherever it is."""
    cell = np.diag([2.0, 2.5, 3.0])
    n = find_neighbors(np.array([[-far, 0.3 * far, far]]), cell, pbc, 3.5)
    assert directed(n) == brute_force(np.zeros((1, 3)), cell, pbc, 3.5)
    assert len(n.pair_sender) >= sum(pbc)


@pytest.mark.parametrize("pbc", [p for p in PBC if not all(p)])
def test_vectors_of_directions_that_do_not_repeat_do_not_matter(pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(6, 3)) * 2.0
    cell = np.diag([4.0, 5.0, 6.0]) + 0.4 * rng.normal(size=(3, 3))
    expected = directed(find_neighbors(positions, cell, pbc, 3.0))
    for replacement in (np.zeros(3), np.array([0.1, 0.0, 0.0]), np.array([50.0, 40.0, 30.0])):
        changed = cell.copy()
        changed[~np.array(pbc)] = replacement
        assert directed(find_neighbors(positions, changed, pbc, 3.0)) == expected


def test_a_left_handed_cell() -> None:
    rng = np.random.default_rng(1)
    cell = (np.diag([3.0, 4.0, 5.0]) + 0.3 * rng.normal(size=(3, 3)))[[1, 0, 2]]
    assert np.linalg.det(cell) < 0
    positions = rng.uniform(-8.0, 8.0, size=(4, 3))
    pbc = (True, True, True)
    assert directed(find_neighbors(positions, cell, pbc, 3.3)) == brute_force(positions, cell, pbc, 3.3)


def test_order_does_not_depend_on_chance() -> None:
    rng = np.random.default_rng(2)
    arguments = (rng.uniform(0, 5, size=(8, 3)), np.eye(3) * 5.0, (True, True, True), 3.0)
    one, two = find_neighbors(*arguments), find_neighbors(*arguments)
    for name in Neighbors.__dataclass_fields__:
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_no_neighbors() -> None:
    n = find_neighbors(np.array([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), np.zeros((3, 3)), (False,) * 3, 3.0)
    assert len(n.pair_sender) == len(n.pair_receiver) == 0
    assert n.pair_shift.shape == (0, 3) and n.pair_rank.shape == (0, 2)


@QUICK
@given(st.lists(boxes(), min_size=1, max_size=4))
def test_small_structures_together_are_those_one_by_one(
    given_boxes: list[tuple[np.ndarray, np.ndarray, tuple[bool, bool, bool], float]],
) -> None:
    """To the last bit and in the same order, whatever the cells are."""
    r_max = given_boxes[0][3]
    structures = [Configuration(np.ones(len(p), dtype=int), p, cell, pbc) for p, cell, pbc, _ in given_boxes]
    assert_same_as_alone(structures, r_max)


def test_distances_that_are_the_cutoff_are_decided_as_ever() -> None:
    """In a crystal whole shells of neighbors are exactly there; which of them count is decided by rounding."""
    rng = np.random.default_rng(5)
    sites = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    structures = []
    for lattice in (2.0, 2.5, 10.0 / 3.0, 5.0):
        shaken = sites @ (lattice * np.eye(3)) + rng.normal(size=(4, 3))
        structures += [
            Configuration(np.ones(4, dtype=int), positions, lattice * np.eye(3), (True,) * 3)
            for positions in (sites * lattice, sites * lattice - 17.3, shaken)
        ]
    assert Cells.of(structures, 5.0).are_small().all()
    doubtful = Cells.of(structures, 5.0).search()[2]
    assert doubtful.any() and not doubtful.all()
    assert_same_as_alone(structures, 5.0)


def assert_same_as_alone(structures: list[Configuration], r_max: float) -> None:
    together = find_all_neighbors(structures, r_max)
    for place, c in enumerate(structures):
        found, alone = together.take(np.array([place])), find_neighbors(c.positions, c.cell, c.pbc, r_max)
        for name in Neighbors.__dataclass_fields__:
            assert np.array_equal(getattr(found, name), getattr(alone, name)), (place, name)


def test_many_structures_at_once_are_those_one_by_one() -> None:
    rng = np.random.default_rng(3)
    structures = []
    for count, pbc in [
        (5, (False,) * 3),
        (1, (False,) * 3),
        (4, (True,) * 3),
        (7, (False,) * 3),
        (3, (True, False, True)),
    ]:
        positions = rng.uniform(-3.0, 3.0, size=(count, 3)) + rng.choice([0.0, 9.9e5])
        structures.append(Configuration(np.ones(count, dtype=int), positions, np.diag([4.0, 5.0, 6.0]), pbc))
    structures.insert(2, structures[0])
    together = find_all_neighbors(structures, 3.3)
    found = [together.take(np.array([place])) for place in range(len(structures))]
    assert sum(len(neighbors.pair_sender) for neighbors in found) > 20
    for neighbors, c in zip(found, structures, strict=True):
        alone = find_neighbors(c.positions, c.cell, c.pbc, 3.3)
        for name in Neighbors.__dataclass_fields__:
            assert np.array_equal(getattr(neighbors, name), getattr(alone, name)), name
    counts = [max(np.bincount([*n.pair_receiver, *n.pair_sender], minlength=1)) for n in found]
    assert together.largest_counts().tolist() == counts
