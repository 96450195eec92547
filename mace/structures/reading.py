"""Structure files become `Configuration`s, with a report of where every label was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mace.conditions import CONDITION_KEYS
from mace.errors import UserError
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
from mace.structures.condition_values import find_conditions
from mace.structures.configuration import DEFAULT_HEAD, DEFAULT_TYPE, Configuration
from mace.structures.conversion import FileUnits
from mace.structures.frame import Frame
from mace.structures.frames import iterate_frames
from mace.structures.labels import (
    PLACES,
    FileLabels,
    LabelCoverage,
    LabelFault,
    LabelKeys,
    LabelReport,
    choose_key,
    is_near,
)
from mace.structures.sources import Source, expand_sources
from mace.structures.stress import convert_stress_virials, is_asymmetric

Progress = Callable[[str, int], None]
"""Called after every structure with the file and the number of structures read from it so far."""

Head = tuple[str, str | None]
"""Head of the structures of a file, and the entry of ``info`` with that of a structure which has one of its own."""

_ISOLATED_ATOM_TYPES = ("isolatedatom", "isolated_atom")


@dataclass(frozen=True)
class ReadResult:
    """Everything read from the given files.

    Attributes:
        configurations: Structures in the order of the files, isolated atoms left out.
        isolated_atoms: Single atoms whose ``config_type`` is IsolatedAtom or isolated_atom, in any case.
        report: Where the labels were found.
    """

    configurations: list[Configuration]
    isolated_atoms: list[Configuration]
    report: LabelReport


@dataclass(frozen=True)
class _Checked:
    """A checked structure with the raw value and place of every label that may turn out to be wanted.

    What stands under almost such a key is ``near``.
    """

    configuration: Configuration
    found: dict[str, tuple[str, Any]]
    near: list[tuple[str, Any]]
    constrained: bool
    condition_keys: dict[str, str | None]

    @property
    def is_isolated_atom(self) -> bool:
        return _is_isolated_type(self.configuration.config_type) and self.configuration.n_atoms == 1


class _Labeled(NamedTuple):
    """A structure with the labels of its file, and the same with stress and virials completed."""

    frame: _Checked
    original: Configuration
    complete: Configuration


def read_configurations(
    paths: str | Path | Sequence[str | Path],
    keys: LabelKeys | None = None,
    config_type_weights: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    head: str = DEFAULT_HEAD,
    skip_non_finite: bool = False,
    units: FileUnits | None = None,
) -> ReadResult:
    """Read labeled structures from files that are all read in the same way; see `read_sources`.

    Args:
        paths: File names and glob patterns.
        keys: The labels' keys; without them every file decides, see `LabelKeys`.
        config_type_weights: Weight of each ``config_type``; other types weigh what ``"Default"`` does, or one.
        progress: Told of every structure read.
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
) -> ReadResult:
    """Read labeled structures from any files ASE knows.

    A label that a structure lacks is ``None``, never zero. Forces are the labeled ones even on constrained atoms.
    Stress and virials are derived from each other where only one is there and the cell has a volume.

    Args:
        sources: The files, and how to read them.
        progress: Told of every structure read.
        head: Name of the readout head these labels belong to.
        observe: Given every structure as it stands in the file, in the order of the files.
        skip_non_finite: Leave labels out that are NaN or infinite, and list them in the report, instead of stopping.
        head_key: Entry of the comment line with the head of a structure, where it has one of its own.

    Raises:
        UserError: If a file or structure cannot be read, holds no atoms, has a cell that does not span the directions
            in which it repeats, or has a label or weight that is no finite number of the right shape. A label that is
            nowhere is no error here; see `mace.structures.labels.require_labels`.
    """
    for source in sources:
        check_type_weights(source.config_type_weights)
    expanded = expand_sources(sources)
    with collection_paused():
        read = [
            _read_file(file, source, progress, (head, head_key), observe, skip_non_finite) for file, source in expanded
        ]
    items = [item for _, labeled in read for item in labeled]
    configurations = [item.complete for item in items if not item.frame.is_isolated_atom]
    isolated_atoms = [item.complete for item in items if item.frame.is_isolated_atom]
    files = _note_unused_weights([file for file, _ in read], expanded, [*configurations, *isolated_atoms])
    return ReadResult(configurations, isolated_atoms, LabelReport(files))


def _read_file(
    file: str,
    source: Source,
    progress: Progress | None,
    head: Head,
    observe: Callable[[Frame], None] | None,
    skip_non_finite: bool,
) -> tuple[FileLabels, list[_Labeled]]:
    """Read the structures of one file, and say where their labels were."""
    all_keys: Counter[tuple[str, str]] = Counter()
    frames = list(_read_frames(file, source, head, all_keys, progress, observe))
    chosen = _choose_keys(frames, source.keys)
    faults = _leave_out_non_finite(frames, chosen) if skip_non_finite else []
    factors = {name: source.units.of_label(name) for name in chosen}
    labeled = [_attach_labels(frame, chosen, factors) for frame in frames]
    described = _describe_file(file, source, chosen, labeled, all_keys)
    constrained = tuple(frame.configuration.index for frame in frames if frame.constrained)
    misspelled = tuple(_find_misspelled(frames, source.keys))
    return replace(described, faults=tuple(faults), constrained=constrained, misspelled=misspelled), labeled


