"""The structures with the largest errors, with all that is needed to look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mace.properties import PROPERTIES
from mace.reporting.predictions import EnergiesOfHeads, PredictedSet, per_atom_values
from mace.structures.configuration import Configuration

COUNT, MOST_LISTED = 20, 400
"""Structures of each list, and of all lists by one property, which are shorter where there are many."""

MOST_ATOMS = 20_000
"""Atoms of all structures that can be looked at; of what is beyond, only numbers are shown."""


@dataclass
class Suspect:
    """A structure with a large error.

    Attributes:
        configuration: The structure.
        set: Name of its set.
        role: ``train``, ``valid`` or ``test``.
        head: The head it is for.
        errors: Energy: error per atom; forces: length of the largest error of an atom; others: root mean square. In the
            units of labels.
        force_errors: Error of the force on each atom, ``[atoms, 3]``, NaN where there is no label; None without labels.
        drawn: Whether there is room to draw it.
    """

    configuration: Configuration
    set: str
    role: str
    head: str
    errors: dict[str, float] = field(default_factory=dict)
    force_errors: np.ndarray | None = None
    drawn: bool = False


def worst_structures(sets: Sequence[PredictedSet], reference_energies: EnergiesOfHeads) -> dict[str, list[Suspect]]:
    """Find the structures with the largest errors.

    Args:
        sets: The sets.
        reference_energies: E0 in eV by head and atomic number.

    Returns:
        By property, up to `COUNT` structures of each role and head, the worst first.
    """
    scores = [{name: _scores(name, one, reference_energies) for name in one.compared} for one in sets]
    lists: dict[str, list[Suspect]] = {}
    known: dict[tuple[int, int], Suspect] = {}
    for name in dict.fromkeys(name for found in scores for name in found if not PROPERTIES[name].derived):
        kinds = dict.fromkeys((one.role, one.head) for one in sets)
        count = min(COUNT, max(1, MOST_LISTED // len(kinds)))
        for kind in kinds:
            places = [p for p, one in enumerate(sets) if (one.role, one.head) == kind and name in scores[p]]
            entries = [(abs(score), place, s) for place in places for s, score in scores[place][name].items()]
            for _, place, structure in sorted(entries, reverse=True)[:count]:
                if (place, structure) not in known:
                    known[place, structure] = _suspect(sets[place], structure, scores[place])
                lists.setdefault(name, []).append(known[place, structure])
        lists[name] = sorted(lists.get(name, []), key=lambda suspect: -abs(suspect.errors[name]))
    # the worst of every list are drawn first, until there is no room
    room = MOST_ATOMS
    by_rank = [
        found[rank]
        for rank in range(max(map(len, lists.values()), default=0))
        for found in lists.values()
        if rank < len(found)
    ]
    for suspect in by_rank:
        if not suspect.drawn and suspect.configuration.n_atoms <= room:
            suspect.drawn = True
            room -= suspect.configuration.n_atoms
    return lists


def _scores(name: str, one: PredictedSet, reference_energies: EnergiesOfHeads) -> dict[int, float]:
    """Give each structure of a set that has the label one number."""
    compared = one.compared[name]
    _, error = per_atom_values(name, one, reference_energies)
    if name == "energy":
        numbers = error
    elif name == "forces":
        lengths = np.linalg.norm(error, axis=1)
        numbers = np.zeros(len(one.configurations))
        np.maximum.at(numbers, compared.structure, lengths)
        present = np.unique(compared.structure)
        return dict(zip(present.tolist(), numbers[present].tolist(), strict=True))
    else:
        numbers = np.sqrt(np.mean(np.square(error.reshape(len(error), -1)), axis=1))
    return dict(zip(compared.structure.tolist(), numbers.tolist(), strict=True))


def _suspect(one: PredictedSet, structure: int, scores: Mapping[str, dict[int, float]]) -> Suspect:
    configuration, forces, force_errors = one.configurations[structure], one.compared.get("forces"), None
    errors = {name: found[structure] for name, found in scores.items() if structure in found}
    rows = np.flatnonzero(forces.structure == structure) if forces is not None else np.zeros(0)
    if forces is not None and forces.atom is not None and len(rows):
        force_errors = np.full((configuration.n_atoms, 3), np.nan)
        force_errors[forces.atom[rows]] = forces.prediction[rows] - forces.reference[rows]
    return Suspect(configuration, one.name, one.role, one.head, errors, force_errors)
