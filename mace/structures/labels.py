"""The key of each label in a file, how often it was found there, and the messages if it was not."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Any

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


Places = dict[tuple[str, str], "array[int]"]
"""Ascending indices of structures in their file, by property and key; four bytes for each."""

_REMARKS = {
    "stress unit": "stresses are read as eV/Angstrom^3 though other units are given; name their unit with "
    "--stress_unit.",
    "other key": "{count} structures have '{other}' but no '{key}', which was chosen for the whole file; they have no "
    "{name}. Name one of the two with --{name}_key.",
    "asymmetric": "the {name} of {count} structures is not symmetric, which no potential can reproduce.",
    "not converted": "{count} structures do not repeat in all three directions, so their stress and virials cannot be "
    "converted into each other.",
    "several atoms": "{count} structures are of the type IsolatedAtom but have several atoms; they are read as "
    "ordinary ones.",
}
"""What is legal but suspicious in structures of a file, in the order in which it is said."""


def no_places() -> array[int]:
    """Return no indices of structures."""
    return array("I")


@dataclass(frozen=True)
class FileLabels:
    """The structures and labels found in one file, or in a part of it.

    Attributes:
        file: As the user named it.
        frames: Structures, isolated atoms not counted.
        isolated_atoms: Frames of isolated atoms.
        keys: Number of frames that have a key, by (place, key); all keys of the file, not only labels.
        coverage: One entry for each of `PROPERTIES`.
        remarks: Number of structures by what is remarkable about them: a word for it, the property and the key it is
            about, each of them empty where there is none.
        not_finite: Structures whose label was left out because it is not finite.
        near_keys: Structures with a value that has the form of a label that they lack, under almost the same key.
        constrained: Indices of the structures with constraints, such as fixed atoms.
        units: Which units were converted, in words; empty if none.
        condition_keys: Number of structures by the key under which they have a condition, by requested condition; the
            key is empty where nothing is said and `assumed` is taken.
        assumed: The value of each condition that is taken where a structure does not say it.
        other_heads: Heads that structures name though they are read for another one.
        config_types: Number of structures and isolated atoms by ``config_type``.
        further_notes: Sentences about this file beside others.
    """

    file: str
    frames: int
    isolated_atoms: int
    keys: Counter[tuple[str, str]]
    coverage: tuple[LabelCoverage, ...]
    remarks: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    not_finite: Places = field(default_factory=dict)
    near_keys: Places = field(default_factory=dict)
    constrained: array[int] = field(default_factory=no_places)
    units: str = ""
    condition_keys: dict[str, Counter[str]] = field(default_factory=dict)
    assumed: dict[str, float] = field(default_factory=dict)
    other_heads: tuple[str, ...] = ()
    config_types: Counter[str] = field(default_factory=Counter)
    further_notes: tuple[str, ...] = ()

    def of(self, name: str) -> LabelCoverage:
        """The coverage of one property."""
        return self.coverage[list(PROPERTIES).index(name)]

    @property
    def chosen_keys(self) -> dict[str, str]:
        """The key that was chosen for each property, of those that any structure has."""
        return {entry.name: entry.key for entry in self.coverage if entry.key is not None}

    @property
    def faults(self) -> tuple[LabelFault, ...]:
        """Labels that were left out because they are not finite."""
        return _faults(self.not_finite)

    @property
    def misspelled(self) -> tuple[LabelFault, ...]:
        """Values that have the form of a label that their structure lacks, under almost the same key."""
        return _faults(self.near_keys)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about anything that deserves attention."""

        def place(remark: tuple[str, str, str]) -> tuple[int, ...]:
            kind, name, other = remark
            of_key = self.of(name).candidates.index(other) if other else 0
            return list(_REMARKS).index(kind), list(PROPERTIES).index(name) if name else 0, of_key

        notes = []
        for remark in sorted(self.remarks, key=place):
            kind, name, other = remark
            key = self.of(name).key if name else ""
            notes.append(_REMARKS[kind].format(count=self.remarks[remark], name=name, other=other, key=key))
        for name, counts in self.condition_keys.items():
            if counts[""]:
                notes.append(
                    f"{counts['']} of {self.frames} structures do not say {name}; {self.assumed[name]:g} is taken."
                )
        return (*(f"{self.file}: {note}" for note in notes), *self.further_notes)

    @property
    def conditions(self) -> tuple[str, ...]:
        """In how many structures each requested condition was found, in words."""
        words = []
        for name, counts in self.condition_keys.items():
            found = [repr(key) for key in counts if key]
            in_words = f" ({' and '.join(found)})" if found else ""
            words.append(f"{name} {self.frames - counts['']} of {self.frames}{in_words}")
        return tuple(words)

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

    def agrees_with(self, keys: Mapping[str, str]) -> bool:
        """Return whether a part of a file was read with the keys of the whole file, as far as it makes a difference.

        Args:
            keys: The key of each property, of those that any structure of the file has.
        """
        return self.chosen_keys.items() <= keys.items()

    def document(self) -> dict[str, Any]:
        """Return all of it as what JSON holds; `of_document` is the reverse."""
        return vars(self) | {
            "coverage": [vars(entry) for entry in self.coverage],
            "keys": list(self.keys.items()),
            "remarks": list(self.remarks.items()),
            "not_finite": [(key, _runs(places)) for key, places in self.not_finite.items()],
            "near_keys": [(key, _runs(places)) for key, places in self.near_keys.items()],
            "constrained": _runs(self.constrained),
            "condition_keys": {name: dict(counts) for name, counts in self.condition_keys.items()},
            "config_types": dict(self.config_types),
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> FileLabels:
        """Return what `document` was made from.

        Raises:
            KeyError: If it is no such document; or TypeError or ValueError.
        """
        found = {item.name: document[item.name] for item in fields(cls)}
        coverage = [LabelCoverage(**{**entry, "candidates": tuple(entry["candidates"])}) for entry in found["coverage"]]
        found |= {name: Counter({tuple(key): count for key, count in found[name]}) for name in ("keys", "remarks")}
        found |= {
            name: {tuple(key): _of_runs(runs) for key, runs in found[name]} for name in ("not_finite", "near_keys")
        }
        found |= {name: tuple(found[name]) for name in ("other_heads", "further_notes")}
        return cls(
            **found
            | {
                "coverage": tuple(coverage),
                "constrained": _of_runs(found["constrained"]),
                "condition_keys": {name: Counter(counts) for name, counts in found["condition_keys"].items()},
                "config_types": Counter(found["config_types"]),
            }
        )


def merge_labels(parts: Sequence[FileLabels]) -> FileLabels:
    """Put together what was found in consecutive parts of a file, as if it had been read at once.

    Args:
        parts: One or more, in the order of the file, all read with the same keys; see `FileLabels.agrees_with`.

    Raises:
        ValueError: If they were read with different keys.
    """
    merged = replace(
        parts[0],
        frames=sum(part.frames for part in parts),
        isolated_atoms=sum(part.isolated_atoms for part in parts),
        keys=Counter(),
        coverage=tuple(_merge_coverage(entries) for entries in zip(*(part.coverage for part in parts), strict=True)),
        remarks=Counter(),
        not_finite=_merge_places([part.not_finite for part in parts]),
        near_keys=_merge_places([part.near_keys for part in parts]),
        constrained=no_places(),
        condition_keys={name: Counter() for part in parts for name in part.condition_keys},
        assumed={name: value for part in reversed(parts) for name, value in part.assumed.items()},
        other_heads=tuple(sorted({head for part in parts for head in part.other_heads})),
        config_types=Counter(),
    )
    for part in parts:  # `update` keeps the order in which things occur
        merged.keys.update(part.keys)
        merged.remarks.update(part.remarks)
        merged.config_types.update(part.config_types)
        merged.constrained.extend(part.constrained)
        for name, counts in part.condition_keys.items():
            merged.condition_keys[name].update(counts)
    return merged


def _merge_places(parts: Sequence[Places]) -> Places:
    """Put together the indices of structures in consecutive parts of a file."""
    labels = sorted({label for part in parts for label in part}, key=order_of_label)
    merged: Places = {label: no_places() for label in labels}
    for part in parts:
        for label, places in part.items():
            merged[label].extend(places)
    return merged


def _merge_coverage(entries: Sequence[LabelCoverage]) -> LabelCoverage:
    """Put together the coverage of one property in consecutive parts of a file."""
    keys = {entry.key for entry in entries} - {None}
    if len(keys) > 1:
        raise ValueError(f"parts of a file were read with different keys: {sorted(map(str, keys))}")
    sums = {
        name: sum(getattr(entry, name) for entry in entries) for name in ("labeled", "converted", "frames", "isolated")
    }
    places = Counter[str]()
    for entry in entries:
        places.update(entry.places)
    return replace(
        entries[0],
        key=next(iter(keys), None),
        places={place: places[place] for place in PLACES if places[place]},
        **sums,
    )


def order_of_label(label: tuple[str, str]) -> tuple[int, str]:
    """Return the place of a property and its key among others."""
    return list(PROPERTIES).index(label[0]), label[1]


def _faults(places: Places) -> tuple[LabelFault, ...]:
    return tuple(LabelFault(name, key, index) for (name, key), indices in places.items() for index in indices)


def _runs(places: Iterable[int]) -> list[list[int]]:
    """Write ascending integers as runs, each of its first and the one after its last.

    >>> _runs([0, 1, 2, 5]), list(_of_runs([[0, 3], [5, 6]]))
    ([[0, 3], [5, 6]], [0, 1, 2, 5])
    """
    runs = (list(run) for _, run in groupby(enumerate(places), key=lambda item: item[1] - item[0]))
    return [[run[0][1], run[-1][1] + 1] for run in runs]


def _of_runs(runs: Iterable[Sequence[int]]) -> array[int]:
    places = no_places()
    for start, stop in runs:
        places.extend(range(start, stop))
    return places


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
