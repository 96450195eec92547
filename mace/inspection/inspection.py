"""All checks on all files, in one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mace.elements import ElementTable
from mace.errors import UserError
from mace.inspection.distortions import compare_distorted
from mace.inspection.findings import KINDS, LEVELS, Finding, Level
from mace.inspection.flat import FlatFile, flatten
from mace.inspection.geometry import (
    check_close_atoms,
    check_distances,
    check_lone_atoms,
    check_thin_cells,
    check_unmarked_isolated_atoms,
)
from mace.inspection.groups import Group, group_file, group_isolated, interaction_energies
from mace.inspection.identity import check_duplicates, check_leakage
from mace.inspection.labels import (
    check_coverage,
    check_energy_outliers,
    check_file_labels,
    check_large_forces,
    check_large_stress,
    check_net_forces,
    check_zeroed_forces,
)
from mace.inspection.placeholders import check_placeholders
from mace.inspection.stresses import check_stress, check_virials
from mace.inspection.trajectories import check_forces_against_energies
from mace.structures.configuration import Configuration
from mace.structures.labels import FileLabels, require_labels
from mace.structures.reading import ReadResult
from mace.structures.reference_energies import ReferenceEnergies, resolve_reference_energies
from mace.structures.splitting import check_elements

Track = Callable[[Sequence["_Work"], str], Iterable["_Work"]]
"""Yields what it is given and shows how much is done, see `mace.console.progress.TrainingProgress.track`."""

_Work = tuple[FlatFile, Callable[[FlatFile], Iterator[Finding]]]


@dataclass(frozen=True)
class StructureSet:
    """Structures of one purpose.

    Attributes:
        role: ``training``, ``validation`` or ``test``.
        result: What was read from its files.
    """

    role: str
    result: ReadResult


@dataclass(frozen=True)
class Demands:
    """What a training asks of the data.

    Attributes:
        r_max: Cutoff in Angstrom.
        labels: Labels that the losses need.
        ways_out: How to ask for no label of a kind, in words, by its name.
        E0s: What was given as reference energies, see `resolve_reference_energies`.
        foundation_energies: Of the model that is fine-tuned, if one is, eV by atomic number.
        needs_E0s: Whether there must be some; a model that predicts no energy needs none.
        atomic_numbers: Elements the model is to know; None for those of the training set.
        has_other_heads: Whether the model has other heads; then E0s are needed for elements of the data only.
        allow: Names of findings that are let pass.
    """

    r_max: float
    labels: Sequence[str] = ("energy", "forces")
    ways_out: Mapping[str, str] = field(default_factory=dict)
    E0s: str | Mapping[Any, float] | None = None
    foundation_energies: Mapping[int, float] | None = None
    needs_E0s: bool = True
    atomic_numbers: Sequence[int] | None = None
    has_other_heads: bool = False
    allow: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FileReport:
    """What one file holds.

    Attributes:
        file: As the user named it.
        role: ``training``, ``validation`` or ``test``.
        labels: Where its labels were found.
        whole: All its structures but isolated atoms.
        groups: The same by head and config_type, isolated atoms last.
    """

    file: str
    role: str
    labels: FileLabels
    whole: Group
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class DataReport:
    """What all files hold, and everything that was found.

    Attributes:
        files: One entry per file.
        findings: The most serious first.
        r_max: Cutoff in Angstrom the data were inspected for.
        reference_energies: E0 in eV by atomic number; empty if there are none.
        reference_source: Where they come from.
    """

    files: tuple[FileReport, ...]
    findings: tuple[Finding, ...]
    r_max: float
    reference_energies: Mapping[int, float] = field(default_factory=dict)
    reference_source: str = ""

    def of_level(self, level: Level) -> tuple[Finding, ...]:
        """The findings of one level, those let pass included."""
        return tuple(finding for finding in self.findings if finding.level == level)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings because of which training refuses."""
        return tuple(finding for finding in self.findings if finding.stops)

    def refuse_errors(self) -> None:
        """Stop if there are errors that were not let pass.

        Raises:
            UserError: With the sentences of all of them, one per line.
        """
        if self.errors:
            raise UserError("\n".join(finding.sentence for finding in self.errors))


