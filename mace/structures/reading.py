"""Reads structure files into `Configuration`s, with a report of where every label was found."""

from __future__ import annotations

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
from mace.formats.reading import iterate_frames
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
from mace.structures.collection import ListedStructures, StructureCollection
from mace.structures.condition_values import find_conditions
from mace.structures.configuration import DEFAULT_HEAD, DEFAULT_TYPE, HEAD_KEY, Configuration
from mace.structures.labels import (
    PLACES,
    FileLabels,
    LabelCoverage,
    LabelFault,
    LabelKeys,
    LabelReport,
    choose_key,
)
from mace.structures.sources import FileUnits, Source, expand_sources
from mace.structures.stress import convert_stress_virials, is_asymmetric

Progress = Callable[[str, int], None]
"""Called after every structure with the file and the number of structures read from it so far."""

ISOLATED_ATOM_TYPES = ("isolatedatom", "isolated_atom")


@dataclass(frozen=True)
class ReadResult:
    """Everything read from the given files.

    Attributes:
        configurations: Structures in the order of the files, isolated atoms left out.
        isolated_atoms: Single atoms whose ``config_type`` is IsolatedAtom or isolated_atom, in upper or lower case.
        report: Where the labels were found.
    """

    configurations: StructureCollection
    isolated_atoms: list[Configuration]
    report: LabelReport


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

    @property
    def is_isolated_atom(self) -> bool:
        """Whether it is an isolated atom."""
        return self.has_isolated_type and self.configuration.n_atoms == 1


