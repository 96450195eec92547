"""Checks of positions and cells: atoms on top of each other, lone atoms, thin cells, lengths in another unit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mace.elements import chemical_symbol, covalent_radii
from mace.inspection.findings import Evidence, Finding, found
from mace.inspection.flat import FlatFile, flatten, spread
from mace.structures.collection import StructureCollection

CLOSEST = 0.3
"""Angstrom; no two atoms are that close in any labeled structure that makes sense."""

EXACT_FROM, FARTHEST = 3.0, 12.0
"""Angstrom; between these, distances to nearest neighbors are measured exactly, whatever the cutoff will be."""

_SAMPLE = 60
_NEAREST_SEARCHED = 6.0
_LARGEST_FRACTION = 1.5
_SHORT_BONDS, _LONG_BONDS = 0.6, 1.65
_UNBOUND = (2, 10, 18, 36, 54, 86)
"""Noble gases, whose distances say nothing about their radii."""


@dataclass(frozen=True)
class NearestNeighbors:
    """The nearest neighbor of every atom, periodic images included.

    Attributes:
        distance: Angstrom, infinite if there is none within `FARTHEST`, ``[atoms]``. Distances between `CLOSEST` and
            `EXACT_FROM` may be too large in periodic structures, but stay in these bounds.
        atom: Which atom it is, or of which it is an image, ``[atoms]``.
    """

    distance: np.ndarray
    atom: np.ndarray


def nearest_neighbors(file: FlatFile, exact_from: float = EXACT_FROM, farthest: float = FARTHEST) -> NearestNeighbors:
    """Find the nearest neighbors of all atoms in one tree, with the number of the structure as a fourth coordinate.

    Images are looked for where they may be nearer than what is found without them, or closer than `CLOSEST`.

    Args:
        file: The structures.
        exact_from: Distances from here on are exact.
        farthest: Neighbors beyond this distance are not looked for.
    """
    from scipy.spatial import cKDTree

    gap = 2.0 * farthest
    fractions, boxes = _wrapped(file)
    points = np.einsum("ai,aij->aj", fractions, boxes[file.structure_of_atom])
    tree = cKDTree(np.column_stack([points, file.structure_of_atom * gap]))
    distances, neighbors = tree.query(tree.data, k=2, distance_upper_bound=farthest)
    here = np.arange(len(points))
    # of two points at the same place either may come first
    distance, atom = distances[:, 1], np.where(neighbors[:, 1] == here, neighbors[:, 0], neighbors[:, 1])
    margin = np.where(distance < exact_from, CLOSEST, np.minimum(distance, farthest))
    moved, original = _images(file, fractions, margin)
    owners = file.structure_of_atom[original]
    places = np.einsum("ai,aij->aj", moved, boxes[owners])
    reached, other = tree.query(np.column_stack([places, owners * gap]), distance_upper_bound=farthest)
    order = np.argsort(-reached, kind="stable")  # of values assigned to one atom the last, the nearest, stays
    nearer = order[reached[order] < distance[original[order]]]
    distance[original[nearer]], atom[original[nearer]] = reached[nearer], other[nearer]
    _search_thin_cells(file, distance, atom, exact_from, farthest)
    return NearestNeighbors(distance, atom)


def _wrapped(file: FlatFile) -> tuple[np.ndarray, np.ndarray]:
    """Wrap all atoms into their cells.

    Returns:
        Coordinates ``[atoms, 3]`` along the rows of boxes ``[structures, 3, 3]``; these are lattice vectors where
        these repeat, and unit vectors at right angles to them elsewhere.
    """
    boxes = np.where(file.pbc[:, :, None], file.cells, np.eye(3))
    for structure in np.flatnonzero(file.pbc.any(axis=1) & ~file.pbc.all(axis=1)):
        repeating = file.pbc[structure]
        boxes[structure][~repeating] = np.linalg.svd(boxes[structure][repeating])[2][repeating.sum() :]
    fractions = np.einsum("ai,aij->aj", file.positions, np.linalg.inv(boxes)[file.structure_of_atom])
    return np.where(file.pbc[file.structure_of_atom], fractions - np.floor(fractions), fractions), boxes


def _images(file: FlatFile, fractions: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make the periodic images of atoms, in cells beside their own, that are within a margin of the atoms of the cell.

    Args:
        file: The structures.
        fractions: Coordinates along the lattice vectors, ``[atoms, 3]``.
        margin: For each atom, Angstrom, ``[atoms]``.

    Returns:
        Coordinates of the images ``[images, 3]``, and the atom ``[images]`` each is of.
    """
    repeats = file.pbc[file.structure_of_atom]
    atoms = np.flatnonzero(repeats.any(axis=1))
    start = len(atoms)
    low, high = np.minimum.reduceat(fractions, file.first), np.maximum.reduceat(fractions, file.first)
    low, high = low[file.structure_of_atom], high[file.structure_of_atom]
    near = margin[:, None] / file.heights[file.structure_of_atom]  # zero where nothing repeats
    points = fractions[atoms]
    for axis in range(3):
        moves = [points]
        kept = [np.arange(len(atoms))]
        for step in (1.0, -1.0):
            place = points[:, axis] + step
            is_near = (place <= high[atoms, axis] + near[atoms, axis]) & (place >= low[atoms, axis] - near[atoms, axis])
            kept.append(np.flatnonzero(is_near & repeats[atoms, axis]))
            moves.append(points[kept[-1]] + step * np.eye(3)[axis])
        points, atoms = np.concatenate(moves), atoms[np.concatenate(kept)]
    return points[start:], atoms[start:]  # those that were not moved come first