def _read_frames(
    file: str,
    source: Source,
    head: Head,
    all_keys: Counter[tuple[str, str]],
    progress: Progress | None,
    observe: Callable[[Frame], None] | None,
) -> Iterator[_Checked]:
    """Yield checked structures, keeping of each only what may be needed."""
    wanted = tuple(key for name in PROPERTIES for key in source.keys.candidates(name))
    for index, frame in enumerate(iterate_frames(file)):
        places = {"info": frame.info, "arrays": frame.arrays, "calculator": frame.results}
        found: dict[str, tuple[str, Any]] = {}
        near: list[tuple[str, Any]] = []
        for place in PLACES:
            for key, value in places[place].items():
                if value is None or key in STRUCTURE_KEYS:
                    continue
                all_keys[place, str(key)] += 1
                if key in wanted:
                    found.setdefault(key, (place, value))
                elif key not in CONDITION_KEYS and is_near(str(key), wanted):
                    near.append((str(key), value))
        configuration, keys = _attach_conditions(_bare_configuration(frame, file, index, source, head), frame, source)
        yield _Checked(configuration, found, near, bool(frame.constraints), keys)
        if observe is not None:
            observe(frame)
        if progress is not None:
            progress(file, index + 1)


def _bare_configuration(frame: Frame, file: str, index: int, source: Source, head: Head) -> Configuration:
    """Turn a structure into a configuration without labels."""
    configuration = Configuration(
        atomic_numbers=np.array(frame.numbers, dtype=np.int64),
        positions=frame.positions * source.units.of_length,
        cell=frame.cell * source.units.of_length,
        pbc=frame.pbc,
        config_type=str(frame.info.get("config_type", DEFAULT_TYPE)),
        head=head[0] if head[1] is None else str(frame.info.get(head[1], head[0])),
        file=file,
        index=index,
    )
    check_geometry(configuration)
    return attach_atom_weights(attach_weights(configuration, frame.info, source.config_type_weights), frame)


def _attach_conditions(
    configuration: Configuration, frame: Frame, source: Source
) -> tuple[Configuration, dict[str, str | None]]:
    """Give a configuration the conditions it is under, and say where each was found."""
    if not source.conditions:
        return configuration, {}
    info, arrays = {**frame.results, **frame.info}, {**frame.results, **frame.arrays}
    found = find_conditions(
        source.conditions, source.condition_keys, info, arrays, configuration.n_atoms, configuration.where()
    )
    return replace(configuration, conditions=found.values), found.keys


def _choose_keys(frames: Sequence[_Checked], keys: LabelKeys) -> dict[str, str | None]:
    """Decide for a whole file under which key each property stands."""
    found = {key for frame in frames for key in frame.found}
    return {name: choose_key(keys.candidates(name), found) for name in PROPERTIES}


def _leave_out_non_finite(frames: Sequence[_Checked], chosen: Mapping[str, str | None]) -> list[LabelFault]:
    """Take labels that are NaN or infinite away from their frames; labels that are no numbers stay to be refused."""
    faults = []
    for name, key in chosen.items():
        for frame in frames:
            if key is None or key not in frame.found:
                continue
            values = frame.found[key][1]
            is_number = isinstance(values, (int, float, np.number))
            if (is_number or getattr(values, "dtype", np.dtype(object)).kind == "f") and not np.isfinite(values).all():
                del frame.found[key]
                faults.append(LabelFault(name, key, frame.configuration.index))
    return faults


def _find_misspelled(frames: Sequence[_Checked], keys: LabelKeys) -> Iterator[LabelFault]:
    """Find what has the form of a label that its structure lacks, under almost the same key."""
    for frame in frames:
        for key, value in frame.near:
            for name in PROPERTIES:
                candidates = keys.candidates(name)
                if not is_near(key, candidates) or any(candidate in frame.found for candidate in candidates):
                    continue
                try:
                    parse_label(name, key, value, frame.configuration)
                except UserError:
                    continue
                yield LabelFault(name, key, frame.configuration.index)


def _attach_labels(frame: _Checked, chosen: Mapping[str, str | None], factors: Mapping[str, float]) -> _Labeled:
    labels = {
        name: parse_label(name, key, frame.found[key][1], frame.configuration, factors[name])
        for name, key in chosen.items()
        if key is not None and key in frame.found
    }
    # what `replace` does, in half the time
    configuration = Configuration(**{**vars(frame.configuration), **labels}) if labels else frame.configuration
    return _Labeled(frame, configuration, convert_stress_virials(configuration))


