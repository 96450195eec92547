"""What can be found in data: a name, a level, a meaning and a way out for each kind of finding."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mace.errors import UserError

Level = Literal["error", "warning", "note"]
"""``error``: training refuses; ``warning``: probably wrong; ``note``: legal, but good to know."""

LEVELS: tuple[Level, ...] = ("error", "warning", "note")

MOST_PLACES = 1000
"""Structures whose places a finding lists; the others are counted."""

_NAMED_STRUCTURES = 5
_SINGULAR = {
    "have cells thinner": "has a cell thinner",
    "have energies": "has an energy",
    "hold a single atom each": "holds a single atom",
    "have": "has",
    "repeat": "repeats",
}
_PLURAL = re.compile(f"^({'|'.join(_SINGULAR)})\\b")


@dataclass(frozen=True)
class FindingKind:
    """One kind of finding.

    Attributes:
        name: What ``--allow`` takes; it never changes.
        level: How serious it is.
        meaning: A sentence about what was found.
        way_out: What to do about it, beginning with a verb in lower case.
        allowable: Whether an error can be let pass; without labels or reference energies nothing can be trained.
    """

    name: str
    level: Level
    meaning: str
    way_out: str
    allowable: bool = True


_KINDS = (
    FindingKind(
        "missing-label",
        "error",
        "No training structure has a label that the loss needs.",
        "name its key with a flag such as `--energy_key`, or choose another loss",
        allowable=False,
    ),
    FindingKind(
        "missing-reference-energies",
        "error",
        "An element has no E0, or E0s contradict each other.",
        "add frames of isolated atoms, or give `--E0s`",
        allowable=False,
    ),
    FindingKind(
        "unknown-elements",
        "error",
        "Validation or test structures have elements that the training structures lack.",
        "add structures with them to the training data, or take these out",
        allowable=False,
    ),
    FindingKind(
        "non-finite-label",
        "error",
        "A label is NaN or infinite. If it is allowed, the label counts as missing.",
        "correct it, or leave it out where it is unknown",
    ),
    FindingKind(
        "misspelled-key",
        "error",
        "A key is almost that of a label, such as `force` or `Energy`, in structures that lack the label.",
        "rename it, or name it with the flag",
    ),
    FindingKind(
        "close-atoms",
        "error",
        "Two atoms, or an atom and its periodic image, are closer than 0.3 Angstrom.",
        "correct the positions, their unit or the cell, or take the structures out",
    ),
    FindingKind(
        "contradicting-forces",
        "error",
        "Energies of almost equal structures change by what forces of another sign or unit would give, all along.",
        "convert energies to eV and forces to eV/Angstrom, -dE/dx",
    ),
    FindingKind(
        "contradicting-stress",
        "error",
        "Energies of strained cells change by what a stress of another sign or unit would give, all along.",
        "convert the stress to eV/Angstrom^3, +dE/dstrain/V (positive under tension)",
    ),
    FindingKind(
        "suspicious-forces",
        "warning",
        "Differences of energies of almost equal structures do not go with the forces.",
        "check sign and unit of energies and forces, and that both belong to the same calculation",
    ),
    FindingKind(
        "suspicious-stress",
        "warning",
        "The stress does not go with energies of strained cells, or with a pair interaction fitted to the forces.",
        "check sign and unit of the stress: eV/Angstrom^3, positive under tension",
    ),
    FindingKind(
        "swapped-stress",
        "warning",
        "The components of the stress fit the forces better in another order.",
        "give six components as xx yy zz yz xz xy",
    ),
    FindingKind(
        "contradicting-virials",
        "warning",
        "Labeled virials are not -volume * stress.",
        "check sign and unit of both, or remove one of them",
    ),
    FindingKind(
        "large-stress",
        "warning",
        "Most stresses are above 1 eV/Angstrom^3 (160 GPa), as numbers in kbar or GPa, or virials, would be.",
        "convert the stress to eV/Angstrom^3, or name virials with `--virials_key`",
    ),
    FindingKind(
        "large-forces",
        "warning",
        "An atom has a force above 100 eV/Angstrom.",
        "make sure that the calculation converged and that you want such structures",
    ),
    FindingKind(
        "energy-outliers",
        "warning",
        "An energy per atom, E0s subtracted, is far from all others in its file.",
        "make sure that the calculation converged and used the same method and unit",
    ),
    FindingKind(
        "zero-energies",
        "warning",
        "The energy of several structures is exactly zero, as if it stood for a missing one.",
        "leave unknown energies out",
    ),
    FindingKind(
        "placeholder-labels",
        "warning",
        "A label is exactly zero in different structures where symmetry does not explain it, or exactly the same in "
        "many, as if it stood for a missing one.",
        "leave unknown labels out",
    ),
    FindingKind(
        "net-forces",
        "warning",
        "The forces of almost every molecule do not add up to zero, which is right in an external field or beside "
        "atoms that are not in the file only.",
        "make sure that the forces belong to these atoms in this order",
    ),
    FindingKind(
        "zeroed-forces",
        "warning",
        "Atoms have forces of exactly zero, as programs write for fixed atoms, in structures with constraints or with "
        "forces that do not add up to zero.",
        "take the unconstrained forces, or leave the forces out",
    ),
    FindingKind(
        "doubtful-reference-energies",
        "warning",
        "With these E0s the atomization energy per atom is above 20 eV or below -1 eV, or the compositions do not "
        "determine them.",
        "take E0s of the same method as the data, both in eV",
    ),
    FindingKind(
        "overruled-reference-energies",
        "warning",
        "Frames of isolated atoms and `--E0s` say different things. Numbers that are typed come before frames, frames "
        "before a fit (`average`, `estimated`).",
        "keep one of the two",
    ),
    FindingKind(
        "unlikely-distances",
        "warning",
        "Distances between nearest neighbors are nowhere near the sum of covalent radii, as lengths in bohr or nm.",
        "convert positions and cells to Angstrom",
    ),
    FindingKind(
        "duplicates",
        "warning",
        "Structures of a file are identical, and count double.",
        "keep one of each",
    ),
    FindingKind(
        "contradicting-duplicates",
        "warning",
        "Identical structures have different energies.",
        "keep the one that is right",
    ),
    FindingKind(
        "leakage",
        "warning",
        "Structures for validation or testing are in the training set (or in both) too; their errors mean nothing.",
        "take them out of one of the two",
    ),
    FindingKind(
        "unmarked-isolated-atoms",
        "warning",
        "Single atoms without surroundings are not marked as `config_type=IsolatedAtom`, so no E0 is read from them.",
        "mark them, or take them out",
    ),
    FindingKind(
        "label-remarks",
        "warning",
        "The reader of the labels noticed something: mixed keys, an asymmetric stress, weights of types that do not "
        "occur.",
        "the sentence says it",
    ),
    FindingKind(
        "partly-labeled",
        "note",
        "Some structures of a file lack a label that others have; they are not trained on it.",
        "add the label if it should be there",
    ),
    FindingKind(
        "constraints",
        "note",
        "Structures carry constraints such as FixAtoms; their labeled forces are used as they are, on all atoms.",
        "make sure that the forces on fixed atoms are the real ones",
    ),
    FindingKind(
        "lone-atoms",
        "note",
        "Atoms have no neighbor within the cutoff, so their energy cannot depend on where they are.",
        "raise `--r_max` if they should feel the others",
    ),
    FindingKind(
        "thin-cells",
        "note",
        "Cells are thinner than the cutoff, so atoms see their own images. This is legal and exact.",
        "nothing has to be done",
    ),
)

KINDS: dict[str, FindingKind] = {kind.name: kind for kind in _KINDS}
"""Every kind of finding by name, the most serious first."""


@dataclass(frozen=True)
class Finding:
    """Something found in one file, or in two compared with each other.

    Attributes:
        name: Its kind, a key of `KINDS`.
        file: The file, as the user named it.
        sentence: What was found, with file, structures and way out.
        structures: Places in the file of the first `MOST_PLACES` structures concerned, counted from zero; empty where
            all are.
        count: How many structures are concerned, zero where all are.
        allowed: Whether the user let it pass by name.
    """

    name: str
    file: str
    sentence: str
    structures: tuple[int, ...] = ()
    count: int = 0
    allowed: bool = False

    @property
    def level(self) -> Level:
        """How serious it is."""
        return KINDS[self.name].level

    @property
    def stops(self) -> bool:
        """Whether training refuses because of it."""
        return self.level == "error" and not self.allowed


@dataclass(frozen=True)
class Evidence:
    """What a check saw in a part of a file, which is a finding once all parts are known.

    Attributes:
        name: The kind of finding.
        text: What was seen, as in `found`.
        structures: Places in the file of the first `MOST_PLACES` structures concerned; empty if it is the whole part.
        count: How many structures are concerned.
        key: Evidence of the same kind under different keys becomes different findings.
        severity: The text of the evidence with the largest one is taken for the whole file.
        different: Structures concerned that are no copies of each other.
        fewest: How many of these make a finding.
        is_of_part: Whether it was decided from all structures of the part, so that it says nothing of other parts.
        span: First and last place of the first part in which it was seen.
        parts: In how many parts it was seen.
    """

    name: str
    text: str
    structures: tuple[int, ...] = ()
    count: int = 0
    key: str = ""
    severity: float = 0.0
    different: int = 0
    fewest: int = 0
    is_of_part: bool = False
    span: tuple[int, int] = (0, 0)
    parts: int = 1

    def with_later(self, later: Evidence) -> Evidence:
        """Add what was seen in later parts of the file."""
        return replace(
            max(self, later, key=lambda one: one.severity),
            structures=(self.structures + later.structures)[:MOST_PLACES],
            count=self.count + later.count,
            different=self.different + later.different,
            fewest=max(self.fewest, later.fewest),
            span=self.span,
            parts=self.parts + later.parts,
        )

    def finding(self, file: str, structures: int, parts: int) -> Finding:
        """Write it as a sentence.

        Args:
            file: The file.
            structures: Structures in it.
            parts: Parts in which it was inspected.
        """
        text = self.text
        if self.is_of_part and parts > 1:
            first = "" if self.count else f", first in structures {self.span[0]} to {self.span[1]}"
            numbers = "; the numbers are those of the clearest part" if self.severity else ""
            text += f" (in {self.parts} of {parts} parts of the file{first}{numbers})"
        return found(self.name, file, text, self.structures, structures, self.count)


def merge_evidence(parts: Iterable[Iterable[Evidence]]) -> tuple[Evidence, ...]:
    """Bring together what was seen in consecutive parts of a file."""
    merged: dict[tuple[str, str], Evidence] = {}
    for part in parts:
        for one in part:
            earlier = merged.get((one.name, one.key))
            merged[one.name, one.key] = one if earlier is None else earlier.with_later(one)
    return tuple(merged.values())


def found(
    name: str,
    file: str,
    text: str,
    structures: Sequence[int] | np.ndarray = (),
    of: int | None = None,
    count: int | None = None,
) -> Finding:
    """Write a finding as a sentence.

    Args:
        name: Its kind.
        file: The file.
        text: The rest of the sentence after file and structures, without the way out; it may begin with a colon. A verb
            at its beginning, in the plural, becomes singular for a single structure.
        structures: Places of the structures concerned.
        of: Structures in the file, to be named with their number.
        count: How many structures are concerned, if more than are given.

    >>> found("close-atoms", "a.xyz", "have atoms 0.1 Angstrom apart", [4]).sentence.partition(";")[0]
    'a.xyz: structure 4 has atoms 0.1 Angstrom apart'
    """
    kind = KINDS[name]
    count = len(structures) if count is None else count
    places = tuple(int(place) for place in structures[:MOST_PLACES])
    if count == 1:
        text = _PLURAL.sub(lambda match: _SINGULAR[match[0]], text)
    subject = f"{describe_structures(places, of, count)}{'' if text.startswith(':') else ' '}" if places else ""
    allow = f", or let it pass with --allow {name}" if kind.level == "error" and kind.allowable else ""
    way_out = kind.way_out.replace("`", "")
    return Finding(name, file, f"{file}: {subject}{text}; {way_out}{allow}.", places, count)


def describe_structures(places: Sequence[int], of: int | None = None, count: int | None = None) -> str:
    """Name structures: the first few of them, and how many they are.

    >>> describe_structures([3]), describe_structures([3, 5, 8], of=10)
    ('structure 3', 'structures 3, 5, 8 (3 of 10)')
    >>> describe_structures(range(20))
    'structures 0, 1, 2, 3, 4 and 15 more'
    """
    count = len(places) if count is None else count
    if count == 1:
        return f"structure {places[0]}"
    named = places[:_NAMED_STRUCTURES]
    text = "structures " + ", ".join(str(place) for place in named)
    if count > len(named):
        text += f" and {count - len(named)} more"
    return text if of is None else f"{text} ({count} of {of})"


def check_allowed(names: Iterable[str]) -> frozenset[str]:
    """Check that the findings named by ``--allow`` exist and may be allowed.

    Raises:
        UserError: If a name is unknown, or is that of a finding with which no training is possible.
    """
    names = frozenset(names)
    for name in sorted(names):
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}."
            raise UserError(f"--allow {name}: there is no such finding; {hint}")
        if not KINDS[name].allowable:
            raise UserError(f"--allow {name}: this cannot be let pass; {KINDS[name].way_out.replace('`', '')}.")
    return names
