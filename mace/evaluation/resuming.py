"""Resuming an interrupted evaluation: reading the unfinished file, and checking that it belongs to this one."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.formats.extended_xyz import ExtendedXYZFile
from mace.properties import COMPARED
from mace.structures.configuration import Configuration
from mace.structures.stress import full_tensor

_WRITTEN_DIGITS = 1.0e-7
"""Tolerance of positions in Angstrom; they are written with eight digits."""

_LARGEST_DIFFERENCE = 1.0e-3
"""Largest difference of predictions of the same model, in any precision (eV/atom, eV/Angstrom, e*Angstrom)."""


def predicted_before(
    partial: Path,
    configurations: Sequence[Configuration],
    keys: Sequence[str],
    prefix: str,
    predict: Callable[[Configuration], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return the predictions in an unfinished file, after checking that they belong to the same evaluation.

    An incomplete last structure is cut off.

    Args:
        partial: The file; if there is none, there are no predictions.
        configurations: The structures of the input.
        keys: Keys of the requested predictions in the file.
        prefix: Prefix of these keys.
        predict: Predicts one structure, to check that the model is the same.

    Returns:
        For each structure in the file, the predictions that can be compared with labels, by name.

    Raises:
        UserError: If the file cannot be read or written, or has other structures, another model or other keys.
    """
    if not partial.exists():
        return []
    try:
        stream, end = io.BytesIO(partial.read_bytes()), 0
        while (count := stream.readline().strip()).isdigit():
            lines = list(islice(stream, int(count) + 1))
            if len(lines) <= int(count) or not lines[-1].endswith(b"\n"):
                break
            end = stream.tell()
        with partial.open("r+b") as file:
            file.truncate(end)
    except OSError as error:
        raise UserError(f"{partial}: the unfinished output cannot be read ({error.strerror or error}).") from error
    done = list(ExtendedXYZFile(str(partial)).frames()) if end else []
    advice = "or leave out --resume to begin again."
    same = f"continue with the same --configs and flags, {advice}"
    if len(done) > len(configurations):
        raise UserError(f"{partial} holds {len(done)} structures, but the input only {len(configurations)}; {same}")
    found = []
    for place, (frame, configuration) in enumerate(zip(done, configurations, strict=False)):
        if (
            not np.array_equal(frame.numbers, configuration.atomic_numbers)
            or np.abs(frame.positions - configuration.positions).max(initial=0.0) > _WRITTEN_DIGITS
        ):
            raise UserError(f"{partial}: structure {place} is not that of {configuration.where()}; {same}")
        values = {**frame.results, **frame.arrays, **frame.info}  # ASE stores them in different places
        missing = [key for key in keys if values.get(key) is None and not key.endswith(("stress", "stress_std"))]
        if missing:
            raise UserError(f"{partial}: structure {place} has no '{missing[0]}'; {same}")
        present = {name: values[prefix + name] for name in COMPARED if values.get(prefix + name) is not None}
        found.append({name: full_tensor(value) if name == "stress" else value for name, value in present.items()})
    if found:
        last = configurations[len(found) - 1]
        again = predict(last)
        for name, value in found[-1].items():
            difference = np.abs(np.asarray(value) - again[name]).max() / (last.n_atoms if name == "energy" else 1)
            if not difference < _LARGEST_DIFFERENCE:
                raise UserError(
                    f"{partial} was written with another model: its last {name} differs by {difference:.2g}; continue "
                    f"with that model, {advice}"
                )
    return found
