"""From structures and their neighbors to a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.graph import Graph
from mace.graphs.neighbors import Neighbors, find_all_neighbors, join_neighbors
from mace.structures.collection import ListedStructures, StructureCollection
from mace.structures.configuration import DEFAULT_HEAD, Configuration
from mace.structures.flat import FlatStructures
from mace.structures.splitting import check_heads

_LOGGER = logging.getLogger(__name__)

MANY_NEIGHBORS = 2000
"""Neighbors of an atom beyond which a warning asks for a smaller cutoff."""

SEARCHED_TOGETHER = 64
"""How many structures the neighbors are searched of at once."""

MANY_ATOMS = 1000
"""Atoms of a structure from which on rows are ordered by place within an element, as features of neighbors that lie far
apart in memory do not stay in the processor's cache."""

_BOXES = 64
"""Boxes of the grid along its longest edge, a power of two."""

Search = Callable[[Sequence[Configuration], float], Neighbors]
"""Finds the neighbors of some structures within a cutoff."""


@dataclass(frozen=True)
class StructureArrays:
    """What a graph holds of structures besides their neighbors, in arrays over all their atoms.

    Attributes:
        n_atoms: ``[structures]``.
        element: Place of each atom's element in the model's table, ``[atoms]``.
        positions: Angstrom, ``[atoms, 3]``.
        charges: Elementary charges, zero where none are given, ``[atoms]``.
        conditions: What each atom is under, by name, ``[atoms, values]``.
        cell: Angstrom, ``[structures, 3, 3]``.
        volume: Angstrom^3, NaN where stress has no meaning, ``[structures]``.
        head: Index of the head of the model, ``[structures]``.
    """

    n_atoms: np.ndarray
    element: np.ndarray
    positions: np.ndarray
    charges: np.ndarray
    conditions: dict[str, np.ndarray]
    cell: np.ndarray
    volume: np.ndarray
    head: np.ndarray

    @classmethod
    def of(cls, structures: FlatStructures, elements: ElementTable, head: np.ndarray) -> StructureArrays:
        """Take what a graph holds from structures.

        Args:
            structures: The structures.
            elements: The model's table of elements.
            head: Index of the head of the model, ``[structures]``.

        Raises:
            UserError: If a structure has an element that the table lacks.
        """
        cell = structures.columns["cell"]
        volume = np.abs(np.linalg.det(cell))
        return cls(
            n_atoms=structures.n_atoms.astype(np.int64, copy=False),
            element=elements.index(structures.numbers),
            positions=structures.columns["positions"],
            charges=structures.labels("charges"),
            conditions=structures.conditions(),
            cell=cell,
            volume=np.where(volume > 0.0, volume, np.nan),
            head=head,
        )


def indices_of_heads(heads: Sequence[str], structures: StructureCollection) -> np.ndarray:
    """Return the index of the head of the model that each structure is for, ``[structures]``.

    Args:
        heads: Names of the model's heads; a single one is for all structures.
        structures: The structures.

    Raises:
        UserError: If a structure is for a head that the model lacks.
    """
    if len(heads) == 1:
        return np.zeros(len(structures), dtype=np.int64)
    check_heads(heads, structures)
    names = structures.heads
    places = np.array([heads.index(name) if name in heads else -1 for name in names.names], dtype=np.int64)
    return places[names.codes]


def check_volumes(structures: StructureCollection) -> None:
    """Check that every stress has a volume that it refers to.

    Raises:
        UserError: If one has none.
    """
    first = 0
    for block in structures.blocks():
        labeled = block.labeled("stress")
        if labeled.any() and (empty := labeled & ~(np.abs(np.linalg.det(block.columns["cell"])) > 0.0)).any():
            raise UserError(
                f"{structures[first + int(empty.argmax())].where()} has a stress but its cell has no volume, so the "
                "stress has no meaning; give it a cell of three independent vectors or remove the label."
            )
        first += len(block)


def search_neighbors(
    configurations: Sequence[Configuration],
    r_max: float,
    search: Search = find_all_neighbors,
    progress: Callable[[Sequence[Configuration]], Iterable[Configuration]] = iter,
) -> Neighbors:
    """Search the neighbors of all structures; warn where there are so many that a cutoff or a cell is probably wrong.

    Args:
        configurations: The structures, one at least.
        r_max: Cutoff in Angstrom.
        search: Finds the neighbors of some structures.
        progress: Wraps the iteration over structures, for a progress bar.
    """
    found, waiting = list[Neighbors](), list[Configuration]()
    for place, configuration in enumerate(progress(configurations), start=1):
        waiting.append(configuration)
        if len(waiting) == SEARCHED_TOGETHER or place == len(configurations):
            found.append(search(waiting, r_max))
            waiting = []
    neighbors = join_neighbors(found)
    warn_of_many(neighbors, configurations, r_max)
    return neighbors


def warn_of_many(neighbors: Neighbors, configurations: Sequence[Configuration], r_max: float) -> None:
    """Warn where there are so many neighbors that a cutoff or a cell is probably wrong."""
    counts = neighbors.largest_counts()
    if counts.max(initial=0) > MANY_NEIGHBORS:
        worst = int(counts.argmax())
        _LOGGER.warning(
            "%s has an atom with %d neighbors within %g Angstrom (most models have less than 200); a smaller --r_max "
            "takes less memory and time, if the cell is right",
            configurations[worst].where(),
            counts[worst],
            r_max,
        )


def build_graph(
    configuration: Configuration,
    elements: ElementTable,
    r_max: float,
    heads: Sequence[str] = (DEFAULT_HEAD,),
    search: Search = find_all_neighbors,
) -> Graph:
    """Build the graph of one structure; see `graph_of_structures`."""
    return graph_of_structures([configuration], elements, r_max, heads, search)


