"""Checks of positions and cells: atoms on top of each other, lone atoms, thin cells, lengths in another unit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mace.elements import chemical_symbol, covalent_radii
from mace.graphs.pairs import find_pairs
from mace.inspection.findings import Finding, found
from mace.inspection.flat import FlatFile

CLOSEST = 0.3
"""Angstrom; no two atoms are that close in any labeled structure that makes sense."""

_SAMPLE = 60
_NEAREST_SEARCHED = 6.0
_LARGEST_FRACTION = 1.5
_SHORT_BONDS, _LONG_BONDS = 0.6, 1.65
_UNBOUND = (2, 10, 18, 36, 54, 86)
"""Noble gases, whose distances say nothing about their radii."""


def check_close_atoms(file: FlatFile) -> Iterator[Finding]:
    """Find atoms closer than `CLOSEST`, periodic images included."""
    nearest, first, second = _nearest_in_structures(file)
    bad = np.flatnonzero(nearest < CLOSEST)
    if not len(bad):
        return
    worst = bad[np.argmin(nearest[bad])]
    pair = f"{chemical_symbol(int(file.numbers[first[worst]]))}-{chemical_symbol(int(file.numbers[second[worst]]))}"
    verb = "has" if len(bad) == 1 else "have"
    yield found(
        "close-atoms",
        file.file,
        f"{verb} atoms closer than {CLOSEST} Angstrom (closest: {pair}, {nearest[worst]:.3g} Angstrom)",
        file.places(bad),
        len(file),
    )


def _nearest_in_structures(file: FlatFile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the closest pair of atoms of every structure, up to a little beyond `CLOSEST`.

    All structures are searched in one tree, by their number as a fourth coordinate. Atoms near a face of the cell are
    in it once more as images.

    Returns:
        Distance, infinite if none is near, and the two atoms, ``[structures]`` each.
    """
    from scipy.spatial import cKDTree

    positions, owner, atom = _with_images(file, CLOSEST)
    nearest = np.full(len(file), np.inf)
    first, second = np.zeros((2, len(file)), dtype=np.int64)
    tree = cKDTree(np.column_stack([positions, owner * (10.0 * CLOSEST)]))
    distance, neighbor = tree.query(tree.data, k=2, distance_upper_bound=CLOSEST)
    near = np.flatnonzero(np.isfinite(distance[:, 1]))
    near = near[np.argsort(-distance[near, 1])]  # of values assigned to one place the last, the closest, stays
    # of two points at the same place either may come first
    other = np.where(neighbor[near, 1] == near, neighbor[near, 0], neighbor[near, 1])
    nearest[owner[near]] = distance[near, 1]
    first[owner[near]], second[owner[near]] = atom[near], atom[other]
    for structure in np.flatnonzero(file.heights.min(axis=1) < CLOSEST):
        # images of images are in reach; such cells hardly occur, and are searched one by one
        sender, receiver, distance = pair_distances(file, int(structure), CLOSEST)
        if len(distance):
            place = int(np.argmin(distance))
            nearest[structure] = distance[place]
            first[structure], second[structure] = file.first[structure] + np.array([sender[place], receiver[place]])
    return nearest, first, second


