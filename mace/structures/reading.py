"""Reads structure files into `Configuration`s, with a report of where every label was found."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mace.conditions import CONDITION_KEYS
from mace.errors import UserError
from mace.formats.frame import Frame
from mace.formats.near_keys import is_near
from mace.formats.reading import names_properties
from mace.processes.garbage_collection import collection_paused
from mace.properties import PROPERTIES
from mace.structures.checks import (
    STRUCTURE_KEYS,
    attach_atom_weights,
    attach_weights,
    check_geometry,
    check_type_weights,
    parse_label,
)
from mace.structures.collection import ListedStructures, StructureCollection, together
from mace.structures.condition_values import find_conditions
from mace.structures.configuration import DEFAULT_HEAD, DEFAULT_TYPE, HEAD_KEY, ISOLATED_ATOM_TYPES, Configuration
from mace.structures.labels import (
    PLACES,
    FileLabels,
    LabelCoverage,
    LabelKeys,
    LabelReport,
    Places,
    choose_key,
    no_places,
    order_of_label,
)
from mace.structures.prepared import is_prepared
from mace.structures.sources import FilePart, FileUnits, HeadNaming, Source, expand_sources
from mace.structures.stored_reading import StoredPart, read_stored
from mace.structures.stress import convert_stress_virials, is_asymmetric

Progress = Callable[[str, int], None]
"""Called after every structure with the file and the number of structures read from it so far."""


@dataclass(frozen=True)
class ReadResult:
    """Everything read from the given files.

    Attributes:
        configurations: Structures in the order of the files, isolated atoms left out.
        isolated_atoms: Single atoms whose ``config_type`` is IsolatedAtom or isolated_atom, in upper or lower case.
        report: Where the labels were found.
        paths: The files, and the folders of prepared sets.
        stored: What comes from prepared sets.
    """

    configurations: StructureCollection
    isolated_atoms: list[Configuration]
    report: LabelReport
    paths: tuple[str, ...] = ()
    stored: tuple[StoredPart, ...] = ()


@dataclass
class _Structure:
    """A structure that has been read but whose labels have not been chosen yet.

    Attributes:
        configuration: The structure, with the labels of the file once they are chosen.
        found: Place and raw value of possible labels, by key.
        near: Keys that almost match a label's key, with their values.
        constrained: Whether it has constraints.
        condition_keys: Key of each condition, see `mace.structures.condition_values.find_conditions`.
        other_head: The head it names if it is read for another one, else an empty text.
    """

    configuration: Configuration
    found: dict[str, tuple[str, Any]]
    near: list[tuple[str, Any]]
    constrained: bool
    condition_keys: dict[str, str | None]
    other_head: str = ""

    @cached_property
    def complete(self) -> Configuration:
        """The configuration with stress and virials derived from each other."""
        return convert_stress_virials(self.configuration)

    @cached_property
    def has_isolated_type(self) -> bool:
        """Whether its ``config_type`` is that of isolated atoms."""
        return self.configuration.config_type.lower() in ISOLATED_ATOM_TYPES

    @cached_property
    def is_isolated_atom(self) -> bool:
        """Whether it is an isolated atom."""
        return self.configuration.is_isolated_atom


def read_configurations(
    paths: str | Path | Sequence[str | Path],
    keys: LabelKeys | None = None,
    config_type_weights: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    head: str = DEFAULT_HEAD,
    skip_non_finite: bool = False,
    units: FileUnits | None = None,
) -> ReadResult:
    """Read labeled structures from files that all share the same keys, units and weights; see `read_sources`.

    Args:
        paths: Names of files, folders and patterns; see `mace.structures.sources.expand_paths`.
        keys: The labels' keys; without them every file decides, see `LabelKeys`.
        config_type_weights: Weight of each ``config_type``; other types have the weight of ``"Default"``, or one.
        progress: Called for every structure read.
        head: Name of the readout head these labels belong to.
        skip_non_finite: Leave labels out that are NaN or infinite, and list them in the report, instead of stopping.
        units: Units of the files' numbers.

    Raises:
        UserError: See `read_sources`.
    """
    source = Source(paths, keys or LabelKeys(), units or FileUnits(), config_type_weights or {})
    return read_sources([source], progress, head, skip_non_finite=skip_non_finite)


def read_sources(
    sources: Sequence[Source],
    progress: Progress | None = None,
    head: str = DEFAULT_HEAD,
    observe: Callable[[Frame], None] | None = None,
    skip_non_finite: bool = False,
    head_key: str | None = None,
    heads: Sequence[str] = (),
) -> ReadResult:
    """Read labeled structures from files of any format.

    A label that a structure lacks is ``None``, never zero. Forces are the labeled ones, even on constrained atoms.
    Stress and virials are derived from each other if only one is given and the cell has a volume.

    Args:
        sources: The files, and how to read them.
        progress: Called for every structure read.
        head: Name of the readout head these labels belong to.
        observe: Called with every structure as it is in the file, in the order of the files.
        skip_non_finite: Leave labels out that are NaN or infinite, and list them in the report, instead of stopping.
        head_key: Entry of the comment line that names a structure's own head, if it has one.
        heads: Names of all heads, in files with structures of several: either every structure names one of them, and
            those of other heads than ``head`` are left out, or none does, and all are for every head.

    Raises:
        UserError: If a file or structure cannot be read, names a head that does not exist, holds no atoms, has a cell
            that does not span the directions in which it repeats, or has a label or weight that is not finite or not of
            the right shape. A label that no structure has is no error here; see
            `mace.structures.labels.require_labels`.
    """
    for source in sources:
        check_type_weights(source.config_type_weights)
    expanded = expand_sources(sources)
    naming = HeadNaming(head, head_key, tuple(heads))
    files: list[FileLabels] = []
    weights: list[Mapping[str, float]] = []
    parts: list[StructureCollection] = []
    configurations: list[Configuration] = []
    isolated_atoms: list[Configuration] = []
    stored: list[StoredPart] = []
    with collection_paused():
        for file, source in expanded:
            if is_prepared(file):
                opened = read_stored(file, source, naming)
                parts += [ListedStructures(configurations), opened.configurations]
                isolated_atoms += opened.isolated_atoms
                files += opened.labels
                weights += [source.config_type_weights] * len(opened.labels)
                stored.append(opened)
                configurations = []
                continue
            part = FilePart(file, source, naming)
            found = read_part(part, observe=observe, progress=progress, skip_non_finite=skip_non_finite)
            files.append(found.labels)
            weights.append(source.config_type_weights)
            configurations += found.configurations
            isolated_atoms += found.isolated_atoms
    report = LabelReport(note_unused_weights(files, weights))
    structures = together([*parts, ListedStructures(configurations)])
    return ReadResult(structures, isolated_atoms, report, tuple(file for file, _ in expanded), tuple(stored))


def note_unused_weights(
    files: Sequence[FileLabels], weights_of_files: Sequence[Mapping[str, float]]
) -> tuple[FileLabels, ...]:
    """Add a note where weights name a ``config_type`` that none of the files with the same weights has, or come twice.

    Args:
        files: What was found in each file.
        weights_of_files: The weights that each was read with, by ``config_type``.

    Returns:
        The same files, the last of those with such weights with a note.
    """
    noted = list(files)
    for place, weights in enumerate(weights_of_files):
        if any(later == weights for later in weights_of_files[place + 1 :]):
            continue  # files with the same weights are checked together, after the last of them
        same = (file for file, others in zip(files, weights_of_files, strict=True) if others == weights)
        present = {name for file in same for name in file.config_types}
        if unused := [name for name in weights if name != DEFAULT_TYPE and name not in present]:
            names, known = (", ".join(f"'{name}'" for name in words) for words in (unused, sorted(present)))
            note = f"--config_type_weights names {names}, which no structure has as config_type; there are {known}."
            noted[place] = replace(files[place], further_notes=(*files[place].further_notes, note))
        if names_properties(files[place].file) and any(weight != 1.0 for weight in weights.values()):
            note = (
                f"{files[place].file}: --config_type_weights multiplies the weights that this file holds; leave it out "
                "if the file was prepared with it."
            )
            noted[place] = replace(noted[place], further_notes=(*noted[place].further_notes, note))
    return tuple(noted)


@dataclass(frozen=True)
class PartResult:
    """What was read of a part of a file.

    Attributes:
        configurations: Its structures, isolated atoms left out.
        isolated_atoms: Its isolated atoms.
        labels: Where their labels were found; see `mace.structures.labels.merge_labels`.
    """

    configurations: list[Configuration]
    isolated_atoms: list[Configuration]
    labels: FileLabels


class UncertainKeyError(UserError):
    """A label under a key that the part of a file chose for itself is wrong; another part may have a better key.

    Args:
        text: One sentence about the label.
        labels: Which keys the part has, for `choose_keys`; nothing else is known.
    """

    def __init__(self, text: str, labels: FileLabels) -> None:
        super().__init__(text)
        self.labels = labels


def choose_keys(files: Sequence[FileLabels]) -> dict[str, str]:
    """Choose the key of each property for a file of which some parts have been read, with whatever keys.

    Args:
        files: What was found in each part.

    Returns:
        By property, of those that any structure has. Parts for which `FileLabels.agrees_with` says that they were read
        with others are to be read again with these, see `read_part`; then all is as if the file had been read at once.
    """
    present = {key for file in files for _, key in file.keys}
    chosen = {entry.name: choose_key(entry.candidates, present) for file in files for entry in file.coverage}
    return {name: key for name, key in chosen.items() if key is not None}


def read_part(
    part: FilePart,
    keys: Mapping[str, str] | None = None,
    observe: Callable[[Frame], None] | None = None,
    progress: Progress | None = None,
    skip_non_finite: bool = False,
    frames: Iterator[Frame] | None = None,
) -> PartResult:
    """Read the structures of a part of a file with their labels, and report where the labels were found.

    Args:
        part: The part; labels are looked for under the same key in all of its structures.
        keys: That key by property; without it, the part decides for itself, as if there were nothing else in the file.
        observe: Called with every structure as it is in the file.
        progress: Called for every structure read.
        skip_non_finite: Leave labels out that are NaN or infinite, and list them in the report, instead of stopping.
        frames: The structures of the part, where the file has been opened already.

    Raises:
        UncertainKeyError: If a label is wrong under a key that is not the one that all parts may agree on.
        UserError: See `read_sources`.
    """
    structures, n_with_key = _read_structures(part, observe, progress, frames)
    source = part.source
    candidates = {name: source.keys.candidates(name) for name in PROPERTIES}
    present = {key for structure in structures for key in structure.found}
    if keys is None:
        keys = {name: key for name in PROPERTIES if (key := choose_key(candidates[name], present)) is not None}
        is_uncertain = any(key != candidates[name][0] for name, key in keys.items())
    else:  # those of other parts of the file change nothing here
        keys = {name: key for name, key in keys.items() if not present.isdisjoint(candidates[name])}
        is_uncertain = False
    not_finite = _leave_out_non_finite(structures, keys) if skip_non_finite else {}
    try:
        for structure in structures:
            _attach_labels(structure, keys, source)
    except UserError as error:
        if is_uncertain:
            unknown = tuple(_coverage(name, None, candidates[name], ()) for name in PROPERTIES)
            raise UncertainKeyError(str(error), FileLabels(part.file, 0, 0, n_with_key, unknown)) from error
        raise
    ordinary = [structure for structure in structures if not structure.is_isolated_atom]
    labels = FileLabels(
        part.file,
        frames=len(ordinary),
        isolated_atoms=len(structures) - len(ordinary),
        keys=n_with_key,
        coverage=tuple(_coverage(name, keys.get(name), candidates[name], structures) for name in PROPERTIES),
        remarks=_remarks(source, keys, structures),
        not_finite=not_finite,
        near_keys=_near_keys(structures, candidates),
        constrained=array("I", [structure.configuration.index for structure in structures if structure.constrained]),
        units=source.units.text,
        other_heads=tuple(sorted({structure.other_head for structure in structures if structure.other_head})),
        **_conditions(source, ordinary),
        config_types=Counter(structure.configuration.config_type for structure in structures),
    )
    return PartResult(
        [structure.complete for structure in ordinary],
        [structure.complete for structure in structures if structure.is_isolated_atom],
        labels,
    )


def _read_structures(
    part: FilePart,
    observe: Callable[[Frame], None] | None,
    progress: Progress | None,
    frames: Iterator[Frame] | None,
) -> tuple[list[_Structure], Counter[tuple[str, str]]]:
    """Read and check the structures of a part of a file, keeping only what may be needed for the labels of each.

    Returns:
        The structures, and the number of them that have each key, by place and key.
    """
    file, source, naming = part.file, part.source, part.naming.of(part.file)
    wanted = tuple(key for name in PROPERTIES for key in source.keys.candidates(name))
    structures: list[_Structure] = []
    n_with_key: Counter[tuple[str, str]] = Counter()
    names_heads = naming.names_heads
    for index, frame in source.indexed(part.frames() if frames is None else frames, part.start):
        names_heads = naming.names_own(frame) if names_heads is None else names_heads
        if (head := naming.head_of(frame, file, index, names_heads)) is None:
            continue
        configuration = Configuration(
            atomic_numbers=np.array(frame.numbers, dtype=np.int64),
            positions=frame.positions * source.units.of_length,
            cell=frame.cell * source.units.of_length,
            pbc=frame.pbc,
            config_type=str(frame.info.get("config_type", DEFAULT_TYPE)),
            head=head,
            file=file,
            index=index,
        )
        check_geometry(configuration)
        configuration = attach_weights(configuration, frame.info, source.config_type_weights)
        configuration = attach_atom_weights(configuration, frame)
        named = str(frame.info.get(naming.key or HEAD_KEY, head))
        other_head = "" if named == head else named
        structure = _Structure(configuration, {}, [], bool(frame.constraints), {}, other_head)
        for place, entries in (("info", frame.info), ("arrays", frame.arrays), ("calculator", frame.results)):
            for key, value in entries.items():
                if value is None or key in STRUCTURE_KEYS:
                    continue
                n_with_key[place, str(key)] += 1
                if key in wanted:
                    structure.found.setdefault(key, (place, value))
                elif key not in CONDITION_KEYS and is_near(str(key), wanted):
                    structure.near.append((str(key), value))
        if source.conditions:
            info, arrays = {**frame.results, **frame.info}, {**frame.results, **frame.arrays}
            found = find_conditions(
                source.conditions, source.condition_keys, info, arrays, len(frame), configuration.where()
            )
            structure.condition_keys = found.keys
            structure.configuration = replace(configuration, conditions=found.values)
        structures.append(structure)
        if observe is not None:
            observe(frame)
        if progress is not None:
            progress(file, index + 1)
    return structures, n_with_key


def _attach_labels(structure: _Structure, keys: Mapping[str, str], source: Source) -> None:
    """Give a structure the labels that it has under the chosen keys."""
    configuration = structure.configuration
    parsed = {
        name: parse_label(name, key, structure.found[key][1], configuration, source.units.of_label(name))
        for name, key in keys.items()
        if key in structure.found
    }
    if parsed:  # the same as `replace`, in half the time
        structure.configuration = Configuration(**{**vars(configuration), **parsed})


def _near_keys(structures: Sequence[_Structure], candidates: Mapping[str, tuple[str, ...]]) -> Places:
    """Find values that have the form of a label that their structure lacks, under almost the same key."""
    found: Places = {}
    for structure in structures:
        for near, value in structure.near:
            for name, possible in candidates.items():
                if is_near(near, possible) and structure.found.keys().isdisjoint(possible):
                    with suppress(UserError):
                        parse_label(name, near, value, structure.configuration)
                        found.setdefault((name, near), no_places()).append(structure.configuration.index)
    return {label: found[label] for label in sorted(found, key=order_of_label)}


def _leave_out_non_finite(structures: Sequence[_Structure], keys: Mapping[str, str]) -> Places:
    """Remove labels that are NaN or infinite, and return which structures had them."""
    faults: Places = {}
    for name, key in keys.items():
        for structure in structures:
            value = structure.found.get(key, ("", None))[1]
            # a value that is not a number is kept, to be refused later
            is_number = isinstance(value, (int, float, np.number))
            is_number |= getattr(value, "dtype", np.dtype(object)).kind == "f"
            if is_number and not np.isfinite(value).all():
                del structure.found[key]
                faults.setdefault((name, key), no_places()).append(structure.configuration.index)
    return faults


def _coverage(
    name: str, key: str | None, candidates: tuple[str, ...], structures: Sequence[_Structure]
) -> LabelCoverage:
    """Count the structures of a file that have a property."""
    ordinary = [structure for structure in structures if not structure.is_isolated_atom]
    places = Counter(structure.found[key][0] for structure in ordinary if key in structure.found)
    count = sum(places.values())
    return LabelCoverage(
        name=name,
        key=key,
        candidates=candidates,
        places={place: places[place] for place in PLACES if places[place]},
        labeled=count,
        converted=sum(getattr(structure.complete, name) is not None for structure in ordinary) - count,
        frames=len(ordinary),
        isolated=sum(key in structure.found for structure in structures if structure.is_isolated_atom),
    )


def _conditions(source: Source, ordinary: Sequence[_Structure]) -> dict[str, Any]:
    """Count where structures have the requested conditions, and collect the values that are taken where they do not."""
    counts: dict[str, Counter[str]] = {condition.name: Counter() for condition in source.conditions}
    assumed: dict[str, float] = {}
    for structure in ordinary:
        for name, key in structure.condition_keys.items():
            counts[name][key or ""] += 1
            if key is None and name not in assumed:
                assumed[name] = float(structure.configuration.conditions[name].item())
    return {"condition_keys": counts, "assumed": assumed}


def _remarks(
    source: Source, keys: Mapping[str, str], structures: Sequence[_Structure]
) -> Counter[tuple[str, str, str]]:
    """Count structures by what is legal but suspicious about them; see `FileLabels.remarks`."""
    found = Counter[tuple[str, str, str]]()
    if "stress" in keys and source.units.leave_stress_open:
        found["stress unit", "stress", ""] = sum(keys["stress"] in structure.found for structure in structures)
    for name, key in keys.items():
        for other in source.keys.candidates(name):
            found["other key", name, other] = sum(
                key not in structure.found and other in structure.found for structure in structures
            )
    for name in ("stress", "virials"):
        found["asymmetric", name, ""] = sum(
            is_asymmetric(getattr(structure.configuration, name)) for structure in structures
        )
    for structure in structures:
        if not structure.is_isolated_atom:
            complete = structure.complete
            found["not converted", "", ""] += (complete.stress is None) != (complete.virials is None)
            found["several atoms", "", ""] += structure.has_isolated_type
    return +found  # without what occurs nowhere
