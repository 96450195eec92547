"""All checks on all files, in one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mace.elements import ElementTable
from mace.errors import UserError
from mace.inspection.distributions import distribution
from mace.inspection.findings import KINDS, LEVELS, Finding, Level
from mace.inspection.geometry import check_lone_atoms, check_thin_cells
from mace.inspection.groups import NO_STRUCTURES, Group, places_of_groups
from mace.inspection.identity import FileIdentities, check_duplicates, check_leakage
from mace.inspection.labels import check_energy_outliers, check_file_labels, is_partly_labeled
from mace.inspection.parts import FileSummary, PartReport, divide, empty_columns, inspect_part, merge_parts
from mace.structures.collection import StructureCollection
from mace.structures.labels import FileLabels, require_labels
from mace.structures.reading import ReadResult
from mace.structures.reference_energies import ReferenceEnergies, resolve_reference_energies
from mace.structures.splitting import check_elements

Track = Callable[[Sequence["_Slice"], str], Iterable["_Slice"]]
"""Yields what it is given and shows how much is done, see `mace.console.progress.TrainingProgress.track`."""

_Slice = tuple[int, np.ndarray]
"""Number of a set, and places in it."""


@dataclass(frozen=True)
class StructureSet:
    """Structures of one purpose.

    Attributes:
        role: ``training``, ``validation`` or ``test``.
        result: What was read from its files.
        seen: What checks saw in its structures, in the same order, if that is known already.
    """

    role: str
    result: ReadResult
    seen: PartReport | None = None


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
    """Inspect all structures of a training, a part at a time; what was inspected before is only judged anew.

    Args:
        sets: The training set first.
        demands: What the training needs.
        track: Shows progress.

    Returns:
        The report; it never raises what it finds, see `DataReport.refuse_errors`.
    """
    seen = _inspect(sets, track)
    references, findings = _reference_energies(sets[0], seen[0], demands)
    energies = references.energies if references is not None else None
    findings += _unmet_demands(sets, seen, demands)
    is_split = all(part.role != "validation" for part in sets)
    files = [file for part, of_part in zip(sets, seen, strict=True) for file in _files(part, of_part, energies)]
    for file in files:
        findings += file.findings(demands, is_split and file.role == "training")
    findings += check_leakage([file.identities for file in files], is_split)
    for file in files:
        findings += check_energy_outliers(file.labels.file, file.index, file.interaction)
    names = list(KINDS)
    marked = [replace(finding, allowed=finding.name in demands.allow) for finding in findings]
    return DataReport(
        files=tuple(file.report() for file in files),
        findings=tuple(sorted(marked, key=lambda each: (LEVELS.index(each.level), names.index(each.name)))),
        r_max=demands.r_max,
        reference_energies=energies or {},
        reference_source=references.source if references is not None else "",
    )


def _inspect(sets: Sequence[StructureSet], track: Track | None) -> list[PartReport]:
    """Inspect the structures of all sets that were not inspected before."""
    unseen = {place: one.result.configurations for place, one in enumerate(sets) if one.seen is None}
    work = [(place, chosen) for place, structures in unseen.items() for chosen in divide(structures)]
    seen = [PartReport() if one.seen is None else one.seen for one in sets]
    columns = {place: empty_columns(len(structures)) for place, structures in unseen.items()}
    for place, chosen in track(work, "Checking the data") if track else work:
        structures = unseen[place].take(chosen)
        name = structures.files[0]
        labels = next(labels for labels in sets[place].result.report.files if labels.file == name)
        labeled = [entry.name for entry in labels.coverage if entry.labeled]
        part = inspect_part(structures, labeled=labeled, constrained={name: labels.constrained})
        for column, values in part.columns.items():
            columns[place][column][chosen] = values
        seen[place] = merge_parts([seen[place], replace(part, columns={})])
    for place, of_set in columns.items():
        isolated = inspect_part([], sets[place].result.isolated_atoms)
        seen[place] = replace(merge_parts([seen[place], isolated]), columns=of_set)
    return seen


@dataclass(frozen=True)
class _File:
    """One file, with what was seen in it and what its structures are to be judged by.

    Attributes:
        role: ``training``, ``validation`` or ``test``.
        labels: Where its labels were found.
        seen: What checks saw.
        columns: See `mace.inspection.parts.COLUMNS`.
        identities: Which structures it holds.
        index: Place of each in the file, ``[structures]``.
        interaction: eV per atom with the reference energies subtracted, NaN if not known, ``[structures]``.
    """

    role: str
    labels: FileLabels
    seen: FileSummary
    columns: Mapping[str, np.ndarray]
    identities: FileIdentities
    index: np.ndarray
    interaction: np.ndarray

    def findings(self, demands: Demands, is_split: bool) -> Iterator[Finding]:
        """Say what was found in the file, from which validation structures may be set aside."""
        structures, r_max = self.identities.structures, demands.r_max
        yield from check_file_labels(self.labels)
        labeled = self.seen.whole.labeled if self.seen.whole is not None else {}
        for evidence in self.seen.evidence:
            if evidence.name == "unmarked-isolated-atoms" and self.role != "training":
                continue
            if evidence.name == "partly-labeled" and not is_partly_labeled(evidence.key, labeled, self.seen.frames):
                continue
            if evidence.different >= evidence.fewest:
                yield evidence.finding(self.seen.file, self.seen.frames, self.seen.parts)
        yield from check_duplicates(self.identities, is_split)
        yield from check_lone_atoms(self.seen.file, structures, self.columns["reach"], r_max)
        yield from check_thin_cells(self.seen.file, self.index, self.columns["thinnest"], r_max)

    def report(self) -> FileReport:
        """Describe what the file holds."""
        structures, groups = self.identities.structures, self.seen.groups
        heads = structures.heads.present() if len(structures) else ()
        stored = {group.head for group in groups}
        if len(heads) == len(stored) == 1 and stored != set(heads):  # the same structures, for another head
            groups = tuple(replace(group, head=heads[0]) for group in groups)
        places = places_of_groups(structures, groups) if groups else []
        described = [
            group.group(distribution(self.interaction[of_group]))
            for group, of_group in zip(groups, places, strict=True)
        ]
        whole = replace(self.seen.whole or NO_STRUCTURES, head=", ".join(sorted({group.head for group in groups})))
        isolated = [] if self.seen.isolated is None else [self.seen.isolated.group(None)]
        return FileReport(
            self.seen.file,
            self.role,
            self.labels,
            whole.group(distribution(self.interaction)),
            (*described, *isolated),
        )


def _files(part: StructureSet, seen: PartReport, reference_energies: Mapping[int, float] | None) -> Iterator[_File]:
    """Divide a set into its files."""
    structures = part.result.configurations
    energies, interaction = _energies(structures, reference_energies)
    files, index = structures.files, structures.file_index
    present = files.present()
    for labels in part.result.report.files:
        chosen = slice(None) if present == (labels.file,) else np.flatnonzero(files.where(labels.file))
        of_file = structures if isinstance(chosen, slice) else structures.take(chosen)
        columns = {name: values[chosen] for name, values in seen.columns.items()}
        marks = FileIdentities(labels.file, part.role, of_file, columns["identity"], energies[chosen])
        yield _File(part.role, labels, seen.of(labels.file), columns, marks, index[chosen], interaction[chosen])


def _energies(
    structures: StructureCollection, reference_energies: Mapping[int, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Collect the energies of all structures, in blocks.

    Returns:
        In eV, and in eV per atom with the reference energies subtracted, ``[structures]`` each; NaN where they are not
        known.
    """
    known = np.full(256, np.nan)
    known[list(reference_energies or {})] = list((reference_energies or {}).values())
    energies, interaction = [np.zeros(0)], [np.zeros(0)]
    for block in structures.blocks():
        energies.append(np.where(block.labeled("energy"), block.labels("energy"), np.nan))
        own = np.add.reduceat(known[block.numbers], np.cumsum(block.n_atoms) - block.n_atoms)
        interaction.append((energies[-1] - own) / block.n_atoms)
    return np.concatenate(energies), np.concatenate(interaction)


