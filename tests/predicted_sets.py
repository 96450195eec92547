"""Sets of structures with made predictions, as a model would give them batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mace.graphs.batch_plan import consecutive
from mace.reporting.predictions import PredictedSet, frequent_types
from mace.reporting.set_errors import Compared, SetErrors
from mace.structures.collection import ListedStructures
from mace.structures.configuration import Configuration

EnergiesOfHeads = Mapping[str, Mapping[int, float]]


class Made:
    """A stand-in for a data set, with what reports ask of one."""

    def __init__(self, structures: Sequence[Configuration]) -> None:
        self.structures = ListedStructures(structures)

    def __getitem__(self, place: int) -> Configuration:
        return self.structures[place]


def batch_of(places: np.ndarray, n_atoms: np.ndarray, element: np.ndarray, head: int = 0) -> Any:
    """A stand-in for a batch, with what the errors of a set need of one."""
    graph = SimpleNamespace(element=torch.from_numpy(element), head=torch.full((len(places),), head, dtype=torch.int64))
    return SimpleNamespace(
        structures=places, graph=graph, targets=SimpleNamespace(atoms_per_structure=torch.from_numpy(n_atoms))
    )


def errors_of(
    structures: Sequence[Configuration],
    compared: Mapping[str, Compared],
    energies: EnergiesOfHeads,
    batch_size: int = 7,
    places: np.ndarray | None = None,
    most_types: int = 100,
) -> SetErrors:
    """Add up the errors of all or some structures in batches; the rows of each are in order."""
    elements = sorted({z for of_head in energies.values() for z in of_head})
    table = np.array([[of_head[z] for z in elements] for of_head in energies.values()])
    types = frequent_types(ListedStructures(structures).config_types, most_types)
    found = SetErrors(types.names, elements, table)
    first = {name: np.searchsorted(c.structure, np.arange(len(structures) + 1)) for name, c in compared.items()}
    places = np.arange(len(structures)) if places is None else places
    for chosen in consecutive(places, batch_size):
        rows = {}
        for name, one in compared.items():
            row = np.concatenate([np.arange(first[name][s], first[name][s + 1]) for s in chosen.tolist()])
            atom = None if one.atom is None else one.atom[row]
            if len(row):
                rows[name] = Compared(one.reference[row], one.prediction[row], one.structure[row], atom)
        numbers = np.concatenate([structures[s].atomic_numbers for s in chosen.tolist()])
        sizes = np.array([structures[s].n_atoms for s in chosen.tolist()])
        head = [*energies].index(structures[0].head)
        found.add(batch_of(chosen, sizes, np.searchsorted(elements, numbers), head), types.codes[chosen], rows)
    found.settle()
    return found


def predicted(
    name: str,
    role: str,
    structures: Sequence[Configuration],
    compared: Mapping[str, Compared],
    energies: EnergiesOfHeads,
) -> PredictedSet:
    """Make a set of what was compared."""
    return PredictedSet(name, role, Made(structures), errors_of(structures, compared, energies))  # type: ignore[arg-type]
