"""Structures with predictions in the format that the ending of the file's name says."""

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
from mace.structures.extended_xyz import iterate_extended_xyz
from mace.structures.formats import COMPRESSIONS, ENDINGS, WITHOUT_COLUMNS, ending_of

if TYPE_CHECKING:
    from ase import Atoms

_OPEN: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_KEPT_BY_ASE = ("tags", "momenta", "masses", "initial_magmoms", "initial_charges")
"""Columns that formats without columns of one's own have all the same."""


def check_output_format(path: str | Path) -> str:
    """Return the format of an output: ``extxyz`` if its name has no ending.

    Raises:
        UserError: If structures are not written in the format of the ending.
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
        text: The file.
        path: What the output is going to be called.

    Returns:
        The written file, for `os.replace`; ``text`` itself if the output is extended XYZ.

    Raises:
        OSError: If it cannot be written.
    """
    found = check_output_format(path)
    beside = path.with_name(f"{path.name}.unfinished")
    if found != "extxyz":
        beside.unlink(missing_ok=True)
        _write_trajectory(text, beside) if found == "traj" else _write_database(text, beside, found)
    elif path.suffix.lower() in COMPRESSIONS:
        with text.open("rb") as source, _OPEN[path.suffix.lower()](beside, "wb") as target:
            shutil.copyfileobj(source, target)
    else:
        return text
    return beside


def _write_trajectory(text: Path, path: Path) -> None:
    from ase.io.trajectory import Trajectory

    with Trajectory(str(path), "w") as trajectory:
        for frame in iterate_extended_xyz(str(text)):
            atoms = frame.to_atoms()
            atoms.info.update(_take_columns(atoms))
            trajectory.write(atoms)


def _write_database(text: Path, path: Path, kind: str) -> None:
    from ase.db import connect

    with connect(str(path), type=kind, append=False, use_lock_file=False) as database:
        for frame in iterate_extended_xyz(str(text)):
            atoms = frame.to_atoms()
            entries = {**atoms.info, **_take_columns(atoms)}
            pairs = {key: value.item() if isinstance(value, np.generic) else value for key, value in entries.items()}
            pairs = {key: value for key, value in pairs.items() if _is_pair(key, value)}
            data = {key: value for key, value in entries.items() if key not in pairs}
            database.write(atoms, key_value_pairs=pairs, data=data)


def _take_columns(atoms: Atoms) -> Mapping[str, np.ndarray]:
    """Take the columns away that a format has no room for."""
    names = [name for name in atoms.arrays if name not in ("numbers", "positions", *_KEPT_BY_ASE)]
    return {name: atoms.arrays.pop(name) for name in names}


def _is_pair(key: str, value: Any) -> bool:
    """Whether a database takes something for a key-value pair, which can be searched for."""
    from ase.db.core import check

    if not isinstance(value, (str, int, float)):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # about keys that are formulas of substances
            check({key: value})
    except (ValueError, UserWarning):
        return False
    return True