def _search_thin_cells(
    file: FlatFile, distance: np.ndarray, atom: np.ndarray, exact_from: float, farthest: float
) -> None:
    """Correct the nearest neighbors where images farther away than those in the cells beside may be nearer."""
    thinnest = file.heights.min(axis=1)
    reach = np.maximum.reduceat(distance, file.first)
    far = (reach >= exact_from) & (thinnest < np.minimum(reach, farthest))
    for structure in np.flatnonzero(far | (thinnest < CLOSEST)).tolist():
        cutoff = min(1.001 * float(reach[structure]), farthest)
        sender, receiver, vectors = file.pairs(structure, cutoff)
        lengths, atoms = np.linalg.norm(vectors, axis=1), file.atoms_of(structure)
        nearest, other = distance[atoms], atom[atoms]
        order = np.argsort(-lengths, kind="stable")
        for ends, others in ((sender[order], receiver[order]), (receiver[order], sender[order])):
            nearer = lengths[order] < nearest[ends]
            nearest[ends[nearer]], other[ends[nearer]] = (
                lengths[order][nearer],
                file.first[structure] + others[nearer],
            )


def check_close_atoms(file: FlatFile, nearest: NearestNeighbors) -> Iterator[Evidence]:
    """Find atoms closer than `CLOSEST`."""
    worst = int(np.argmin(nearest.distance))
    smallest = float(nearest.distance[worst])
    if smallest < CLOSEST:
        pair = "-".join(chemical_symbol(int(file.numbers[atom])) for atom in (worst, nearest.atom[worst]))
        text = f"have atoms closer than {CLOSEST} Angstrom (closest: {pair}, {smallest:.3g} Angstrom)"
        bad = np.minimum.reduceat(nearest.distance, file.first) < CLOSEST
        yield file.saw("close-atoms", text, bad, severity=-smallest)


def farthest_neighbors(file: FlatFile, nearest: NearestNeighbors) -> np.ndarray:
    """Measure how far the atom of each structure that is the most alone is from its nearest neighbor.

    Returns:
        Angstrom, ``[structures]``, float32; see `NearestNeighbors` for its bounds.
    """
    reach: np.ndarray = np.maximum.reduceat(nearest.distance, file.first)
    return reach.astype(np.float32)