def _reference_energies(
    part: StructureSet, seen: PartReport, demands: Demands
) -> tuple[ReferenceEnergies | None, list[Finding]]:
    """Find the reference energies; without them, least squares shows the energies all the same."""
    training = part.result
    configurations, file = training.configurations, training.report.files[0].file
    if not len(configurations):
        return None, []
    elements = ElementTable(_elements(seen))
    if demands.atomic_numbers is not None and not demands.has_other_heads:
        elements = ElementTable((*elements, *demands.atomic_numbers))
    findings = []
    try:
        references = resolve_reference_energies(
            demands.E0s, training.isolated_atoms, configurations, elements, demands.foundation_energies
        )
    except UserError as error:
        if not any(file.whole.labeled["energy"] for file in seen.files if file.whole is not None):
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


def _elements(seen: PartReport) -> tuple[int, ...]:
    """Atomic numbers that occur in a set, isolated atoms left out, in rising order."""
    wholes = [file.whole for file in seen.files if file.whole is not None]
    return tuple(sorted({number for whole in wholes for number in whole.elements}))


def _unmet_demands(sets: Sequence[StructureSet], seen: Sequence[PartReport], demands: Demands) -> Iterator[Finding]:
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
    known, purpose, first = set(_elements(seen[0])), "the training data", 1
    if demands.atomic_numbers is not None:
        known, purpose, first = set(demands.atomic_numbers), "--atomic_numbers", 0
    for part, of_part in zip(sets[first:], seen[first:], strict=True):
        if known.issuperset(_elements(of_part)):
            continue
        try:
            check_elements(known, part.result.configurations, purpose)
        except UserError as error:
            yield Finding("unknown-elements", part.result.report.files[0].file, str(error))