def _describe_file(
    file: str,
    source: Source,
    chosen: Mapping[str, str | None],
    labeled: Sequence[_Labeled],
    all_keys: Counter[tuple[str, str]],
) -> FileLabels:
    isolated = [item.frame for item in labeled if item.frame.is_isolated_atom]
    ordinary = [item for item in labeled if not item.frame.is_isolated_atom]
    coverage = []
    for name in PROPERTIES:
        key = chosen[name]
        places = Counter(item.frame.found[key][0] for item in ordinary if key in item.frame.found) if key else Counter()
        count = sum(places.values())
        coverage.append(
            LabelCoverage(
                name=name,
                key=key,
                candidates=source.keys.candidates(name),
                places={place: places[place] for place in PLACES if places[place]},
                labeled=count,
                converted=sum(getattr(item.complete, name) is not None for item in ordinary) - count,
                frames=len(ordinary),
                isolated=sum(key in frame.found for frame in isolated) if key else 0,
            )
        )
    notes = tuple(f"{file}: {note}" for note in (*_notes(source, chosen, labeled), *_condition_notes(ordinary)))
    return FileLabels(
        file,
        len(ordinary),
        len(isolated),
        all_keys,
        tuple(coverage),
        notes,
        units=source.units.text,
        conditions=tuple(_condition_texts(ordinary)),
    )


def _notes(source: Source, chosen: Mapping[str, str | None], labeled: Sequence[_Labeled]) -> Iterator[str]:
    """Sentences about labels that are legal but suspicious."""
    if chosen["stress"] is not None and source.units.leave_stress_open:
        yield "stresses are read as eV/Angstrom^3 though other units are given; name their unit with --stress_unit."
    for name, key in chosen.items():
        for other in source.keys.candidates(name):
            if key is None or other == key:
                continue
            count = sum(key not in item.frame.found and other in item.frame.found for item in labeled)
            if count:
                yield (
                    f"{count} structures have '{other}' but no '{key}', which was chosen for the whole file; "
                    f"they have no {name}. Name one of the two with --{name}_key."
                )
    for name in ("stress", "virials"):
        count = sum(is_asymmetric(getattr(item.original, name)) for item in labeled)
        if count:
            yield f"the {name} of {count} structures is not symmetric, which no potential can reproduce."
    count = sum(
        (item.complete.stress is None) != (item.complete.virials is None) and not item.frame.is_isolated_atom
        for item in labeled
    )
    if count:
        yield (
            f"{count} structures do not repeat in all three directions, so their stress and virials cannot be "
            "converted into each other."
        )
    count = sum(_is_isolated_type(item.original.config_type) and not item.frame.is_isolated_atom for item in labeled)
    if count:
        yield f"{count} structures are of the type IsolatedAtom but have several atoms; they are read as ordinary ones."


def _condition_texts(labeled: Sequence[_Labeled]) -> Iterator[str]:
    """Say in words under which keys conditions were found."""
    for name, found in _condition_keys(labeled).items():
        keys = Counter(key for key in found if key is not None)
        places = f" ({' and '.join(repr(key) for key in keys)})" if keys else ""
        yield f"{name} {sum(keys.values())} of {len(found)}{places}"


def _condition_notes(labeled: Sequence[_Labeled]) -> Iterator[str]:
    """Sentences about structures whose conditions were assumed."""
    for name, found in _condition_keys(labeled).items():
        if assumed := [place for place, key in enumerate(found) if key is None]:
            value = labeled[assumed[0]].original.conditions[name].item()
            yield f"{len(assumed)} of {len(found)} structures do not say {name}; {value:g} is taken."


def _condition_keys(labeled: Sequence[_Labeled]) -> dict[str, list[str | None]]:
    """Collect by condition under which key each structure has it."""
    names = labeled[0].frame.condition_keys if labeled else ()
    return {name: [item.frame.condition_keys[name] for item in labeled] for name in names}


def _is_isolated_type(config_type: str) -> bool:
    return config_type.lower() in _ISOLATED_ATOM_TYPES


def _note_unused_weights(
    files: Sequence[FileLabels], expanded: Sequence[tuple[str, Source]], configurations: Sequence[Configuration]
) -> tuple[FileLabels, ...]:
    """Note types that have a weight but no structure: most often they are misspelled."""
    types: dict[str, set[str]] = {}
    for configuration in configurations:
        types.setdefault(configuration.file, set()).add(configuration.config_type)
    noted = list(files)
    for place, (_, source) in enumerate(expanded):
        sharing = [
            other for other, (_, s) in enumerate(expanded) if s.config_type_weights == source.config_type_weights
        ]
        if place != sharing[-1]:
            continue  # files with the same weights are judged together, at the last of them
        present = set().union(*(types.get(expanded[other][0], set()) for other in sharing))
        unused = [name for name in source.config_type_weights if name != DEFAULT_TYPE and name not in present]
        if unused:
            names = ", ".join(f"'{name}'" for name in unused)
            known = ", ".join(f"'{name}'" for name in sorted(present))
            note = f"--config_type_weights names {names}, which no structure has as config_type; there are {known}."
            noted[place] = replace(noted[place], notes=(*noted[place].notes, note))
    return tuple(noted)
