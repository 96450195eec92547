"""Resuming an interrupted evaluation: reading the unfinished file, and checking that it belongs to this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.evaluation.inputs import READ_TOGETHER, Read
from mace.evaluation.side_by_side import divided
from mace.formats.extended_xyz import ExtendedXYZFile
from mace.formats.frame import Frame
from mace.properties import COMPARED
from mace.structures.configuration import Configuration
from mace.structures.stress import full_tensor

_WRITTEN_DIGITS = 1.0e-7
"""Tolerance of positions in Angstrom; they are written with eight digits."""

_LARGEST_DIFFERENCE = 1.0e-3
"""Largest difference of predictions of the same model, in any precision (eV/atom, eV/Angstrom, e*Angstrom)."""

_ADVICE = "or leave out --resume to begin again."
_SAME = f"continue with the same --configs and flags, {_ADVICE}"


def predicted_before(
    partial: Path,
    structures: Iterator[Read],
    count: int,
    keys: Sequence[str],
    prefix: str,
    predict: Callable[[Configuration], dict[str, Any]],
    add: Callable[[list[Configuration], list[dict[str, Any]]], None],
) -> int:
    """Take in the predictions in an unfinished file, after checking that they belong to the same evaluation.

    An incomplete last structure is cut off.

    Args:
        partial: The file; if there is none, there are no predictions.
        structures: The structures of the input, of which those in the file are taken.
        count: How many there are.
        keys: Keys of the requested predictions in the file.
        prefix: Prefix of these keys.
        predict: Predicts one structure, to check that the model is the same.
        add: Called with some structures at a time, and what was predicted of them that can be compared with labels.

    Returns:
        The number of structures in the file.

    Raises:
        UserError: If the file cannot be read or written, or has other structures, another model or other keys.
    """
    n_done = _cut_incomplete(partial) if partial.exists() else 0
    if n_done > count:
        raise UserError(f"{partial} holds {n_done} structures, but the input only {count}; {_SAME}")
    frames = enumerate(ExtendedXYZFile(str(partial)).frames()) if n_done else ()
    for batch in divided(zip(frames, structures, strict=False), READ_TOGETHER):
        configurations, found = [], []
        for (place, frame), (configuration, _) in batch:
            values = {**frame.results, **frame.arrays, **frame.info}  # ASE stores them in different places
            _check_same(f"{partial}: structure {place}", frame, configuration, values, keys)
            present = {name: values[prefix + name] for name in COMPARED if values.get(prefix + name) is not None}
            configurations.append(configuration)
            found.append({name: full_tensor(value) if name == "stress" else value for name, value in present.items()})
        add(configurations, found)
    if n_done:
        last = configurations[-1]
        again = predict(last)
        for name, value in found[-1].items():
            difference = np.abs(np.asarray(value) - again[name]).max() / (last.n_atoms if name == "energy" else 1)
            if not difference < _LARGEST_DIFFERENCE:
                raise UserError(
                    f"{partial} was written with another model: its last {name} differs by {difference:.2g}; continue "
                    f"with that model, {_ADVICE}"
                )
    return n_done


def _cut_incomplete(partial: Path) -> int:
    """Cut off an incomplete last structure; return the number of the others."""
    n_done = end = 0
    try:
        with partial.open("r+b") as stream:
            while (count := stream.readline().strip()).isdigit():
                lines = list(islice(stream, int(count) + 1))
                if len(lines) <= int(count) or not lines[-1].endswith(b"\n"):
                    break
                n_done, end = n_done + 1, stream.tell()
            stream.truncate(end)
    except OSError as error:
        raise UserError(f"{partial}: the unfinished output cannot be read ({error.strerror or error}).") from error
    return n_done


def _check_same(
    where: str, frame: Frame, configuration: Configuration, values: Mapping[str, Any], keys: Sequence[str]
) -> None:
    """Check that a structure in the file is that of the input, and has all predictions."""
    if (
        not np.array_equal(frame.numbers, configuration.atomic_numbers)
        or np.abs(frame.positions - configuration.positions).max(initial=0.0) > _WRITTEN_DIGITS
    ):
        raise UserError(f"{where} is not that of {configuration.where()}; {_SAME}")
    missing = [key for key in keys if values.get(key) is None and not key.endswith(("stress", "stress_std"))]
    if missing:
        raise UserError(f"{where} has no '{missing[0]}'; {_SAME}")
