"""Files that are read in the same way: names of the labels, units, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mace.conditions import SETTABLE, Condition
from mace.properties import PROPERTIES
from mace.settings import TrainingSettings
from mace.settings.labels import FileSettings, LabelSettings
from mace.structures.conversion import FileUnits
from mace.structures.frames import expand_paths, refuse_repeated
from mace.structures.labels import LabelKeys


@dataclass(frozen=True)
class Source:
    """Files, and how to read them.

    Attributes:
        paths: File names and patterns.
        keys: The labels' keys; without them every file decides, see `LabelKeys`.
        units: Units of the files' numbers.
        config_type_weights: Weight of each ``config_type``; other types weigh what ``"Default"`` does, or one.
        conditions: What models want to know besides.
        condition_keys: Keys of these that were given, by name; see `mace.structures.condition_values.find_conditions`.
    """

    paths: str | Path | Sequence[str | Path]
    keys: LabelKeys = field(default_factory=LabelKeys)
    units: FileUnits = field(default_factory=FileUnits)
    config_type_weights: Mapping[str, float] = field(default_factory=dict)
    conditions: Sequence[Condition] = ()
    condition_keys: Mapping[str, str] = field(default_factory=dict)


def expand_sources(sources: Sequence[Source]) -> list[tuple[str, Source]]:
    """List the files of several sources in order, each with the source it belongs to.

    Raises:
        UserError: See `expand_paths`; also if two sources name the same file.
    """
    files = [(file, source) for source in sources for file in expand_paths(source.paths)]
    refuse_repeated([file for file, _ in files])
    return files


def files_of(files: str | FileSettings | Sequence[str | FileSettings]) -> list[str]:
    """List the files of ``train_file``, ``valid_file`` or ``test_file``, whatever is said of how to read them.

    Raises:
        UserError: See `expand_paths`.
    """
    items = [files] if isinstance(files, (str, FileSettings)) else list(files)
    return [file for item in items for file in expand_paths(item if isinstance(item, str) else item.file)]


def sources_of(
    settings: TrainingSettings,
    files: str | FileSettings | Sequence[str | FileSettings],
    conditions: Sequence[Condition] = (),
) -> tuple[Source, ...]:
    """Understand what was typed for ``train_file``, ``valid_file`` or ``test_file``.

    Args:
        settings: Give the keys, units and weights of all files that have none of their own.
        files: The value of one of these settings.
        conditions: What the model wants to know besides, each with the key that was given for all files.

    Returns:
        One source for each file name or table, in order.
    """
    items = [files] if isinstance(files, (str, FileSettings)) else list(files)
    return tuple(_source(settings, item, conditions) for item in items)


def _source(settings: TrainingSettings, item: str | FileSettings, conditions: Sequence[Condition]) -> Source:
    own = item if isinstance(item, FileSettings) else None
    weights = own.config_type_weights if own is not None else None
    return Source(
        paths=item if isinstance(item, str) else item.file,
        keys=LabelKeys(**{name: _own_or_shared(f"{name}_key", own, settings) for name in PROPERTIES}),
        units=FileUnits(
            **{name: _own_or_shared(f"{name}_unit", own, settings) for name in ("energy", "length", "stress")}
        ),
        config_type_weights=settings.config_type_weights if weights is None else weights,
        conditions=conditions,
        condition_keys=_condition_keys(settings, own, conditions),
    )


def _condition_keys(
    settings: TrainingSettings, own: FileSettings | None, conditions: Sequence[Condition]
) -> dict[str, str]:
    """Return the keys that were given for conditions, those of the file itself before those of all files."""
    names = {condition.name for condition in conditions}
    described = settings.embedding_specs or {}
    keys = {name: described.get(name, {}).get("key") for name in names}
    for name in SETTABLE:
        key = _own_or_shared(f"{name}_key", own, settings)
        if key and name in names:
            keys[name] = key
    return {name: key for name, key in keys.items() if key is not None}


def _own_or_shared(name: str, own: LabelSettings | None, shared: LabelSettings) -> str | None:
    """Return what a file says of itself, else what is said of all files."""
    value: str | None = getattr(own, name, None)
    if value is None:
        value = getattr(shared, name)
    return value
