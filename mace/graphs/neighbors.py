"""Neighbors within the cutoff, and their places among those of the same atom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from mace.graphs.pairs import find_pairs
from mace.graphs.small_structures import Cells
from mace.structures.configuration import Configuration
from mace.structures.flat import ragged_rows

_MOST_TOGETHER, _NEAR = 1000, 1000.0
"""Atoms of a structure, and Angstrom from the origin, up to which it can be searched together with others."""


@dataclass(frozen=True)
class Neighbors:
    """The neighbor relations of one or more structures, one after the other; indices of each start from zero.

    A pair stands for two directed edges: from its sender to its receiver, and the reverse.

    Attributes:
        n_pairs: How many pairs each structure has, ``[structures]``.
        pair_sender: ``[pairs]``.
        pair_receiver: ``[pairs]``.
        pair_shift: Lattice translations of the receiver's image, ``[pairs, 3]``.
        pair_rank: Place of each pair's edge among those into its receiver, and of the reverse edge among those into its
            sender, ``[pairs, 2]``.
    """

    n_pairs: np.ndarray
    pair_sender: np.ndarray
    pair_receiver: np.ndarray
    pair_shift: np.ndarray
    pair_rank: np.ndarray

    @cached_property
    def first_pair(self) -> np.ndarray:
        """First pair of each structure, ``[structures]``."""
        return np.cumsum(self.n_pairs) - self.n_pairs

    def take(self, structures: np.ndarray) -> Neighbors:
        """Gather the neighbors of some structures, in any order."""
        n_pairs, first = self.n_pairs[structures], self.first_pair[structures]
        rows = ragged_rows(first, n_pairs)
        pairs = (getattr(self, item.name)[rows] for item in fields(self)[1:])
        return Neighbors(n_pairs, *pairs)

    def atoms_with_neighbors(self) -> np.ndarray:
        """Count the atoms of each structure that have a neighbor, ``[structures]``."""
        structure_of_pair = np.repeat(np.arange(len(self.n_pairs)), self.n_pairs)
        first_of_atoms = np.count_nonzero(self.pair_rank == 0, axis=1)
        return np.bincount(np.repeat(structure_of_pair, first_of_atoms), minlength=len(self.n_pairs))

    def largest_counts(self) -> np.ndarray:
        """Return the largest number of neighbors of any atom in each structure, ``[structures]``."""
        counts = np.zeros(len(self.n_pairs), dtype=np.int64)
        occupied = self.n_pairs > 0
        if occupied.any():
            counts[occupied] = np.maximum.reduceat(self.pair_rank.max(axis=1), self.first_pair[occupied]) + 1
        return counts


def join_neighbors(parts: Sequence[Neighbors]) -> Neighbors:
    """Put the neighbors of one or more structures, or groups of structures, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Neighbors(
        **{item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Neighbors)}
    )


def find_neighbors(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: tuple[bool, bool, bool],
    r_max: float,
    where: str = "The structure",
) -> Neighbors:
    """Find all pairs closer than the cutoff, images of an atom with itself included.

    Args:
        positions: Angstrom, ``[atoms, 3]``.
        cell: Rows are lattice vectors in Angstrom, ``[3, 3]``; rows of directions that do not repeat are not used.
        pbc: Which directions repeat.
        r_max: Cutoff in Angstrom.
        where: Name of the structure, for messages.

    Returns:
        The pairs.

    Raises:
        UserError: See `mace.graphs.pairs.find_pairs`.
    """
    return select_near(*find_pairs(positions, cell, pbc, _beyond(r_max), where), positions, cell, r_max)


def _beyond(r_max: float) -> float:
    """Return a cutoff a hair larger, so that only the comparison in `_near` decides."""
    return r_max * (1.0 + 1e-9)


def select_near(
    sender: np.ndarray, receiver: np.ndarray, shift: np.ndarray, positions: np.ndarray, cell: np.ndarray, r_max: float
) -> Neighbors:
    """Keep the pairs closer than the cutoff.

    Args:
        sender: ``[pairs]``.
        receiver: ``[pairs]``.
        shift: Lattice translations of the receiver's image, ``[pairs, 3]``.
        positions: Angstrom, ``[atoms, 3]``.
        cell: Rows are lattice vectors in Angstrom, ``[3, 3]``.
        r_max: Cutoff in Angstrom.

    Returns:
        Pairs, in the order given.
    """
    near = _near(sender, receiver, shift, positions, cell, r_max)
    return rank_pairs(np.array([len(positions)]), np.array([len(near)]), near)