@dataclass(frozen=True)
class _HeadNaming:
    """Which head structures are for; see `read_sources`."""

    head: str
    key: str | None
    known: tuple[str, ...]

    def head_of(self, frame: Frame, file: str, index: int, names_heads: bool) -> str | None:
        """Return the head of a structure; None to leave the structure out.

        Args:
            frame: The structure.
            file: The file it is from.
            index: Its index there.
            names_heads: Whether the first structure of that file names its head; then all must, else none may.

        Raises:
            UserError: If it names no head where others do, or one that does not exist.
        """
        named = None if self.key is None else frame.info.get(self.key)
        if not self.known or (named is None and not names_heads):
            return self.head if named is None else str(named)
        if not names_heads:
            raise UserError(
                f"{file}: structure {index} names its head in {self.key}=, but structure 0 does not; name the head of "
                "all structures, or give each head its own file in --heads."
            )
        if named is None or str(named) not in self.known:
            what = f"has no {self.key}= in its comment line" if named is None else f"is for the head '{named}'"
            raise UserError(
                f"{file}: structure {index} {what}; this file is for several heads, and its structures name one of "
                f"{', '.join(self.known)}. Mend the name, add it to --heads, or give each head its own file there."
            )
        return str(named) if str(named) == self.head else None


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
        paths: File names and glob patterns.
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
    """Read labeled structures from files of any format that ASE supports.

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
    files: list[FileLabels] = []
    structures: list[_Structure] = []
    with collection_paused():
        for file, source in expanded:
            naming = _HeadNaming(head, head_key, tuple(heads))
            described, read = _read_file(file, source, naming, observe, progress, skip_non_finite)
            files.append(described)
            structures += read
    types: dict[str, set[str]] = {}
    for structure in structures:
        types.setdefault(structure.configuration.file, set()).add(structure.configuration.config_type)
    for place, (_, source) in enumerate(expanded):
        weights = source.config_type_weights
        if any(later.config_type_weights == weights for _, later in expanded[place + 1 :]):
            continue  # files with the same weights are checked together, after the last of them
        present = set().union(
            *(types.get(file, ()) for file, other in expanded if other.config_type_weights == weights)
        )
        if unused := [name for name in weights if name != DEFAULT_TYPE and name not in present]:
            names, known = (", ".join(f"'{name}'" for name in words) for words in (unused, sorted(present)))
            note = f"--config_type_weights names {names}, which no structure has as config_type; there are {known}."
            files[place] = replace(files[place], notes=(*files[place].notes, note))
    return ReadResult(
        ListedStructures(structure.complete for structure in structures if not structure.is_isolated_atom),
        [structure.complete for structure in structures if structure.is_isolated_atom],
        LabelReport(tuple(files)),
    )


def _read_structures(
    file: str,
    source: Source,
    naming: _HeadNaming,
    observe: Callable[[Frame], None] | None,
    progress: Progress | None,
) -> tuple[list[_Structure], Counter[tuple[str, str]]]:
    """Read and check the structures of a file, keeping only what may be needed for the labels of each.

    Returns:
        The structures, and the number of them that have each key, by place and key.
    """
    wanted = tuple(key for name in PROPERTIES for key in source.keys.candidates(name))
    structures: list[_Structure] = []
    n_with_key: Counter[tuple[str, str]] = Counter()
    names_heads: bool | None = None
    for index, frame in source.indexed(iterate_frames(file)):
        names_heads = naming.key in frame.info if names_heads is None else names_heads
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


def _read_file(
    file: str,
    source: Source,
    naming: _HeadNaming,
    observe: Callable[[Frame], None] | None,
    progress: Progress | None,
    skip_non_finite: bool,
) -> tuple[FileLabels, list[_Structure]]:
    """Read the structures of one file with their labels, and report where the labels were found."""
    structures, n_with_key = _read_structures(file, source, naming, observe, progress)
    candidates = {name: source.keys.candidates(name) for name in PROPERTIES}
    present = {key for structure in structures for key in structure.found}
    keys = {name: key for name in PROPERTIES if (key := choose_key(candidates[name], present)) is not None}
    faults: list[LabelFault] = []
    misspelled: list[LabelFault] = []
    if skip_non_finite:
        for name, key in keys.items():
            for structure in structures:
                value = structure.found.get(key, ("", None))[1]
                # a value that is not a number is kept, to be refused later
                is_number = isinstance(value, (int, float, np.number))
                is_number |= getattr(value, "dtype", np.dtype(object)).kind == "f"
                if is_number and not np.isfinite(value).all():
                    del structure.found[key]
                    faults.append(LabelFault(name, key, structure.configuration.index))
    factors = {name: source.units.of_label(name) for name in keys}
    for structure in structures:
        configuration = structure.configuration
        labels = {
            name: parse_label(name, key, structure.found[key][1], configuration, factors[name])
            for name, key in keys.items()
            if key in structure.found
        }
        if labels:  # the same as `replace`, in half the time
            structure.configuration = Configuration(**{**vars(configuration), **labels})
        for near, value in structure.near:
            for name, possible in candidates.items():
                if is_near(near, possible) and structure.found.keys().isdisjoint(possible):
                    with suppress(UserError):
                        parse_label(name, near, value, configuration)
                        misspelled.append(LabelFault(name, near, configuration.index))
    return (
        FileLabels(
            file,
            frames=sum(not structure.is_isolated_atom for structure in structures),
            isolated_atoms=sum(structure.is_isolated_atom for structure in structures),
            keys=n_with_key,
            coverage=tuple(_coverage(name, keys.get(name), candidates[name], structures) for name in PROPERTIES),
            notes=tuple(f"{file}: {note}" for note in _notes(source, keys, structures)),
            faults=tuple(faults),
            misspelled=tuple(misspelled),
            constrained=tuple(structure.configuration.index for structure in structures if structure.constrained),
            units=source.units.text,
            other_heads=tuple(sorted({structure.other_head for structure in structures if structure.other_head})),
            conditions=tuple(
                f"{name} {sum(keys_of.values())} of {len(found)}"
                + (f" ({' and '.join(repr(key) for key in keys_of)})" if keys_of else "")
                for name, found in _condition_keys(structures).items()
                for keys_of in [Counter(key for key in found if key is not None)]
            ),
        ),
        structures,
    )


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


def _condition_keys(structures: Sequence[_Structure]) -> dict[str, list[str | None]]:
    """Collect, by condition, the key under which each structure has it, without isolated atoms."""
    ordinary = [structure.condition_keys for structure in structures if not structure.is_isolated_atom]
    return {name: [keys[name] for keys in ordinary] for name in (ordinary[0] if ordinary else ())}


def _notes(source: Source, keys: Mapping[str, str], structures: Sequence[_Structure]) -> Iterator[str]:
    """Yield sentences about what is legal but suspicious."""
    if "stress" in keys and source.units.leave_stress_open:
        yield "stresses are read as eV/Angstrom^3 though other units are given; name their unit with --stress_unit."
    for name, key in keys.items():
        for other in source.keys.candidates(name):
            count = sum(key not in structure.found and other in structure.found for structure in structures)
            if count:
                yield (
                    f"{count} structures have '{other}' but no '{key}', which was chosen for the whole file; "
                    f"they have no {name}. Name one of the two with --{name}_key."
                )
    for name in ("stress", "virials"):
        count = sum(is_asymmetric(getattr(structure.configuration, name)) for structure in structures)
        if count:
            yield f"the {name} of {count} structures is not symmetric, which no potential can reproduce."
    count = sum(
        (structure.complete.stress is None) != (structure.complete.virials is None) and not structure.is_isolated_atom
        for structure in structures
    )
    if count:
        yield (
            f"{count} structures do not repeat in all three directions, so their stress and virials cannot be "
            "converted into each other."
        )
    count = sum(structure.has_isolated_type and not structure.is_isolated_atom for structure in structures)
    if count:
        yield f"{count} structures are of the type IsolatedAtom but have several atoms; they are read as ordinary ones."
    ordinary = [structure.configuration for structure in structures if not structure.is_isolated_atom]
    for name, found in _condition_keys(structures).items():
        if assumed := [place for place, key in enumerate(found) if key is None]:
            value = ordinary[assumed[0]].conditions[name].item()
            yield f"{len(assumed)} of {len(found)} structures do not say {name}; {value:g} is taken."
