"""Trajectory files that grow frame by frame, and can be continued from an earlier length."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.io.extxyz import write_xyz
from ase.io.trajectory import Trajectory

from mace.errors import UserError

FORMATS = (".xyz", ".extxyz", ".traj")
"""File name endings of the formats that can be written."""

_TOO_SHORT = "the trajectory is missing or shorter than when the state was saved; put it back."


class TrajectoryWriter(Protocol):
    """A writer of frames to a trajectory file."""

    def write(self, frame: Atoms) -> None:
        """Append a frame; when this returns, it has been handed to the operating system."""

    def length(self) -> int:
        """Return the length of the file, in bytes or frames, from which to continue later."""

    def close(self) -> None:
        """Close the file."""


def open_trajectory(path: Path, length: int | None) -> TrajectoryWriter:
    """Start a new trajectory, or continue an existing one.

    Args:
        path: The file, with one of the endings of `FORMATS`.
        length: The `TrajectoryWriter.length` when the state was saved; later frames are cut off. None for a new file.

    Raises:
        UserError: If the file cannot be written, or is shorter than `length`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _AseTrajectory(path, length) if path.suffix == ".traj" else _ExtendedXYZ(path, length)
    except OSError as error:
        raise UserError(f"{path}: the trajectory cannot be written ({error.strerror or error}).") from error


def make_frame(atoms: Atoms, step: int, time_fs: float) -> Atoms:
    """Return a copy of the structure with its energy, forces and, if available, stress."""
    frame = atoms.copy()
    frame.info.update(step=step, time_fs=time_fs)
    found = atoms.calc.results
    names = [name for name in ("energy", "forces", "stress") if name in found]
    frame.calc = SinglePointCalculator(frame, **{name: found[name] for name in names})
    return frame


class _ExtendedXYZ:
    """Extended XYZ; its length is counted in bytes."""

    def __init__(self, path: Path, length: int | None) -> None:
        if length is None:
            self._stream = path.open("w", encoding="utf-8")
            return
        if not path.exists() or path.stat().st_size < length:
            raise UserError(f"{path}: {_TOO_SHORT}")
        os.truncate(path, length)
        self._stream = path.open("a", encoding="utf-8")

    def write(self, frame: Atoms) -> None:
        write_xyz(self._stream, [frame])
        self._stream.flush()

    def length(self) -> int:
        self._stream.flush()
        return os.fstat(self._stream.fileno()).st_size

    def close(self) -> None:
        self._stream.close()


class _AseTrajectory:
    """ASE's own format; its length is counted in frames."""

    def __init__(self, path: Path, length: int | None) -> None:
        self._count = length or 0
        if length:  # later frames are cut off by rewriting the file
            found: list[Atoms] = read(path, ":", format="traj") if path.exists() else []
            if len(found) < length:
                raise UserError(f"{path}: {_TOO_SHORT}")
            if len(found) > length:
                temporary = path.with_name(f".{path.name}.tmp")
                with Trajectory(str(temporary), "w") as stream:
                    for frame in found[:length]:
                        stream.write(frame)
                os.replace(temporary, path)
        self._file: Any = Trajectory(str(path), "a" if length else "w")

    def write(self, frame: Atoms) -> None:
        self._file.write(frame)
        self._count += 1

    def length(self) -> int:
        return self._count

    def close(self) -> None:
        self._file.close()
