"""The folder of a prepared set while it is made: what it is made from, and what of it is there from an earlier call."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mace.errors import UserError
from mace.packing.part import RECORDS, Chosen, PartTask
from mace.structures.prepared import INDEX, ISOLATED, LEFT_OUT, MANIFEST
from mace.structures.shards import write_file
from mace.structures.sources import FilePart

_LOGGER = logging.getLogger(__name__)

ABOUT = ".about"
"""Folder in that of a set, for what is no part of it; a folder of test sets may hold nothing else but these."""

MADE_FROM = f"{ABOUT}/made_from.json"
"""File in the folder of a set that says what it is made from."""

LABELS = f"{ABOUT}/labels.json"
"""File beside several sets that were made from the same files: where the labels of these were found."""

STRUCTURES_IN_A_PART = 4096
"""So many take a few seconds, and some megabytes on disk."""

_FORMAT = 1
"""Raised whenever the same files and options give other bytes."""

_READ = 1 << 20
"""Bytes at both ends of a file that tell it from another one of the same size and time."""


@dataclass(frozen=True)
class SetPlan:
    """A prepared set that is to be made.

    Attributes:
        name: What the set is for, in words.
        folder: Where it is to be.
        r_max: Cutoff in Angstrom; None if nobody asks for neighbors.
        keeps_pairs: Whether the neighbors are written, not only counted.
        files: The files, each as a whole.
        counts: How many structures each has.
        groups: By file, the folder in that of the set for the set of its structures: empty for the folder itself, or
            `BY_TYPE`.
        chosen: Structures of another set, in place of files.
        chosen_by: How they were chosen, for `made_from`.
    """

    name: str
    folder: Path
    r_max: float | None
    keeps_pairs: bool
    files: tuple[FilePart, ...]
    counts: tuple[int, ...]
    groups: tuple[str, ...]
    chosen: Chosen | None = None
    chosen_by: Mapping[str, Any] | None = None

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """Everything that the set depends on, as what JSON holds."""
        return {
            "format": _FORMAT,
            "r_max": self.r_max,
            "neighbors": self.keeps_pairs,
            "files": {f"{place}: {part.file}": _fingerprint(part.file) for place, part in enumerate(self.files)},
            "reading": [repr(replace(part, source=replace(part.source, paths=""))) for part in self.files],
            "groups": list(self.groups),
            "chosen": None if self.chosen_by is None else dict(self.chosen_by),
        }

    @property
    def has_groups(self) -> bool:
        """Whether the folder is that of several sets."""
        return any(self.groups)

    @property
    def type_weights(self) -> Mapping[str, float]:
        """Weights by ``config_type`` that stand in the manifest, where a run can give others; those of all files."""
        given = [part.source.config_type_weights for part in self.files]
        return given[0] if given and all(weights == given[0] for weights in given) else {}

    def tasks(self) -> list[PartTask]:
        """List the parts of the set."""
        digest = hashlib.sha256(json.dumps(self.made_from, sort_keys=True).encode()).hexdigest()
        task = PartTask(str(self.folder), 0, digest, self.r_max, self.keeps_pairs)
        if self.chosen is not None:
            places = self.chosen.places
            return [
                replace(
                    task, number=number, chosen=Chosen(self.chosen.folder, places[first : first + STRUCTURES_IN_A_PART])
                )
                for number, first in enumerate(range(0, len(places), STRUCTURES_IN_A_PART))
            ]
        files = self.files
        if self.type_weights:  # not in the weights of structures, too
            files = tuple(replace(part, source=replace(part.source, config_type_weights={})) for part in files)
        group_of = dict(zip(((part.file, part.naming.head) for part in files), self.groups, strict=True))
        return [
            replace(
                task,
                number=number,
                pieces=pieces,
                keys=(None,) * len(pieces),
                groups=tuple(group_of[piece.file, piece.naming.head] for piece in pieces),
            )
            for number, pieces in enumerate(divide(files, self.counts, STRUCTURES_IN_A_PART))
        ]


def _fingerprint(file: str) -> list[Any]:
    """Return size, time and a checksum of both ends of a file, or of the files of a folder."""
    if Path(file).is_dir():
        return [_fingerprint(str(path)) for path in sorted(Path(file).iterdir()) if path.is_file()]
    with open(file, "rb") as stream:
        status = os.fstat(stream.fileno())
        ends = stream.read(_READ)
        stream.seek(max(status.st_size - _READ, 0))
        ends += stream.read(_READ)
    return [status.st_size, status.st_mtime_ns, hashlib.sha256(ends).hexdigest()]


def divide(files: Sequence[FilePart], counts: Sequence[int], size: int) -> list[tuple[FilePart, ...]]:
    """Divide files into parts of some structures, each of one file or of several small ones.

    Args:
        files: The files, each as a whole.
        counts: How many structures each has.
        size: How many structures a part has, the last one excepted.
    """
    parts: list[list[FilePart]] = []
    room = 0
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
    return [tuple(part) for part in parts]


def begin(plan: SetPlan, overwrite: bool) -> str:
    """Make the folder of a set ready, whatever an earlier call left there.

    Args:
        plan: The set.
        overwrite: Whether a finished set that was made otherwise may be replaced.

    Returns:
        ``complete`` if the set is there already, ``begun`` if a part of it may be, else ``new``.

    Raises:
        UserError: If something else is in the folder, or it cannot be written.
    """
    folder = plan.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: {plan.name} is to be a folder, but this is a file; choose another --h5_prefix.")
    strangers = [path.name for path in _content(folder) if not _is_ours(path, plan.has_groups)]
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise UserError(
            f"{folder}: this folder has files that are no part of a prepared set ({strangers[0]}{more}); choose "
            "another --h5_prefix."
        )
    before = _read(folder / MADE_FROM)
    is_finished = any(folder.glob(f"*/{MANIFEST}" if plan.has_groups else MANIFEST))
    if plan.has_groups:  # of several manifests one is the last
        is_finished &= not any((folder / RECORDS).glob("[0-9]*.json"))
    if before == plan.made_from:
        if not is_finished:
            return "begun"
        # the last call may have been killed before it removed them
        shutil.rmtree(folder / RECORDS, ignore_errors=True)
        return "complete"
    if is_finished and not overwrite:
        raise UserError(
            f"{folder}: a set made otherwise is there ({_difference(before, plan.made_from)}); choose another "
            "--h5_prefix, or replace it with --overwrite."
        )
    if any(_content(folder)):
        _LOGGER.warning("%s is made anew: %s", folder, _difference(before, plan.made_from))
        clear(folder)
    write_file(folder / MADE_FROM, json.dumps(plan.made_from, indent=1).encode(), 0)
    return "new"


def _content(folder: Path) -> list[Path]:
    """List what stands in the folder of a set."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_ours(path: Path, has_groups: bool) -> bool:
    """Return whether something in the folder of a set is part of it, or of one that was interrupted."""
    if has_groups and path.is_dir() and path.name not in (RECORDS, ABOUT):
        return all(_is_ours(each, False) for each in path.iterdir())
    known = (RECORDS, ABOUT, MANIFEST, INDEX, ISOLATED, LEFT_OUT)
    name = path.name.removeprefix(".").removesuffix(".tmp") if path.name.endswith(".tmp") else path.name
    return name in known or (name.startswith("shard-") and name.endswith(".safetensors"))


def clear(folder: Path) -> None:
    """Remove a set, its manifest first and what it is made from last."""
    order = {MANIFEST: 0, ABOUT: 2}
    for path in sorted(_content(folder), key=lambda path: order.get(path.name, 1)):
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
    old, new = before.get("files") or {}, now["files"]
    if old.keys() != new.keys():
        return "it was made from other files"
    if changed := [name.partition(": ")[2] for name in new if old[name] != new[name]]:
        return f"{changed[0]} has changed since"
    for name, value in {**now, **(now["chosen"] or {})}.items():
        was = {**before, **(before.get("chosen") or {})}.get(name)
        if was != value and name in ("r_max", "neighbors", "valid_fraction", "seed"):
            return f"--{name} was {was} and is {value}"
    if before.get("format") != now["format"]:
        return "another version of the program made it"
    if before.get("reading") != now["reading"]:
        return "its files were read with other keys, units, weights, conditions or heads"
    return "its structures were chosen from another set"