def check_lone_atoms(file: str, structures: StructureCollection, reach: np.ndarray, r_max: float) -> Iterator[Finding]:
    """Find atoms without a neighbor within the cutoff.

    Args:
        file: The file.
        structures: The structures.
        reach: What `farthest_neighbors` gave.
        r_max: Cutoff in Angstrom.
    """
    lone = np.flatnonzero(reach >= min(r_max, FARTHEST))
    if not EXACT_FROM <= r_max <= FARTHEST:
        measured = [np.zeros(0)]
        for places in np.array_split(lone, max(len(lone) // 1000, 1)) if len(lone) else ():
            flat = flatten(file, structures.take(places))
            measured.append(farthest_neighbors(flat, nearest_neighbors(flat, r_max, r_max)))
        lone = lone[np.concatenate(measured) >= r_max]
    if len(lone):
        text = f"have atoms without a neighbor within {r_max:g} Angstrom"
        yield found("lone-atoms", file, text, structures.file_index[lone], len(reach))


def check_thin_cells(file: str, index: np.ndarray, thinnest: np.ndarray, r_max: float) -> Iterator[Finding]:
    """Find cells thinner than the cutoff.

    Args:
        file: The file.
        index: Places of the structures in it, ``[structures]``.
        thinnest: Smallest distance between faces of the cell in Angstrom, ``[structures]``.
        r_max: Cutoff in Angstrom.
    """
    thin = thinnest < r_max
    if thin.any():
        text = (
            f"have cells thinner than the cutoff of {r_max:g} Angstrom (thinnest: {thinnest.min():.3g}); periodic "
            "images are taken into account exactly"
        )
        yield found("thin-cells", file, text, index[thin], len(index))


def check_unmarked_isolated_atoms(file: FlatFile) -> Iterator[Evidence]:
    """Find single atoms without surroundings that are not marked as isolated."""
    single = (file.n_atoms == 1) & ~file.pbc.any(axis=1)
    if single.any():
        yield file.saw("unmarked-isolated-atoms", "hold a single atom each without config_type=IsolatedAtom", single)


def check_distances(file: FlatFile) -> Iterator[Evidence]:
    """Compare the distance of nearest neighbors with the sum of covalent radii, on a sample of structures."""
    ratios = [np.zeros(0)]
    for structure in spread(np.arange(len(file)), _SAMPLE).tolist():
        numbers = file.numbers[file.atoms_of(structure)]
        sender, receiver, vectors = file.pairs(structure, _NEAREST_SEARCHED)
        radii = covalent_radii(numbers)
        ratio = np.linalg.norm(vectors, axis=1) / (radii[sender] + radii[receiver])
        smallest = np.full(len(numbers), np.inf)
        np.minimum.at(smallest, sender, ratio)
        np.minimum.at(smallest, receiver, ratio)
        ratios.append(smallest[np.isfinite(smallest) & ~np.isin(numbers, _UNBOUND)])
    joined = np.concatenate(ratios)
    median = float(np.median(joined)) if len(joined) >= 10 else 1.0
    if _SHORT_BONDS <= median <= _LONG_BONDS:
        return
    thinnest, farthest = float(file.heights.min(initial=np.inf)), float(np.abs(file.positions).max())
    if file.pbc.all() and farthest < _LARGEST_FRACTION < thinnest:
        reason = "positions were fractions of the cell"
    else:
        unit = "bohr" if 1.5 < median < 2.4 else "nm" if median < 0.2 else "another unit than Angstrom"
        reason = f"lengths were in {unit}"
    text = f"nearest neighbors are {median:.3g} times as far apart as covalent radii suggest, as if {reason}"
    yield file.saw("unlikely-distances", text, severity=abs(math.log(median)))
