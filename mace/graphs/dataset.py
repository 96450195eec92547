"""Every graph built once and kept as flat arrays; a batch is a gather of slices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.graph import Graph, carry
from mace.graphs.neighbors import JoinedNeighbors, chain_neighbors, find_all_neighbors
from mace.properties import PREDICTED, PROPERTIES
from mace.structures.condition_values import conditions_of_atoms
from mace.structures.configuration import DEFAULT_HEAD, Configuration
from mace.structures.splitting import check_heads

_LOGGER = logging.getLogger(__name__)

MANY_NEIGHBORS = 2000
"""Neighbors of an atom beyond which a warning asks for a smaller cutoff."""

_SEARCHED_TOGETHER = 64
"""How many structures the neighbors are searched of at once."""


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
        return Targets(
            {key: carry(value, device, pinned) for key, value in self.values.items()},
            {key: carry(value, device, pinned) for key, value in self.labeled.items()},
            carry(self.weight, device, pinned),
            {key: carry(value, device, pinned) for key, value in self.property_weights.items()},
            {key: carry(value, device, pinned) for key, value in self.atom_weights.items()},
            carry(self.atoms_per_structure, device, pinned),
        )


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
        if torch.device(device).type == "cpu":
            return self
        return replace(self, graph=self.graph.to(device, pinned), targets=self.targets.to(device, pinned))


def _slices(pointer: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return flat indices of the chosen rows of a ragged array, and how many each has."""
    counts = pointer[chosen + 1] - pointer[chosen]
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(pointer[chosen] - (ends - counts), counts), counts


def _pointer(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)


class _Labels(NamedTuple):
    """Labels and weights of all structures of a set; those of forces have one row per atom."""

    weight: np.ndarray
    values: dict[str, np.ndarray]
    labeled: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    atom_weights: dict[str, np.ndarray]


