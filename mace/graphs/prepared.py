"""Data sets whose structures and neighbors are read from disk when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mace.elements import ElementTable
from mace.graphs.assembly import check_volumes
from mace.graphs.dataset import Dataset, Subset
from mace.graphs.in_memory import InMemoryDataset
from mace.graphs.neighbors import Neighbors, find_all_neighbors, join_neighbors, rank_pairs
from mace.structures.collection import IN_A_BLOCK, Joined, ListedStructures, Selection, StructureCollection, in_blocks
from mace.structures.prepared import StoredStructures

_LOGGER = logging.getLogger(__name__)

Track = Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]]
"""Wraps an iteration, for a progress bar."""


class StoredDataset(Dataset):
    """The structures of a prepared set, with the neighbors that are stored there if the cutoff is the same.

    Args:
        structures: The structures.
        elements: The model's table of elements.
        r_max: Cutoff in Angstrom.
        heads: Names of the model's heads; a single one is for all structures.
        progress: Wraps the iteration over blocks of structures if neighbors have to be counted.

    Raises:
        UserError: If a structure is for a head that the model lacks, or cannot be read.
    """

    on_disk = True

    def __init__(
        self,
        structures: StoredStructures,
        elements: ElementTable,
        r_max: float,
        heads: Sequence[str],
        progress: Track = iter,
    ) -> None:
        super().__init__(structures, elements, r_max, heads)
        self.stored, manifest = structures, structures.manifest
        is_counted = manifest.r_max == r_max
        self._has_pairs = is_counted and manifest.pairs is not None
        self._bonded: np.ndarray | None = None
        if is_counted:
            self._n_pairs = structures.kept("n_pairs" if self._has_pairs else "counted_pairs")
            return
        # kept with the structures, because those to train on and to validate on may be parts of the same set
        self._n_pairs, self._bonded = structures.kept(
            f"neighbors within {r_max!r}", lambda: self._count_all(manifest.r_max, progress)
        )

    def _count_all(self, kept: float | None, progress: Track) -> np.ndarray:
        """Count the pairs of all structures, and the atoms with neighbors, ``[2, structures]``."""
        other = "holds no neighbors" if kept is None else f"holds the neighbors within {kept:g} Angstrom"
        _LOGGER.warning(
            "%s %s, not those within %g: they are searched now to be counted, and again in every epoch; prepare the "
            "set with --r_max=%g to have them ready",
            self.stored.folder,
            other,
            self.r_max,
            self.r_max,
        )
        blocks = list(in_blocks(len(self), IN_A_BLOCK // 8))
        return np.concatenate([*map(self._count, progress(blocks))], axis=1)

    def _count(self, places: np.ndarray) -> np.ndarray:
        """Count the pairs of some structures, and the atoms with neighbors, ``[2, structures]``."""
        found = self.neighbors(places)
        return np.stack([found.n_pairs, found.atoms_with_neighbors()]).astype(np.int32)

    def neighbors(self, structures: np.ndarray) -> Neighbors:
        """Return the neighbors of some structures, in the order given."""
        if not self._has_pairs:
            return find_all_neighbors(self.stored._configurations(structures), self.r_max)
        n_pairs, pairs = self.stored.pairs(structures)
        return rank_pairs(self.atoms_of(structures), n_pairs, pairs.astype(np.int64))

    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""
        return 2 * self._n_pairs[np.asarray(structures, dtype=np.int64)].astype(np.int64)

    def atoms_with_neighbors(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures that have a neighbor."""
        # asked for once, so not worth holding in memory
        bonded = self.stored.column("atoms_with_neighbors") if self._bonded is None else self._bonded
        return bonded[np.asarray(structures, dtype=np.int64)]


class JoinedDataset(Dataset):
    """Several data sets as one.

    Args:
        structures: The structures of all.
        parts: The data sets, in order.
    """

    def __init__(self, structures: Joined, parts: Sequence[Dataset]) -> None:
        first = parts[0]
        super().__init__(structures, first.elements, first.r_max, first.heads)
        self._joined, self._parts = structures, list(parts)
        self.on_disk = any(part.on_disk for part in parts)

    def neighbors(self, structures: np.ndarray) -> Neighbors:
        """Return the neighbors of some structures, in the order given."""
        found = self._joined.places(structures)
        neighbors = join_neighbors([self._parts[part].neighbors(places) for part, places, _ in found])
        return neighbors.take(np.argsort(np.concatenate([given for *_, given in found])))

    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""
        return self._gathered(structures, lambda part, places: part.edges_of(places))

    def atoms_with_neighbors(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures that have a neighbor."""
        return self._gathered(structures, lambda part, places: part.atoms_with_neighbors(places))

    def _gathered(
        self, structures: Sequence[int] | np.ndarray, count: Callable[[Dataset, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        chosen = np.asarray(structures, dtype=np.int64)
        values = np.zeros(len(chosen), dtype=np.int64)
        for part, places, given in self._joined.places(chosen):
            values[given] = count(self._parts[part], places)
        return values


def dataset_of(
    structures: StructureCollection,
    elements: ElementTable,
    r_max: float,
    heads: Sequence[str],
    progress: Callable[[Sequence[object]], Iterable[object]] = iter,
) -> Dataset:
    """Return structures with their neighbors, as they are stored.

    Args:
        structures: The structures.
        elements: The model's table of elements.
        r_max: Cutoff in Angstrom.
        heads: Names of the model's heads; a single one is for all structures.
        progress: Wraps an iteration over all structures, for a progress bar.

    Raises:
        UserError: If a structure has an element that the table lacks, is for a head that the model lacks, has a stress
            without a volume, or cannot be read.
    """
    if not isinstance(structures, ListedStructures):  # of which a data set in memory is checked when it is made
        _check_elements(structures, elements)
        check_volumes(structures)
    return _dataset_of(structures, elements, r_max, heads, progress)


def _dataset_of(
    structures: StructureCollection,
    elements: ElementTable,
    r_max: float,
    heads: Sequence[str],
    progress: Callable[[Sequence[object]], Iterable[object]],
) -> Dataset:
    if isinstance(structures, StoredStructures):
        return StoredDataset(structures, elements, r_max, heads, progress)  # type: ignore[arg-type]  # of any items
    if isinstance(structures, Selection):
        return Subset(_dataset_of(structures.whole, elements, r_max, heads, progress), structures.structures)
    if isinstance(structures, Joined):
        parts = [_dataset_of(each, elements, r_max, heads, progress) for each in structures.parts]
        return JoinedDataset(structures, parts)
    return InMemoryDataset(structures, elements, r_max, progress, heads=heads)  # type: ignore[arg-type]  # of any items


def _check_elements(structures: StructureCollection, elements: ElementTable) -> None:
    """Check that a table has all elements; structures are gone through only where their whole set has others."""
    whole = structures.whole if isinstance(structures, Selection) else structures
    if not set(whole.elements) <= set(elements):
        elements.index(np.array(structures.elements))
