"""Pairs of atoms within a distance, through the library vesin, which gets only what it can search in reasonable time.

Input that the native search cannot handle must be refused beforehand: signals are not handled while it runs, and
unexpected input ends the whole program.
"""

from __future__ import annotations

import numpy as np
import vesin

from mace.errors import UserError
from mace.structures.checks import check_places

MOST_EDGES = 1.0e8
"""Directed edges of one structure beyond which it is not searched: that takes about a minute and tens of gigabytes."""

_MOST_BINS = 1.0e5
"""Into how many bins vesin divides a cell at most; where there would be more, it makes all of them larger."""


def find_pairs(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: tuple[bool, bool, bool],
    r_max: float,
    where: str = "The structure",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Search every undirected pair, each in one agreed direction and all in one agreed order.

    Args:
        positions: Angstrom, ``[atoms, 3]``.
        cell: Rows are lattice vectors in Angstrom, ``[3, 3]``; rows of directions that do not repeat are not used.
        pbc: Which directions repeat.
        r_max: Cutoff in Angstrom.
        where: Name of the structure, for messages.

    Returns:
        Sender, receiver and lattice translation of the receiver's image, ``[pairs]``, ``[pairs]``, ``[pairs, 3]``.

    Raises:
        UserError: If a place is not finite or too far away, or there are more neighbors than can be searched.
    """
    check_places(positions, cell, pbc, where)
    upright = _upright_vectors(cell, pbc)
    positions = _close_gaps(positions, upright, r_max)
    box, heights = _closed_cell(positions, cell, pbc, upright, r_max)
    _refuse_endless_search(len(positions), heights, pbc, r_max, where)
    if not any(pbc) and r_max > np.linalg.norm(heights):
        receiver, sender = np.tril_indices(len(positions), -1)  # nobody is farther than that
        return sender, receiver, np.zeros((len(sender), 3), dtype=np.int64)
    # vesin is exact for atoms near the origin cell; far-away copies are brought home and their translations kept
    translation = np.zeros((len(positions), 3), dtype=np.int64)
    home = positions
    if any(pbc):
        translation = np.floor(np.linalg.solve(box.T, positions.T).T).astype(np.int64)
        translation[:, [not repeats for repeats in pbc]] = 0
        home = positions - translation @ box
    if any(pbc) and np.prod(np.maximum(heights / r_max, 1.0)) > _MOST_BINS:
        home, box, heights = _shorten_cell(home, box, heights, pbc, r_max)
    reach, bins = r_max, np.maximum(heights / r_max, 1.0)
    # a long or flat space would be divided into no bins at all; rounding down makes vesin's number in a direction up to
    # four times smaller than this share
    if bins.prod() > _MOST_BINS and bins.min() * np.cbrt(_MOST_BINS / bins.prod()) < 4.0:
        while np.prod(np.maximum(heights / reach, 1.0)) > _MOST_BINS:
            reach *= 1.1
    calculator = vesin.NeighborList(cutoff=reach, full_list=False)
    i, j, s = calculator.compute(points=home, box=box, periodic=any(pbc), quantities="ijS")
    sender, receiver, shift = i.astype(np.int64), j.astype(np.int64), s.astype(np.int64)
    if reach > r_max:
        near = np.linalg.norm(home[receiver] - home[sender] + shift @ box, axis=1) < r_max
        sender, receiver, shift = sender[near], receiver[near], shift[near]
    return in_agreed_order(sender, receiver, shift + translation[sender] - translation[receiver])


def in_agreed_order(
    sender: np.ndarray, receiver: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn neighbor relations into the one agreed direction of each pair, and sort them.

    Args:
        sender: ``[relations]``.
        receiver: ``[relations]``.
        shift: Lattice translations of the receiver's image, whole numbers, ``[relations, 3]``.

    Returns:
        The same; a relation and its reverse become equal neighbors.
    """
    first_nonzero = np.sign(shift[np.arange(len(shift)), np.argmax(shift != 0, axis=1)])
    turned = (sender > receiver) | ((sender == receiver) & (first_nonzero < 0))
    sender, receiver = np.where(turned, receiver, sender), np.where(turned, sender, receiver)
    shift = np.where(turned[:, None], -shift, shift)
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], sender, receiver))
    return sender[order], receiver[order], shift[order]


