"""Reads structures one at a time, or a range of them, from files of any format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mace.errors import UserError
from mace.formats.by_ase import AseFile, TrajectoryFile
from mace.formats.databases import DatabaseFile
from mace.formats.extended_xyz import COMPRESSIONS, UNREADABLE_TEXT, ExtendedXYZFile
from mace.formats.frame import Frame
from mace.formats.frame_file import FrameFile, reason_of
from mace.formats.hdf5 import HDF5File

ENDINGS = {
    "xyz": "extxyz",
    "extxyz": "extxyz",
    "traj": "traj",
    "db": "db",
    "json": "json",
    "cif": "cif",
    "aselmdb": "aselmdb",
    "lmdb": "aselmdb",
    "h5": "hdf5",
    "hdf5": "hdf5",
}
"""Formats by endings that decide: ASE looks at the rest of a name first, and takes OUTCAR_1.xyz for one of VASP."""

WITHOUT_COLUMNS = ("db", "json", "traj")
"""Formats that have no room for columns of one's own."""


def open_frames(file: str) -> FrameFile:
    """Return the reader of a file, which tells how many structures there are and reads any range of them.

    Raises:
        UserError: If the format is unknown.
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
    if file_format == "extxyz":
        return ExtendedXYZFile(file)
    if file_format == "hdf5":
        return HDF5File(file)
    if file_format in ("db", "json", "aselmdb"):
        return DatabaseFile(file, file_format)
    return TrajectoryFile(file) if file_format == "traj" else AseFile(file, file_format)


def iterate_frames(file: str | FrameFile, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """Yield the structures of a file, or a range of them, in order.

    Args:
        file: Its name; or what `open_frames` returned, which looks through the file only once for many ranges.
        start: Index of the first structure, counted from zero.
        stop: Index after the last one; without it, or beyond the end, all that there are.

    Raises:
        UserError: If the format is unknown, the file holds no structure, or a structure cannot be read; the message
            names its index, counted from zero.
    """
    opened, is_empty = open_frames(file) if isinstance(file, str) else file, True
    for frame in opened.frames(start, stop):
        is_empty = False
        yield frame
    if is_empty and start == 0 and stop != 0 and not opened.may_be_empty:
        raise UserError(f"{opened.path}: the file holds no structure.")


class FramesInOrder(FrameFile):
    """A file of which ranges that follow each other are read in one go, whatever its format.

    Args:
        path: Name of the file.

    Raises:
        UserError: See `iterate_frames`.
    """

    may_be_empty = True  # or refused already

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._frames = iterate_frames(path)
        self._next = next(self._frames, None)

    def count(self) -> int:
        """Return the number of structures."""
        return count_frames(self.path)

    @property
    def is_over(self) -> bool:
        """Whether all structures have been read."""
        return self._next is None

    def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
        while self._next is not None and (stop is None or start < stop):
            yield self._next
            self._next = next(self._frames, None)
            start += 1


def count_frames(file: str) -> int:
    """Return the number of structures of a file, without reading them where its format allows.

    Raises:
        UserError: If the format is unknown, or the file is damaged so that it cannot be known.
    """
    return open_frames(file).count()


def names_properties(file: str | Path) -> bool:
    """Return whether a file has its labels under the names of their properties, so that no key can be meant.

    >>> names_properties("train/train_0.h5"), names_properties("train.xyz")
    (True, False)
    """
    return ENDINGS.get(ending_of(file)) == "hdf5"


def key_of_heads(file: str | Path, key: str | None) -> str | None:
    """Return the entry with the head of a structure in a file, given that in files which have keys of their own.

    >>> key_of_heads("train.xyz", "level"), key_of_heads("train.h5", "level"), key_of_heads("train.h5", None)
    ('level', 'head', None)
    """
    return "head" if key is not None and names_properties(file) else key


def ending_of(file: str | Path) -> str:
    """Return the extension of a file name that indicates its format, in lower case.

    >>> ending_of("OUTCAR_1.XYZ"), ending_of("a/train.extxyz.gz"), ending_of("POSCAR")
    ('xyz', 'extxyz', '')
    """
    path = Path(file)
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
    return path.suffix.lower().removeprefix(".")
