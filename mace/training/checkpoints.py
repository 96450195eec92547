"""Checkpoints: complete states and best weights, written durably and read without running code.

A run keeps three kinds of file in its folder. ``<tag>_last.pt`` is everything needed to go on: raw and averaged
weights, optimizer, schedule, stage, place in the epoch, patience and best loss. ``<tag>_last_previous.pt`` is the one
before, for the day when the first cannot be read. ``<tag>_epoch-<n>.pt`` (``_swa`` added in stage two) holds the
weights with the lowest validation loss so far, as they were validated.

Each is an archive of ``torch.save`` followed by the SHA-256 of its bytes, which readers of such archives pass over.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from mace.errors import UserError
from mace.model.durable_file import synchronize_folder, temporary_beside, write_durably
from mace.model.plan import ModelPlan

FORMAT = 2
"""Version of the layout of all kinds of file."""

_MARK = b"\nmace-checkpoint sha256:"
_TRAILER = len(_MARK) + 64 + 1


class DamagedCheckpoint(UserError):
    """A checkpoint that is there and cannot be read."""


def encode(content: Mapping[str, Any]) -> bytes:
    """Write tensors, numbers, texts, lists and dictionaries of these as the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    payload = buffer.getvalue()
    return payload + _MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def decode(data: bytes, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the bytes of a checkpoint of this or an older format; nothing but data can be in it.

    Args:
        data: The bytes.
        name: What to call them in messages.
        device: Where tensors go.

    Returns:
        What was saved, in the present layout.

    Raises:
        DamagedCheckpoint: If bytes are missing or changed, or it is no checkpoint.
        UserError: If it is a file of something else, or of a later version.
    """
    payload, digest = data[:-_TRAILER], data[-_TRAILER:]
    marked = digest.startswith(_MARK)
    if marked and digest != _MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise DamagedCheckpoint(_damage(name, "its bytes do not have the checksum they were written with"))
    if not data.startswith(b"PK\x03\x04"):
        raise DamagedCheckpoint(_damage(name, "it is no archive"))
    try:
        content = torch.load(io.BytesIO(payload if marked else data), map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # which advises to run what the file holds
        raise DamagedCheckpoint(_damage(name, "it holds something else than numbers, texts and tables")) from error
    except (RuntimeError, EOFError, BadZipFile, ValueError, KeyError) as error:
        raise DamagedCheckpoint(_damage(name, str(error).splitlines()[0])) from error
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{name}: this is not a checkpoint of this program; move it away to start afresh.")
    if content["format"] > FORMAT:
        raise UserError(f"{name}: the checkpoint was written by a later version of mace; update mace to read it.")
    if content["format"] > 1 and not marked:
        raise DamagedCheckpoint(_damage(name, "its end with the checksum is missing"))
    return upgraded(content)


def _damage(name: str, reason: str) -> str:
    return f"{name}: the checkpoint cannot be read; it is damaged or no checkpoint ({reason})."


def load_safely(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint file, see `decode`.

    Raises:
        UserError: If the file is missing, damaged, no checkpoint of ours, or of a later version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be opened ({error.strerror or error}).") from error
    if not data:
        raise DamagedCheckpoint(_damage(str(path), "it is empty"))
    return decode(data, str(path), device)


def _to_format_2(content: dict[str, Any]) -> dict[str, Any]:
    """Add what format 1 lacked: the id of the run, the hashes of the data, the place in the epoch."""
    content = {**content, "format": 2, "run": None}
    if "progression" in content:  # a complete state
        content |= {"data": {}, "records": None, "processes": 1}
        # those states were written between epochs only
        content["progression"] = {**content["progression"], "evaluated_at_start": True}
    return content


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_format_2}
"""From a format to the function that turns its content into that of the next one."""


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Bring the content of an older file step by step to the present layout."""
    while content["format"] < FORMAT:
        content = UPGRADES[content["format"]](content)
    return content


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: Where they are.
        tag: ``<name>_run-<seed>``.
        keep_earlier: Keep the best weights of earlier epochs too.
    """

    def __init__(self, folder: Path, tag: str, keep_earlier: bool = False) -> None:
        self.folder, self.tag, self.keeps_earlier = folder, tag, keep_earlier

    @property
    def last(self) -> Path:
        """The complete state."""
        return self.folder / f"{self.tag}_last.pt"

    @property
    def previous(self) -> Path:
        """The complete state before that."""
        return self.folder / f"{self.tag}_last_previous.pt"

    def files(self) -> list[Path]:
        """List every checkpoint of the run."""
        states = [path for path in (self.last, self.previous) if path.exists()]
        return sorted(self._of_epochs() + states)

    def _of_epochs(self) -> list[Path]:
        """List the files of validated weights."""
        return list(self.folder.glob(f"{glob.escape(self.tag)}_epoch-*.pt"))

    def of_epoch(self, epoch: int, stage: str) -> Path:
        """Return the place of the validated weights of an epoch of stage ``one`` or ``two``."""
        return self.folder / f"{self.tag}_epoch-{epoch}{'_swa' if stage == 'two' else ''}.pt"

    def save_last(self, state: Mapping[str, Any]) -> bytes:
        """Write the complete state and keep the one before under another name.

        Returns:
            The content of the file.

        Raises:
            OSError: If it cannot be written; the old one is untouched then.
        """
        content = encode(state)
        write_durably(self.last, content, previous=self.previous)
        return content

    def load_last(self, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Path, str | None]:
        """Read the complete state, or the one before if it is damaged or gone.

        Returns:
            The state, the file it is from, and why it is not the last one, if so.

        Raises:
            UserError: If there is none that can be read.
        """
        if not self.last.exists():
            reason = f"{self.last}: the file is missing."
        else:
            try:
                return load_safely(self.last, device), self.last, None
            except DamagedCheckpoint as error:
                if not self.previous.exists():
                    raise
                reason = str(error)
        return load_safely(self.previous, device), self.previous, reason

    def save_weights(
        self, weights: Mapping[str, Any], plan: ModelPlan, epoch: int, stage: str, run: str | None = None
    ) -> Path:
        """Write validated weights of an epoch.

        Args:
            weights: By name.
            plan: Of the model.
            epoch: Counted from zero.
            stage: ``one`` or ``two``.
            run: Id of the run.

        Returns:
            The file.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.of_epoch(epoch, stage)
        content = {"plan": plan.model_dump_json(), "epoch": epoch, "run": run, "weights": dict(weights)}
        write_durably(path, encode(content))
        return path

    def remove_others(self, named: Iterable[tuple[str, int]]) -> None:
        """Remove the validated weights of all epochs but those named, unless earlier ones are to be kept.

        To be called once the complete state is written, with all stages and epochs that it and the state before name
        as the best: a run that is killed in between would otherwise go on from a state whose best weights are gone.
        """
        if self.keeps_earlier:
            return
        kept = {self.of_epoch(epoch, stage) for stage, epoch in named}
        for other in self._of_epochs():
            if other not in kept:
                other.unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove what writers that were killed left behind."""
        for file in [*self.folder.glob(f".{glob.escape(self.tag)}_epoch-*.tmp"), temporary_beside(self.last)]:
            file.unlink(missing_ok=True)
        temporary_beside(self.previous).unlink(missing_ok=True)

    def set_aside(self, others: Iterable[Path] = ()) -> Path | None:
        """Move the checkpoints of an earlier run with the same tag into a folder of their own.

        Args:
            others: Further files of that run to be moved along, where they exist.

        Returns:
            The folder, or None if there was nothing to move.
        """
        files = self.files() + [file for file in others if file.exists()]
        if not files:
            return None
        number = 1
        while (target := self.folder / f"{self.tag}_earlier-{number}").exists():
            number += 1
        target.mkdir(parents=True)
        for file in files:
            _move(file, target / file.name)
        synchronize_folder(target)
        return target


def _move(file: Path, target: Path) -> None:
    """Move a file, to another file system if need be."""
    try:
        os.replace(file, target)
    except OSError:
        write_durably(target, file.read_bytes())
        file.unlink()


STRUCTURAL = (
    "model", "r_max", "radial_type", "num_radial_basis", "num_cutoff_basis", "cutoff_after_network",
    "distance_transform", "pair_repulsion", "l_max", "n_channels", "hidden_l", "interactions", "message_channels",
    "message_l", "product_of_all_elements", "correlation", "radial_mlp", "readout_channels", "readout_vectors",
    "readout_biases", "last_readout_only", "gate", "atomic_numbers", "conditions", "condition_readout",
    "heads",
)  # fmt: skip
"""Fields of a plan that a resumed run cannot change. The others are constants measured on the data: a resumed run keeps
those it was started with, even if the data have changed."""


def differing_fields(saved: ModelPlan, wanted: ModelPlan) -> list[str]:
    """Describe the structural fields in which two plans differ, as ``r_max 5.0 -> 6.0``."""
    return [
        f"{name} {getattr(saved, name)} -> {getattr(wanted, name)}"
        for name in STRUCTURAL
        if getattr(saved, name) != getattr(wanted, name)
    ]


def file_digests(paths: Iterable[Path | str]) -> dict[str, str]:
    """Hash the content of files, SHA-256 in hexadecimal, by the name they were given with."""
    digests = {}
    for path in paths:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digests[str(path)] = digest.hexdigest()
    return digests