def inspect_sets(sets: Sequence[StructureSet], demands: Demands, track: Track | None = None) -> DataReport:
    """Inspect all structures of a training.

    Args:
        sets: The training set first.
        demands: What the training needs.
        track: Shows progress.

    Returns:
        The report; it never raises what it finds, see `DataReport.refuse_errors`.
    """
    training = sets[0].result
    references, findings = _reference_energies(training, demands)
    energies = references.energies if references is not None else None
    findings += _unmet_demands(sets, demands)
    is_split = all(part.role != "validation" for part in sets)
    files: list[tuple[FlatFile, FileLabels, Group | None]] = []
    for part in sets:
        members: dict[str, list[Configuration]] = {labels.file: [] for labels in part.result.report.files}
        isolated: dict[str, list[Configuration]] = {file: [] for file in members}
        for found, of_file in ((part.result.configurations, members), (part.result.isolated_atoms, isolated)):
            for configuration in found:
                of_file[configuration.file].append(configuration)
        for labels in part.result.report.files:
            flat = flatten(labels.file, part.role, members[labels.file])
            files.append((flat, labels, group_isolated(flatten(labels.file, part.role, isolated[labels.file]))))
    work = [
        (flat, check)
        for flat, labels, _ in files
        for check in _checks(labels, demands, is_split and flat.role == "training")
    ]
    for flat, check in track(work, "Checking the data") if track else work:
        findings += check(flat)
    findings += check_leakage([flat for flat, _, _ in files], is_split)
    reports = []
    for flat, labels, single in files:
        interaction = interaction_energies(flat, energies)
        findings += check_energy_outliers(flat, interaction)
        whole, groups = group_file(flat, interaction)
        reports.append(FileReport(flat.file, flat.role, labels, whole, (*groups, *([single] if single else []))))
    names = list(KINDS)
    marked = [replace(finding, allowed=finding.name in demands.allow) for finding in findings]
    return DataReport(
        files=tuple(reports),
        findings=tuple(sorted(marked, key=lambda each: (LEVELS.index(each.level), names.index(each.name)))),
        r_max=demands.r_max,
        reference_energies=energies or {},
        reference_source=references.source if references is not None else "",
    )


def _checks(labels: FileLabels, demands: Demands, is_split: bool) -> list[Callable[[FlatFile], Iterator[Finding]]]:
    """Every check of a single file, from which validation structures may be set aside."""

    def check_consistency(file: FlatFile) -> Iterator[Finding]:
        """Compare energies, forces and stress with each other."""
        distorted_forces, distorted_stress = compare_distorted(file)
        of_forces = list(check_forces_against_energies(file, distorted_forces))
        yield from of_forces
        yield from check_stress(file, distorted_stress, trust_forces=not of_forces)

    return [
        lambda flat: check_file_labels(labels),
        check_close_atoms,
        check_consistency,
        check_virials,
        check_large_stress,
        check_large_forces,
        lambda flat: check_placeholders(flat, labels),
        check_net_forces,
        lambda flat: check_zeroed_forces(flat, labels),
        check_distances,
        lambda flat: check_duplicates(flat, is_split),
        check_unmarked_isolated_atoms,
        check_coverage,
        lambda flat: check_lone_atoms(flat, demands.r_max),
        lambda flat: check_thin_cells(flat, demands.r_max),
    ]


def _reference_energies(training: ReadResult, demands: Demands) -> tuple[ReferenceEnergies | None, list[Finding]]:
    """Find the reference energies; without them, least squares shows the energies all the same."""
    configurations, file = training.configurations, training.report.files[0].file
    if not configurations:
        return None, []
    elements = ElementTable.from_arrays(c.atomic_numbers for c in configurations)
    if demands.atomic_numbers is not None and not demands.has_other_heads:
        elements = ElementTable((*elements, *demands.atomic_numbers))
    findings = []
    try:
        references = resolve_reference_energies(
            demands.E0s, training.isolated_atoms, configurations, elements, demands.foundation_energies
        )
    except UserError as error:
        if not any(c.energy is not None for c in configurations):
            return None, []  # the finding is that labels are missing
        # where isolated atoms have an energy that is not finite, that is an error already
        isolated = {(atom.file, atom.index) for atom in training.isolated_atoms}
        faults = [(f.file, fault) for f in training.report.files for fault in f.faults]
        places = {(file, fault.index) for file, fault in faults if fault.name == "energy"}
        is_known = "non-finite-label" not in demands.allow and not isolated.isdisjoint(places)
        if demands.needs_E0s and not (demands.E0s in (None, "isolated") and is_known):
            findings.append(Finding("missing-reference-energies", file, str(error)))
        references = resolve_reference_energies("average", (), configurations, elements)
        return replace(references, source="least squares, for this report only"), findings
    findings += [Finding("doubtful-reference-energies", file, warning) for warning in references.warnings]
    findings += [Finding("overruled-reference-energies", file, sentence) for sentence in references.overruled]
    return references, findings


def _unmet_demands(sets: Sequence[StructureSet], demands: Demands) -> Iterator[Finding]:
    """Look for labels that the training set lacks, and in the other sets for elements that it lacks."""
    training = sets[0].result
    files = training.report.files
    faulty: set[str] = set()
    if "non-finite-label" not in demands.allow:  # that they are not finite is an error already
        faulty |= {fault.name for file in files for fault in file.faults}
    if "misspelled-key" not in demands.allow:  # so is this
        faulty |= {fault.name for file in files for fault in file.misspelled}
    try:
        require_labels(training.report, [name for name in demands.labels if name not in faulty], demands.ways_out)
    except UserError as error:
        yield Finding("missing-label", files[0].file, str(error))
    known = {number for c in training.configurations for number in np.unique(c.atomic_numbers).tolist()}
    purpose, others = "the training data", sets[1:]
    if demands.atomic_numbers is not None:
        known, purpose, others = set(demands.atomic_numbers), "--atomic_numbers", sets
    for part in others:
        try:
            check_elements(known, part.result.configurations, purpose)
        except UserError as error:
            yield Finding("unknown-elements", part.result.report.files[0].file, str(error))
