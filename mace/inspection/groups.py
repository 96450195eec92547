"""What a file holds, by head and config_type: counts, elements, coverage, ranges and histograms of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mace.elements import chemical_symbol
from mace.inspection.distributions import Distribution, Tally, tally, together
from mace.inspection.flat import FlatFile
from mace.properties import PROPERTIES
from mace.structures.collection import StructureCollection
from mace.structures.flat import ragged_rows

MOST_GROUPS = 1000
"""Of a file; structures of further types are described together."""

MOST_DRAWN = 100
"""Groups of several parts whose histograms are kept."""

OTHER_TYPES = "other types"


@dataclass(frozen=True)
class Group:
    """Structures of one file, head and config_type, or of a whole file.

    Attributes:
        head: Their head.
        config_type: Their type.
        frames: Structures.
        atoms: Atoms in all of them.
        smallest: Atoms of the smallest structure.
        largest: Atoms of the largest structure.
        elements: Symbols, by atomic number.
        periodic: Structures that repeat in at least one direction.
        labeled: Structures with each of `PROPERTIES`.
        energies: eV per atom, E0s subtracted.
        forces: Norms, eV/Angstrom.
        stresses: Hydrostatic part, a third of the trace, eV/Angstrom^3.
    """

    head: str
    config_type: str
    frames: int
    atoms: int
    smallest: int
    largest: int
    elements: tuple[str, ...]
    periodic: int
    labeled: Mapping[str, int]
    energies: Distribution | None
    forces: Distribution | None
    stresses: Distribution | None


@dataclass(frozen=True)
class GroupTally:
    """A group to which structures can be added; see `Group`.

    Attributes:
        head: Their head.
        config_type: Their type.
        frames: Structures.
        atoms: Atoms in all of them.
        smallest: Atoms of the smallest structure.
        largest: Atoms of the largest structure.
        elements: Atomic numbers, rising.
        periodic: Structures that repeat in at least one direction.
        labeled: Structures with each of `PROPERTIES`.
        forces: Norms, eV/Angstrom.
        stresses: Hydrostatic part, eV/Angstrom^3.
    """

    head: str
    config_type: str
    frames: int
    atoms: int
    smallest: int
    largest: int
    elements: tuple[int, ...]
    periodic: int
    labeled: Mapping[str, int]
    forces: Tally | None
    stresses: Tally | None

    def with_later(self, later: GroupTally) -> GroupTally:
        """Add the structures of another part."""
        return GroupTally(
            head=self.head,
            config_type=self.config_type,
            frames=self.frames + later.frames,
            atoms=self.atoms + later.atoms,
            smallest=min(self.smallest, later.smallest),
            largest=max(self.largest, later.largest),
            elements=tuple(sorted({*self.elements, *later.elements})),
            periodic=self.periodic + later.periodic,
            labeled={name: count + later.labeled[name] for name, count in self.labeled.items()},
            forces=together(self.forces, later.forces),
            stresses=together(self.stresses, later.stresses),
        )

    def without_histograms(self) -> GroupTally:
        """Leave histograms out."""
        forces, stresses = (None if one is None else one.without_histogram() for one in (self.forces, self.stresses))
        return replace(self, forces=forces, stresses=stresses)

    def group(self, energies: Distribution | None) -> Group:
        """Describe the structures, with the energies of all of them."""
        return Group(
            **{
                **vars(self),
                "elements": tuple(map(chemical_symbol, self.elements)),
                "energies": energies,
                "forces": None if self.forces is None else self.forces.distribution(),
                "stresses": None if self.stresses is None else self.stresses.distribution(),
            }
        )


NO_STRUCTURES = GroupTally("", "all", 0, 0, 0, 0, (), 0, dict.fromkeys(PROPERTIES, 0), None, None)


def tally_groups(file: FlatFile) -> tuple[GroupTally, ...]:
    """Describe structures by head and config_type, in the order in which these occur."""
    codes = file.heads.codes.astype(np.int64) * len(file.config_types.names) + file.config_types.codes
    first, inverse = np.unique(codes, return_index=True, return_inverse=True)[1:]
    order = np.argsort(inverse, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    groups = [
        tally_structures(file, members[place], file.heads[int(first[place])], file.config_types[int(first[place])])
        for place in np.argsort(first).tolist()
    ]
    return gather_groups(groups)


def tally_structures(file: FlatFile, places: np.ndarray, head: str, config_type: str) -> GroupTally:
    """Describe some structures of a file together."""
    n_atoms = file.n_atoms[places]
    if len(places) == len(file):
        atoms = np.arange(len(file.numbers))
    else:
        atoms = ragged_rows(file.first[places], n_atoms)
    return GroupTally(
        head=head,
        config_type=config_type,
        frames=len(places),
        atoms=int(n_atoms.sum()),
        smallest=int(n_atoms.min()),
        largest=int(n_atoms.max()),
        elements=tuple(np.flatnonzero(np.bincount(file.numbers[atoms])).tolist()),
        periodic=int(file.pbc[places].any(axis=1).sum()),
        labeled={name: int(file.flat.labeled(name)[places].sum()) for name in PROPERTIES},
        forces=tally(np.linalg.norm(file.forces[atoms], axis=1)),
        stresses=tally(np.trace(file.stresses[places], axis1=1, axis2=2) / 3.0),
    )


def gather_groups(groups: Iterable[GroupTally]) -> tuple[GroupTally, ...]:
    """Add up groups of the same head and type, in the order in which these come first."""
    gathered: dict[tuple[str, str], GroupTally] = {}
    for group in groups:
        key = (group.head, group.config_type)
        if key not in gathered and len(gathered) >= MOST_GROUPS:
            key = (group.head, OTHER_TYPES)
            group = replace(group, config_type=OTHER_TYPES)
        gathered[key] = gathered[key].with_later(group) if key in gathered else group
    return tuple(gathered.values())


def places_of_groups(structures: StructureCollection, groups: Sequence[GroupTally]) -> list[np.ndarray]:
    """Find which structures belong to each of the groups they were divided into."""
    heads, types = structures.heads, structures.config_types
    codes = heads.codes.astype(np.int64) * len(types.names) + types.codes
    order = np.argsort(codes, kind="stable")
    place_of = {(group.head, group.config_type): place for place, group in enumerate(groups)}
    places: list[list[np.ndarray]] = [[] for _ in groups]
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(codes) else []:
        head, config_type = heads[int(members[0])], types[int(members[0])]
        found = place_of.get((head, config_type), place_of.get((head, OTHER_TYPES)))
        if found is not None:
            places[found].append(members)
    return [np.sort(np.concatenate(each)) if each else np.zeros(0, dtype=np.int64) for each in places]
