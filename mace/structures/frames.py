"""Files become structures, one at a time, so that an unreadable one can be named by its place in the file."""

from __future__ import annotations

import glob
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mace.conditions import CONDITION_KEYS
from mace.elements import ISOTOPES, mass_of
from mace.errors import UserError
from mace.properties import PROPERTIES
from mace.structures.comment_line import first_repeated, parse_comment
from mace.structures.frame import Frame
from mace.structures.plain_frames import read_plain_frames

if TYPE_CHECKING:
    from ase import Atoms

_PROPERTIES = re.compile(r"""(?<![\w-])(?i:Properties)\s*=\s*(?:"([^"]*)"|'([^']*)'|(\S+))""")

ENDINGS = {"xyz": "extxyz", "extxyz": "extxyz", "traj": "traj", "db": "db", "json": "json", "cif": "cif"}
"""Formats by endings that decide: ASE looks at the rest of a name first, and takes OUTCAR_1.xyz for one of VASP."""

WITHOUT_COLUMNS = ("db", "json", "traj")
"""Formats that have no room for columns of one's own."""

_OF_STRUCTURES = ("virial", *CONDITION_KEYS, *(name for name, item in PROPERTIES.items() if not item.of_atoms))
"""What says something of a structure as a whole, and may have as many rows as it has atoms."""

COMPRESSIONS = (".gz", ".bz2", ".xz")
"""Endings of compressed files, which stand behind those that tell the format."""

_READ_TOGETHER = 64
"""How many frames are cut before they are read."""

_UNREADABLE_TEXT = (UnicodeDecodeError, OSError, EOFError, zlib.error, lzma.LZMAError)
"""What opening and decompressing a text file may raise."""


