"""The key of each label in a file, how often it was found there, and the messages if it was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mace.errors import UserError
from mace.properties import PROPERTIES

PLACES = ("info", "arrays", "calculator")
"""Where ASE keeps a label, in the order in which they are searched."""

_PLAIN_NAMES = {name: (name,) for name in PROPERTIES} | {"virials": ("virials", "virial")}


@dataclass(frozen=True)
class LabelKeys:
    """The key of each label in the files, as given by the user; ``None`` means that every file decides.

    A given key is used exactly; an empty one means that there is no such label. Without a key, a file in which any
    structure has ``REF_<name>`` uses that for all its structures, and any other file uses the plain name.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virials: str | None = None
    dipole: str | None = None
    polarizability: str | None = None
    charges: str | None = None

    def given(self, name: str) -> str | None:
        """The key that the user gave for a property, or ``None``."""
        key: str | None = getattr(self, name)
        return key

    def candidates(self, name: str) -> tuple[str, ...]:
        """Keys under which a property may be found, the preferred one first.

        >>> LabelKeys().candidates("energy"), LabelKeys(energy="E_dft").candidates("energy")
        (('REF_energy', 'energy'), ('E_dft',))
        """
        given = self.given(name)
        if given == "":
            return ()
        return (given,) if given is not None else (f"REF_{name}", *_PLAIN_NAMES[name])


@dataclass(frozen=True)
class LabelCoverage:
    """How many structures of one file have one property; frames of isolated atoms are counted separately.

    Attributes:
        name: The property, one of `PROPERTIES`.
        key: The key the file's structures were searched for; ``None`` if no structure has any of `candidates`.
        candidates: The keys considered.
        places: Number of structures by place (`PLACES`); only places that are in use.
        labeled: Structures that have the label in the file.
        converted: Structures that got it from another label (stress from virials, virials from stress).
        frames: All structures.
        isolated: Isolated-atom frames that have the label.
    """

    name: str
    key: str | None
    candidates: tuple[str, ...]
    places: dict[str, int]
    labeled: int
    converted: int
    frames: int
    isolated: int = 0

    @property
    def text(self) -> str:
        """The coverage in words, for example ``energy 500 of 500 (calculator 'energy')``."""
        details = []
        if self.labeled:
            details.append(f"{' and '.join(self.places)} '{self.key}'")
        elif self.converted:
            pass
        elif not self.candidates:
            details.append("its key says that there is none")
        elif self.key is None:
            details.append("no " + " or ".join(f"'{key}'" for key in self.candidates))
        elif not self.isolated:
            details.append(f"no '{self.key}'")
        if self.converted:
            source = "virials" if self.name == "stress" else "stress"
            details.append(f"{self.converted} from {source}")
        text = f"{self.name} {self.labeled + self.converted} of {self.frames}"
        return f"{text} ({', '.join(details)})" if details else text


@dataclass(frozen=True)
class LabelFault:
    """A label that was left out: it is NaN or infinite, or its key is almost, but not exactly, that of a label.

    Attributes:
        name: The property, one of `PROPERTIES`.
        key: Its key in the file.
        index: Index of the structure in the file, counted from zero.
    """

    name: str
    key: str
    index: int


@dataclass(frozen=True)
class FileLabels:
    """The structures and labels found in one file.

    Attributes:
        file: As the user named it.
        frames: Structures, isolated atoms not counted.
        isolated_atoms: Frames of isolated atoms.
        keys: Number of frames that have a key, by (place, key); all keys of the file, not only labels.
        coverage: One entry for each of `PROPERTIES`.
        notes: Sentences about anything that deserves attention.
        faults: Labels that were left out because they are not finite.
        misspelled: Values that have the form of a label that their structure lacks, under almost the same key.
        constrained: Indices of the structures with constraints, such as fixed atoms.
        units: Which units were converted, in words; empty if none.
        conditions: In how many structures each requested condition was found, in words.
        other_heads: Heads that structures name though they are read for another one.
    """

    file: str
    frames: int
    isolated_atoms: int
    keys: Counter[tuple[str, str]]
    coverage: tuple[LabelCoverage, ...]
    notes: tuple[str, ...] = ()
    faults: tuple[LabelFault, ...] = ()
    misspelled: tuple[LabelFault, ...] = ()
    constrained: tuple[int, ...] = ()
    units: str = ""
    conditions: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()

    def of(self, name: str) -> LabelCoverage:
        """The coverage of one property."""
        return self.coverage[list(PROPERTIES).index(name)]

    @property
    def text(self) -> str:
        """One line for the log: always energy and forces, other labels if requested or found."""
        plural = "" if self.isolated_atoms == 1 else "s"
        isolated = f"{self.isolated_atoms} isolated atom{plural}, {self.of('energy').isolated} with an energy"
        if self.frames == 0:
            return f"{self.file}: {isolated}"
        shown = [
            entry.text
            for entry in self.coverage
            if entry.name in ("energy", "forces")
            or entry.labeled + entry.converted + entry.isolated
            or len(entry.candidates) <= 1
        ]
        line = f"{self.file}: " + ", ".join([*shown, *self.conditions])
        return "; ".join([line] + [isolated] * bool(self.isolated_atoms) + [self.units] * bool(self.units))


