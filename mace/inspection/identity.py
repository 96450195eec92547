"""Which structures are the same one, in a file and across sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from mace.inspection.findings import Finding
from mace.inspection.flat import FlatFile

RESOLUTION = 1.0e-5
"""Angstrom; coordinates that differ by less are the same, whatever number of digits was written."""

_SAME_ENERGY = 1.0e-4
_SHOWN_PAIRS = 3


def fingerprints(file: FlatFile) -> np.ndarray:
    """Number structures so that those with the same atoms at the same places in the same cell have the same number.

    Conditions belong to the atoms: a molecule and its ion are two.
    The order of the atoms makes no difference: hashes of atoms are added up. Cells count along repeating directions
    only.

    Returns:
        ``[structures]``, uint64.
    """
    atoms = np.column_stack([file.numbers, _rounded(file.positions), _rounded(file.conditions)])
    cells = np.where(file.pbc[:, :, None], _rounded(file.cells), 0).reshape(-1, 9)
    marks = np.zeros(len(file), dtype=np.uint64)
    np.add.at(marks, file.structure_of_atom, _mix(atoms))  # sums wrap around, as they may
    return marks + _mix(np.column_stack([cells, file.pbc, file.n_atoms]))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values / RESOLUTION).astype(np.int64)


def _mix(rows: np.ndarray) -> np.ndarray:
    """Hash rows of integers, by the finalizer of splitmix64 after every column."""
    state = np.full(len(rows), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in rows.T:
        state = state + column.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


_SPLIT = "; validation structures are set aside at random, so copies may be trained on and validated with"


def check_duplicates(file: FlatFile, is_split: bool = False) -> Iterator[Finding]:
    """Find identical structures of one file, and among them those with different energies.

    Args:
        file: The structures.
        is_split: Whether validation structures will be set aside from it.
    """
    marks = fingerprints(file)
    by_mark = np.argsort(marks, kind="stable")
    borders = np.flatnonzero(np.diff(marks[by_mark])) + 1
    groups = [group for group in np.split(by_mark, borders) if len(group) > 1]
    groups.sort(key=lambda group: int(group[0]))
    if not groups:
        return
    extra = np.concatenate([group[1:] for group in groups])
    positions = [[file.positions[file.atoms_of(place)] for place in group.tolist()] for group in groups]
    same_order = sum(
        all(np.allclose(one, first, rtol=0.0, atol=2 * RESOLUTION) for one in others) for first, *others in positions
    )
    shown = ", ".join(" = ".join(str(i) for i in file.index[group][:4]) for group in groups[:_SHOWN_PAIRS])
    order = "" if same_order == len(groups) else f"; in {len(groups) - same_order} groups atoms are in another order"
    text = (
        f"repeat{'s' if len(extra) == 1 else ''} an earlier structure of the file ({shown}"
        f"{', ...' if len(groups) > _SHOWN_PAIRS else ''}{order}){_SPLIT if is_split else ''}"
    )
    yield file.found("duplicates", text, np.sort(extra))
    spread = [np.ptp(file.energies[group]) if np.isfinite(file.energies[group]).all() else 0.0 for group in groups]
    different = [group for group, size in zip(groups, spread, strict=True) if size > _SAME_ENERGY]
    if different:
        text = f"are identical in groups, but their energies differ by up to {max(spread):.4g} eV"
        yield file.found("contradicting-duplicates", text, np.concatenate(different))


def check_leakage(files: Sequence[FlatFile], is_split: bool = False) -> Iterator[Finding]:
    """Find structures that occur in two sets of different roles, or in two training files.

    Args:
        files: Of all sets.
        is_split: Whether validation structures will be set aside from the training files.
    """
    marks = [fingerprints(file) for file in files]
    for one, other in combinations(range(len(files)), 2):
        first, second = files[one], files[other]
        if first.role == second.role != "training":
            continue
        shared = np.isin(marks[other], marks[one])
        if not shared.any():
            continue
        place = int(np.flatnonzero(shared)[0])
        twin = int(np.flatnonzero(marks[one] == marks[other][place])[0])
        name = "duplicates" if first.role == second.role else "leakage"
        text = (
            f"of the {second.role} set {'is' if shared.sum() == 1 else 'are'} in the {first.role} file {first.file} "
            f"too (structure {second.index[place]} is structure {first.index[twin]} there)"
            f"{_SPLIT if is_split and name == 'duplicates' else ''}"
        )
        yield second.found(name, text, shared)
