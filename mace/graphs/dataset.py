"""The interface of data sets for training and evaluation, wherever their structures are stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from mace.graphs.batch_plan import consecutive
from mace.graphs.graph import Graph, carry
from mace.graphs.neighbors import ragged_rows
from mace.structures.configuration import Configuration


@dataclass(frozen=True)
class Targets:
    """Labels of a batch with their weights; rows without a label are zero and marked.

    Attributes:
        values: By property, ``[structures, ...]`` or for forces ``[atoms, 3]``, float64.
        labeled: By property, whether each structure has the label, ``[structures]``.
        weight: Weight of each structure, ``[structures]``.
        property_weights: By property, ``[structures]``.
        atom_weights: By property with one row per atom, ``[atoms]``.
        atoms_per_structure: ``[structures]``.
    """

    values: dict[str, Tensor]
    labeled: dict[str, Tensor]
    weight: Tensor
    property_weights: dict[str, Tensor]
    atom_weights: dict[str, Tensor]
    atoms_per_structure: Tensor

    def to(self, device: torch.device | str, pinned: bool = False) -> Targets:
        """Return the targets on a device; see `mace.graphs.graph.carry`."""
        return carry(self, device, pinned)


@dataclass(frozen=True)
class Batch:
    """Graph and targets of some structures, and which ones they are.

    Attributes:
        graph: The graph.
        targets: Labels and weights.
        structures: Index of each structure in its dataset, ``[structures]``.
    """

    graph: Graph
    targets: Targets
    structures: np.ndarray

    def to(self, device: torch.device | str, pinned: bool = False) -> Batch:
        """Return the batch on a device; see `mace.graphs.graph.carry`."""
        return self if torch.device(device).type == "cpu" else carry(self, device, pinned)


class Dataset(Sequence[Configuration]):
    """Structures that can be gathered into batches of graphs; as a sequence, the structures themselves.

    A data set of another kind, such as one on disk, defines what is abstract here, and what else it knows a faster way
    for. Several threads may ask for graphs and labels at once.

    Attributes:
        r_max: Cutoff in Angstrom within which neighbors are known.
        on_disk: Whether gathering a batch takes more than copying from memory: reading it, or searching its neighbors.
    """

    r_max: float
    on_disk = False

    @overload
    def __getitem__(self, place: int) -> Configuration: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Configuration]: ...

    @abstractmethod
    def __getitem__(self, place: int | slice) -> Configuration | Sequence[Configuration]:
        """Return a structure, or several of them."""

    @abstractmethod
    def graph(self, structures: Sequence[int] | np.ndarray) -> Graph:
        """Gather the graph of some structures, without their labels, on the CPU."""

    @abstractmethod
    def targets(self, structures: Sequence[int] | np.ndarray) -> Targets:
        """Gather the labels of some structures, without their graph, on the CPU."""

    @abstractmethod
    def atoms_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures."""

    @abstractmethod
    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""

    @abstractmethod
    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""

    @property
    @abstractmethod
    def element(self) -> np.ndarray:
        """Place of the element of every atom of all structures in the model's table, ``[atoms]``."""

    @abstractmethod
    def neighbor_counts(self) -> np.ndarray:
        """Return the number of neighbors of every atom of all structures, ``[atoms]``."""

    @property
    def config_types(self) -> np.ndarray:
        """The config_type of each structure, ``[structures]``."""
        return np.array([configuration.config_type for configuration in self])

    @property
    def n_atoms(self) -> int:
        """Number of atoms in all structures."""
        return int(self.atoms_of(range(len(self))).sum())

    @property
    def n_edges(self) -> int:
        """Number of directed edges in all structures."""
        return int(self.edges_of(range(len(self))).sum())

    def average_neighbors(self) -> float:
        """Return the mean number of neighbors of the atoms that have any, as the original counts; 1 if none has."""
        with_neighbors = np.count_nonzero(self.neighbor_counts())
        return self.n_edges / with_neighbors if with_neighbors else 1.0

    def batch(self, structures: Sequence[int] | np.ndarray) -> Batch:
        """Gather some structures.

        Args:
            structures: Their indices, in any order.

        Returns:
            A batch on the CPU.
        """
        chosen = np.asarray(structures, dtype=np.int64)
        return Batch(self.graph(chosen), self.targets(chosen), chosen)

    def batches(self, batch_size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield batches of consecutive structures, the last one as large as what is left."""
        order = np.arange(len(self)) if order is None else order
        return (self.batch(structures) for structures in consecutive(order, batch_size))

    def describe(self, structures: Iterable[int]) -> str:
        """Name structures by file and index, as in ``train.xyz: structures 3, 17``; not by reading what may hang."""
        places: dict[str, list[int]] = {}
        for index in structures:
            configuration = self[int(index)]
            places.setdefault(configuration.file, []).append(configuration.index)
        named = []
        for file, found in places.items():
            numbers = ", ".join(str(number) for number in sorted(found))
            named.append(f"{file or 'given'}: structure{'s' if len(found) > 1 else ''} {numbers}")
        return "; ".join(named)


class Subset(Dataset):
    """Some structures of a data set, as a data set.

    Args:
        whole: The data set.
        structures: Indices of the structures in it.
    """

    def __init__(self, whole: Dataset, structures: Sequence[int] | np.ndarray) -> None:
        self._whole, self._structures, self.r_max = whole, np.asarray(structures, dtype=np.int64), whole.r_max
        self.on_disk, self._labeled = whole.on_disk, dict[str, np.ndarray]()

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self._structures)

    def __getitem__(self, place: Any) -> Any:
        """Return a structure, or several of them."""
        if isinstance(place, slice):
            return [self._whole[int(index)] for index in self._structures[place]]
        return self._whole[int(self._structures[place])]

    def _in_whole(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._structures[np.asarray(structures, dtype=np.int64)]

    def graph(self, structures: Sequence[int] | np.ndarray) -> Graph:
        """Gather the graph of some structures, without their labels, on the CPU."""
        return self._whole.graph(self._in_whole(structures))

    def targets(self, structures: Sequence[int] | np.ndarray) -> Targets:
        """Gather the labels of some structures, without their graph, on the CPU."""
        return self._whole.targets(self._in_whole(structures))

    def atoms_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures."""
        return self._whole.atoms_of(self._in_whole(structures))

    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""
        return self._whole.edges_of(self._in_whole(structures))

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        if name not in self._labeled:
            self._labeled[name] = self._whole.labeled(name)[self._structures]
        return self._labeled[name]

    def _atoms(self) -> np.ndarray:
        """Return the atoms of the structures among those of the whole."""
        counts = self._whole.atoms_of(range(len(self._whole)))
        return ragged_rows((np.cumsum(counts) - counts)[self._structures], counts[self._structures])

    @property
    def element(self) -> np.ndarray:
        """Place of the element of every atom of all structures in the model's table, ``[atoms]``."""
        return self._whole.element[self._atoms()]

    def neighbor_counts(self) -> np.ndarray:
        """Return the number of neighbors of every atom of all structures, ``[atoms]``."""
        return self._whole.neighbor_counts()[self._atoms()]
