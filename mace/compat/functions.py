"""Small functions of mace-torch that other programs call, most of them to make the dictionaries of models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.errors import UserError
from mace.files.published import cache_folder
from mace.graphs.neighbors import find_neighbors

_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
_EXTENT = 5.0
"""How many times the cutoff and the largest coordinate a lattice vector is long that does not repeat."""


class AtomicNumberTable(ElementTable):
    """The elements a model knows, with ``zs`` and the way from number to index and back.

    >>> table = AtomicNumberTable([8, 1])
    >>> table.zs, len(table), table.z_to_index(8), table.index_to_z(0)
    ([1, 8], 2, 1, 1)
    """

    @property
    def zs(self) -> list[int]:
        """The atomic numbers, ascending."""
        return list(self.atomic_numbers)

    def index_to_z(self, index: int) -> int:
        """Return the atomic number at an index."""
        return self.atomic_numbers[index]

    def z_to_index(self, atomic_number: int) -> int:
        """Return the index of an atomic number.

        Raises:
            ValueError: If the model does not know it.
        """
        return self.atomic_numbers.index(atomic_number)


def get_atomic_number_table_from_zs(zs: Iterable[int]) -> AtomicNumberTable:
    """Collect the elements of some atoms."""
    return AtomicNumberTable(tuple(int(z) for z in zs))


def atomic_numbers_to_indices(atomic_numbers: Any, z_table: AtomicNumberTable) -> np.ndarray:
    """Replace atomic numbers by their places in a table.

    Args:
        atomic_numbers: Any shape, integers.
        z_table: The table.

    Returns:
        Indices of the same shape, int64.

    Raises:
        UserError: If an element is not in the table.
    """
    return z_table.index(np.asarray(atomic_numbers))


def to_one_hot(indices: Tensor, num_classes: int) -> Tensor:
    """Turn each index into a row of zeros with a one, in torch's default precision.

    Args:
        indices: ``[..., 1]``, int64.
        num_classes: Length of a row.

    Returns:
        ``[..., num_classes]``.
    """
    rows = torch.zeros((*indices.shape[:-1], num_classes), device=indices.device)
    return rows.scatter_(-1, indices, 1.0)


def get_neighborhood(
    positions: np.ndarray,
    cutoff: float,
    pbc: Sequence[bool] | None = None,
    cell: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find all neighbors within a cutoff, in both directions, sorted by sender.

    Args:
        positions: Angstrom, ``[atoms, 3]``.
        cutoff: Angstrom.
        pbc: Which directions repeat; None for none.
        cell: Rows are lattice vectors in Angstrom, ``[3, 3]``; not changed.

    Returns:
        Sender and receiver ``[2, edges]``; Cartesian shifts of the receiver in Angstrom ``[edges, 3]``; the same in
        lattice vectors; and the cell, with long vectors along the axes for directions that do not repeat. The vector of
        an edge is ``positions[receiver] - positions[sender] + shift``.

    Raises:
        UserError: If a direction repeats that has no lattice vector.
    """
    repeats = (False, False, False) if pbc is None else (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
    positions = np.asarray(positions, dtype=np.float64)
    box = np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64)
    if any(repeats) and np.linalg.matrix_rank(box[list(repeats)]) < sum(repeats):
        raise UserError(f"get_neighborhood: pbc is {list(repeats)}, but the lattice vectors there span no volume.")
    found = find_neighbors(positions, box, repeats, float(cutoff))
    ends = np.stack([found.pair_receiver, found.pair_sender])
    order = np.argsort(ends.ravel(), kind="stable")
    edges = np.stack([ends.ravel(), ends[::-1].ravel()])[:, order]
    unit_shifts = np.concatenate([-found.pair_shift, found.pair_shift])[order]
    for direction in np.flatnonzero(~np.array(repeats)):
        box[direction] = 0.0
        box[direction, direction] = _EXTENT * cutoff * (np.abs(positions).max(initial=0.0) + 1.0)
    return edges, unit_shifts @ box, unit_shifts, box


def set_seeds(seed: int) -> None:
    """Seed the random numbers of NumPy and torch, which trainings here do not use."""
    np.random.seed(seed)
    torch.manual_seed(seed)


def set_default_dtype(dtype: str) -> None:
    """Set torch's default precision, on which nothing here depends but `to_one_hot`.

    Raises:
        UserError: If there is no such precision.
    """
    if dtype not in _PRECISIONS:
        raise UserError(f"set_default_dtype: {dtype!r} is no precision; choose {' or '.join(_PRECISIONS)}.")
    torch.set_default_dtype(_PRECISIONS[dtype])


def get_cache_dir() -> Path:
    """Return the folder of downloaded models, which mace-torch has too."""
    return cache_folder()
