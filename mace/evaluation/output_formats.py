"""Writing structures with predictions in the format given by the file name's ending."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace.errors import UserError
from mace.formats.extended_xyz import COMPRESSIONS, ExtendedXYZFile
from mace.formats.reading import ENDINGS, WITHOUT_COLUMNS, ending_of

if TYPE_CHECKING:
    from ase import Atoms

_OPEN: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_KEPT_BY_ASE = ("tags", "momenta", "masses", "initial_magmoms", "initial_charges")
"""Columns that are kept even by formats without user-defined columns."""


def check_output_format(path: str | Path) -> str:
    """Return the format of an output: ``extxyz`` if its name has no ending.

    Raises:
        UserError: If structures cannot be written in the format of the ending.
    """
    path, ending = Path(path), ending_of(path)
    found = "extxyz" if not ending else ENDINGS.get(ending, "")
    is_compressed = path.suffix.lower() in COMPRESSIONS
    if found not in ("extxyz", *WITHOUT_COLUMNS) or (is_compressed and found != "extxyz"):
        raise UserError(
            f"{path}: structures are not written in the format of this ending; choose one of .xyz, .extxyz (both also "
            "with .gz, .bz2 or .xz behind), .traj, .db and .json."
        )
    return found


def write_as(text: Path, path: Path) -> Path:
    """Write the structures of an extended XYZ file in the format of an output, beside it.

    Args:
        text: The extended XYZ file.
        path: Final path of the output.

    Returns:
        The written file, for `os.replace`; ``text`` itself if the output is extended XYZ.

    Raises:
        OSError: If it cannot be written.
    """
    found = check_output_format(path)
    beside = path.with_name(f"{path.name}.unfinished")
    if found == "extxyz":
        if path.suffix.lower() not in COMPRESSIONS:
            return text
        with text.open("rb") as source, _OPEN[path.suffix.lower()](beside, "wb") as target:
            shutil.copyfileobj(source, target)
        return beside
    beside.unlink(missing_ok=True)
    structures = (frame.to_atoms() for frame in ExtendedXYZFile(str(text)).frames())
    if found == "traj":
        from ase.io.trajectory import Trajectory

        with Trajectory(str(beside), "w") as trajectory:
            for atoms in structures:
                atoms.info.update(_take_columns(atoms))
                trajectory.write(atoms)
        return beside
    from ase.db import connect

    with connect(str(beside), type=found, append=False, use_lock_file=False) as database:
        for atoms in structures:
            entries = {**atoms.info, **_take_columns(atoms)}
            pairs = {key: value.item() if isinstance(value, np.generic) else value for key, value in entries.items()}
            pairs = {key: value for key, value in pairs.items() if _is_pair(key, value)}
            data = {key: value for key, value in entries.items() if key not in pairs}
            database.write(atoms, key_value_pairs=pairs, data=data)
    return beside


def _take_columns(atoms: Atoms) -> Mapping[str, np.ndarray]:
    """Remove and return the columns that a format cannot hold."""
    names = [name for name in atoms.arrays if name not in ("numbers", "positions", *_KEPT_BY_ASE)]
    return {name: atoms.arrays.pop(name) for name in names}


def _is_pair(key: str, value: Any) -> bool:
    """Return whether a database accepts an entry as a searchable key-value pair."""
    from ase.db.core import check

    if not isinstance(value, (str, int, float)):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # given for keys that are chemical formulas
            check({key: value})
    except (ValueError, UserWarning):
        return False
    return True
