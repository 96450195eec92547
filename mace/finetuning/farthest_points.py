"""Farthest points: a selection of structures such that no other structure is far from all selected ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

_TOGETHER = 512
"""Rows whose distances are computed at once: they fit into the cache of a processor in double precision."""

Count = Callable[[Iterable[int], str, int], Iterable[int]]
"""Wraps an iteration, given what is done and how often."""


@dataclass(frozen=True)
class ElementRows:
    """Descriptors of one element in all structures that have it.

    Attributes:
        structures: The structure of each row, in increasing order, ``[rows]``.
        values: Mean of the descriptors of the element's atoms in that structure, float32, ``[rows, features]``.
    """

    structures: np.ndarray
    values: np.ndarray


def farthest_points(
    rows: Mapping[int, ElementRows],
    n_structures: int,
    n_samples: int,
    first: int,
    progress: Count = lambda items, description, total: items,
) -> np.ndarray:
    """Select structures one after the other, each the one that is farthest from all that were selected before.

    Two structures are the farther apart the more elements one of them has and the other has not; if these are equally
    many, the farther apart their descriptors are: the Euclidean distance over all elements that both have. Among
    structures equally far from the selected ones the first is taken.

    The memory needed is that of some numbers for each structure, and the time that of reading, for each selected
    structure, the descriptors of its elements.

    Args:
        rows: Descriptors by atomic number; each structure has a row for each of its elements.
        n_structures: Number of structures.
        n_samples: Number of structures to select, at most that many.
        first: The structure to begin with.
        progress: Wraps the iteration over the selected structures.

    Returns:
        The selected structures in the order in which they were selected, ``[n_samples]``.
    """
    n_elements = np.zeros(n_structures, dtype=np.int64)
    for of_element in rows.values():
        n_elements[of_element.structures] += 1
    # of each structure, how far the nearest selected one is
    fewest = np.full(n_structures, np.iinfo(np.int64).max)
    nearest = np.full(n_structures, np.inf)
    selected = np.empty(n_samples, dtype=np.int64)
    is_left = np.ones(n_structures, dtype=bool)
    latest = first
    for place in progress(range(n_samples), "Choosing farthest points", n_samples):
        if place:
            left = np.flatnonzero(is_left)
            farthest = left[fewest[left] == fewest[left].max()]
            latest = int(farthest[nearest[farthest].argmax()])
        selected[place], is_left[latest] = latest, False
        differing, squared = _distances(rows, n_elements, latest)
        is_nearer = (differing < fewest) | ((differing == fewest) & (squared < nearest))
        fewest[is_nearer], nearest[is_nearer] = differing[is_nearer], squared[is_nearer]
    return selected


def _distances(rows: Mapping[int, ElementRows], n_elements: np.ndarray, origin: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare a structure with all structures.

    Returns:
        For each, the number of elements that only one of the two has, and the square of the distance of the descriptors
        of those that both have, ``[structures]``.
    """
    differing = n_elements + n_elements[origin]
    squared = np.zeros(len(n_elements))
    for of_element in rows.values():
        structures, values = of_element.structures, of_element.values
        place = int(np.searchsorted(structures, origin))
        if place == len(structures) or structures[place] != origin:
            continue
        differing[structures] -= 2
        for start in range(0, len(structures), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            difference = np.subtract(values[part], values[place], dtype=np.float64)
            squared[structures[part]] += np.einsum("ij,ij->i", difference, difference)
    return differing, squared
