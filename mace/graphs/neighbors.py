"""Neighbors within the cutoff, and their arrangement in slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from mace.graphs.pairs import find_pairs
from mace.structures.configuration import Configuration

_MOST_TOGETHER, _NEAR = 1000, 1000.0
"""Atoms of a structure, and Angstrom from the origin, up to which it can be searched together with others."""


@dataclass(frozen=True)
class Neighbors:
    """The neighbor relations of one structure; directed edges are sorted by receiver.

    Attributes:
        pair_sender: ``[pairs]``.
        pair_receiver: ``[pairs]``.
        pair_shift: Lattice translations of the receiver's image, ``[pairs, 3]``.
        edge_sender: ``[edges]``.
        edge_receiver: Rising, ``[edges]``.
        edge_rank: Place of each edge among those of its receiver, ``[edges]``.
        edge_pair: ``[edges]``.
        edge_sign: +1 where the edge has the direction of its pair, else -1, ``[edges]``.
        edge_reverse: The same edge in the other direction, ``[edges]``.
        pair_edges: The edge in the pair's direction and its reverse, ``[pairs, 2]``.
    """

    pair_sender: np.ndarray
    pair_receiver: np.ndarray
    pair_shift: np.ndarray
    edge_sender: np.ndarray
    edge_receiver: np.ndarray
    edge_rank: np.ndarray
    edge_pair: np.ndarray
    edge_sign: np.ndarray
    edge_reverse: np.ndarray
    pair_edges: np.ndarray


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
        Pairs and directed edges.

    Raises:
        UserError: See `mace.graphs.pairs.find_pairs`.
    """
    # a hair beyond, so that only the comparison in `select_near` decides
    return select_near(*find_pairs(positions, cell, pbc, r_max * (1.0 + 1e-9), where), positions, cell, r_max)


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
        Pairs, in the order given, and directed edges.
    """
    vectors = positions[receiver] - positions[sender] + shift @ cell
    near = np.einsum("pi,pi->p", vectors, vectors) < r_max * r_max
    return _arrange(sender[near], receiver[near], shift[near], len(positions))


def _arrange(sender: np.ndarray, receiver: np.ndarray, shift: np.ndarray, n_atoms: int) -> Neighbors:
    """Turn pairs into directed edges sorted by receiver."""
    n_pairs = len(sender)
    pair = np.arange(n_pairs)
    edge_sender, edge_receiver = np.concatenate([sender, receiver]), np.concatenate([receiver, sender])
    order = np.argsort(edge_receiver, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(2 * n_pairs)
    edge_receiver = edge_receiver[order]
    first = np.searchsorted(edge_receiver, np.arange(n_atoms))
    return Neighbors(
        pair_sender=sender,
        pair_receiver=receiver,
        pair_shift=shift,
        edge_sender=edge_sender[order],
        edge_receiver=edge_receiver,
        edge_rank=np.arange(2 * n_pairs) - first[edge_receiver] if n_pairs else np.zeros(0, dtype=np.int64),
        edge_pair=np.concatenate([pair, pair])[order],
        edge_sign=np.concatenate([np.ones(n_pairs), -np.ones(n_pairs)])[order],
        edge_reverse=place[np.concatenate([pair + n_pairs, pair])][order],
        pair_edges=np.stack([place[:n_pairs], place[n_pairs:]], axis=1),
    )


@dataclass(frozen=True)
class JoinedNeighbors:
    """The neighbor relations of many structures, one after the other.

    Attributes:
        rows: Those of all; the indices of each structure start from zero.
        n_pairs: How many pairs each has, ``[structures]``.
    """

    rows: Neighbors
    n_pairs: np.ndarray

    def divide(self) -> list[Neighbors]:
        """Return the neighbors of each structure."""
        arrays = {item.name: getattr(self.rows, item.name) for item in fields(Neighbors)}
        ends = np.cumsum(self.n_pairs).tolist()
        return [
            Neighbors(
                **{
                    name: rows[2 * start : 2 * stop] if name.startswith("edge") else rows[start:stop]
                    for name, rows in arrays.items()
                }
            )
            for start, stop in zip([0, *ends], ends, strict=False)
        ]

    def take(self, pairs: np.ndarray, edges: np.ndarray, n_pairs: np.ndarray) -> JoinedNeighbors:
        """Gather the rows of some structures.

        Args:
            pairs: Indices of their pairs, structure by structure.
            edges: Indices of their edges, in the same order of structures.
            n_pairs: How many pairs each has, ``[chosen]``.
        """
        rows = {name: array[edges if name.startswith("edge") else pairs] for name, array in vars(self.rows).items()}
        return JoinedNeighbors(Neighbors(**rows), n_pairs)

    def largest_counts(self) -> np.ndarray:
        """Return how many neighbors the atom of each structure has that has most, ``[structures]``."""
        counts = np.zeros(len(self.n_pairs), dtype=np.int64)
        occupied = self.n_pairs > 0
        if occupied.any():
            first_edge = 2 * (np.cumsum(self.n_pairs) - self.n_pairs)[occupied]
            counts[occupied] = np.maximum.reduceat(self.rows.edge_rank, first_edge) + 1
        return counts


def join_neighbors(found: Sequence[Neighbors]) -> JoinedNeighbors:
    """Put the neighbors of one or more structures one after the other."""
    return JoinedNeighbors(
        _concatenate(found), np.array([len(neighbors.pair_sender) for neighbors in found], dtype=np.int64)
    )


def chain_neighbors(parts: Sequence[JoinedNeighbors]) -> JoinedNeighbors:
    """Put the neighbors of one or more groups of structures one after the other."""
    if len(parts) == 1:
        return parts[0]
    return JoinedNeighbors(
        _concatenate([part.rows for part in parts]), np.concatenate([part.n_pairs for part in parts])
    )


def _concatenate(found: Sequence[Neighbors]) -> Neighbors:
    names = [item.name for item in fields(Neighbors)]
    return Neighbors(**{name: np.concatenate([getattr(neighbors, name) for neighbors in found]) for name in names})


def find_all_neighbors(configurations: Sequence[Configuration], r_max: float) -> JoinedNeighbors:
    """Find the neighbors of many structures; those that repeat in no direction are searched together, which is faster.

    Args:
        configurations: The structures, one at least.
        r_max: Cutoff in Angstrom.

    Returns:
        For each structure what `find_neighbors` returns, to the last bit.

    Raises:
        UserError: See `mace.graphs.pairs.find_pairs`.
    """
    free = [
        place
        for place, c in enumerate(configurations)
        if not any(c.pbc) and c.n_atoms <= _MOST_TOGETHER and np.abs(c.positions).max() < _NEAR
    ]
    if len(free) == len(configurations):
        return _find_apart([c.positions for c in configurations], r_max)
    apart = _find_apart([configurations[place].positions for place in free], r_max).divide() if free else []
    together = dict(zip(free, apart, strict=True))
    return join_neighbors(
        [
            together[place] if place in together else find_neighbors(c.positions, c.cell, c.pbc, r_max, c.where())
            for place, c in enumerate(configurations)
        ]
    )


def _find_apart(structures: Sequence[np.ndarray], r_max: float) -> JoinedNeighbors:
    """Find the neighbors of structures without images: put them side by side, out of each other's reach."""
    n_atoms = np.array([len(positions) for positions in structures])
    first_atom = np.concatenate([[0], np.cumsum(n_atoms)])
    positions = np.concatenate(structures)
    lowest = np.minimum.reduceat(positions, first_atom[:-1])
    extents = np.maximum.reduceat(positions, first_atom[:-1]) - lowest
    reach = min(r_max, 1.0 + float(np.linalg.norm(extents, axis=1).max()))  # nothing in a structure is farther
    widths = extents[:, 0] + reach + 1.0
    lowest[:, 0] -= np.concatenate([[0.0], np.cumsum(widths)[:-1]])
    apart = positions - np.repeat(lowest, n_atoms, axis=0)
    pairs = find_pairs(apart, np.zeros((3, 3)), (False, False, False), reach * (1.0 + 1e-9))
    return _make_local(select_near(*pairs, positions, np.zeros((3, 3)), r_max), first_atom)