def rank_pairs(n_atoms: np.ndarray, n_pairs: np.ndarray, pairs: np.ndarray) -> Neighbors:
    """Count the edges of every atom: those in the direction of their pair first, each kind in the order of the pairs.

    Args:
        n_atoms: ``[structures]``.
        n_pairs: ``[structures]``.
        pairs: Sender and receiver, from zero in every structure, and the lattice translations of the receiver's image,
            int64, ``[pairs, 5]``.

    Returns:
        The pairs in the order given.
    """
    atom_offset = np.repeat(np.cumsum(n_atoms) - n_atoms, n_pairs)
    receiver = (pairs[:, 1::-1].T + atom_offset).ravel()  # of all edges, then of their reverse edges
    counts = np.bincount(receiver, minlength=int(n_atoms.sum()))
    rank = np.empty_like(receiver)
    rank[np.argsort(receiver, kind="stable")] = np.arange(len(receiver)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Neighbors(n_pairs, pairs[:, 0], pairs[:, 1], pairs[:, 2:], np.ascontiguousarray(rank.reshape(2, -1).T))


def find_all_neighbors(configurations: Sequence[Configuration], r_max: float) -> Neighbors:
    """Find the neighbors of many structures; see `find_all_pairs`.

    Args:
        configurations: The structures, one at least.
        r_max: Cutoff in Angstrom.

    Returns:
        For each structure what `find_neighbors` returns, to the last bit.

    Raises:
        UserError: See `mace.graphs.pairs.find_pairs`.
    """
    n_atoms = np.array([configuration.n_atoms for configuration in configurations])
    return rank_pairs(n_atoms, *find_all_pairs(configurations, r_max))


def find_all_pairs(configurations: Sequence[Configuration], r_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the pairs of neighbors in many structures.

    Small ones are searched together, and so are others that repeat in no direction, which is faster.

    Args:
        configurations: The structures, one at least.
        r_max: Cutoff in Angstrom.

    Returns:
        How many pairs each structure has, ``[structures]``, and the pairs, one structure after the other: sender and
        receiver, from zero in each structure, and the lattice translations of the receiver's image, ``[pairs, 5]``.

    Raises:
        UserError: See `mace.graphs.pairs.find_pairs`.
    """
    cells = Cells.of(configurations, r_max)
    is_small = cells.are_small()
    small = np.flatnonzero(is_small)
    n_pairs, pairs, is_doubtful = cells.take(small).search()
    is_small[small[is_doubtful]] = False
    if is_small.all():
        return n_pairs, pairs
    found, order = [(n_pairs[~is_doubtful], pairs)], [small[~is_doubtful]]
    is_free = ~is_small & ~cells.pbc.any(axis=1) & (cells.n_atoms <= _MOST_TOGETHER) & (cells.farthest < _NEAR)
    if is_free.any():
        order.append(np.flatnonzero(is_free))
        found.append(_find_apart([configurations[place].positions for place in order[-1].tolist()], r_max))
    for place in np.flatnonzero(~is_small & ~is_free).tolist():
        c = configurations[place]
        near = _near(*find_pairs(c.positions, c.cell, c.pbc, _beyond(r_max), c.where()), c.positions, c.cell, r_max)
        order.append(np.array([place]))
        found.append((np.array([len(near)]), near))
    counts, rows = (np.concatenate(column) for column in zip(*found, strict=True))
    back = np.argsort(np.concatenate(order))
    return counts[back], rows[ragged_rows((np.cumsum(counts) - counts)[back], counts[back])]


def _find_apart(structures: Sequence[np.ndarray], r_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the pairs of structures without images: put them side by side, out of each other's reach."""
    n_atoms = np.array([len(positions) for positions in structures])
    first_atom = np.concatenate([[0], np.cumsum(n_atoms)])
    positions = np.concatenate(structures)
    lowest = np.minimum.reduceat(positions, first_atom[:-1])
    extents = np.maximum.reduceat(positions, first_atom[:-1]) - lowest
    reach = min(r_max, 1.0 + float(np.linalg.norm(extents, axis=1).max()))  # nothing in a structure is farther
    widths = extents[:, 0] + reach + 1.0
    lowest[:, 0] -= np.concatenate([[0.0], np.cumsum(widths)[:-1]])
    apart = positions - np.repeat(lowest, n_atoms, axis=0)
    pairs = find_pairs(apart, np.zeros((3, 3)), (False, False, False), _beyond(reach))
    near = _near(*pairs, positions, np.zeros((3, 3)), r_max)
    n_pairs = np.diff(np.searchsorted(near[:, 0], first_atom))
    near[:, :2] -= np.repeat(first_atom[:-1], n_pairs)[:, None]  # let atoms of every structure count from zero
    return n_pairs, near


def _near(
    sender: np.ndarray, receiver: np.ndarray, shift: np.ndarray, positions: np.ndarray, cell: np.ndarray, r_max: float
) -> np.ndarray:
    """Keep the pairs closer than the cutoff, ``[pairs, 5]``; see `select_near`."""
    near = are_near(sender, receiver, shift @ cell, positions, r_max)
    return np.column_stack([sender[near], receiver[near], shift[near]])


def are_near(
    sender: np.ndarray, receiver: np.ndarray, translation: np.ndarray, positions: np.ndarray, r_max: float
) -> np.ndarray:
    """Return which pairs are closer than the cutoff, ``[pairs]``.

    Args:
        sender: ``[pairs]``.
        receiver: ``[pairs]``.
        translation: From the receiver to its image in Angstrom, ``[pairs, 3]``.
        positions: Angstrom, ``[atoms, 3]``.
        r_max: Cutoff in Angstrom.
    """
    vectors = positions.take(receiver, axis=0) - positions.take(sender, axis=0) + translation
    near: np.ndarray = np.einsum("pi,pi->p", vectors, vectors) < r_max * r_max
    return near