def expand_paths(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Turn file names and glob patterns into the list of existing files they stand for.

    A name that exists is taken literally even where it contains ``*``, ``?`` or ``[``. Files found by a pattern are
    sorted by name; otherwise the given order is kept.

    Raises:
        UserError: If a file is missing, empty, a directory or named twice, or if a pattern matches nothing.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = [file for path in given for file in _expand_one(str(path))]
    if not files:
        raise UserError("No structure file was given; name at least one.")
    for file in files:
        _check_file(file)
    refuse_repeated(files)
    return files


def refuse_repeated(files: Sequence[str]) -> None:
    """Make sure that no file is read twice.

    Raises:
        UserError: If two names stand for the same file.
    """
    seen: dict[Path, str] = {}
    for file in files:
        real = Path(file).resolve()
        if real in seen:
            raise UserError(
                f"{file}: the same file is given twice (first as {seen[real]}), and its structures would count double; "
                "name it once."
            )
        seen[real] = file


def _expand_one(path: str) -> list[str]:
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    matches = sorted(match for match in glob.glob(path, recursive=True) if not Path(match).is_dir())
    if not matches:
        raise UserError(f"{path}: no file matches this pattern, seen from {Path.cwd()}.")
    return matches


def _check_file(file: str) -> None:
    path = Path(file)
    if not file.strip():
        raise UserError("The name of a structure file is empty.")
    if path.is_dir():
        raise UserError(f"{file}: this is a directory; name the files in it, for example with '{file.rstrip('/')}/*'.")
    if not path.exists():
        raise UserError(f"{file}: there is no such file, seen from {Path.cwd()}.")
    if not path.is_file():
        raise UserError(f"{file}: this is not a regular file and cannot be read more than once; write it to one first.")
    if path.stat().st_size == 0:
        raise UserError(f"{file}: the file is empty.")


def iterate_frames(file: str) -> Iterator[Frame]:
    """Yield the structures of any file that ASE can read, in order.

    Raises:
        UserError: If the format is unknown, the file holds no structure, or a structure cannot be read; the message
            names its place, counted from zero.
    """
    file_format = _format_of(file)
    if file_format == "extxyz":
        frames = iterate_extended_xyz(file)
    else:
        frames = _other_frames(file, file_format)
    is_empty = True
    for frame in frames:
        is_empty = False
        yield frame
    if is_empty:
        raise UserError(f"{file}: the file holds no structure.")


def _format_of(file: str) -> str:
    """Tell the format of a file: that of its ending if it has one of `ENDINGS`, otherwise what ASE finds."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    ending = ending_of(file)
    if ending in ENDINGS:
        return ENDINGS[ending]
    try:
        file_format = filetype(file)
    except (UnknownFileTypeError, *_UNREADABLE_TEXT) as error:
        raise UserError(f"{file}: ASE cannot tell the format of this file ({_reason(error)}).") from error
    if file_format not in ioformats:
        raise UserError(
            f"{file}: ASE knows no format with the ending '.{ending}'; rename the file so that it ends in .xyz if it "
            "is extended XYZ."
        )
    return file_format


def ending_of(file: str | Path) -> str:
    """Return the last part of a name that says what a file is, in small letters.

    >>> ending_of("OUTCAR_1.XYZ"), ending_of("a/train.extxyz.gz"), ending_of("POSCAR")
    ('xyz', 'extxyz', '')
    """
    path = Path(file)
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
    return path.suffix.lower().removeprefix(".")


def _other_frames(file: str, file_format: str) -> Iterator[Frame]:
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
                _find_columns(frame)
            yield frame
            count += 1
    except Exception as error:  # ASE has a reader per format, and each fails in its own way
        raise _unreadable(file, count, _reason(error)) from error


def _database_rows(file: str) -> Iterator[Atoms]:
    """Yield the rows of a database of ASE with what they say besides, which ASE's reader for files leaves out."""
    from ase.db import connect

    with connect(file, use_lock_file=False) as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update({**row.key_value_pairs, **row.data})
            yield atoms


def _find_columns(frame: Frame) -> None:
    """Make columns of what has a row for each atom, in a format that has entries of structures only."""
    for key, value in list(frame.info.items()):
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            continue
        is_of_atoms = array.shape[:1] == (len(frame),) and array.ndim <= 2
        if is_of_atoms and array.dtype.kind in "biuf" and key.removeprefix("REF_") not in _OF_STRUCTURES:
            frame.arrays[key] = array
            del frame.info[key]


def iterate_extended_xyz(file: str) -> Iterator[Frame]:
    """Yield the structures of an extended XYZ file, whatever it is called.

    Raises:
        UserError: If one cannot be read; the message names its place, counted from zero.
    """
    # cut into frames first: ASE's own loop neither names the bad frame nor goes on after an empty line
    index = 0
    for cut in _in_portions(_cut_extended_xyz(file), _READ_TOGETHER):
        for lines, frame in zip(cut, read_plain_frames(cut), strict=True):
            yield frame if frame is not None else _ask_ase("".join(lines), file, index)
            index += 1


def _in_portions(frames: Iterator[list[str]], size: int) -> Iterator[list[list[str]]]:
    """Yield some frames at a time; those before an error come before the error."""
    portion: list[list[str]] = []
    try:
        for frame in frames:
            portion.append(frame)
            if len(portion) == size:
                yield portion
                portion = []
    except UserError:
        yield portion
        raise
    yield portion


def _ask_ase(text: str, file: str, index: int) -> Frame:
    """Let ASE read a frame.

    Raises:
        UserError: If it cannot, or should not.
    """
    from ase.io.extxyz import read_xyz

    try:
        text, masses = _check_columns(text)
        frame = Frame.of_atoms(next(read_xyz(io.StringIO(text), index=0, properties_parser=parse_comment)))
    except Exception as error:  # the parser raises KeyError, ValueError, IndexError, OSError... for bad text
        raise _unreadable(file, index, _reason(error)) from error
    if masses is not None:
        frame.arrays["masses"] = masses
    return frame


def _cut_extended_xyz(file: str) -> Iterator[list[str]]:
    """Yield the lines of one frame after the other; empty lines between frames are skipped."""
    lines = _lines(file)
    index = 0
    line = next(lines, "").removeprefix("\N{BYTE ORDER MARK}") or None
    while line is not None:
        if not line.strip():
            line = next(lines, None)
            continue
        n_atoms = _parse_atom_count(line, file, index)
        frame = [line, *itertools.islice(lines, n_atoms + 1)]
        if len(frame) < n_atoms + 2:
            raise _unreadable(file, index, f"the file ends after {max(len(frame) - 2, 0)} of its {n_atoms} atoms")
        line = next(lines, None)
        while line is not None and line.lstrip().startswith("VEC"):
            frame.append(line)  # some programs write the lattice as pseudo-atoms named VEC1 to VEC3
            line = next(lines, None)
        yield frame
        index += 1


def _parse_atom_count(line: str, file: str, index: int) -> int:
    try:
        n_atoms = int(line)
    except ValueError as error:
        found = line.strip()[:40]
        raise _unreadable(file, index, f"a number of atoms is expected where '{found}' stands") from error
    if n_atoms < 0:
        raise _unreadable(file, index, f"its number of atoms is {n_atoms}")
    return n_atoms


def _lines(file: str) -> Iterator[str]:
    """Yield the lines of a text file that may be compressed, in UTF-8 whatever the locale says."""
    from ase.io.formats import open_with_compression

    try:
        with open_with_compression(file, "rb") as binary, io.TextIOWrapper(binary, encoding="utf-8") as stream:
            yield from stream
    except _UNREADABLE_TEXT as error:
        raise UserError(f"{file}: this is not a readable text file ({_reason(error)}).") from error


def _check_columns(text: str) -> tuple[str, np.ndarray | None]:
    """Make sure that each atom has the columns its comment line promises: ASE alone ignores what is too much.

    Returns:
        The text with hydrogen for its isotopes, of which ASE does not know, and then the masses of all atoms.

    Raises:
        UserError: If an atom has other columns, a column comes twice, or a symbol is none.
    """
    count, comment, *rows = text.splitlines(keepends=True)
    match = _PROPERTIES.search(comment)
    properties = next(part for part in match.groups() if part is not None) if match else "species:S:1:pos:R:3"
    parts = properties.split(":")
    names, counts = parts[::3], parts[2::3]
    if (twice := first_repeated(names)) is not None:
        raise UserError(f"it has the column '{twice}' twice")
    if len(parts) % 3 or not all(number.isdecimal() for number in counts):
        raise UserError(f"its Properties are '{properties}', which is not name:type:columns for each")
    widths = [int(number) for number in counts]
    for place, row in enumerate(rows):
        found = len(row.split())
        if match and found != sum(widths) and not row.startswith("VEC"):
            raise UserError(f"its atom {place} has {found} columns where Properties names {sum(widths)}")
    if "species" not in names:
        return text, None
    column = sum(widths[: names.index("species")])
    symbols = [row.split()[column].capitalize() for row in rows if row.split()[column:] and not row.startswith("VEC")]
    _check_symbols(symbols)
    if not set(symbols) & ISOTOPES.keys():
        return text, None
    for place, symbol in enumerate(symbols):
        if symbol in ISOTOPES:
            words = rows[place].split()
            words[column] = "H"
            rows[place] = " ".join(words) + "\n"
    masses = None if "masses" in names else np.array([mass_of(symbol) for symbol in symbols])
    return "".join([count, comment, *rows]), masses


def _check_symbols(symbols: Sequence[str]) -> None:
    """Make sure that words are symbols of elements, of isotopes of hydrogen, or ``X``."""
    from ase.data import atomic_numbers

    for place, symbol in enumerate(symbols):
        if symbol in atomic_numbers or symbol in ISOTOPES:
            continue
        if symbol.isdecimal():
            raise UserError(
                f"its atom {place} has the symbol '{symbol}', which is none; call a column of atomic numbers Z:I:1"
            )
        raise UserError(f"its atom {place} has the symbol '{symbol}', which is no chemical element")


def _unreadable(file: str, index: int, reason: str) -> UserError:
    return UserError(f"{file}: structure {index} cannot be read: {reason}; correct it or take it out.")


def _reason(error: BaseException) -> str:
    """One line that says what went wrong, with the kind of error where its text alone would not."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, KeyError):
        return f"{text} is not known"
    return f"{type(error).__name__}: {text}"[:200].rstrip(": ")
