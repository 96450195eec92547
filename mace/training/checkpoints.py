"""Checkpoints: complete states and best weights, written atomically and read without running code.

A run keeps two kinds of file in its folder. ``<tag>_last.pt`` is everything needed to go on: raw and averaged weights,
optimizer, schedule, stage, epoch, patience and best loss. ``<tag>_epoch-<n>.pt`` (``_swa`` added in stage two) holds
the weights with the lowest validation loss so far, as they were validated.
"""

from __future__ import annotations

import glob
import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import torch

from mace.errors import UserError
from mace.model.plan import ModelPlan

FORMAT = 1
"""Version of the layout of both kinds of file."""


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write a file so that at any moment either the old or the new content is there.

    Args:
        content: Tensors, numbers, texts, lists and dictionaries of these.
        path: Where to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_safely(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing but data can be in it.

    Args:
        path: The file.
        device: Where tensors go.

    Returns:
        What was saved.

    Raises:
        UserError: If the file is missing, damaged, no checkpoint of ours, or of a later version.
    """
    try:
        with open(path, "rb") as file:
            if not is_zipfile(file):
                raise BadZipFile("it is cut off or no archive")
        content = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile, ValueError, KeyError) as error:
        raise UserError(f"{path}: the checkpoint cannot be read; it is damaged or no checkpoint ({error}).") from error
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be opened ({error.strerror or error}).") from error
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path}: this is not a checkpoint of this program; move it away to start afresh.")
    if content["format"] > FORMAT:
        raise UserError(f"{path}: the checkpoint was written by a later version of mace; update mace to read it.")
    return content


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: Where they are.
        tag: ``<name>_run-<seed>``.
        keep_earlier: Keep the best weights of earlier epochs too.
    """

    def __init__(self, folder: Path, tag: str, keep_earlier: bool = False) -> None:
        self.folder, self.tag, self._keep_earlier = folder, tag, keep_earlier

    @property
    def last(self) -> Path:
        """The complete state."""
        return self.folder / f"{self.tag}_last.pt"

    def files(self) -> list[Path]:
        """List every checkpoint of the run."""
        return sorted(self._of_epochs() + [self.last] * self.last.exists())

    def _of_epochs(self) -> list[Path]:
        """List the files of validated weights."""
        return list(self.folder.glob(f"{glob.escape(self.tag)}_epoch-*.pt"))

    def _of_epoch(self, epoch: int, stage_two: bool) -> Path:
        return self.folder / f"{self.tag}_epoch-{epoch}{'_swa' if stage_two else ''}.pt"

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Write the complete state."""
        save_atomically({"format": FORMAT, **state}, self.last)

    def save_weights(self, weights: Mapping[str, Any], plan: ModelPlan, epoch: int, stage_two: bool) -> Path:
        """Write validated weights of an epoch.

        Returns:
            The file.
        """
        path = self._of_epoch(epoch, stage_two)
        content = {"format": FORMAT, "plan": plan.model_dump_json(), "epoch": epoch, "weights": dict(weights)}
        save_atomically(content, path)
        return path

    def remove_earlier(self, epoch: int, stage_two: bool) -> None:
        """Remove the validated weights of other epochs of the same stage, unless they are to be kept.

        To be called once the complete state names `epoch` as the best: a run that is killed in between would otherwise
        go on from a state whose best weights are gone.
        """
        if self._keep_earlier:
            return
        for other in self._of_epochs():
            if other != self._of_epoch(epoch, stage_two) and other.stem.endswith("_swa") == stage_two:
                other.unlink()

    def set_aside(self) -> Path | None:
        """Move the checkpoints of an earlier run with the same tag into a folder of their own.

        Returns:
            The folder, or None if there was nothing to move.
        """
        files = self.files()
        if not files:
            return None
        number = 1
        while (target := self.folder / f"{self.tag}_earlier-{number}").exists():
            number += 1
        target.mkdir(parents=True)
        for file in files:
            os.replace(file, target / file.name)
        return target


STRUCTURAL = (
    "model", "r_max", "radial_type", "num_radial_basis", "num_cutoff_basis", "distance_transform", "pair_repulsion",
    "l_max", "n_channels", "hidden_l", "interactions", "correlation", "radial_mlp", "readout_channels",
    "readout_vectors", "gate", "atomic_numbers",
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


def file_digest(paths: list[str]) -> str:
    """Hash the content of files in the order given, SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