def _with_images(file: FlatFile, margin: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wrap all atoms into their cells and add the images within a margin of the faces.

    Returns:
        Positions ``[points, 3]``, the structure ``[points]`` and the atom ``[points]`` each belongs to.
    """
    periodic = file.pbc.any(axis=1)
    owner, atom = file.structure_of_atom, np.arange(len(file.positions))
    if not periodic.any():
        return file.positions, owner, atom
    boxes = _closed_boxes(file)
    fractional = np.einsum("ai,aij->aj", file.positions, np.linalg.inv(boxes)[owner])
    repeats = file.pbc[owner]
    fractional = np.where(repeats, fractional - np.floor(fractional), fractional)
    near = (margin / file.heights)[owner]  # zero where nothing repeats
    points, owners, atoms = fractional, owner, atom
    for axis in range(3):
        thickness = near[:, axis]
        low = repeats[:, axis] & (points[:, axis] <= thickness)
        high = repeats[:, axis] & (points[:, axis] >= 1.0 - thickness)
        step = np.eye(3)[axis]
        points = np.concatenate([points, points[low] + step, points[high] - step])
        picked = np.concatenate([np.arange(len(owners)), np.flatnonzero(low), np.flatnonzero(high)])
        owners, atoms, near, repeats = owners[picked], atoms[picked], near[picked], repeats[picked]
    return np.einsum("ai,aij->aj", points, boxes[owners]), owners, atoms


def _closed_boxes(file: FlatFile) -> np.ndarray:
    """Cells with unit vectors, at right angles to the others, along the directions that do not repeat."""
    boxes = np.where(file.pbc[:, :, None], file.cells, 0.0)
    for structure in np.flatnonzero(~file.pbc.all(axis=1)):
        repeating = file.pbc[structure]
        boxes[structure][~repeating] = np.linalg.svd(boxes[structure][repeating])[2][repeating.sum() :]
    return boxes


def pair_distances(file: FlatFile, structure: int, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find all pairs of one structure within a cutoff.

    Returns:
        Both atoms, counted within the structure, and their distance in Angstrom, ``[pairs]`` each.
    """
    positions, cell = file.positions[file.atoms_of(structure)], file.cells[structure]
    repeats = tuple(bool(repeat) for repeat in file.pbc[structure])
    where = file.configurations[structure].where()
    sender, receiver, shift = find_pairs(positions, cell, (repeats[0], repeats[1], repeats[2]), cutoff, where)
    vectors = positions[receiver] - positions[sender] + shift @ cell
    return sender, receiver, np.linalg.norm(vectors, axis=1)


def check_lone_atoms(file: FlatFile, r_max: float) -> Iterator[Finding]:
    """Find atoms without a neighbor within the cutoff."""
    from scipy.spatial import cKDTree

    if not len(file):
        return
    gap = 2.0 * r_max
    tree = cKDTree(np.column_stack([file.positions, file.structure_of_atom * gap]))
    distance = tree.query(tree.data, k=2, distance_upper_bound=r_max)[0][:, 1]
    candidates = np.unique(file.structure_of_atom[~np.isfinite(distance)])
    # an atom may still see images
    lone = [place for place in candidates.tolist() if _has_lone_atom(file, place, r_max)]
    if lone:
        yield found(
            "lone-atoms",
            file.file,
            f"{'has' if len(lone) == 1 else 'have'} atoms without a neighbor within {r_max:g} Angstrom",
            file.places(np.array(lone)),
            len(file),
        )


def _has_lone_atom(file: FlatFile, structure: int, r_max: float) -> bool:
    if not file.pbc[structure].any():
        return True
    sender, receiver, _ = pair_distances(file, structure, r_max)
    return len(np.union1d(sender, receiver)) < file.n_atoms[structure]


def check_unmarked_isolated_atoms(file: FlatFile) -> Iterator[Finding]:
    """Find single atoms without surroundings that are not marked as isolated."""
    single = (file.n_atoms == 1) & ~file.pbc.any(axis=1)
    if single.any() and file.role == "training":
        text = "holds a single atom" if single.sum() == 1 else "hold a single atom each"
        yield found(
            "unmarked-isolated-atoms",
            file.file,
            f"{text} without config_type=IsolatedAtom",
            file.places(single),
            len(file),
        )


def check_thin_cells(file: FlatFile, r_max: float) -> Iterator[Finding]:
    """Find cells thinner than the cutoff."""
    thinnest = file.heights.min(axis=1, initial=np.inf)
    thin = thinnest < r_max
    if thin.any():
        verb = "has a cell" if thin.sum() == 1 else "have cells"
        yield found(
            "thin-cells",
            file.file,
            f"{verb} thinner than the cutoff of {r_max:g} Angstrom (thinnest: {thinnest.min():.3g}); periodic images "
            "are taken into account exactly",
            file.places(thin),
            len(file),
        )


def check_distances(file: FlatFile) -> Iterator[Finding]:
    """Compare the distance of nearest neighbors with the sum of covalent radii, on a sample of structures."""
    ratios = [_bond_ratios(file, place) for place in _sample(len(file))]
    joined = np.concatenate(ratios) if ratios else np.zeros(0)
    if len(joined) < 10:
        return
    median = float(np.median(joined))
    if _SHORT_BONDS <= median <= _LONG_BONDS:
        return
    guess = "bohr" if 1.5 < median < 2.4 else "nm" if median < 0.2 else "another unit than Angstrom"
    reason = "positions were fractions of the cell" if _look_fractional(file) else f"lengths were in {guess}"
    yield found(
        "unlikely-distances",
        file.file,
        f"nearest neighbors are {median:.3g} times as far apart as covalent radii suggest, as if {reason}",
    )


def _look_fractional(file: FlatFile) -> bool:
    """Whether all positions are numbers of about one while the cells are larger."""
    thinnest = float(file.heights.min(initial=np.inf))
    farthest = float(np.abs(file.positions).max())
    return bool(file.pbc.all()) and farthest < _LARGEST_FRACTION < thinnest


def _bond_ratios(file: FlatFile, structure: int) -> np.ndarray:
    """Distance to the nearest neighbor over the sum of covalent radii, of atoms that have one and form bonds."""
    numbers = file.numbers[file.atoms_of(structure)]
    sender, receiver, distance = pair_distances(file, structure, _NEAREST_SEARCHED)
    radii = covalent_radii(numbers)
    ratio = distance / (radii[sender] + radii[receiver])
    smallest = np.full(len(numbers), np.inf)
    np.minimum.at(smallest, sender, ratio)
    np.minimum.at(smallest, receiver, ratio)
    return smallest[np.isfinite(smallest) & ~np.isin(numbers, _UNBOUND)]


def _sample(count: int) -> list[int]:
    """Spread a few places evenly over all."""
    return np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int)).tolist() if count else []
