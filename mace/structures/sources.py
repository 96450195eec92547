"""Which files are read, and how: names and patterns, label keys, units, weights."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from mace.conditions import SETTABLE, Condition
from mace.errors import UserError
from mace.formats.frame import Frame
from mace.properties import PROPERTIES
from mace.settings import TrainingSettings
from mace.settings.labels import FileSettings
from mace.structures.configuration import DEFAULT_HEAD
from mace.structures.labels import LabelKeys
from mace.structures.prepared import is_prepared
from mace.units import ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS

Item = TypeVar("Item")


@dataclass(frozen=True)
class FileUnits:
    """The units of the numbers in a file; ``None`` stands for the first unit of each table in `mace.units`.

    Attributes:
        energy: Unit of energies and virials, also used in forces and polarizabilities; a key of `ENERGY_UNITS`.
        length: Unit of positions and cells, also used in forces, dipoles and polarizabilities; a key of `LENGTH_UNITS`.
        stress: Unit of stresses, independent of the other two; a key of `STRESS_UNITS`.

    Raises:
        UserError: If a unit is unknown.
    """

    energy: str | None = None
    length: str | None = None
    stress: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown units."""
        for item, table in zip(fields(self), (ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS), strict=True):
            given = getattr(self, item.name)
            if given is not None and given not in table:
                raise UserError(f"--{item.name}_unit must be one of {', '.join(table)}, not '{given}'.")

    @property
    def of_length(self) -> float:
        """Factor by which positions and cells are multiplied."""
        return LENGTH_UNITS[self.length or "Angstrom"]

    def of_label(self, name: str) -> float:
        """Factor by which a label is multiplied.

        Args:
            name: One of `mace.properties.PROPERTIES`.

        >>> FileUnits(energy="meV").of_label("forces"), FileUnits(length="nm").of_label("forces")
        (0.001, 0.1)
        """
        if name == "stress":
            return STRESS_UNITS[self.stress or "eV/Angstrom^3"]
        return PROPERTIES[name].factor(ENERGY_UNITS[self.energy or "eV"], self.of_length)

    @property
    def leave_stress_open(self) -> bool:
        """Whether another unit was changed while that of stresses was left at its default."""
        changed = (self.energy or "eV") != "eV" or (self.length or "Angstrom") != "Angstrom"
        return changed and self.stress is None

    @property
    def text(self) -> str:
        """The units in words if any of them is not the default, else an empty text."""
        words = (self.energy or "eV", self.length or "Angstrom", self.stress or "eV/Angstrom^3")
        return "" if words == ("eV", "Angstrom", "eV/Angstrom^3") else f"converted from {', '.join(words)}"


@dataclass(frozen=True)
class Source:
    """Files, and how to read them.

    Attributes:
        paths: File names and patterns.
        keys: The labels' keys; without them every file decides, see `LabelKeys`.
        units: Units of the files' numbers.
        config_type_weights: Weight of each ``config_type``; other types have the weight of ``"Default"``, or one.
        conditions: Further inputs that models need.
        condition_keys: Given keys of the conditions, by name; see `mace.structures.condition_values.find_conditions`.
        only: Indices of the structures that are read of each file, counted from zero; all without it.
    """

    paths: str | Path | Sequence[str | Path]
    keys: LabelKeys = field(default_factory=LabelKeys)
    units: FileUnits = field(default_factory=FileUnits)
    config_type_weights: Mapping[str, float] = field(default_factory=dict)
    conditions: Sequence[Condition] = ()
    condition_keys: Mapping[str, str] = field(default_factory=dict)
    only: frozenset[int] | None = None

    def indexed(self, items: Iterable[Item], first: int = 0) -> Iterator[tuple[int, Item]]:
        """Yield what is read of one file's structures, each with its index.

        Args:
            items: The structures.
            first: Index of the first of them.
        """
        last = None if self.only is None else max(max(self.only, default=-1) + 1 - first, 0)
        for index, item in enumerate(itertools.islice(items, last), first):
            if self.only is None or index in self.only:
                yield index, item


