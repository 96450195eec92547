"""Neighbors and graphs of structures that move a little at a time."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from mace.elements import ElementTable
from mace.graphs.assembly import (
    MANY_ATOMS,
    StructureArrays,
    arrays_of,
    assemble_graph,
    graph_of_structures,
    warn_of_many,
)
from mace.graphs.graph import Graph
from mace.graphs.neighbors import Neighbors, are_near, join_neighbors, rank_pairs
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
        self._pairs, self._translation = np.zeros((0, 5), dtype=np.int64), np.zeros((0, 3))
        self._found: tuple[np.ndarray, Neighbors] | None = None

    def __call__(self, configuration: Configuration, r_max: float) -> Neighbors:
        """Return the neighbors of a structure within the cutoff.

        Args:
            configuration: The structure; any other than the last one is searched anew.
            r_max: Cutoff in Angstrom.

        Returns:
            The neighbors; those returned last, and not only equal ones, where no pair has come or gone.
        """
        positions, cell, pbc = configuration.positions, configuration.cell, configuration.pbc
        if not self._still_holds(positions, cell, pbc, r_max):
            sender, receiver, shift = find_pairs(positions, cell, pbc, r_max + self.skin, configuration.where())
            self._pairs, self._translation = np.column_stack([sender, receiver, shift]), shift @ cell
            self._built_for, self._found = (positions.copy(), cell.copy(), pbc, r_max), None
            self.n_searches += 1
        near = are_near(self._pairs[:, 0], self._pairs[:, 1], self._translation, positions, r_max)
        if self._found is None or not np.array_equal(near, self._found[0]):
            pairs = self._pairs[near]
            self._found = near, rank_pairs(np.array([len(positions)]), np.array([len(pairs)]), pairs)
        return self._found[1]

    def _still_holds(self, positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], r_max: float) -> bool:
        """Return whether no two atoms can have moved from beyond the skin to within the cutoff."""
        if self._built_for is None:
            return False
        old_positions, old_cell, old_pbc, old_r_max = self._built_for
        if len(positions) != len(old_positions) or pbc != old_pbc or r_max != old_r_max:
            return False
        if not np.array_equal(cell, old_cell):
            return False
        moved = positions - old_positions
        return bool(np.einsum("ai,ai->a", moved, moved).max(initial=0.0) < (0.5 * self.skin) ** 2)


class MovingStructures:
    """Builds the common graph of some structures again and again while they move; what stays the same is kept.

    The graph is always that of `mace.graphs.assembly.graph_of_structures`, to the last bit. Not thread-safe.

    Args:
        elements: The model's table of elements.
        r_max: Cutoff in Angstrom.
        heads: Names of the model's heads; a single one is for all structures.
        skin: See `SkinNeighbors`.
        device: Where the graphs are wanted.
    """

    def __init__(
        self, elements: ElementTable, r_max: float, heads: Sequence[str], skin: float, device: torch.device
    ) -> None:
        self.elements, self.r_max, self.heads, self.skin, self.device = elements, r_max, tuple(heads), skin, device
        self.searches: list[SkinNeighbors] = []
        self._last: tuple[list[Configuration], StructureArrays, list[Neighbors], Graph] | None = None

    def graph(self, structures: Sequence[Configuration]) -> Graph:
        """Return the graph of structures, which are those of the last call, moved, or any others.

        Raises:
            UserError: See `mace.graphs.assembly.graph_of_structures`.
        """
        if self.skin == 0.0 or (len(structures) > 1 and not any(any(c.pbc) for c in structures)):
            # searched together, which is faster
            return graph_of_structures(structures, self.elements, self.r_max, self.heads).to(self.device, pinned=True)
        del self.searches[len(structures) :]  # left from an earlier call with more structures
        self.searches += [SkinNeighbors(self.skin) for _ in range(len(structures) - len(self.searches))]
        found = [search(structure, self.r_max) for search, structure in zip(self.searches, structures, strict=True)]
        last = self._last
        if last is not None and len(last[0]) == len(structures) and all(map(_is_moved_only, last[0], structures)):
            positions = np.concatenate([structure.positions for structure in structures])
            if all(new is old for new, old in zip(found, last[2], strict=True)):
                return last[3].moved(torch.from_numpy(positions))
            kept, arrays = last[0], replace(last[1], positions=positions)
        else:
            # copies, as a caller may change an array in place
            kept, arrays = deepcopy(list(structures)), arrays_of(structures, self.elements, self.heads)
        neighbors = join_neighbors(found)
        warn_of_many(neighbors, structures, self.r_max)
        graph = assemble_graph(arrays, neighbors).to(self.device, pinned=True)
        # in large structures some pair always comes or goes, and rows depend on positions
        is_large = arrays.n_atoms.max(initial=0) >= MANY_ATOMS
        self._last = None if is_large else (kept, arrays, found, graph)
        return graph


def _is_moved_only(before: Configuration, now: Configuration) -> bool:
    """Return whether of what a graph holds of a structure only the positions may be different."""
    if (before.pbc, before.head, before.conditions.keys()) != (now.pbc, now.head, now.conditions.keys()):
        return False
    if now.stress is not None or (before.charges is None) != (now.charges is None):
        return False  # a volume that a stress needs is checked with a new graph
    pairs = [(before.atomic_numbers, now.atomic_numbers), (before.cell, now.cell)]
    pairs += [(before.charges, now.charges)] if before.charges is not None and now.charges is not None else []
    pairs += [(before.conditions[name], values) for name, values in now.conditions.items()]
    return all(np.array_equal(old, new) for old, new in pairs)
