"""The structures with the largest errors, with all that is needed to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mace.properties import PREDICTED
from mace.reporting.predictions import PredictedSet
from mace.reporting.set_errors import MOST_ATOMS, MOST_WORST
from mace.structures.configuration import Configuration

MOST_LISTED = 400
"""Structures of all lists by one property, which are shorter where there are many."""


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


def worst_structures(sets: Sequence[PredictedSet]) -> dict[str, list[Suspect]]:
    """Find the structures with the largest errors.

    Args:
        sets: The sets.

    Returns:
        By property, up to `MOST_WORST` structures of each role and head, the worst first.
    """
    lists: dict[str, list[Suspect]] = {}
    known: dict[tuple[int, int], Suspect] = {}
    kinds: dict[tuple[str, str], list[int]] = {}
    for place, one in enumerate(sets):
        kinds.setdefault((one.role, one.head), []).append(place)
    count = min(MOST_WORST, max(1, MOST_LISTED // max(len(kinds), 1)))
    for name in (name for name in PREDICTED if any(name in one.errors.worst for one in sets)):
        for places in kinds.values():
            entries = [(size, place, s) for place in places for size, s in sets[place].errors.worst.get(name, [])]
            for _, place, structure in sorted(entries, reverse=True)[:count]:
                if (place, structure) not in known:
                    known[place, structure] = _suspect(sets[place], structure)
                lists.setdefault(name, []).append(known[place, structure])
        lists[name] = sorted(lists[name], key=lambda suspect: -abs(suspect.errors[name]))
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


def _suspect(one: PredictedSet, structure: int) -> Suspect:
    found = one.errors.of_structures[structure]
    return Suspect(one.dataset[structure], one.name, one.role, one.head, found.errors, found.force_errors)
