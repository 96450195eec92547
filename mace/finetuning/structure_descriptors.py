"""Descriptors of whole structures, by which they are compared: means over the atoms of each element."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from mace.elements import LARGEST_ATOMIC_NUMBER
from mace.errors import UserError
from mace.finetuning.farthest_points import ElementRows
from mace.potential.descriptors import descriptors
from mace.potential.potential import Potential
from mace.structures.configuration import Configuration

_MOST_ATOMS = 512
"""Atoms in a batch, unless a single structure has more: with most models, some hundred MB."""


def describe_structures(potential: Potential, structures: Iterable[Configuration]) -> dict[int, ElementRows]:
    """Compute the mean of the invariant descriptors of the atoms of each element in each structure.

    Args:
        potential: One model; the descriptors are those of all its layers.
        structures: The structures, of which a batch is in memory at a time.

    Returns:
        The means by atomic number.

    Raises:
        UserError: If a structure has an element that the model does not know, or a descriptor is NaN or infinite.
    """
    found: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    n_before = 0
    for batch in _batches(structures):
        structure, number, means = _means(potential, batch)
        if not (finite := np.isfinite(means).all(axis=1)).all():
            wrong = batch[structure[~finite][0]]
            raise UserError(f"{wrong.where()} has descriptors that are NaN or infinite; take it out, or use float64.")
        for element in np.unique(number):
            of_structures, values = found.setdefault(int(element), ([], []))
            of_structures.append(structure[number == element] + n_before)
            values.append(means[number == element])
        n_before += len(batch)
    rows = {}
    for element in sorted(found):
        of_structures, values = found.pop(element)  # so that the parts go as the whole comes
        rows[element] = ElementRows(np.concatenate(of_structures), np.concatenate(values))
    return rows


def _batches(structures: Iterable[Configuration]) -> Iterator[list[Configuration]]:
    """Group structures in their order, each group with a limited number of atoms."""
    batch: list[Configuration] = []
    n_atoms = 0
    for structure in structures:
        if batch and n_atoms + structure.n_atoms > _MOST_ATOMS:
            yield batch
            batch, n_atoms = [], 0
        batch.append(structure)
        n_atoms += structure.n_atoms
    if batch:
        yield batch


def _means(potential: Potential, batch: list[Configuration]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average descriptors over the atoms of each element of each structure.

    Returns:
        The place of the structure in the batch and the atomic number, ``[rows]``, in increasing order, and the means in
        float32, ``[rows, features]``.
    """
    for structure in batch:
        potential.check_elements(structure, structure.where())
    # the layers are the same for all heads
    head = potential.models[0].plan.head_names[0]
    of_head = [replace(structure, head=head) for structure in batch]
    (prediction,) = potential.evaluate(of_head, forces=False, features=True)
    of_atoms = descriptors(prediction).cpu().double()
    place = np.repeat(np.arange(len(batch)), [structure.n_atoms for structure in batch])
    number = np.concatenate([structure.atomic_numbers for structure in batch])
    groups, group_of_atom, counts = np.unique(
        place * (LARGEST_ATOMIC_NUMBER + 1) + number, return_inverse=True, return_counts=True
    )
    sums = torch.zeros(len(groups), of_atoms.shape[1], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(group_of_atom), of_atoms)
    means = (sums / torch.from_numpy(counts).unsqueeze(1)).numpy().astype(np.float32)
    return *np.divmod(groups, LARGEST_ATOMIC_NUMBER + 1), means
