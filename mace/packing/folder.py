"""The folder of a prepared set while it is made: what it is made from, and what of it is there from an earlier call."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mace.errors import UserError
from mace.files.durable import write_durably
from mace.packing.part import RECORDS
from mace.structures.sources import FilePart

_LOGGER = logging.getLogger(__name__)

MADE_FROM = "made_from.json"
"""File in the folder of a set that says what it is made from."""

_FORMAT = 1
"""Changes whenever the same files and options give other bytes."""

_READ = 1 << 20
"""Bytes at both ends of a file that tell it from another one of the same size and time."""


@dataclass(frozen=True)
class SetPlan:
    """A prepared set that is to be made.

    Attributes:
        name: What the set is for, in words.
        folder: Where it is to be.
        files: The files, each as a whole.
        counts: How many structures each has.
        r_max: Cutoff in Angstrom; None if nobody asks for neighbors.
        keeps_pairs: Whether the neighbors are written, not only counted.
    """

    name: str
    folder: Path
    files: tuple[FilePart, ...]
    counts: tuple[int, ...]
    r_max: float | None
    keeps_pairs: bool

    def made_from(self) -> dict[str, Any]:
        """Describe everything that the set depends on, as what JSON holds."""
        return {
            "format": _FORMAT,
            "r_max": self.r_max,
            "neighbors": self.keeps_pairs,
            "files": {f"{place}: {part.file}": _fingerprint(part.file) for place, part in enumerate(self.files)},
            "how files are read": [repr(replace(part, source=replace(part.source, paths=""))) for part in self.files],
        }


def digest_of(made_from: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a description."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _fingerprint(file: str) -> list[Any]:
    """Return size, time and a checksum of both ends of a file."""
    with open(file, "rb") as stream:
        status = os.fstat(stream.fileno())
        ends = stream.read(_READ)
        stream.seek(max(status.st_size - _READ, 0))
        ends += stream.read(_READ)
    return [status.st_size, status.st_mtime_ns, hashlib.sha256(ends).hexdigest()]


def _files_of(folder: Path) -> Iterator[Path]:
    """Yield what stands in the folder of a set."""
    yield from sorted(folder.iterdir()) if folder.is_dir() else ()


def is_ours(path: Path) -> bool:
    """Return whether a file in the folder of a set is part of a set."""
    return path.name in (RECORDS, MADE_FROM, *_FILES) or path.name.endswith(".tmp") or path.name.startswith("shard-")


_FILES = ("manifest.json", "index.safetensors", "isolated_atoms.safetensors")


def begin(plan: SetPlan, overwrite: bool) -> str:
    """Make the folder of a set ready, whatever an earlier call left there.

    Args:
        plan: The set.
        overwrite: Whether a set that was finished with other options may be replaced.

    Returns:
        ``complete`` if the set is there already, ``begun`` if a part of it may be, else ``new``.

    Raises:
        UserError: If something else is in the folder.
    """
    folder, made_from = plan.folder, plan.made_from()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: {plan.name} is to be a folder, but this is a file; choose another --h5_prefix.")
    strangers = [path.name for path in _files_of(folder) if not is_ours(path)]
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise UserError(
            f"{folder}: this folder has files that are no part of a prepared set ({strangers[0]}{more}); choose "
            "another --h5_prefix."
        )
    before = _read(folder / MADE_FROM)
    is_finished = (folder / _FILES[0]).exists()
    if before == made_from:
        return "complete" if is_finished else "begun"
    if is_finished and not overwrite:
        raise UserError(
            f"{folder}: a set made otherwise is there ({_difference(before, made_from)}); choose another --h5_prefix, "
            "or replace it with --overwrite."
        )
    if any(_files_of(folder)):
        if before is not None:
            _LOGGER.warning("%s is made anew: %s", folder, _difference(before, made_from))
        clear(folder)
    try:
        write_durably(folder / MADE_FROM, json.dumps(made_from, indent=1).encode())
    except OSError as error:
        raise UserError(f"{folder}: {plan.name} cannot be written there ({error.strerror or error}).") from error
    return "new"


def clear(folder: Path) -> None:
    """Remove what is left of a set, what it is made from last."""
    for path in sorted(_files_of(folder), key=lambda path: (path.name == MADE_FROM, path.name)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    """Return a description, None if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _difference(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Say in words what has changed."""
    if before is None:
        return "it does not say what it was made from"
    if before.get("files") != now["files"]:
        old, new = before.get("files") or {}, now["files"]
        changed = [name.partition(": ")[2] for name in new if name in old and old[name] != new[name]]
        return f"{changed[0]} has changed" if changed and old.keys() == new.keys() else "it was made from other files"
    for name in ("r_max", "neighbors"):
        if before.get(name) != now[name]:
            return f"--{name} was {before.get(name)} and is {now[name]}"
    if before.get("format") != now["format"]:
        return "another version of the program made it"
    return "the files were read with other keys, units, weights or heads"


def divide(files: Sequence[FilePart], counts: Sequence[int], size: int) -> list[tuple[FilePart, ...]]:
    """Divide files into parts of some structures, each of one file or of several small ones.

    Args:
        files: The files, each as a whole.
        counts: How many structures each has.
        size: How many structures a part has, the last one excepted.
    """
    parts: list[list[FilePart]] = [[]]
    room = size
    for file, count in zip(files, counts, strict=True):
        start = 0
        while start < count:
            if room == 0:
                parts.append([])
                room = size
            stop = min(start + room, count)
            parts[-1].append(replace(file, start=start, stop=stop))
            room -= stop - start
            start = stop
    return [tuple(part) for part in parts if part]
