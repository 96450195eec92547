"""Which files are read, and how: names and patterns, label keys, units, weights."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from mace.conditions import SETTABLE, Condition
from mace.errors import UserError
from mace.formats.frame import Frame
from mace.formats.frame_file import FrameFile
from mace.formats.reading import ENDINGS, ending_of, iterate_frames, key_of_heads, names_properties
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
        paths: Names of files and folders, lists and patterns; see `expand_paths`.
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

    def of(self, file: str) -> Source:
        """Return how one of the files is read: a given key means nothing where labels go by their properties."""
        if not names_properties(file):
            return self
        kept = {name: "" for name in PROPERTIES if self.keys.given(name) == ""}
        return replace(self, keys=LabelKeys(**kept), condition_keys={})

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

    def of(self, file: str) -> HeadNaming:
        """Return how the structures of a file name their heads, which may have a key of its own for it."""
        return replace(self, key=key_of_heads(file, self.key))

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
        opened: The file's reader, so that several parts share one look for where structures begin.
    """

    file: str
    source: Source
    naming: HeadNaming = HeadNaming()
    start: int = 0
    stop: int | None = None
    opened: FrameFile | None = None

    def frames(self) -> Iterator[Frame]:
        """Yield its structures; see `mace.formats.reading.iterate_frames`."""
        return iterate_frames(self.opened or self.file, self.start, self.stop)


def expand_paths(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Turn names of files and folders, lists ``a:b:c`` of them and glob patterns into the files they stand for.

    A name that exists is taken literally even where it contains ``*``, ``?``, ``[`` or ``:``. A folder stands for the
    files in it, which must be of one kind. What a folder holds and a pattern finds is sorted by name; otherwise the
    given order is kept. A prepared set is a folder that is kept as it is.

    Raises:
        UserError: If a file is missing, out of reach, empty or named twice, a pattern matches nothing, or a folder
            holds no files that can be read, or several kinds of them.
    """
    try:
        return _expand_paths(paths)
    except OSError as error:
        raise UserError(f"{error.filename}: this cannot be read ({error.strerror or error}).") from error


def _expand_paths(paths: str | Path | Sequence[str | Path]) -> list[str]:
    files: list[str] = []
    for given in map(str, [paths] if isinstance(paths, (str, Path)) else paths):
        if not given.strip():
            raise UserError("The name of a structure file is empty.")
        for name in itertools.chain.from_iterable(map(_expand_pattern, _split_list(given))):
            files += _files_in(name) if Path(name).is_dir() and not is_prepared(name) else [name]
    if not files:
        raise UserError("No structure file was given; name at least one.")
    for file in files:
        path = Path(file)
        if not path.exists():
            raise UserError(f"{file}: there is no such file, seen from {Path.cwd()}.")
        if not path.is_file() and not is_prepared(path):
            raise UserError(
                f"{file}: this is not a regular file and cannot be read more than once; write it to one first."
            )
        if path.stat().st_size == 0:
            raise UserError(f"{file}: the file is empty.")
    refuse_repeated(files)
    return files


def _split_list(given: str) -> list[str]:
    """Split ``a:b:c`` into names, unless it is a name itself.

    >>> _split_list("one.aselmdb:two.aselmdb"), _split_list("10:30.log")
    (['one.aselmdb', 'two.aselmdb'], ['10:30.log'])
    """
    parts = [os.path.expanduser(part) for part in given.split(":")]
    if len(parts) == 1 or Path(given).exists() or glob.glob(given, recursive=True):
        return [given]
    are_names = all(
        part and (Path(part).exists() or glob.has_magic(part) or ending_of(part) in ENDINGS) for part in parts
    )
    return parts if are_names else [given]


def _expand_pattern(name: str) -> list[str]:
    """List the files that a pattern fits, or the folders if it fits no file; any other name is returned as it is.

    Raises:
        UserError: If it fits nothing.
    """
    if Path(name).exists() or not glob.has_magic(name):
        return [name]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches:
        raise UserError(f"{name}: no file matches this pattern, seen from {Path.cwd()}.")
    return [match for match in matches if not Path(match).is_dir() or is_prepared(match)] or matches


def _files_in(folder: str) -> list[str]:
    """List the files of a folder, which must be of one kind; what no structures can be in is left aside.

    Raises:
        UserError: If there are several kinds, or none.
    """
    try:
        paths = sorted(Path(folder).iterdir())
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read ({error.strerror or error}).") from error
    kinds: dict[str, list[str]] = {}
    for path in paths:
        kind = ENDINGS.get(ending_of(path))
        if kind is not None and path.is_file() and not path.name.startswith("."):
            kinds.setdefault(kind, []).append(os.path.join(folder, path.name))
    if len(kinds) > 1:  # beside data it holds statistics, or other notes on them
        kinds.pop("json", None)
    pattern = os.path.join(folder, "*")
    if not kinds:
        raise UserError(
            f"{folder}: this folder holds no file with the ending of a format of structures (.{', .'.join(ENDINGS)}); "
            f"name the files in it, for example with '{pattern}'."
        )
    if len(kinds) > 1:
        listed = " and ".join(f"{len(files)} like {Path(files[0]).name}" for files in kinds.values())
        raise UserError(
            f"{folder}: this folder holds files of several formats, {listed}; name those that are meant, for example "
            f"with '{pattern}{Path(next(iter(kinds.values()))[0]).suffix}'."
        )
    return next(iter(kinds.values()))


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
    files = [(file, source.of(file)) for source in sources for file in expand_paths(source.paths)]
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
