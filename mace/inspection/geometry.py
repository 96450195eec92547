"""Checks of positions and cells: atoms on top of each other, lone atoms, thin cells, lengths in another unit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mace.elements import chemical_symbol, covalent_radii
from mace.inspection.findings import Finding
from mace.inspection.flat import FlatFile, spread

CLOSEST = 0.3
"""Angstrom; no two atoms are that close in any labeled structure that makes sense."""

_SAMPLE = 60
_NEAREST_SEARCHED = 6.0
_LARGEST_FRACTION = 1.5
_SHORT_BONDS, _LONG_BONDS = 0.6, 1.65
_UNBOUND = (2, 10, 18, 36, 54, 86)
"""Noble gases, whose distances say nothing about their radii."""


def check_close_atoms(file: FlatFile) -> Iterator[Finding]:
    """Find atoms closer than `CLOSEST`, periodic images included.

    All structures are searched in one tree, by their number as a fourth coordinate. Atoms near a face of the cell are
    in it once more as images.
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
    for structure in np.flatnonzero(file.heights.min(axis=1) < CLOSEST).tolist():
        # images of images are in reach; such cells hardly occur, and are searched one by one
        sender, receiver, vectors = file.pairs(structure, CLOSEST)
        if len(vectors):
            lengths = np.linalg.norm(vectors, axis=1)
            place = int(np.argmin(lengths))
            nearest[structure] = lengths[place]
            first[structure], second[structure] = file.first[structure] + np.array([sender[place], receiver[place]])
    bad = nearest < CLOSEST
    if bad.any():
        worst = np.argmin(nearest)
        pair = "-".join(chemical_symbol(int(file.numbers[atom[worst]])) for atom in (first, second))
        text = f"have atoms closer than {CLOSEST} Angstrom (closest: {pair}, {nearest[worst]:.3g} Angstrom)"
        yield file.found("close-atoms", text, bad)


def _with_images(file: FlatFile, margin: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wrap all atoms into their cells and add the images within a margin of the faces.

    Returns:
        Positions ``[points, 3]``, the structure ``[points]`` and the atom ``[points]`` each belongs to.
    """
    owners, atoms = file.structure_of_atom, np.arange(len(file.positions))
    if not file.pbc.any():
        return file.positions, owners, atoms
    # along directions that do not repeat, unit vectors at right angles to the others
    boxes = np.where(file.pbc[:, :, None], file.cells, 0.0)
    for structure in np.flatnonzero(~file.pbc.all(axis=1)):
        repeating = file.pbc[structure]
        boxes[structure][~repeating] = np.linalg.svd(boxes[structure][repeating])[2][repeating.sum() :]
    points = np.einsum("ai,aij->aj", file.positions, np.linalg.inv(boxes)[owners])
    repeats = file.pbc[owners]
    points = np.where(repeats, points - np.floor(points), points)
    near = (margin / file.heights)[owners]  # zero where nothing repeats
    for axis in range(3):
        thickness = near[:, axis]
        low = repeats[:, axis] & (points[:, axis] <= thickness)
        high = repeats[:, axis] & (points[:, axis] >= 1.0 - thickness)
        step = np.eye(3)[axis]
        points = np.concatenate([points, points[low] + step, points[high] - step])
        picked = np.concatenate([np.arange(len(owners)), np.flatnonzero(low), np.flatnonzero(high)])
        owners, atoms, near, repeats = owners[picked], atoms[picked], near[picked], repeats[picked]
    return np.einsum("ai,aij->aj", points, boxes[owners]), owners, atoms


def check_lone_atoms(file: FlatFile, r_max: float) -> Iterator[Finding]:
    """Find atoms without a neighbor within the cutoff."""
    from scipy.spatial import cKDTree

    if not len(file):
        return
    gap = 2.0 * r_max
    tree = cKDTree(np.column_stack([file.positions, file.structure_of_atom * gap]))
    distance = tree.query(tree.data, k=2, distance_upper_bound=r_max)[0][:, 1]
    lone = []
    for structure in np.unique(file.structure_of_atom[~np.isfinite(distance)]).tolist():
        if file.pbc[structure].any():  # an atom may still see images
            sender, receiver, _ = file.pairs(structure, r_max)
            if len(np.union1d(sender, receiver)) == file.n_atoms[structure]:
                continue
        lone.append(structure)
    if lone:
        text = f"have atoms without a neighbor within {r_max:g} Angstrom"
        yield file.found("lone-atoms", text, np.array(lone))


def check_unmarked_isolated_atoms(file: FlatFile) -> Iterator[Finding]:
    """Find single atoms without surroundings that are not marked as isolated."""
    single = (file.n_atoms == 1) & ~file.pbc.any(axis=1)
    if single.any() and file.role == "training":
        text = "holds a single atom" if single.sum() == 1 else "hold a single atom each"
        yield file.found("unmarked-isolated-atoms", f"{text} without config_type=IsolatedAtom", single)


def check_thin_cells(file: FlatFile, r_max: float) -> Iterator[Finding]:
    """Find cells thinner than the cutoff."""
    thinnest = file.heights.min(axis=1, initial=np.inf)
    thin = thinnest < r_max
    if thin.any():
        text = (
            f"{'has a cell' if thin.sum() == 1 else 'have cells'} thinner than the cutoff of {r_max:g} Angstrom "
            f"(thinnest: {thinnest.min():.3g}); periodic images are taken into account exactly"
        )
        yield file.found("thin-cells", text, thin)


def check_distances(file: FlatFile) -> Iterator[Finding]:
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
    yield file.found("unlikely-distances", text)
