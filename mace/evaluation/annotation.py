"""A file of structures with predictions, in which nothing that was known before is lost."""

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
from mace.structures.frame import Frame

Predicted = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]
"""New columns and entries of the comment line of a structure."""


def partial_path(path: str | Path) -> Path:
    """Return the name of a file until it is complete."""
    return Path(path).with_name(f"{Path(path).name}.partial")


class AnnotatedFile:
    """Write structures batch by batch; the file appears under its name once the block is left without an error.

    Until then it is called ``<name>.partial``, and is extended XYZ whatever the output is going to be. After a
    `UserError` that is removed; after anything else, such as a signal or the end of the power, it stays, and holds all
    structures that were written.

    Args:
        path: The file; its folder is created.
        resume: Go on where an unfinished file ends.

    Raises:
        UserError: If the file cannot be written, or not in the format of its ending.
    """

    def __init__(self, path: str | Path, resume: bool = False) -> None:
        """Open the file under its first name."""
        self.path = Path(path)
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
        """Write structures as `annotated_text` puts them down, so that they stay even if this program is killed."""
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
        """Put the complete file in its place, or take one away that is of no use."""
        try:
            self._stream.close()
            if kind is None:
                os.replace(write_as(self.partial, self.path), self.path)
                self.partial.unlink(missing_ok=True)
            elif issubclass(kind, UserError):
                self.partial.unlink(missing_ok=True)
        except OSError as failure:
            raise self._failure(failure) from failure

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: the output cannot be written ({error.strerror or error}).")


def annotated_text(frames: Sequence[Frame], predicted: Sequence[Predicted], where: Sequence[str]) -> str:
    """Put down structures with what they have already and what is new; what has the key of a new value is replaced.

    Args:
        frames: The structures as read; they are changed.
        predicted: For each new arrays by key, one row per atom, and new values by key for the comment line.
        where: File and place of each, for messages.

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
    """Write structures, and name the one that cannot be written."""
    try:
        return frame_texts(frames)
    except (ValueError, TypeError, KeyError) as error:  # what ASE says to data the format cannot hold
        if len(frames) > 1:
            return [text for frame, place in zip(frames, where, strict=True) for text in _texts([frame], [place])]
        raise UserError(
            f"{where[0]} cannot be written as extended XYZ ({error}); take the data out that the format cannot hold."
        ) from error


def keep_results(frame: Frame) -> None:
    """Move what ASE's readers give to a calculator into the structure, under the names it has in files.

    Where the name is taken by something else, the value goes under ``calculator_<name>``.

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
