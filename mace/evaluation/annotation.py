"""Output files with structures and predictions, which keep everything that the input holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from ase.io.extxyz import per_atom_properties
from ase.stress import voigt_6_to_full_3x3_stress

from mace.errors import UserError
from mace.evaluation.extended_xyz import frame_texts
from mace.evaluation.output_formats import check_output_format, write_as
from mace.formats.frame import Frame

Predicted = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]
"""New columns, and new entries of the comment line, for a structure."""


def partial_path(path: str | Path) -> Path:
    """Return the name that a file has until it is complete."""
    return Path(path).with_name(f"{Path(path).name}.partial")


class AnnotatedFile:
    """Writes structures batch by batch; the file gets its name once the ``with`` block is left without an error.

    Until then it is called ``<name>.partial`` and is extended XYZ regardless of the output format. After a `UserError`
    it is removed; after anything else, such as a signal or a power failure, it stays and holds all structures written
    so far.

    Args:
        path: The file; its folder is created.
        resume: Whether to append to an unfinished file.
        keep: Whether an unfinished file may stay; otherwise it is removed after any error.

    Raises:
        UserError: If the file cannot be written, or its ending is not a supported format.
    """

    def __init__(self, path: str | Path, resume: bool = False, keep: bool = True) -> None:
        """Open the file under its temporary name."""
        self.path, self._keep = Path(path), keep
        self.partial = partial_path(path)
        check_output_format(path)
        if self.path.is_dir():
            raise UserError(f"{self.path}: the output is a directory; name a file.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.partial.open("a" if resume else "w", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error

    def write(self, text: str) -> None:
        """Write structures formatted by `annotated_text`; they are kept even if this program is killed."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> AnnotatedFile:
        """Return the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Move the complete file to its place, or remove it after a `UserError`."""
        try:
            self._stream.close()
            if kind is None:
                os.replace(write_as(self.partial, self.path), self.path)
                self.partial.unlink(missing_ok=True)
            elif issubclass(kind, UserError) or not self._keep:
                self.partial.unlink(missing_ok=True)
        except OSError as failure:
            raise self._failure(failure) from failure

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: the output cannot be written ({error.strerror or error}).")


def annotated_text(frames: Sequence[Frame], predicted: Sequence[Predicted], where: Sequence[str]) -> str:
    """Format structures with their existing and new values; existing values with the same key are replaced.

    Args:
        frames: The structures as read; they are changed.
        predicted: For each, new arrays by key, one row per atom, and new values by key for the comment line.
        where: File and position of each, for messages.

    Raises:
        UserError: If a structure cannot be written.
    """
    for frame, (columns, entries) in zip(frames, predicted, strict=True):
        keep_results(frame)
        for key in (*columns, *entries):
            frame.info.pop(key, None)
            frame.arrays.pop(key, None)
        frame.arrays.update(columns)
        frame.info.update(entries)
    return "".join(_texts(frames, where))


def _texts(frames: Sequence[Frame], where: Sequence[str]) -> list[str]:
    """Format structures; raise an error that names the structure that cannot be written."""
    try:
        return frame_texts(frames)
    except (ValueError, TypeError, KeyError) as error:  # raised by ASE for data the format cannot hold
        if len(frames) > 1:
            return [text for frame, place in zip(frames, where, strict=True) for text in _texts([frame], [place])]
        raise UserError(
            f"{where[0]} cannot be written as extended XYZ ({error}); take the data out that the format cannot hold."
        ) from error


def keep_results(frame: Frame) -> None:
    """Move results that ASE's readers put into a calculator back into the structure, under their names in files.

    If the name is already taken, the value is stored as ``calculator_<name>``.

    Args:
        frame: The structure; it has no results afterwards.
    """
    for name, value in frame.results.items():
        if value is None:
            continue
        if name == "stress" and np.shape(value) == (6,):
            value = voigt_6_to_full_3x3_stress(value)
        place = frame.arrays if name in per_atom_properties else frame.info
        place[f"calculator_{name}" if name in place else name] = value
    frame.results = {}
