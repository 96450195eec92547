"""The interface of data sets for training and evaluation, wherever their structures are stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, overload

import numpy as np
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.graphs.assembly import StructureArrays, assemble_graph, indices_of_heads
from mace.graphs.batch_plan import consecutive
from mace.graphs.bucket import Bucket, filled
from mace.graphs.distances import shortest_distances
from mace.graphs.graph import Graph, carry
from mace.graphs.neighbors import Neighbors
from mace.properties import PREDICTED, PROPERTIES
from mace.structures.collection import StructureCollection
from mace.structures.configuration import DEFAULT_HEAD, Configuration
from mace.structures.flat import FlatStructures

Distances = dict[str, float]
"""Angstrom by pair of elements."""

_GATHERED = 64
"""Structures whose neighbors are gone through together."""


@dataclass(frozen=True)
class LabelRows:
    """What a loss needs to know about the rows of one property: those of structures, or of atoms.

    Attributes:
        missing: Which rows have no label, ``[rows]``.
        property_weight: Weight of the property for the structure of each row, ``[rows]``.
        other_weight: Weight of the structure, times that of the atom if there is one; zero without a label, ``[rows]``.
        weight: Product of the two, ``[rows]``.
        count: Number of rows that have a label.
        per_row: What a mean over these rows multiplies their sum by: one divided by their number, if there are any.
    """

    missing: Tensor
    property_weight: Tensor
    other_weight: Tensor
    weight: Tensor
    count: Tensor
    per_row: Tensor


@dataclass(frozen=True)
class Targets:
    """Labels of a batch with their weights; rows without a label are zero and marked.

    Attributes:
        values: By property, ``[structures, ...]`` or for forces ``[atoms, 3]``, float64.
        labeled: By property, whether each structure has the label, ``[structures]``.
        weight: Weight of each structure, ``[structures]``.
        property_weights: By property, ``[structures]``.
        atom_weights: By property with one row per atom, ``[atoms]``.
        atoms_per_structure: ``[structures]``; one where a structure is padding, as errors are divided by it.
    """

    values: dict[str, Tensor]
    labeled: dict[str, Tensor]
    weight: Tensor
    property_weights: dict[str, Tensor]
    atom_weights: dict[str, Tensor]
    atoms_per_structure: Tensor

    READ_BEFORE_A_MOVE: ClassVar = ("rows",)

    @cached_property
    def rows(self) -> dict[str, LabelRows]:
        """By property, what does not depend on a prediction; best computed where the batch is made, beside a step."""
        return {name: self._rows_of(name) for name in self.values}

    def _rows_of(self, name: str) -> LabelRows:
        labeled, of_property, other = self.labeled[name], self.property_weights[name], self.weight
        if PROPERTIES[name].of_atoms:
            n_atoms, n_rows = self.atoms_per_structure, len(self.values[name])
            labeled, of_property, other = (
                x.repeat_interleave(n_atoms, output_size=n_rows) for x in (labeled, of_property, other)
            )
            other = other * self.atom_weights[name]
        other, count = other * labeled, labeled.sum()
        per_row = count.clamp(min=1).double().reciprocal()
        return LabelRows(~labeled, of_property, other, of_property * other, count, per_row)

    def padded(self, bucket: Bucket) -> Targets:
        """Return the targets with the shapes of a bucket; padding has no labels and weighs nothing.

        Numbers of labels stay those of the structures.
        """

        def of(name: str) -> int:
            return bucket.atoms if PROPERTIES[name].of_atoms else bucket.structures

        def of_structures(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: filled(one, bucket.structures) for name, one in values.items()}

        found = Targets(
            {name: filled(values, of(name)) for name, values in self.values.items()},
            of_structures(self.labeled),
            filled(self.weight, bucket.structures),
            of_structures(self.property_weights),
            {name: filled(weights, bucket.atoms) for name, weights in self.atom_weights.items()},
            filled(self.atoms_per_structure, bucket.structures, 1),
        )
        rows = {}
        for name, one in self.rows.items():
            of_property, other, both = (
                filled(x, of(name)) for x in (one.property_weight, one.other_weight, one.weight)
            )
            rows[name] = LabelRows(
                filled(one.missing, of(name), True), of_property, other, both, one.count, one.per_row
            )
        vars(found).update(rows=rows)
        return found

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

    def padded(self, bucket: Bucket) -> Batch:
        """Return the batch with the shapes of a bucket; see `mace.graphs.graph.Graph`."""
        return Batch(self.graph.padded(bucket), self.targets.padded(bucket), self.structures)

    def to(self, device: torch.device | str, pinned: bool = False) -> Batch:
        """Return the batch on a device; see `mace.graphs.graph.carry`."""
        return self if torch.device(device).type == "cpu" else carry(self, device, pinned)


class Dataset(Sequence[Configuration]):
    """Structures that can be gathered into batches of graphs; as a sequence, the structures themselves.

    A data set of another kind defines how neighbors come about. Several threads may ask for graphs and labels at once.

    Args:
        structures: The structures.
        elements: The model's table of elements.
        r_max: Cutoff in Angstrom within which neighbors are known.
        heads: Names of the model's heads; a single one is for all structures.

    Raises:
        UserError: If a structure is for a head that the model lacks.

    Attributes:
        on_disk: Whether gathering a batch takes more than copying from memory: reading it, or searching its neighbors.
    """

    on_disk = False

    def __init__(
        self,
        structures: StructureCollection,
        elements: ElementTable,
        r_max: float,
        heads: Sequence[str] = (DEFAULT_HEAD,),
    ) -> None:
        self.structures, self.elements, self.r_max, self.heads = structures, elements, r_max, tuple(heads)
        self._head = indices_of_heads(heads, structures).astype(np.int16)
        self._labeled = dict[str, np.ndarray]()
        self._shortest: Distances | None = None

    @abstractmethod
    def neighbors(self, structures: np.ndarray) -> Neighbors:
        """Return the neighbors of some structures, in the order given."""

    @abstractmethod
    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""

    @abstractmethod
    def atoms_with_neighbors(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures that have a neighbor."""

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.structures)

    @overload
    def __getitem__(self, place: int) -> Configuration: ...

    @overload
    def __getitem__(self, place: slice) -> StructureCollection: ...

    def __getitem__(self, place: int | slice) -> Configuration | StructureCollection:
        """Return a structure, or several of them."""
        return self.structures[place]

    def __iter__(self) -> Iterator[Configuration]:
        """Iterate over the structures."""
        return iter(self.structures)

    def atoms_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures."""
        return self.structures.n_atoms[np.asarray(structures, dtype=np.int64)]

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        if name not in self._labeled:
            self._labeled[name] = self.structures.labeled(name)
        return self._labeled[name]

    def element_counts(self) -> np.ndarray:
        """Count the atoms of each element of the model's table, ``[elements]``."""
        counts = np.zeros(len(self.elements), dtype=np.int64)
        for block in self.structures.blocks():
            counts += np.bincount(self.elements.index(block.numbers), minlength=len(counts))
        return counts

    def neighbor_histogram(self, structures: np.ndarray) -> np.ndarray:
        """Count the atoms of some structures by element and number of neighbors, ``[elements, numbers]``."""
        n_elements, found = len(self.elements), np.zeros(0, dtype=np.int64)
        for places in consecutive(structures, _GATHERED):
            flat, neighbors = self.structures.flat(places), self.neighbors(places)
            offset = np.repeat(np.cumsum(flat.n_atoms) - flat.n_atoms, neighbors.n_pairs)
            ends = np.concatenate([neighbors.pair_sender + offset, neighbors.pair_receiver + offset])
            numbers = np.bincount(ends, minlength=len(flat.numbers))
            counts = np.bincount(numbers * n_elements + self.elements.index(flat.numbers), minlength=len(found))
            counts[: len(found)] += found
            found = counts
        return np.pad(found, (0, -len(found) % n_elements)).reshape(-1, n_elements).T

    def shortest_distances(self, progress: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]] = iter) -> Distances:
        """Return the shortest distance of each pair of elements, see `mace.graphs.distances.shortest_distances`.

        Args:
            progress: Wraps the iteration over groups of structures the first time; then the result is known.
        """
        if self._shortest is None:
            groups = list(consecutive(np.arange(len(self)), _GATHERED))
            self._shortest = shortest_distances((self.graph(g) for g in progress(groups)), self.elements, self.r_max)
        return self._shortest

    @property
    def n_atoms(self) -> int:
        """Number of atoms in all structures."""
        return int(self.structures.n_atoms.sum())

    @property
    def n_edges(self) -> int:
        """Number of directed edges in all structures."""
        return int(self.edges_of(np.arange(len(self))).sum())

    def average_neighbors(self) -> float:
        """Return the mean number of neighbors of the atoms that have any, as the original counts; 1 if none has."""
        with_neighbors = int(self.atoms_with_neighbors(np.arange(len(self))).sum())
        return self.n_edges / with_neighbors if with_neighbors else 1.0

    def graph(self, structures: Sequence[int] | np.ndarray) -> Graph:
        """Gather the graph of some structures, without their labels, on the CPU."""
        chosen = np.asarray(structures, dtype=np.int64)
        return self._graph(self.structures.flat(chosen), chosen)

    def _graph(self, flat: FlatStructures, chosen: np.ndarray) -> Graph:
        arrays = StructureArrays.of(flat, self.elements, self._head[chosen].astype(np.int64))
        return assemble_graph(arrays, self.neighbors(chosen))

    def targets(self, structures: Sequence[int] | np.ndarray) -> Targets:
        """Gather the labels of some structures, without their graph, on the CPU."""
        return targets_of(self.structures.flat(np.asarray(structures, dtype=np.int64)))

    def batch(self, structures: Sequence[int] | np.ndarray) -> Batch:
        """Gather some structures.

        Args:
            structures: Their indices, in any order.

        Returns:
            A batch on the CPU.
        """
        chosen = np.asarray(structures, dtype=np.int64)
        flat = self.structures.flat(chosen)
        return Batch(self._graph(flat, chosen), targets_of(flat), chosen)

    def batches(self, batch_size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield batches of consecutive structures, the last one as large as what is left."""
        order = np.arange(len(self)) if order is None else order
        return (self.batch(structures) for structures in consecutive(order, batch_size))

    def describe(self, structures: Iterable[int]) -> str:
        """Name structures by file and index, as in ``train.xyz: structures 3, 17``, without reading them."""
        files, place_in_file = self.structures.files, self.structures.file_index
        places: dict[str, list[int]] = {}
        for structure in structures:
            places.setdefault(files[structure], []).append(int(place_in_file[structure]))
        named = []
        for file, found in places.items():
            numbers = ", ".join(str(number) for number in sorted(found))
            named.append(f"{file or 'given'}: structure{'s' if len(found) > 1 else ''} {numbers}")
        return "; ".join(named)


def targets_of(flat: FlatStructures) -> Targets:
    """Return the labels of structures with their weights."""
    of_atoms = [name for name in PREDICTED if PROPERTIES[name].of_atoms]
    targets = Targets(
        {name: torch.from_numpy(flat.labels(name)) for name in PREDICTED},
        {name: torch.from_numpy(flat.labeled(name)) for name in PREDICTED},
        torch.from_numpy(flat.weights()),
        {name: torch.from_numpy(flat.weights(name)) for name in PREDICTED},
        {name: torch.from_numpy(flat.atom_weights(name)) for name in of_atoms},
        torch.from_numpy(flat.n_atoms.astype(np.int64, copy=False)),
    )
    _ = targets.rows  # computed here once
    return targets


class Subset(Dataset):
    """Some structures of a data set, as a data set.

    Args:
        whole: The data set.
        structures: Indices of the structures in it.
    """

    def __init__(self, whole: Dataset, structures: Sequence[int] | np.ndarray) -> None:
        self._whole, self._places = whole, np.asarray(structures, dtype=np.int64)
        super().__init__(whole.structures.take(self._places), whole.elements, whole.r_max, whole.heads)
        self.on_disk = whole.on_disk

    def neighbors(self, structures: np.ndarray) -> Neighbors:
        """Return the neighbors of some structures, in the order given."""
        return self._whole.neighbors(self._places[structures])

    def atoms_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures."""
        return self._whole.atoms_of(self._places[np.asarray(structures, dtype=np.int64)])

    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""
        return self._whole.edges_of(self._places[np.asarray(structures, dtype=np.int64)])

    def atoms_with_neighbors(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures that have a neighbor."""
        return self._whole.atoms_with_neighbors(self._places[np.asarray(structures, dtype=np.int64)])
