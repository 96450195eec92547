"""An evaluation that was interrupted goes on: what is in the unfinished file, and whether it belongs to this one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.properties import COMPARED
from mace.structures.configuration import Configuration
from mace.structures.extended_xyz import iterate_extended_xyz
from mace.structures.frame import Frame
from mace.structures.stress import full_tensor

_WRITTEN_DIGITS = 1.0e-7
"""Angstrom; positions are written with eight digits."""

_LARGEST_DIFFERENCE = 1.0e-3
"""eV/atom, eV/Angstrom, e*Angstrom; by what predictions of the same model differ at most, in any precision."""


def complete_frames(partial: Path) -> list[Frame]:
    """Read the structures of an unfinished file, and cut off the last one if it is not complete.

    Args:
        partial: The file; if there is none, there are no structures.

    Raises:
        UserError: If it cannot be read or written.
    """
    if not partial.exists():
        return []
    try:
        end = _end_of_complete_frames(partial.read_bytes())
        with partial.open("r+b") as stream:
            stream.truncate(end)
    except OSError as error:
        raise UserError(f"{partial}: the unfinished output cannot be read ({error.strerror or error}).") from error
    return list(iterate_extended_xyz(str(partial))) if end else []


def _end_of_complete_frames(text: bytes) -> int:
    stream = io.BytesIO(text)
    end = 0
    while (count := stream.readline().strip()).isdigit():
        lines = list(islice(stream, int(count) + 1))
        if len(lines) <= int(count) or not lines[-1].endswith(b"\n"):
            break
        end = stream.tell()
    return end


def check_continuation(
    partial: Path, done: Sequence[Frame], configurations: Sequence[Configuration], keys: Sequence[str]
) -> None:
    """Make sure that an unfinished file begins with the structures of the input and has what is to be predicted.

    Raises:
        UserError: If not.
    """
    advice = "continue with the same --configs and flags, or leave out --resume to begin again."
    if len(done) > len(configurations):
        raise UserError(f"{partial} holds {len(done)} structures, but the input only {len(configurations)}; {advice}")
    for place, (frame, configuration) in enumerate(zip(done, configurations, strict=False)):
        if (
            not np.array_equal(frame.numbers, configuration.atomic_numbers)
            or np.abs(frame.positions - configuration.positions).max(initial=0.0) > _WRITTEN_DIGITS
        ):
            raise UserError(f"{partial}: structure {place} is not that of {configuration.where()}; {advice}")
        missing = [key for key in keys if _find(frame, key) is None and not key.endswith(("stress", "stress_std"))]
        if missing:
            raise UserError(f"{partial}: structure {place} has no '{missing[0]}'; {advice}")


def written_predictions(frame: Frame, prefix: str) -> dict[str, Any]:
    """Return what was predicted for a structure in an unfinished file and can be compared with labels."""
    found = {name: _find(frame, prefix + name) for name in COMPARED}
    if found["stress"] is not None:
        found["stress"] = full_tensor(found["stress"])
    return {name: value for name, value in found.items() if value is not None}


def check_same_model(partial: Path, written: dict[str, Any], predicted: dict[str, Any], n_atoms: int) -> None:
    """Make sure that a structure of an unfinished file was predicted by the model at hand.

    Raises:
        UserError: If its numbers are others.
    """
    for name, value in written.items():
        difference = np.abs(np.asarray(value) - predicted[name]).max() / (n_atoms if name == "energy" else 1)
        if not difference < _LARGEST_DIFFERENCE:
            raise UserError(
                f"{partial} was written with another model: its last {name} differs by {difference:.2g}; continue with "
                "that model, or leave out --resume to begin again."
            )


def _find(frame: Frame, key: str) -> Any:
    """Return a value by its key, wherever ASE puts it."""
    for place in (frame.info, frame.arrays, frame.results):
        if key in place:
            return place[key]
    return None
