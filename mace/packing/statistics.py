"""Numbers of a training set in the file ``statistics.json`` of mace-torch, which spare a run computing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mace.elements import ElementTable
from mace.packing.part import BONDED, COUNTED_PAIRS
from mace.structures.collection import StructureCollection
from mace.structures.configuration import Configuration
from mace.structures.prepared import StoredStructures
from mace.structures.reference_energies import resolve_reference_energies
from mace.structures.statistics import choose_scaling, summarize


def statistics_of(
    train: StructureCollection,
    isolated_atoms: Sequence[Configuration],
    E0s: str | Mapping[Any, float] | None,
    elements: ElementTable,
    average_neighbors: float,
    r_max: float,
    foundation: Mapping[int, float] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Compute the statistics of a training set.

    Args:
        train: The structures that are trained on.
        isolated_atoms: Isolated atoms of their files.
        E0s: Where the reference energies come from, see `resolve_reference_energies`.
        elements: The elements of the model.
        average_neighbors: See `average_neighbors`.
        r_max: Cutoff in Angstrom.
        foundation: Reference energies of the model that is fine-tuned, if one is, eV by atomic number.

    Returns:
        The entries of the file, and warnings.

    Raises:
        UserError: If an element has no reference energy.
    """
    references = resolve_reference_energies(E0s, isolated_atoms, train, elements, foundation)
    energies = {number: float(references.energies[number]) for number in elements}
    scaling = choose_scaling(summarize(train, energies), "rms_forces_scaling")
    entries = {
        "atomic_energies": str(energies),
        "avg_num_neighbors": average_neighbors,
        "mean": float(scaling.shift),
        "std": float(scaling.scale),
        "atomic_numbers": str(list(elements.atomic_numbers)),
        "r_max": r_max,
    }
    return entries, [*references.warnings, *scaling.warnings]


def average_neighbors(stored: StoredStructures, places: np.ndarray) -> float:
    """Return the mean number of neighbors of the atoms that have any; 1 if none has.

    Args:
        stored: A set whose neighbors have been searched.
        places: The structures that count.
    """
    n_pairs = stored.kept("n_pairs") if stored.manifest.pairs is not None else stored.kept(COUNTED_PAIRS)
    bonded = int(stored.kept(BONDED)[places].sum(dtype=np.int64))
    return 2 * int(n_pairs[places].sum(dtype=np.int64)) / bonded if bonded else 1.0
