"""Reads structures one at a time from files of any format that ASE supports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mace.conditions import CONDITION_KEYS
from mace.errors import UserError
from mace.formats.extended_xyz import UNREADABLE_TEXT, iterate_extended_xyz, reason_of, unreadable
from mace.formats.frame import Frame
from mace.properties import PROPERTIES

if TYPE_CHECKING:
    from ase import Atoms

ENDINGS = {"xyz": "extxyz", "extxyz": "extxyz", "traj": "traj", "db": "db", "json": "json", "cif": "cif"}
"""Formats by endings that decide: ASE looks at the rest of a name first, and takes OUTCAR_1.xyz for one of VASP."""

WITHOUT_COLUMNS = ("db", "json", "traj")
"""Formats that have no room for columns of one's own."""

_OF_STRUCTURES = ("virial", *CONDITION_KEYS, *(name for name, item in PROPERTIES.items() if not item.of_atoms))
"""What says something of a structure as a whole, and may have as many rows as it has atoms."""

COMPRESSIONS = (".gz", ".bz2", ".xz")
"""Endings of compressed files, which stand behind those that tell the format."""


def iterate_frames(file: str) -> Iterator[Frame]:
    """Yield the structures of any file that ASE can read, in order.

    Raises:
        UserError: If the format is unknown, the file holds no structure, or a structure cannot be read; the message
            names its index, counted from zero.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    ending = ending_of(file)
    if (file_format := ENDINGS.get(ending)) is None:
        try:
            file_format = filetype(file)
        except (UnknownFileTypeError, *UNREADABLE_TEXT) as error:
            raise UserError(f"{file}: ASE cannot tell the format of this file ({reason_of(error)}).") from error
        if file_format not in ioformats:
            raise UserError(
                f"{file}: ASE knows no format with the ending '.{ending}'; rename the file so that it ends in .xyz if "
                "it is extended XYZ."
            )
    frames = iterate_extended_xyz(file) if file_format == "extxyz" else _frames_by_ase(file, file_format)
    is_empty = True
    for frame in frames:
        is_empty = False
        yield frame
    if is_empty:
        raise UserError(f"{file}: the file holds no structure.")


def ending_of(file: str | Path) -> str:
    """Return the extension of a file name that indicates its format, in lower case.

    >>> ending_of("OUTCAR_1.XYZ"), ending_of("a/train.extxyz.gz"), ending_of("POSCAR")
    ('xyz', 'extxyz', '')
    """
    path = Path(file)
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
    return path.suffix.lower().removeprefix(".")


def _frames_by_ase(file: str, file_format: str) -> Iterator[Frame]:
    from ase.io import iread

    count = 0
    try:
        if file_format in ("db", "json"):
            images = _database_rows(file)
        else:
            images = iread(file, index=":", format=file_format, do_not_split_by_at_sign=True)
        for atoms in images:
            frame = Frame.of_atoms(atoms)
            if file_format in WITHOUT_COLUMNS:
                # an entry with one row per atom becomes a column
                for key, value in list(frame.info.items()):
                    with suppress(ValueError):  # rows of different lengths
                        array = np.asarray(value)
                        is_of_atoms = array.shape[:1] == (len(frame),) and array.ndim <= 2
                        is_free = key.removeprefix("REF_") not in _OF_STRUCTURES
                        if is_of_atoms and is_free and array.dtype.kind in "biuf":
                            frame.arrays[key] = array
                            del frame.info[key]
            yield frame
            count += 1
    except Exception as error:  # ASE has a reader per format, and each fails in its own way
        raise unreadable(file, count, reason_of(error)) from error


def _database_rows(file: str) -> Iterator[Atoms]:
    """Yield the rows of an ASE database including their additional data, which ASE's file reader omits."""
    from ase.db import connect

    with connect(file, use_lock_file=False) as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update({**row.key_value_pairs, **row.data})
            yield atoms
