"""A data set in memory: every neighbor searched once, all kept in flat arrays; a batch is a gather of slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np

from mace.elements import ElementTable
from mace.graphs.assembly import Search, check_volumes, search_neighbors
from mace.graphs.dataset import Dataset
from mace.graphs.neighbors import Neighbors, find_all_neighbors
from mace.structures.collection import collected
from mace.structures.configuration import DEFAULT_HEAD, Configuration


class InMemoryDataset(Dataset):
    """All structures of a set with their neighbors, in memory.

    Args:
        configurations: The structures.
        elements: The model's table of elements.
        r_max: Cutoff in Angstrom.
        progress: Wraps the iteration over structures, for a progress bar.
        search: Finds the neighbors of some structures within the cutoff.
        heads: Names of the model's heads; a single one is for all structures.

    Raises:
        UserError: If a structure has an element that the table lacks, is for a head that the model lacks, or has a
            stress without a volume.
    """

    def __init__(
        self,
        configurations: Sequence[Configuration],
        elements: ElementTable,
        r_max: float,
        progress: Callable[[Sequence[Configuration]], Iterable[Configuration]] = iter,
        search: Search = find_all_neighbors,
        heads: Sequence[str] = (DEFAULT_HEAD,),
    ) -> None:
        structures = collected(configurations)
        super().__init__(structures, elements, r_max, heads)
        elements.index(np.array(structures.elements))
        check_volumes(structures)
        self._neighbors = search_neighbors(structures, r_max, search, progress)

    def neighbors(self, structures: np.ndarray) -> Neighbors:
        """Return the neighbors of some structures, in the order given."""
        return self._neighbors.take(structures)

    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""
        return 2 * self._neighbors.n_pairs[np.asarray(structures, dtype=np.int64)]

    @cached_property
    def _atoms_with_neighbors(self) -> np.ndarray:
        return self._neighbors.atoms_with_neighbors()

    def atoms_with_neighbors(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures that have a neighbor."""
        return self._atoms_with_neighbors[np.asarray(structures, dtype=np.int64)]
