"""Pairs of neighbors in many small structures together, which is several times faster than one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mace.structures.configuration import Configuration
from mace.structures.flat import ragged_rows

_MOST_CANDIDATES = 20_000.0
"""Pairs and images of a structure up to which all of them are looked at, instead of dividing it into bins."""

_NEAR = 1000.0
"""Angstrom up to which positions and cells are precise enough for that; others may be senseless, too."""

_FLATTEST = 1.0e-3
"""Volume of a cell with edges of one, below which images are not told from its inverse."""

_HAIR = 1.0e-9
"""Share of the cutoff within which rounding may decide whether two atoms are neighbors."""


@dataclass(frozen=True)
class Cells:
    """Structures with what bounds the images of their atoms that are in reach.

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
    def of(cls, configurations: Sequence[Configuration], r_max: float) -> Cells:
        """Collect structures, one at least.

        Args:
            configurations: The structures.
            r_max: Cutoff in Angstrom.
        """
        cell = np.stack([c.cell for c in configurations])
        pbc = np.array([c.pbc for c in configurations], dtype=bool)
        box = np.where(pbc[:, :, None], cell, np.eye(3))
        is_finite = np.isfinite(cell).all(axis=(1, 2))
        for place in np.flatnonzero(pbc.any(axis=1) & ~pbc.all(axis=1) & is_finite):
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
        """Return which structures have so few pairs and images that `search` can look at all, ``[structures]``."""
        images = np.where(self.pbc, 2.0 * self.reach + 1.0, 1.0).prod(axis=1)
        largest = np.where(self.pbc[:, :, None] | ~np.isfinite(self.cell), np.abs(self.cell), 0.0).max(axis=(1, 2))
        return (0.5 * self.n_atoms**2 * images < _MOST_CANDIDATES) & (self.farthest < _NEAR) & (largest < _NEAR)

    @cached_property
    def farthest(self) -> np.ndarray:
        """Largest coordinate of each structure in Angstrom, NaN where any is, ``[structures]``."""
        return np.maximum.reduceat(np.abs(self.positions).max(axis=1), self._first)

    def take(self, structures: np.ndarray) -> Cells:
        """Return some of the structures."""
        atoms = ragged_rows(self._first[structures], self.n_atoms[structures])
        return Cells(
            self.r_max,
            self.n_atoms[structures],
            self.positions[atoms],
            *(values[structures] for values in (self.cell, self.pbc, self.inverse, self.reach)),
        )

    def search(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Look at all pairs and those of their images that may be in reach, in the agreed order.

        Returns:
            How many pairs each structure has, ``[structures]``; for each pair sender, receiver and the lattice
            translations of the receiver's image, ``[pairs, 5]``, with the directions and in the order of
            `mace.graphs.pairs.find_pairs`; and in which structures rounding decides, which have no pairs here,
            ``[structures]``.
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
        rows = np.column_stack([sender[pair], receiver[pair], shift])
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