@dataclass(frozen=True)
class HeadNaming:
    """Which head the structures of a file are for; see `mace.structures.reading.read_sources`.

    Attributes:
        head: Name of the readout head that is read for.
        key: Entry of the comment line that names a structure's own head, if it has one.
        known: Names of all heads, in files with structures of several.
        names_heads: Whether the first structure of the file names its head: then all must, else none may. None if the
            part that is read begins with it.
    """

    head: str = DEFAULT_HEAD
    key: str | None = None
    known: tuple[str, ...] = ()
    names_heads: bool | None = None

    def names_own(self, frame: Frame) -> bool:
        """Return whether a structure names its head."""
        return self.key in frame.info

    def head_of(self, frame: Frame, file: str, index: int, names_heads: bool) -> str | None:
        """Return the head of a structure; None to leave the structure out.

        Args:
            frame: The structure.
            file: The file it is from.
            index: Its index there.
            names_heads: What `names_heads` is about.

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


@dataclass(frozen=True)
class FilePart:
    """Consecutive structures of one file, which are read together.

    Attributes:
        file: The file.
        source: How it is read.
        naming: Which head its structures are for.
        start: Index of the first structure.
        stop: Index after the last one; None for the end of the file.
    """

    file: str
    source: Source
    naming: HeadNaming = HeadNaming()
    start: int = 0
    stop: int | None = None


def expand_paths(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Turn file names and glob patterns into the list of existing files they stand for.

    A name that exists is taken literally even where it contains ``*``, ``?`` or ``[``. Files found by a pattern are
    sorted by name; otherwise the given order is kept.

    Raises:
        UserError: If a file is missing, empty, a directory or named twice, or if a pattern matches nothing.
    """
    files: list[str] = []
    for given in map(str, [paths] if isinstance(paths, (str, Path)) else paths):
        if Path(given).exists() or not glob.has_magic(given):
            files.append(given)
            continue
        matches = sorted(
            match for match in glob.glob(given, recursive=True) if not Path(match).is_dir() or is_prepared(match)
        )
        if not matches:
            raise UserError(f"{given}: no file matches this pattern, seen from {Path.cwd()}.")
        files += matches
    if not files:
        raise UserError("No structure file was given; name at least one.")
    for file in files:
        path = Path(file)
        if not file.strip():
            raise UserError("The name of a structure file is empty.")
        if is_prepared(path):
            continue
        if path.is_dir():
            raise UserError(
                f"{file}: this is a directory; name the files in it, for example with '{file.rstrip('/')}/*'."
            )
        if not path.exists():
            raise UserError(f"{file}: there is no such file, seen from {Path.cwd()}.")
        if not path.is_file():
            raise UserError(
                f"{file}: this is not a regular file and cannot be read more than once; write it to one first."
            )
        if path.stat().st_size == 0:
            raise UserError(f"{file}: the file is empty.")
    refuse_repeated(files)
    return files


def refuse_repeated(files: Sequence[str]) -> None:
    """Check that no file is read twice.

    Raises:
        UserError: If two names refer to the same file.
    """
    seen: dict[Path, str] = {}
    for file in files:
        real = Path(file).resolve()
        if real in seen:
            raise UserError(
                f"{file}: the same file is given twice (first as {seen[real]}), and its structures would count double; "
                "name it once."
            )
        seen[real] = file


def expand_sources(sources: Sequence[Source]) -> list[tuple[str, Source]]:
    """List the files of several sources in order, each with the source it belongs to.

    Raises:
        UserError: See `expand_paths`; also if two sources name the same file.
    """
    files = [(file, source) for source in sources for file in expand_paths(source.paths)]
    refuse_repeated([file for file, _ in files])
    return files


def files_of(files: str | FileSettings | Sequence[str | FileSettings]) -> list[str]:
    """List the files of ``train_file``, ``valid_file`` or ``test_file``, ignoring how they are to be read.

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
    """Turn the value of ``train_file``, ``valid_file`` or ``test_file`` into sources.

    Args:
        settings: Provide the keys, units and weights of all files that have none of their own.
        files: The value of one of these settings.
        conditions: Further inputs that the model needs, each with the key given for all files.

    Returns:
        One source for each file name or table, in order.
    """
    items = [files] if isinstance(files, (str, FileSettings)) else list(files)
    names = {condition.name for condition in conditions}
    described = settings.embedding_specs or {}
    sources = []
    for item in items:

        def said(name: str, item: str | FileSettings = item) -> Any:
            """Return the value given for the file itself, else the one given for all files."""
            own = getattr(item, name, None)
            return getattr(settings, name) if own is None else own

        weights = item.config_type_weights if isinstance(item, FileSettings) else None
        keys = {name: described.get(name, {}).get("key") for name in names}
        keys |= {name: key for name in SETTABLE if name in names and (key := said(f"{name}_key"))}
        sources.append(
            Source(
                paths=item if isinstance(item, str) else item.file,
                keys=LabelKeys(**{name: said(f"{name}_key") for name in PROPERTIES}),
                units=FileUnits(**{name: said(f"{name}_unit") for name in ("energy", "length", "stress")}),
                config_type_weights=settings.config_type_weights if weights is None else weights,
                conditions=conditions,
                condition_keys={name: key for name, key in keys.items() if key is not None},
            )
        )
    return tuple(sources)
