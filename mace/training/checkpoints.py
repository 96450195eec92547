"""Checkpoints: complete states and best weights, written durably and read without running code.

A run keeps three kinds of file in its folder. ``<tag>_last.pt`` holds everything needed to resume: raw and averaged
weights, optimizer, learning rate schedule, stage, position in the epoch, patience, and the best weights of each stage,
i.e. those with the lowest validation loss, as they were validated. ``<tag>_last_previous.pt`` is the state saved before
that, in case the first cannot be read. ``<tag>_epoch-<n>.pt`` (with ``_swa`` added in stage two) is a copy of the best
weights alone.

Each is an archive of ``torch.save`` followed by the SHA-256 of its bytes, which readers of such archives ignore.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from mace.errors import UserError
from mace.files.archives import sha256_of
from mace.files.durable import free_name, synchronize_folder, temporary_beside, write_durably
from mace.model.plan import ModelPlan
from mace.structures.prepared import MANIFEST

_LOGGER = logging.getLogger(__name__)

FORMAT = 3
"""Version of the layout, common to all kinds of file."""

_MARK = b"\nmace-checkpoint sha256:"
_TRAILER = len(_MARK) + 64 + 1


class UnusableCheckpoint(UserError):
    """A checkpoint that is missing, damaged or unreadable, or does not hold what it should."""


def encode(content: Mapping[str, Any]) -> bytes:
    """Serialize tensors, numbers, strings, and lists and dictionaries of these as the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    payload = buffer.getvalue()
    return payload + _MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def decode(data: bytes, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the bytes of a checkpoint of this or an older format; only data are read, no code is run.

    Args:
        data: The bytes.
        name: Name of the checkpoint in messages.
        device: Device to load the tensors to.

    Returns:
        The saved content, in the current layout.

    Raises:
        UnusableCheckpoint: If bytes are missing or changed, or it is not a checkpoint.
        UserError: If it was written by a later version.
    """
    payload, digest = data[:-_TRAILER], data[-_TRAILER:]
    marked = digest.startswith(_MARK)
    if marked and digest != _MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise UnusableCheckpoint(_damage(name, "its bytes do not have the checksum they were written with"))
    if not data.startswith(b"PK\x03\x04"):
        raise UnusableCheckpoint(_damage(name, "it is no archive"))
    try:
        content = torch.load(io.BytesIO(payload if marked else data), map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises running the code in the file
        raise UnusableCheckpoint(_damage(name, "it holds something else than numbers, texts and tables")) from error
    except (RuntimeError, EOFError, BadZipFile, ValueError, KeyError) as error:
        raise UnusableCheckpoint(_damage(name, str(error).splitlines()[0])) from error
    if not isinstance(content, dict) or "format" not in content:
        raise UnusableCheckpoint(f"{name}: this is not a checkpoint of this program; move it away to start afresh.")
    if content["format"] > FORMAT:
        raise UserError(f"{name}: the checkpoint was written by a later version of mace; update mace to read it.")
    if content["format"] > 1 and not marked:
        raise UnusableCheckpoint(_damage(name, "its end with the checksum is missing"))
    return upgraded(content)


def _damage(name: str, reason: str) -> str:
    return f"{name}: the checkpoint cannot be read; it is damaged or no checkpoint ({reason})."


def load_safely(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint file; see `decode`.

    Raises:
        UnusableCheckpoint: If the file is missing, unreadable, damaged, or not a checkpoint of this program.
        UserError: If it was written by a later version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnusableCheckpoint(f"{path}: the checkpoint cannot be opened ({error.strerror or error}).") from error
    if not data:
        raise UnusableCheckpoint(_damage(str(path), "it is empty"))
    return decode(data, str(path), device)


def _to_format_2(content: dict[str, Any]) -> dict[str, Any]:
    """Add what format 1 lacked: the id of the run, the hashes of the data, and the position in the epoch."""
    content = {**content, "format": 2, "run": None}
    if "progression" in content:  # a complete state
        content |= {"data": {}, "records": None, "processes": 1}
        # format 1 states were only written between epochs
        content["progression"] = {**content["progression"], "evaluated_at_start": True}
    return content


def _to_format_3(content: dict[str, Any]) -> dict[str, Any]:
    """Add what format 2 lacked: best weights in the state, and the stage of saved weights; neither is known here."""
    return {**content, "format": 3, **({"best": {}} if "progression" in content else {"stage": None})}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_format_2, 2: _to_format_3}
"""Maps each format to the function that converts its content to the next format."""


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of an older file, format by format, to the current layout."""
    while content["format"] < FORMAT:
        content = UPGRADES[content["format"]](content)
    return content


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: The folder that holds them.
        tag: ``<name>_run-<seed>``.
        keep_earlier: Whether to keep the best weights of earlier epochs too.
    """

    def __init__(self, folder: Path, tag: str, keep_earlier: bool = False) -> None:
        self.folder, self.tag, self.keeps_earlier = folder, tag, keep_earlier
        self._written: dict[Path, bytes] = {}

    @property
    def last(self) -> Path:
        """Path of the latest complete state."""
        return self.folder / f"{self.tag}_last.pt"

    @property
    def previous(self) -> Path:
        """Path of the complete state saved before the latest one."""
        return self.folder / f"{self.tag}_last_previous.pt"

    def states(self) -> list[Path]:
        """List the existing files of complete states, oldest first."""
        return [path for path in (self.previous, self.last) if os.path.lexists(path)]

    def files(self) -> list[Path]:
        """List every checkpoint of the run; states come first, as without them a run cannot be resumed by mistake."""
        return self.states() + self.of_epochs() + sorted(self.folder.glob(f"{glob.escape(self.tag)}_rejected-*.pt"))

    def of_epochs(self) -> list[Path]:
        """List the files of validated weights."""
        return sorted(self.folder.glob(f"{glob.escape(self.tag)}_epoch-*.pt"))

    def of_epoch(self, epoch: int, stage: str) -> Path:
        """Return the path of the validated weights of an epoch in stage ``one`` or ``two``."""
        return self.folder / f"{self.tag}_epoch-{epoch}{'_swa' if stage == 'two' else ''}.pt"

    def save_last(self, state: Mapping[str, Any]) -> bytes:
        """Write the complete state and keep the previous one under another name.

        Returns:
            The content of the file.

        Raises:
            OSError: If it cannot be written; the old file is then left untouched.
        """
        content = encode(state)
        write_durably(self.last, content, previous=self.previous)
        self._written[self.last] = content[-_TRAILER:]
        return content

    def load_state(self, path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read a complete state.

        Raises:
            UserError: See `load_safely`; also if it is a checkpoint of another kind.
        """
        content = load_safely(path, device)
        if "progression" not in content:
            epoch = content.get("epoch")
            raise UnusableCheckpoint(f"{path}: this is no complete state of a run, but the weights of epoch {epoch}.")
        return content

    def load_last(self, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Path, dict[Path, str]]:
        """Read the latest complete state, or the previous one if the latest cannot be used.

        Returns:
            The state, its file, and the problem with each file that was passed over.

        Raises:
            UserError: If neither can be used.
        """
        problems: dict[Path, str] = {}
        for path in (self.last, self.previous):
            try:
                return self.load_state(path, device), path, problems
            except UnusableCheckpoint as error:
                problems[path] = str(error)
        raise UnusableCheckpoint("; ".join(problem.rstrip(".") for problem in problems.values()) + ".")

    def save_weights(
        self, weights: Mapping[str, Any], plan: ModelPlan, epoch: int, stage: str, run: str | None = None
    ) -> Path:
        """Write the validated weights of an epoch.

        Args:
            weights: Weights by name.
            plan: Plan of the model.
            epoch: Counted from zero.
            stage: ``one`` or ``two``.
            run: The run's id.

        Returns:
            The file.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.of_epoch(epoch, stage)
        named = {"plan": plan.model_dump_json(), "epoch": epoch, "stage": stage, "run": run}
        content = encode({**named, "weights": dict(weights)})
        write_durably(path, content)
        self._written[path] = content[-_TRAILER:]
        return path

    def load_weights(self, epoch: int, stage: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read the validated weights of an epoch.

        Returns:
            The content of the file, with ``weights`` by name and the ``run`` they belong to.

        Raises:
            UserError: See `load_safely`; also if they belong to another epoch or stage.
        """
        path = self.of_epoch(epoch, stage)
        content = load_safely(path, device)
        if "progression" in content:
            raise UnusableCheckpoint(f"{path}: this is a complete state, not the weights of an epoch.")
        if content.get("epoch") != epoch or content.get("stage") not in (None, stage):
            found = f"epoch {content.get('epoch')} of stage {content.get('stage') or 'one or two'}"
            raise UnusableCheckpoint(
                f"{path}: these are the weights of {found}, not of epoch {epoch} of stage {stage}."
            )
        return content

    def remove_others(self, named: Iterable[tuple[str, int]]) -> None:
        """Remove the validated weights of all epochs but those named, unless earlier ones should be kept.

        Call this once the complete state has been written, with all stages and epochs that it names as best. A file
        that cannot be removed does no harm.
        """
        kept = {self.of_epoch(epoch, stage) for stage, epoch in named}
        self._written = {path: end for path, end in self._written.items() if path in kept or path == self.last}
        for other in [] if self.keeps_earlier else self.of_epochs():
            if other not in kept:
                try:
                    other.unlink(missing_ok=True)
                except OSError as error:
                    _LOGGER.debug("%s cannot be removed (%s)", other, error)

    def changed(self) -> dict[Path, str]:
        """Find files written by this object that are gone or changed since, with what happened to each.

        Only the checksums at the ends of the files are compared, which takes no time.
        """
        found = {}
        for path, end in self._written.items():
            try:
                with open(path, "rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - _TRAILER))
                    if file.read() != end:
                        found[path] = "was replaced by another file"
            except (FileNotFoundError, NotADirectoryError):
                found[path] = "is gone"
            except IsADirectoryError:
                found[path] = "was replaced by a folder"
            except OSError as error:
                _LOGGER.debug("%s cannot be looked at (%s)", path, error)
        return found

    def reject(self, paths: Iterable[Path]) -> None:
        """Rename files that are not what their names say, so that they do not displace good files when rotated."""
        for path in paths:
            self._written.pop(path, None)
            if os.path.lexists(path):
                rest = path.name.removeprefix(f"{self.tag}_")
                target = free_name(self.folder, f"{self.tag}_rejected-", f"_{rest}")
                os.replace(path, target)
                _LOGGER.warning("%s was moved to %s", path, target)

    def remove_unfinished(self) -> None:
        """Remove temporary files left behind by a killed process."""
        for file in [*self.folder.glob(f".{glob.escape(self.tag)}_epoch-*.tmp"), temporary_beside(self.last)]:
            file.unlink(missing_ok=True)
        temporary_beside(self.previous).unlink(missing_ok=True)

    def set_aside(self, others: Iterable[Path] = ()) -> Path | None:
        """Move the checkpoints of an earlier run with the same tag into a folder of their own.

        Args:
            others: Further files of that run to move along, if they exist.

        Returns:
            The folder, or None if there was nothing to move.
        """
        files = self.files() + [file for file in others if file.exists()]
        if not files:
            return None
        target = free_name(self.folder, f"{self.tag}_earlier-")
        target.mkdir(parents=True)
        for file in files:
            try:
                os.replace(file, target / file.name)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                write_durably(target / file.name, file.read_bytes())  # on another file system
                file.unlink()
        synchronize_folder(target)
        return target


STRUCTURAL = (
    "model", "r_max", "radial_type", "num_radial_basis", "num_cutoff_basis", "cutoff_after_network",
    "distance_transform", "pair_repulsion", "l_max", "n_channels", "hidden_l", "interactions", "message_channels",
    "message_l", "product_of_all_elements", "correlation", "radial_mlp", "readout_channels", "readout_vectors",
    "readout_biases", "last_readout_only", "gate", "atomic_numbers", "conditions", "condition_readout",
    "heads",
)  # fmt: skip
"""Fields of a plan that must not differ when a run is resumed. The others are constants measured on the data: a resumed
run keeps those it was started with, even if the data have changed."""


def differing_fields(saved: ModelPlan, wanted: ModelPlan) -> list[str]:
    """Describe the structural fields in which two plans differ, as ``r_max 5.0 -> 6.0``."""
    return [
        f"{name} {one} -> {other}"
        for name in STRUCTURAL
        for one, other in [(_structure(saved, name), _structure(wanted, name))]
        if one != other
    ]


def _structure(plan: ModelPlan, name: str) -> Any:
    """Return a field of a plan, of heads only their names."""
    return list(plan.head_names) if name == "heads" else getattr(plan, name)


def file_digests(paths: Iterable[Path | str]) -> dict[str, str]:
    """Return the SHA-256 of each file, or of the manifest of a prepared set, in hexadecimal, by its path as given."""
    return {str(path): sha256_of(Path(path) / MANIFEST if Path(path).is_dir() else Path(path)) for path in paths}