def _upright_vectors(cell: np.ndarray, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    """Return orthonormal vectors at right angles to all lattice vectors that repeat, ``[directions without, 3]``."""
    repeating = cell[list(pbc)]
    if len(repeating) in (0, 3):
        return np.eye(3)[len(repeating) :]
    complement: np.ndarray = np.linalg.svd(repeating)[2][len(repeating) :]
    return complement


def _close_gaps(positions: np.ndarray, upright: np.ndarray, r_max: float) -> np.ndarray:
    """Push atoms together across empty space wider than the cutoff, along directions that do not repeat.

    No pair within the cutoff changes, and a few atoms far away from the others do not make a space that cannot be
    divided into bins.
    """
    places = positions @ upright.T
    extents = np.ptp(places, axis=0)
    if np.prod(np.maximum(extents / r_max, 1.0)) <= _MOST_BINS:
        return positions
    for direction, unit in enumerate(upright):
        order = np.argsort(places[:, direction])
        empty = np.maximum(np.diff(places[order, direction]) - (r_max + 1.0), 0.0)
        moved = np.zeros(len(positions))
        moved[order[1:]] = np.cumsum(empty)
        positions = positions - moved[:, None] * unit
    return positions


def _closed_cell(
    positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], upright: np.ndarray, r_max: float
) -> tuple[np.ndarray, np.ndarray]:
    """Replace lattice vectors that do not repeat by ones so long and upright that no image is in reach.

    Returns:
        The cell ``[3, 3]``, and the distances of its faces ``[3]``; where nothing repeats, the size of the structure.
    """
    extents = np.ptp(positions @ upright.T, axis=0)
    if not any(pbc):
        return np.eye(3), np.maximum(extents, 1.0)
    box = np.array(cell, dtype=float)
    box[[not repeats for repeats in pbc]] = upright * (extents + 2.0 * r_max + 1.0)[:, None]
    return box, 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)


def _shorten_cell(
    home: np.ndarray, box: np.ndarray, heights: np.ndarray, pbc: tuple[bool, bool, bool], r_max: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Do with empty space in a large cell what `_close_gaps` does where nothing repeats; translations stay the same.

    Returns:
        Positions ``[atoms, 3]``, cell ``[3, 3]``, and the distances of its faces ``[3]``.
    """
    fractions, box, heights = np.linalg.solve(box.T, home.T).T, box.copy(), heights.copy()
    for direction in np.flatnonzero(pbc):
        order = np.argsort(fractions[:, direction])
        places = fractions[order, direction]
        # the last gap is the one to the first atom's image
        empty = np.maximum(np.diff(places, append=places[0] + 1.0) - (r_max + 1.0) / heights[direction], 0.0)
        moved = np.zeros(len(home))
        moved[order[1:]] = np.cumsum(empty[:-1])
        home = home - moved[:, None] * box[direction]
        box[direction] *= 1.0 - empty.sum()
        heights[direction] *= 1.0 - empty.sum()
    return home, box, heights


def _refuse_endless_search(
    n_atoms: int, heights: np.ndarray, pbc: tuple[bool, bool, bool], r_max: float, where: str
) -> None:
    """Estimate the number of neighbors from the density, as if atoms were spread evenly.

    Raises:
        UserError: If there are more than `MOST_EDGES`.
    """
    reached = 2.0 * r_max / heights  # how often the cell fits into the reach of an atom
    per_atom = n_atoms * np.prod(np.where(pbc, reached, np.minimum(reached, 1.0)))
    if any(pbc):
        per_atom *= np.pi / 6.0
    if n_atoms * per_atom > MOST_EDGES:
        flat = "" if not any(pbc) else f", or correct the cell, which is {heights[list(pbc)].min():.3g} Angstrom thin"
        raise UserError(
            f"{where} has about {per_atom:.1e} neighbors of each of its {n_atoms} atoms within {r_max:g} Angstrom, "
            f"{n_atoms * per_atom:.1e} in all, where {MOST_EDGES:.0e} can be searched; choose a smaller --r_max{flat}."
        )
