"""A data set in memory: every neighbor searched once, all kept in flat arrays; a batch is a gather of slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from mace.elements import ElementTable
from mace.graphs.assembly import Search, StructureArrays, assemble_graph, search_neighbors
from mace.graphs.dataset import Dataset, Targets
from mace.graphs.graph import Graph
from mace.graphs.neighbors import find_all_neighbors, ragged_rows
from mace.properties import PREDICTED, PROPERTIES
from mace.structures.configuration import DEFAULT_HEAD, Configuration


class _Labels(NamedTuple):
    """Labels and weights of all structures of a set; those of forces have one row per atom."""

    weight: np.ndarray
    values: dict[str, np.ndarray]
    labeled: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    atom_weights: dict[str, np.ndarray]


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
        self._configurations = list(configurations)
        self.r_max = r_max
        self._arrays = StructureArrays.of(self._configurations, elements, heads)
        self._neighbors = search_neighbors(self._configurations, r_max, search, progress)
        self._first_atom = np.cumsum(self._arrays.n_atoms) - self._arrays.n_atoms

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self._configurations)

    def __getitem__(self, place: Any) -> Any:
        """Return a structure, or several of them."""
        return self._configurations[place]

    def __iter__(self) -> Iterator[Configuration]:
        """Iterate over the structures."""
        return iter(self._configurations)

    @cached_property
    def _labels(self) -> _Labels:
        """Labels and weights of all structures; not needed where a model is only evaluated."""
        configurations = self._configurations
        labels = _Labels(np.array([c.weight for c in configurations]), {}, {}, {}, {})
        for name in PREDICTED:
            of_atoms, shape = PROPERTIES[name].of_atoms, PROPERTIES[name].shape
            found = [getattr(c, name) for c in configurations]
            rows = [
                np.zeros((c.n_atoms, *shape) if of_atoms else shape) if label is None else label
                for c, label in zip(configurations, found, strict=True)
            ]
            labels.values[name] = np.concatenate(rows) if of_atoms else np.stack(rows)
            labels.labeled[name] = np.array([label is not None for label in found])
            labels.weights[name] = np.array([c.property_weights.get(name, 1.0) for c in configurations])
            if of_atoms:
                weights = [c.atom_weights.get(name, np.ones(c.n_atoms)) for c in configurations]
                labels.atom_weights[name] = np.concatenate(weights)
        return labels

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        return self._labels.labeled[name]

    def neighbor_counts(self) -> np.ndarray:
        """Return the number of neighbors of every atom of all structures, ``[atoms]``."""
        offset = np.repeat(self._first_atom, 2 * self._neighbors.n_pairs)
        return np.bincount(self._neighbors.edge_receiver + offset, minlength=len(self.element))

    @property
    def element(self) -> np.ndarray:
        """Place of the element of every atom of all structures in the model's table, ``[atoms]``."""
        return self._arrays.element

    def atoms_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures."""
        return self._arrays.n_atoms[np.asarray(structures, dtype=np.int64)]

    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""
        return 2 * self._neighbors.n_pairs[np.asarray(structures, dtype=np.int64)]

    def graph(self, structures: Sequence[int] | np.ndarray) -> Graph:
        """Gather the graph of some structures, without their labels, on the CPU."""
        chosen = np.asarray(structures, dtype=np.int64)
        return assemble_graph(self._arrays.take(chosen, self._atoms(chosen)), self._neighbors.take(chosen))

    def targets(self, structures: Sequence[int] | np.ndarray) -> Targets:
        """Gather the labels of some structures, without their graph, on the CPU."""
        chosen, labels = np.asarray(structures, dtype=np.int64), self._labels
        atoms = self._atoms(chosen)
        return Targets(
            {k: torch.from_numpy(v[atoms if PROPERTIES[k].of_atoms else chosen]) for k, v in labels.values.items()},
            {k: torch.from_numpy(v[chosen]) for k, v in labels.labeled.items()},
            torch.from_numpy(labels.weight[chosen]),
            {k: torch.from_numpy(v[chosen]) for k, v in labels.weights.items()},
            {k: torch.from_numpy(v[atoms]) for k, v in labels.atom_weights.items()},
            torch.from_numpy(self._arrays.n_atoms[chosen]),
        )

    def _atoms(self, chosen: np.ndarray) -> np.ndarray:
        """Return the atoms of some structures among those of all."""
        return ragged_rows(self._first_atom[chosen], self._arrays.n_atoms[chosen])
