"""Neighbors of a structure that moves a little at a time."""

from __future__ import annotations

import numpy as np

from mace.graphs.neighbors import Neighbors, select_near
from mace.graphs.pairs import find_pairs
from mace.structures.configuration import Configuration

DEFAULT_SKIN = 0.5
"""Angstrom; a larger one is searched less often but leaves more pairs to sort out at every step."""


class SkinNeighbors:
    """Search a little beyond the cutoff, and again only when atoms have moved so far that a pair could be missed.

    The result is always that of a new search, to the last bit.

    Args:
        skin: How far beyond the cutoff, in Angstrom; zero searches every time.
    """

    def __init__(self, skin: float = DEFAULT_SKIN) -> None:
        self.skin = skin
        self.n_searches = 0
        self._built_for: tuple[np.ndarray, np.ndarray, tuple[bool, bool, bool], float] | None = None
        self._pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __call__(self, configuration: Configuration, r_max: float) -> Neighbors:
        """Return the neighbors of a structure within the cutoff.

        Args:
            configuration: The structure; any other than the last one is searched anew.
            r_max: Cutoff in Angstrom.
        """
        positions, cell, pbc = configuration.positions, configuration.cell, configuration.pbc
        if self._pairs is None or not self._still_holds(positions, cell, pbc, r_max):
            self._pairs = find_pairs(positions, cell, pbc, r_max + self.skin, configuration.where())
            self._built_for = (positions.copy(), cell.copy(), pbc, r_max)
            self.n_searches += 1
        return select_near(*self._pairs, positions, cell, r_max)

    def _still_holds(self, positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], r_max: float) -> bool:
        """Return whether no two atoms can have moved from beyond the skin to within the cutoff."""
        assert self._built_for is not None
        old_positions, old_cell, old_pbc, old_r_max = self._built_for
        if len(positions) != len(old_positions) or pbc != old_pbc or r_max != old_r_max:
            return False
        if not np.array_equal(cell, old_cell):
            return False
        moved = positions - old_positions
        return bool(np.einsum("ai,ai->a", moved, moved).max(initial=0.0) < (0.5 * self.skin) ** 2)
