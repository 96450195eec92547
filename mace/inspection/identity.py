"""Which structures are the same one, in a file and across sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mace.inspection.findings import Finding, found
from mace.inspection.flat import mixed
from mace.structures.collection import StructureCollection
from mace.structures.flat import FlatStructures

RESOLUTION = 1.0e-5
"""Angstrom; coordinates that differ by less are the same, whatever number of digits was written."""

_SAME_ENERGY = 1.0e-4
_SHOWN_GROUPS = 3
_MOST_READ = 1000
"""Groups of identical structures that are read again, to compare the order of their atoms."""


def identities(structures: FlatStructures) -> np.ndarray:
    """Number structures so that those with the same atoms at the same places in the same cell have the same number.

    Conditions belong to the atoms: a molecule and its ion are two.
    The order of the atoms makes no difference: hashes of atoms are added up. Cells count along repeating directions
    only.

    Returns:
        The same on every machine, ``[structures]``, uint64.
    """
    pbc, n_atoms = structures.columns["pbc"], structures.n_atoms
    conditions = [_rounded(values) for values in structures.conditions().values()]
    positions = _rounded(structures.columns["positions"])
    atoms = mixed(structures.numbers, *positions.T, *(column for values in conditions for column in values.T))
    marks: np.ndarray = np.add.reduceat(atoms, np.cumsum(n_atoms) - n_atoms)  # sums wrap around, as they may
    cells = np.where(pbc[:, :, None], _rounded(structures.columns["cell"]), 0).reshape(-1, 9)
    return marks + mixed(*cells.T, *pbc.T.astype(np.int64), n_atoms)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values / RESOLUTION).astype(np.int64)


_SPLIT = "; validation structures are set aside at random, so copies may be trained on and validated with"


@dataclass(frozen=True)
class FileIdentities:
    """Which structures a file holds.

    Attributes:
        file: As the user named it.
        role: ``training``, ``validation`` or ``test``.
        structures: The structures.
        marks: What tells them apart, see `identities`, ``[structures]``.
        energies: eV, NaN where there is none, ``[structures]``.
    """

    file: str
    role: str
    structures: StructureCollection
    marks: np.ndarray
    energies: np.ndarray

    def found(self, name: str, text: str, chosen: np.ndarray) -> Finding:
        """Write a finding about some of the structures."""
        return found(name, self.file, text, self.structures.file_index[chosen], len(self.marks))


def check_duplicates(file: FileIdentities, is_split: bool = False) -> Iterator[Finding]:
    """Find identical structures of one file, and among them those with different energies.

    Args:
        file: The structures.
        is_split: Whether validation structures will be set aside from it.
    """
    by_mark = np.argsort(file.marks, kind="stable")
    starts = np.flatnonzero(np.diff(file.marks[by_mark], prepend=~file.marks[by_mark[:1]]))
    sizes = np.diff(starts, append=len(by_mark))
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    order = np.argsort(by_mark[starts])
    starts, sizes = starts[order], sizes[order]
    if not len(starts):
        return
    groups = [by_mark[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    extra = np.sort(np.concatenate([group[1:] for group in groups]))
    index = file.structures.file_index
    shown = ", ".join(" = ".join(str(i) for i in index[group[:4]]) for group in groups[:_SHOWN_GROUPS])
    n_others = sum(not _in_same_order(file.structures.take(group)) for group in groups[:_MOST_READ])
    where = f"{n_others} groups" if len(groups) <= _MOST_READ else f"{n_others} of the first {_MOST_READ} groups"
    order_text = f"; in {where} atoms are in another order" if n_others else ""
    text = (
        f"repeat an earlier structure of the file ({shown}"
        f"{', ...' if len(groups) > _SHOWN_GROUPS else ''}{order_text}){_SPLIT if is_split else ''}"
    )
    yield file.found("duplicates", text, extra)
    spans = np.array([np.ptp(file.energies[group]) for group in groups])  # NaN where an energy is missing
    if (spans > _SAME_ENERGY).any():
        text = f"are identical in groups, but their energies differ by up to {np.nanmax(spans):.4g} eV"
        different = [group for group, span in zip(groups, spans, strict=True) if span > _SAME_ENERGY]
        yield file.found("contradicting-duplicates", text, np.concatenate(different))


def _in_same_order(copies: StructureCollection) -> bool:
    """Return whether atoms are in the same order in structures that are identical otherwise."""
    positions = copies.flat(np.arange(len(copies))).columns["positions"].reshape(len(copies), -1, 3)
    return bool(np.allclose(positions, positions[0], rtol=0.0, atol=2 * RESOLUTION))


def _distinct(marks: np.ndarray) -> np.ndarray:
    """Return every number once, in rising order; faster than `np.unique` for so many bits."""
    ordered = np.sort(marks)
    return ordered[np.diff(ordered, prepend=~ordered[:1]) != 0]


def check_leakage(files: Sequence[FileIdentities], is_split: bool = False) -> Iterator[Finding]:
    """Find structures that occur in two sets of different roles, or in two training files.

    Args:
        files: Of all sets.
        is_split: Whether validation structures will be set aside from the training files.
    """
    if len(files) < 2:
        return
    distinct = [_distinct(file.marks) for file in files]
    all_of_them = np.sort(np.concatenate(distinct))
    repeated = _distinct(all_of_them[1:][all_of_them[1:] == all_of_them[:-1]])
    concerned = [place for place, marks in enumerate(distinct) if np.isin(marks, repeated).any()]
    for first, second in combinations([files[place] for place in concerned], 2):
        if first.role == second.role != "training":
            continue
        shared = np.isin(second.marks, first.marks)
        if not shared.any():
            continue
        place = int(np.flatnonzero(shared)[0])
        twin = int(np.flatnonzero(first.marks == second.marks[place])[0])
        name = "duplicates" if first.role == second.role else "leakage"
        text = (
            f"of the {second.role} set {'is' if shared.sum() == 1 else 'are'} in the {first.role} file {first.file} "
            f"too (structure {second.structures.file_index[place]} is structure {first.structures.file_index[twin]} "
            f"there){_SPLIT if is_split and name == 'duplicates' else ''}"
        )
        yield second.found(name, text, shared)