def _make_local(all_pairs: Neighbors, first_atom: np.ndarray) -> JoinedNeighbors:
    """Let the indices of every structure start from zero.

    Args:
        all_pairs: Pairs and edges, in order of the structures.
        first_atom: The first atom of each structure, and the number of atoms, ``[structures + 1]``.
    """
    first_pair = np.searchsorted(all_pairs.pair_sender, first_atom)
    of_pair, of_edge = np.diff(first_pair), 2 * np.diff(first_pair)
    atom_of_pair, atom_of_edge = np.repeat(first_atom[:-1], of_pair), np.repeat(first_atom[:-1], of_edge)
    pair_of_edge, edge_of_pair = np.repeat(first_pair[:-1], of_edge), 2 * np.repeat(first_pair[:-1], of_pair)
    local = replace(
        all_pairs,
        pair_sender=all_pairs.pair_sender - atom_of_pair,
        pair_receiver=all_pairs.pair_receiver - atom_of_pair,
        edge_sender=all_pairs.edge_sender - atom_of_edge,
        edge_receiver=all_pairs.edge_receiver - atom_of_edge,
        edge_pair=all_pairs.edge_pair - pair_of_edge,
        edge_reverse=all_pairs.edge_reverse - 2 * pair_of_edge,
        pair_edges=all_pairs.pair_edges - edge_of_pair[:, None],
    )
    return JoinedNeighbors(local, of_pair)
