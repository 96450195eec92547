"""What a file holds, by head and config_type: counts, elements, coverage, ranges and histograms of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mace.elements import chemical_symbol
from mace.inspection.flat import FlatFile
from mace.properties import PROPERTIES
from mace.structures.statistics import interaction_energies_per_atom

BINS = 40


@dataclass(frozen=True)
class Distribution:
    """Numbers of one kind.

    Attributes:
        count: How many.
        smallest: The smallest one.
        mean: The mean.
        rms: Root of the mean square.
        largest: The largest one.
        edges: Edges of the histogram, ``BINS + 1`` rising numbers.
        counts: How many numbers lie in each bin, ``BINS``.
    """

    count: int
    smallest: float
    mean: float
    rms: float
    largest: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]


def distribution(values: np.ndarray) -> Distribution | None:
    """Describe numbers; those that are NaN do not count, and without any there is nothing to describe."""
    values = np.ravel(values)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high), 1.0)
    margin = 1.0e-6 * size if high - low < 1.0e-9 * size else 0.0  # equal numbers need some width to be drawn
    counts, edges = np.histogram(values, bins=BINS, range=(low - margin, high + margin))
    return Distribution(
        count=len(values),
        smallest=low,
        mean=float(values.mean()),
        rms=float(np.sqrt(np.mean(values * values))),
        largest=high,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


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


def interaction_energies(file: FlatFile, reference_energies: Mapping[int, float] | None) -> np.ndarray:
    """Energies per atom with the reference energies subtracted, NaN where one is missing.

    Args:
        file: The structures.
        reference_energies: E0 in eV by atomic number; None gives NaN everywhere.

    Returns:
        eV per atom, ``[structures]``.
    """
    energies = np.full(len(file), np.nan)
    labeled = [configuration.energy is not None for configuration in file.configurations]
    known = dict.fromkeys(np.unique(file.numbers).tolist(), np.nan) | dict(reference_energies or {})
    energies[labeled] = interaction_energies_per_atom(file.configurations, known)
    return energies


def group_file(file: FlatFile, energies: np.ndarray) -> tuple[Group, tuple[Group, ...]]:
    """Describe a file as a whole and by head and config_type, in the order in which these occur.

    Args:
        file: The structures.
        energies: eV per atom with the reference energies subtracted, ``[structures]``.
    """
    members: dict[tuple[str, str], list[int]] = {}
    for place, configuration in enumerate(file.configurations):
        members.setdefault((configuration.head, configuration.config_type), []).append(place)
    heads = sorted({head for head, _ in members})
    whole = _describe(file, energies, np.arange(len(file)), ", ".join(heads), "all")
    groups = [_describe(file, energies, np.array(places), *key) for key, places in members.items()]
    return whole, tuple(groups)


def group_isolated(file: FlatFile) -> Group | None:
    """Describe the isolated atoms of a file, which are in no other group and whose labels are not shown."""
    if not len(file):
        return None
    first = file.configurations[0]
    whole = _describe(file, np.zeros(len(file)), np.arange(len(file)), first.head, first.config_type)
    return replace(whole, energies=None, forces=None, stresses=None)


def _describe(file: FlatFile, energies: np.ndarray, places: np.ndarray, head: str, config_type: str) -> Group:
    chosen = np.zeros(len(file), dtype=bool)
    chosen[places] = True
    atoms = chosen[file.structure_of_atom]
    n_atoms = file.n_atoms[places]
    configurations = [file.configurations[place] for place in places.tolist()]
    return Group(
        head=head,
        config_type=config_type,
        frames=len(places),
        atoms=int(n_atoms.sum()),
        smallest=int(n_atoms.min(initial=n_atoms.max(initial=0))),
        largest=int(n_atoms.max(initial=0)),
        elements=tuple(chemical_symbol(int(number)) for number in np.unique(file.numbers[atoms])),
        periodic=int(file.pbc[places].any(axis=1).sum()),
        labeled={name: sum(getattr(c, name) is not None for c in configurations) for name in PROPERTIES},
        energies=distribution(energies[places]),
        forces=distribution(np.linalg.norm(file.forces[atoms], axis=1)),
        stresses=distribution(np.trace(file.stresses[places], axis1=1, axis2=2) / 3.0),
    )