def graph_of_structures(
    configurations: Sequence[Configuration],
    elements: ElementTable,
    r_max: float,
    heads: Sequence[str] = (DEFAULT_HEAD,),
    search: Search = find_all_neighbors,
) -> Graph:
    """Build the common graph of some structures on the CPU.

    Args:
        configurations: The structures, one at least.
        elements: The model's table of elements.
        r_max: Cutoff in Angstrom.
        heads: Names of the model's heads; a single one is for all structures.
        search: Finds the neighbors of some structures within the cutoff.

    Raises:
        UserError: If a structure has an element that the table lacks, is for a head that the model lacks, or has a
            stress without a volume.
    """
    return assemble_graph(arrays_of(configurations, elements, heads), search_neighbors(configurations, r_max, search))


def arrays_of(configurations: Sequence[Configuration], elements: ElementTable, heads: Sequence[str]) -> StructureArrays:
    """Return what a graph holds of structures besides their neighbors; see `graph_of_structures`."""
    structures = ListedStructures(configurations)
    check_volumes(structures)
    (flat,) = structures.blocks(len(structures))
    return StructureArrays.of(flat, elements, indices_of_heads(heads, structures))


def assemble_graph(arrays: StructureArrays, neighbors: Neighbors) -> Graph:
    """Arrange atoms by element and edges in slots; see `mace.graphs.graph.Graph`."""
    n_atoms = arrays.n_atoms
    first_atom, total = np.cumsum(n_atoms) - n_atoms, len(neighbors.pair_sender)
    k = int(neighbors.pair_rank.max(initial=0)) + 1
    atom_offset = np.repeat(first_atom, neighbors.n_pairs)
    sender, receiver = neighbors.pair_sender + atom_offset, neighbors.pair_receiver + atom_offset
    by_element = order_of_rows(arrays)
    row = np.argsort(by_element, kind="stable")  # of each atom in the order of elements
    rows = np.stack(
        [row[receiver], row[sender]], axis=1
    )  # where the edge of each pair ends, and where its reverse does
    slots = rows * k + neighbors.pair_rank
    n_slots = len(row) * k
    return Graph(
        element=torch.from_numpy(arrays.element),
        structure_of_atom=torch.from_numpy(np.repeat(np.arange(len(n_atoms)), n_atoms)),
        positions=torch.from_numpy(arrays.positions),
        cell=torch.from_numpy(arrays.cell),
        head=torch.from_numpy(arrays.head),
        charges=torch.from_numpy(arrays.charges),
        volume=torch.from_numpy(arrays.volume),
        pair_sender=_padded(sender),
        pair_receiver=_padded(receiver),
        pair_shift=_padded(neighbors.pair_shift),
        pair_of_slot=_scattered(np.full(n_slots, total), slots, np.arange(total)[:, None]),
        sign_of_slot=_scattered(np.ones(n_slots), slots[:, 1], -1.0),
        sender_of_slot=_scattered(np.zeros(n_slots, dtype=np.int64), slots, rows[:, ::-1]),
        reverse_of_slot=_scattered(np.arange(n_slots), slots, slots[:, ::-1]),
        neighbor_count=torch.from_numpy(np.bincount(rows.ravel(), minlength=len(row))),
        slots_of_pair=_padded(slots),
        atoms_by_element=torch.from_numpy(by_element),
        row_of_atom=torch.from_numpy(row),
        conditions={name: torch.from_numpy(values) for name, values in arrays.conditions.items()},
    )


def order_of_rows(arrays: StructureArrays) -> np.ndarray:
    """Return the atoms in the order of their elements, and large structures within an element along a Morton curve."""
    if arrays.n_atoms.max(initial=0) < MANY_ATOMS:
        return np.argsort(arrays.element, kind="stable")
    code = np.zeros(len(arrays.element), dtype=np.int64)
    first = np.cumsum(arrays.n_atoms) - arrays.n_atoms
    for structure in np.flatnonzero(arrays.n_atoms >= MANY_ATOMS):
        atoms = slice(first[structure], first[structure] + arrays.n_atoms[structure])
        code[atoms] = _places_on_curve(arrays.positions[atoms], arrays.cell[structure], arrays.volume[structure])
    structure_of_atom = np.repeat(np.arange(len(first)), arrays.n_atoms)
    return np.lexsort((code, structure_of_atom, arrays.element))


def _places_on_curve(positions: np.ndarray, cell: np.ndarray, volume: float) -> np.ndarray:
    """Number the boxes of a grid so that boxes of similar numbers are near each other, ``[atoms]``."""
    lengths = np.linalg.norm(cell, axis=1)
    if volume > 1e-3 * lengths.prod():  # images of atoms are neighbors of the same atoms
        shares = positions @ np.linalg.inv(cell)
        places = (shares - np.floor(shares)) * lengths
    else:
        places = positions - positions.min(axis=0)
    boxes = np.minimum(places * (_BOXES / max(1.0, float(places.max()))), _BOXES - 1).astype(np.int64)
    code = np.zeros(len(positions), dtype=np.int64)
    for bit in range(_BOXES.bit_length() - 1):
        for axis in range(3):
            code |= ((boxes[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code


def _padded(rows: np.ndarray) -> Tensor:
    """Append one row of zeros, the padding pair."""
    return torch.from_numpy(np.concatenate([rows, np.zeros((1, *rows.shape[1:]), dtype=rows.dtype)]))


def _scattered(empty: np.ndarray, places: np.ndarray, values: np.ndarray | float) -> Tensor:
    """Write values into their places of a prepared array."""
    empty[places] = values
    return torch.from_numpy(empty)