@dataclass(frozen=True)
class LabelReport:
    """Where the labels of all files were found."""

    files: tuple[FileLabels, ...] = field(default_factory=tuple)

    def total(self, name: str) -> int:
        """Number of structures that have a property, in all files, including converted labels."""
        return sum(file.of(name).labeled + file.of(name).converted for file in self.files)

    @property
    def frames(self) -> int:
        """Number of structures in all files, without isolated atoms."""
        return sum(file.frames for file in self.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all files."""
        return tuple(note for file in self.files for note in file.notes)

    def lines(self) -> list[str]:
        """One line per file, such as ``train.xyz: energy 500 of 500 (calculator 'energy'), ...``."""
        return [file.text for file in self.files]

    def rows(self) -> list[tuple[str, str, str, str, int, int, int]]:
        """Rows of a table: file, property, key, place, structures with the label in the file, converted, all."""
        return [
            (
                file.file,
                entry.name,
                entry.key or "-",
                " and ".join(entry.places) or "-",
                entry.labeled,
                entry.converted,
                entry.frames,
            )
            for file in self.files
            for entry in file.coverage
        ]


def choose_key(candidates: Sequence[str], found: Iterable[str]) -> str | None:
    """Return the first candidate that occurs anywhere in a file, or ``None``."""
    keys = set(found)
    return next((key for key in candidates if key in keys), None)


def require_labels(
    report: LabelReport, needed: Sequence[str] = ("energy", "forces"), ways_out: Mapping[str, str] | None = None
) -> None:
    """Check that each label the loss needs exists in at least one structure.

    Args:
        report: The labels of the files that are to be trained on (or evaluated) together.
        needed: Names from `PROPERTIES`. Stress converted from virials counts, and vice versa.
        ways_out: By label, how to do without it, in words.

    Raises:
        UserError: If no structure of any file has a needed label; the message lists the keys the files do have and the
            flag that names the right one.
    """
    names = ", ".join(file.file for file in report.files[:3])
    if len(report.files) > 3:
        names += f" and {len(report.files) - 3} more files"
    if report.frames == 0:
        raise UserError(f"{names}: there is no structure to learn from, isolated atoms only.")
    for name in needed:
        if report.total(name):
            continue
        tried = " or ".join(dict.fromkeys(f"'{key}'" for file in report.files for key in file.of(name).candidates))
        message = f"{names}: no structure has a label '{name}' under the key {tried}"
        if not tried:
            message = f"{names}: no structure has a label '{name}', because --{name}_key is empty"
        keys: Counter[tuple[str, str]] = sum((file.keys for file in report.files), Counter())
        found = sorted(keys.items(), key=lambda item: item[0][1])
        listed = [f"{key} ({place}, {count})" for (place, key), count in found]
        more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
        if listed:
            message += f"; the keys there (where, in how many structures): {', '.join(listed[:20])}{more}"
        else:
            message += "; the structures carry no keys at all"
        if name in ("stress", "virials") and any(
            file.of(other).labeled for file in report.files for other in ("stress", "virials")
        ):
            message += f"; the labels there cannot become {name}, because no structure repeats in all directions"
        way_out = (ways_out or {}).get(name, f"ask for no {name}")
        raise UserError(f"{message}. Name the right key with --{name}_key, or {way_out}.")
