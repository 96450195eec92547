"""Pairs of neighbors in many structures at once; small structures are searched together, which is much faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mace.graphs.neighbors import find_all_neighbors
from mace.structures.configuration import Configuration
from mace.structures.flat import ragged_rows

_MOST_CANDIDATES = 20_000.0
"""Pairs and images of a structure up to which all of them are looked at, instead of dividing it into bins."""

_NEAR = 1000.0
"""Angstrom from the origin, up to which positions are precise enough for that."""

_FLATTEST = 1.0e-3
"""Volume of a cell with edges of one, below which images are not told from its inverse."""

_TOGETHER = 64
"""Structures that are searched at once."""

_HAIR = 1.0e-9
"""Share of the cutoff within which rounding may decide whether two atoms are neighbors."""


@dataclass(frozen=True)
class NeighborPairs:
    """The pairs of neighbors of some structures, one structure after the other.

    Attributes:
        n_pairs: How many pairs each structure has, ``[structures]``.
        rows: For each pair sender, receiver and the lattice translations of the receiver's image, ``[pairs, 5]``. Atoms
            are counted from zero in each structure; direction and order are those of `mace.graphs.pairs.find_pairs`.
    """

    n_pairs: np.ndarray
    rows: np.ndarray

    def count_connected(self, n_atoms: np.ndarray) -> np.ndarray:
        """Count the atoms of each structure that have a neighbor.

        Args:
            n_atoms: Number of atoms of each structure, ``[structures]``.
        """
        first = np.repeat(np.cumsum(n_atoms) - n_atoms, self.n_pairs)
        connected = np.zeros(int(n_atoms.sum()), dtype=np.int32)
        connected[first + self.rows[:, 0]] = 1
        connected[first + self.rows[:, 1]] = 1
        return np.add.reduceat(connected, np.cumsum(n_atoms) - n_atoms)


def find_pairs_of_all(configurations: Sequence[Configuration], r_max: float) -> NeighborPairs:
    """Find the pairs of neighbors in many structures.

    Args:
        configurations: One at least.
        r_max: Cutoff in Angstrom.

    Returns:
        The pairs of `mace.graphs.neighbors.find_neighbors`.

    Raises:
        UserError: See `mace.graphs.pairs.find_pairs`.
    """
    found = [_find(configurations[k : k + _TOGETHER], r_max) for k in range(0, len(configurations), _TOGETHER)]
    return NeighborPairs(np.concatenate([part.n_pairs for part in found]), np.concatenate([p.rows for p in found]))


def _find(configurations: Sequence[Configuration], r_max: float) -> NeighborPairs:
    """Find the pairs of a few structures: of the small ones together, of all others one by one."""
    cells = _Cells.of(configurations, r_max)
    is_small = cells.are_small()
    small = np.flatnonzero(is_small)
    counts, rows, is_doubtful = cells.take(small).search()
    is_small[small[is_doubtful]] = False
    if is_small.all():
        return NeighborPairs(counts, rows)
    others = np.flatnonzero(~is_small)
    searched = find_all_neighbors([configurations[place] for place in others.tolist()], r_max)
    pairs = np.column_stack([searched.pair_sender, searched.pair_receiver, searched.pair_shift])
    n_pairs, first = np.zeros(len(configurations), dtype=np.int64), np.zeros(len(configurations), dtype=np.int64)
    n_pairs[small], first[small] = counts, np.cumsum(counts) - counts
    n_pairs[others], first[others] = searched.n_pairs, len(rows) + searched.first_pair
    together = np.concatenate([rows, pairs.astype(np.int32)])
    return NeighborPairs(n_pairs, together[ragged_rows(first, n_pairs)])


@dataclass(frozen=True)
class _Cells:
    """Structures with what bounds the images that are in reach.

    Attributes:
        r_max: Cutoff in Angstrom.
        n_atoms: ``[structures]``.
        positions: Angstrom, ``[atoms, 3]``.
        cell: Rows are lattice vectors, ``[structures, 3, 3]``.
        pbc: ``[structures, 3]``.
        inverse: Of the cell, with upright vectors of length one where nothing repeats, ``[structures, 3, 3]``.
        reach: Cutoff as a share of the distance of the cell's faces, ``[structures, 3]``.
    """

    r_max: float
    n_atoms: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    inverse: np.ndarray
    reach: np.ndarray

    @classmethod
    def of(cls, configurations: Sequence[Configuration], r_max: float) -> _Cells:
        cell = np.stack([c.cell for c in configurations])
        pbc = np.array([c.pbc for c in configurations], dtype=bool)
        box = np.where(pbc[:, :, None], cell, np.eye(3))
        for place in np.flatnonzero(pbc.any(axis=1) & ~pbc.all(axis=1)):
            box[place, ~pbc[place]] = np.linalg.svd(cell[place, pbc[place]])[2][pbc[place].sum() :]
        lengths = np.linalg.norm(box, axis=2)
        with np.errstate(all="ignore"):  # what is not finite is searched alone, and refused there
            is_flat = ~(np.abs(np.linalg.det(box)) > _FLATTEST * lengths.prod(axis=1))
            box[is_flat] = np.eye(3)
            inverse = np.linalg.inv(box)
            reach = r_max * (1.0 + _HAIR) * np.linalg.norm(inverse, axis=1)
        reach[is_flat] = np.inf
        n_atoms = np.array([c.n_atoms for c in configurations], dtype=np.int64)
        return cls(r_max, n_atoms, np.concatenate([c.positions for c in configurations]), cell, pbc, inverse, reach)

    @property
    def _first(self) -> np.ndarray:
        return np.cumsum(self.n_atoms) - self.n_atoms

    def are_small(self) -> np.ndarray:
        """Return which structures have so few pairs and images that all of them can be looked at, ``[structures]``."""
        images = np.where(self.pbc, 2.0 * self.reach + 1.0, 1.0).prod(axis=1)
        farthest = np.maximum.reduceat(np.abs(self.positions).max(axis=1), self._first)  # NaN where there is any
        return (0.5 * self.n_atoms**2 * images < _MOST_CANDIDATES) & (farthest < _NEAR)

    def take(self, structures: np.ndarray) -> _Cells:
        """Return some of the structures."""
        atoms = ragged_rows(self._first[structures], self.n_atoms[structures])
        return _Cells(
            self.r_max,
            self.n_atoms[structures],
            self.positions[atoms],
            *(values[structures] for values in (self.cell, self.pbc, self.inverse, self.reach)),
        )

    def search(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Look at all pairs and those of their images that may be in reach, in the agreed order.

        Returns:
            How many pairs each structure has, ``[structures]``; the pairs, ``[pairs, 5]``; and in which structures
            rounding decides, which have no pairs here, ``[structures]``.
        """
        n_all = self.n_atoms * (self.n_atoms + 1) // 2
        structure = np.repeat(np.arange(len(n_all)), n_all)
        # the pairs of each structure: of every receiver with all senders up to itself
        receiver = _TRIANGLE.receiver(ragged_rows(np.zeros_like(n_all), n_all))
        sender = ragged_rows(np.zeros_like(n_all), n_all) - receiver * (receiver + 1) // 2
        first = self._first[structure]
        apart = self.positions[first + receiver] - self.positions[first + sender]
        shares = np.einsum("pi,pij->pj", apart, self.inverse[structure])
        reach, pbc = self.reach[structure] + _SLACK, self.pbc[structure]
        lowest = np.where(pbc, np.ceil(-reach - shares), 0.0).astype(np.int64)
        extents = np.maximum(np.where(pbc, np.floor(reach - shares), 0.0).astype(np.int64) - lowest + 1, 0)
        n_images = extents.prod(axis=1)
        pair = np.repeat(np.arange(len(n_images)), n_images)
        image = ragged_rows(np.zeros_like(n_images), n_images)
        depth, width = extents[pair, 2], extents[pair, 1]
        shift = lowest[pair] + np.stack([image // (depth * width), image // depth % width, image % depth], axis=1)
        vectors = apart[pair] + np.einsum("pi,pij->pj", shift.astype(np.float64), self.cell[structure[pair]])
        squares = np.einsum("pi,pi->p", vectors, vectors)
        own = (sender == receiver)[pair]
        near = squares < (self.r_max * (1.0 + _HAIR)) ** 2
        # of an atom and its own images one of each two that are opposite
        near &= ~own | (shift @ np.array([1 << 40, 1 << 20, 1]) > 0)
        pair, shift, squares = pair[near], shift[near], squares[near]
        of_structure = structure[pair]
        is_doubtful = np.zeros(len(n_all), dtype=bool)
        is_doubtful[of_structure[squares > (self.r_max * (1.0 - _HAIR)) ** 2]] = True
        if is_doubtful.any():
            kept = ~is_doubtful[of_structure]
            pair, shift, of_structure = pair[kept], shift[kept], of_structure[kept]
        rows = np.column_stack([sender[pair], receiver[pair], shift]).astype(np.int32)
        return np.bincount(of_structure, minlength=len(n_all)), rows, is_doubtful


_SLACK = 1.0e-6
"""Share of the distance of a cell's faces by which rounding may move an atom; far too large, which costs nothing."""


class _Triangle:
    """The receiver of each pair where pairs are counted by receiver, and each receiver has all senders up to itself."""

    def __init__(self) -> None:
        self._known = np.zeros(0, dtype=np.int64)

    def receiver(self, pairs: np.ndarray) -> np.ndarray:
        """Return the receiver of pairs.

        >>> _Triangle().receiver(np.arange(6)).tolist()
        [0, 1, 1, 2, 2, 2]
        """
        needed = int(pairs.max(initial=-1)) + 1
        if needed > len(self._known):
            count = int(np.sqrt(2 * needed)) + 2
            self._known = np.repeat(np.arange(count), np.arange(1, count + 1))
        return self._known[pairs]


_TRIANGLE = _Triangle()
