"""What checks see in consecutive structures, a part of a set; parts add up to a set of any size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.files.documents import from_document, to_document
from mace.inspection.distortions import compare_distorted
from mace.inspection.distributions import together
from mace.inspection.findings import Evidence, merge_evidence
from mace.inspection.flat import FlatFile, flatten
from mace.inspection.geometry import (
    check_close_atoms,
    check_distances,
    check_unmarked_isolated_atoms,
    farthest_neighbors,
    nearest_neighbors,
)
from mace.inspection.groups import MOST_DRAWN, GroupTally, gather_groups, tally_groups, tally_structures
from mace.inspection.identity import identities
from mace.inspection.labels import (
    check_coverage,
    check_large_forces,
    check_large_stress,
    check_net_forces,
    check_zeroed_forces,
)
from mace.inspection.placeholders import check_placeholders
from mace.inspection.stresses import check_stress, check_virials
from mace.inspection.trajectories import check_forces_against_energies
from mace.properties import PROPERTIES
from mace.structures.collection import ListedStructures, StructureCollection
from mace.structures.configuration import Configuration

FORMAT = 1
"""Of documents; raised when they cannot be read as before."""

MOST_STRUCTURES, MOST_ATOMS = 10_000, 500_000
"""Of a part into which a set is divided to inspect it."""

COLUMNS: dict[str, type[np.generic]] = {"identity": np.uint64, "reach": np.float32, "thinnest": np.float32}
"""What is kept of every structure: what tells it from others (`identities`), how far the atom that is the most alone is
from its nearest neighbor (`farthest_neighbors`), and the smallest distance between faces of the cell, both in Angstrom;
infinite where there is none."""


def empty_columns(count: int) -> dict[str, np.ndarray]:
    """Make room for `COLUMNS` of some structures."""
    return {name: np.zeros(count, kind) for name, kind in COLUMNS.items()}


@dataclass(frozen=True)
class FileSummary:
    """Structures of one file, in one part or several that were added up.

    Attributes:
        file: As the user named it.
        frames: Structures without isolated atoms.
        parts: Into how many parts they were divided.
        evidence: What checks saw.
        whole: All structures; None if there are none.
        groups: The same by head and config_type.
        isolated: Isolated atoms; None if there are none.
    """

    file: str
    frames: int = 0
    parts: int = 0
    evidence: tuple[Evidence, ...] = ()
    whole: GroupTally | None = None
    groups: tuple[GroupTally, ...] = ()
    isolated: GroupTally | None = None

    def with_later(self, later: FileSummary) -> FileSummary:
        """Add later structures of the same file."""
        groups = gather_groups([*self.groups, *later.groups])
        if self.parts and later.parts:
            drawn = (group.without_histograms() for group in groups[MOST_DRAWN:])
            groups = (*groups[:MOST_DRAWN], *drawn)
        return FileSummary(
            self.file,
            self.frames + later.frames,
            self.parts + later.parts,
            merge_evidence([self.evidence, later.evidence]),
            together(self.whole, later.whole),
            groups,
            together(self.isolated, later.isolated),
        )


@dataclass(frozen=True)
class PartReport:
    """What was seen in consecutive structures.

    Attributes:
        files: One entry for each file.
        columns: Numbers of each structure, in their order, ``[structures]``; see `COLUMNS`.
    """

    files: tuple[FileSummary, ...] = ()
    columns: Mapping[str, np.ndarray] = field(default_factory=lambda: empty_columns(0))

    def of(self, file: str) -> FileSummary:
        """What was seen in a file; nothing if it is not named."""
        return next((part for part in self.files if part.file == file), FileSummary(file))

    def as_document(self) -> dict[str, Any]:
        """Turn all but the columns into what JSON can hold; its size does not grow with the number of structures."""
        return {"format": FORMAT, "files": to_document(self.files)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> PartReport:
        """Build the same from a document.

        Args:
            document: What `as_document` gave.
            columns: Those of `COLUMNS`, ``[structures]``; others are left out.

        Raises:
            UserError: If another version wrote it.
        """
        if document.get("format") != FORMAT:
            raise UserError(
                f"The stored report on the data has the format {document.get('format')}, and this version reads "
                f"{FORMAT}; prepare the data again."
            )
        files = from_document(tuple[FileSummary, ...], document["files"])
        return cls(files, {name: np.asarray(columns[name], kind) for name, kind in COLUMNS.items()})


def inspect_part(
    structures: StructureCollection | Sequence[Configuration],
    isolated_atoms: Sequence[Configuration] = (),
    labeled: Collection[str] = tuple(PROPERTIES),
    constrained: Mapping[str, Sequence[int]] | None = None,
) -> PartReport:
    """Look at consecutive structures with all checks that need no others; nothing depends on what they are used for.

    Args:
        structures: The structures, of one head or of several.
        isolated_atoms: Isolated atoms, which are only counted and described.
        labeled: Labels that the files hold; what was converted from another label is checked with that one.
        constrained: By file, the places of structures with constraints such as fixed atoms.
    """
    if not isinstance(structures, StructureCollection):
        structures = ListedStructures(structures)
    columns = empty_columns(len(structures))
    reports = []
    for name in structures.files.present() if len(structures) else ():
        places = np.flatnonzero(structures.files.where(name))
        of_file = structures if len(places) == len(structures) else structures.take(places)
        flat = flatten(name, of_file)
        report, of_each = _inspect_file(flat, labeled, np.array((constrained or {}).get(name, ()), dtype=np.int64))
        reports.append(PartReport((report,), {}))
        for column, values in of_each.items():
            columns[column][places] = values
    isolated = ListedStructures(isolated_atoms)
    for name in isolated.files.present() if isolated_atoms else ():
        flat = flatten(name, isolated.take(np.flatnonzero(isolated.files.where(name))))
        group = tally_structures(flat, np.arange(len(flat)), flat.heads[0], flat.config_types[0])
        reports.append(PartReport((FileSummary(name, isolated=replace(group, forces=None, stresses=None)),), {}))
    return replace(merge_parts(reports), columns=columns)


def merge_parts(parts: Iterable[PartReport]) -> PartReport:
    """Add up parts that follow each other."""
    files: dict[str, FileSummary] = {}
    columns = {name: [values] for name, values in empty_columns(0).items()}
    for part in parts:
        for file in part.files:
            files[file.file] = files[file.file].with_later(file) if file.file in files else file
        for name, values in part.columns.items():
            columns[name].append(values)
    return PartReport(tuple(files.values()), {name: np.concatenate(values) for name, values in columns.items()})


def divide(structures: StructureCollection) -> Iterator[np.ndarray]:
    """Divide structures into consecutive ones of the same file, of bounded size and as even as can be."""
    if not len(structures):
        return
    files, n_atoms = structures.files, structures.n_atoms
    for name in files.present():
        places = np.flatnonzero(files.where(name))
        count = max(-(-len(places) // MOST_STRUCTURES), -(-int(n_atoms[places].sum()) // MOST_ATOMS))
        yield from np.array_split(places, min(count, len(places)))


def _inspect_file(
    file: FlatFile, labeled: Collection[str], constrained: np.ndarray
) -> tuple[FileSummary, dict[str, np.ndarray]]:
    """Run all checks of structures of one file."""
    nearest = nearest_neighbors(file)

    def check_consistency(file: FlatFile) -> Iterator[Evidence]:
        """Compare energies, forces and stress with each other."""
        distorted_forces, distorted_stress = compare_distorted(file)
        of_forces = list(check_forces_against_energies(file, distorted_forces))
        yield from of_forces
        yield from check_stress(file, distorted_stress, trust_forces=not of_forces)

    checks: list[Callable[[FlatFile], Iterator[Evidence]]] = [
        lambda flat: check_close_atoms(flat, nearest),
        check_consistency,
        check_virials,
        check_large_stress,
        check_large_forces,
        lambda flat: check_placeholders(flat, labeled),
        check_net_forces,
        lambda flat: check_zeroed_forces(flat, constrained),
        check_distances,
        check_unmarked_isolated_atoms,
        check_coverage,
    ]
    evidence = [seen for check in checks for seen in check(file)]
    heads = ", ".join(sorted(file.heads.present()))
    whole = tally_structures(file, np.arange(len(file)), heads, "all")
    columns = {
        "identity": identities(file.flat),
        "reach": farthest_neighbors(file, nearest),
        "thinnest": file.heights.min(axis=1).astype(np.float32),
    }
    return FileSummary(file.file, len(file), 1, tuple(evidence), whole, tally_groups(file)), columns