class GraphDataset:
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
        search: Callable[[Sequence[Configuration], float], JoinedNeighbors] = find_all_neighbors,
        heads: Sequence[str] = (DEFAULT_HEAD,),
    ) -> None:
        self.configurations = list(configurations)
        self.r_max = r_max
        self._element = elements.index(np.concatenate([c.atomic_numbers for c in configurations]))
        self._positions = np.concatenate([c.positions for c in configurations])
        self._cell = np.stack([c.cell for c in configurations])
        self._head = _heads(configurations, heads)
        self._charges = np.concatenate(
            [np.zeros(c.n_atoms) if c.charges is None else c.charges for c in configurations]
        )
        self._conditions = conditions_of_atoms(self.configurations)
        volume = np.abs(np.linalg.det(self._cell))
        self._volume = np.where(volume > 0.0, volume, np.nan)
        found: list[JoinedNeighbors] = []
        waiting: list[Configuration] = []
        for configuration in progress(self.configurations):
            waiting.append(configuration)
            if len(waiting) == _SEARCHED_TOGETHER:
                found.append(search(waiting, r_max))
                waiting = []
        if waiting:
            found.append(search(waiting, r_max))
        neighbors = chain_neighbors(found)
        self._atom_pointer = _pointer([c.n_atoms for c in configurations])
        self._pair_pointer = _pointer(neighbors.n_pairs)
        self._neighbors = neighbors.rows
        self._max_neighbors = neighbors.largest_counts()
        self._warn_of_many_neighbors()
        self._refuse_stress_without_volume()

    def _warn_of_many_neighbors(self) -> None:
        """Say once where there are so many neighbors that a cutoff or a cell is probably wrong."""
        if not len(self._max_neighbors) or self._max_neighbors.max() <= MANY_NEIGHBORS:
            return
        worst = int(self._max_neighbors.argmax())
        _LOGGER.warning(
            "%s has an atom with %d neighbors within %g Angstrom (most models have less than 200); a smaller --r_max "
            "takes less memory and time, if the cell is right",
            self.configurations[worst].where(),
            self._max_neighbors[worst],
            self.r_max,
        )

    def _refuse_stress_without_volume(self) -> None:
        for configuration, volume in zip(self.configurations, self._volume, strict=True):
            if configuration.stress is not None and np.isnan(volume):
                raise UserError(
                    f"{configuration.where()} has a stress but its cell has no volume, so the stress has no meaning; "
                    "give it a cell of three independent vectors or remove the label."
                )

    @cached_property
    def _labels(self) -> _Labels:
        """Labels and weights of all structures; not needed where a model is only evaluated."""
        configurations = self.configurations
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

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.configurations)

    @property
    def n_atoms(self) -> int:
        """Number of atoms in all structures."""
        return len(self._element)

    @property
    def n_edges(self) -> int:
        """Number of directed edges in all structures."""
        return len(self._neighbors.edge_sender)

    def labeled(self, name: str) -> np.ndarray:
        """Tell which structures carry a label, ``[structures]``."""
        return self._labels.labeled[name]

    def average_neighbors(self) -> float:
        """Return the mean number of neighbors of the atoms that have any, as the original counts; 1 if none has."""
        with_neighbors = np.count_nonzero(self.neighbor_counts())
        return self.n_edges / with_neighbors if with_neighbors else 1.0

    def neighbor_counts(self) -> np.ndarray:
        """Return the number of neighbors of every atom of all structures, ``[atoms]``."""
        offset = np.repeat(self._atom_pointer[:-1], 2 * np.diff(self._pair_pointer))
        return np.bincount(self._neighbors.edge_receiver + offset, minlength=self.n_atoms)

    @property
    def element(self) -> np.ndarray:
        """Place of the element of every atom of all structures in the model's table, ``[atoms]``."""
        return self._element

    def batch(self, structures: Sequence[int] | np.ndarray) -> Batch:
        """Gather some structures.

        Args:
            structures: Their indices, in any order.

        Returns:
            A batch on the CPU.
        """
        chosen = np.asarray(structures, dtype=np.int64)
        atoms, n_atoms = _slices(self._atom_pointer, chosen)
        return Batch(self._graph(chosen, atoms, n_atoms), self._targets(chosen, atoms, n_atoms), chosen)

    def graph(self, structures: Sequence[int] | np.ndarray) -> Graph:
        """Gather the graph of some structures, without their labels."""
        chosen = np.asarray(structures, dtype=np.int64)
        return self._graph(chosen, *_slices(self._atom_pointer, chosen))

    def targets(self, structures: Sequence[int] | np.ndarray) -> Targets:
        """Gather the labels of some structures, without their graph."""
        chosen = np.asarray(structures, dtype=np.int64)
        return self._targets(chosen, *_slices(self._atom_pointer, chosen))

    def atoms_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the atoms of each of some structures."""
        chosen = np.asarray(structures, dtype=np.int64)
        return self._atom_pointer[chosen + 1] - self._atom_pointer[chosen]

    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        """Count the directed edges of each of some structures."""
        chosen = np.asarray(structures, dtype=np.int64)
        return 2 * (self._pair_pointer[chosen + 1] - self._pair_pointer[chosen])

    def batches(self, batch_size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield batches of consecutive structures, the last one as large as what is left."""
        order = np.arange(len(self)) if order is None else order
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])

    def _targets(self, chosen: np.ndarray, atoms: np.ndarray, n_atoms: np.ndarray) -> Targets:
        labels = self._labels
        return Targets(
            {k: torch.from_numpy(v[atoms if PROPERTIES[k].of_atoms else chosen]) for k, v in labels.values.items()},
            {k: torch.from_numpy(v[chosen]) for k, v in labels.labeled.items()},
            torch.from_numpy(labels.weight[chosen]),
            {k: torch.from_numpy(v[chosen]) for k, v in labels.weights.items()},
            {k: torch.from_numpy(v[atoms]) for k, v in labels.atom_weights.items()},
            torch.from_numpy(n_atoms),
        )

    def _graph(self, chosen: np.ndarray, atoms: np.ndarray, n_atoms: np.ndarray) -> Graph:
        pairs, n_pairs = _slices(self._pair_pointer, chosen)
        edges, _ = _slices(2 * self._pair_pointer, chosen)
        first_atom = np.concatenate([[0], np.cumsum(n_atoms)[:-1]])
        first_pair = np.concatenate([[0], np.cumsum(n_pairs)[:-1]])
        k = max(int(self._max_neighbors[chosen].max(initial=0)), 1)
        flat, total_pairs = self._neighbors, int(n_pairs.sum())
        atom_offset = np.repeat(first_atom, n_pairs)
        edge_atom_offset, edge_pair_offset = np.repeat(first_atom, 2 * n_pairs), np.repeat(first_pair, 2 * n_pairs)
        element = self._element[atoms]
        by_element = np.argsort(element, kind="stable")
        row = np.argsort(by_element, kind="stable")  # of each atom in the order of elements
        slot = row[flat.edge_receiver[edges] + edge_atom_offset] * k + flat.edge_rank[edges]
        n_slots = len(atoms) * k
        slots_of_pair = np.zeros((total_pairs + 1, 2), dtype=np.int64)
        slots_of_pair[:-1] = slot[flat.pair_edges[pairs] + 2 * np.repeat(first_pair, n_pairs)[:, None]]
        return Graph(
            element=torch.from_numpy(element),
            structure_of_atom=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_atoms)),
            positions=torch.from_numpy(self._positions[atoms]),
            cell=torch.from_numpy(self._cell[chosen]),
            head=torch.from_numpy(self._head[chosen]),
            charges=torch.from_numpy(self._charges[atoms]),
            volume=torch.from_numpy(self._volume[chosen]),
            pair_sender=_padded(flat.pair_sender[pairs] + atom_offset),
            pair_receiver=_padded(flat.pair_receiver[pairs] + atom_offset),
            pair_shift=_padded(flat.pair_shift[pairs]),
            pair_of_slot=_scattered(np.full(n_slots, total_pairs), slot, flat.edge_pair[edges] + edge_pair_offset),
            sign_of_slot=_scattered(np.ones(n_slots), slot, flat.edge_sign[edges]),
            sender_of_slot=_scattered(
                np.zeros(n_slots, dtype=np.int64), slot, row[flat.edge_sender[edges] + edge_atom_offset]
            ),
            reverse_of_slot=_scattered(np.arange(n_slots), slot, slot[flat.edge_reverse[edges] + 2 * edge_pair_offset]),
            neighbor_count=torch.from_numpy(np.bincount(slot // k, minlength=len(atoms))),
            slots_of_pair=torch.from_numpy(slots_of_pair),
            atoms_by_element=torch.from_numpy(by_element),
            row_of_atom=torch.from_numpy(row),
            conditions={name: torch.from_numpy(values[atoms]) for name, values in self._conditions.items()},
        )


def _heads(configurations: Sequence[Configuration], names: Sequence[str]) -> np.ndarray:
    """Look up the head each structure is for, ``[structures]``."""
    check_heads(names, configurations)
    if len(names) == 1:
        return np.zeros(len(configurations), dtype=np.int64)
    place = {name: index for index, name in enumerate(names)}
    return np.array([place[configuration.head] for configuration in configurations], dtype=np.int64)


def _padded(rows: np.ndarray) -> Tensor:
    """Append one row of zeros, the padding pair."""
    return torch.from_numpy(np.concatenate([rows, np.zeros((1, *rows.shape[1:]), dtype=rows.dtype)]))


def _scattered(empty: np.ndarray, places: np.ndarray, values: np.ndarray) -> Tensor:
    """Write values into their places of a prepared array."""
    empty[places] = values
    return torch.from_numpy(empty)


def build_graph(
    configuration: Configuration, elements: ElementTable, r_max: float, heads: Sequence[str] = (DEFAULT_HEAD,)
) -> Graph:
    """Build the graph of a single structure; see `GraphDataset`."""
    return GraphDataset([configuration], elements, r_max, heads=heads).graph([0])
