"""Reads extended XYZ one frame at a time, so that an unreadable frame can be named by its index."""

from __future__ import annotations

import io
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator

import numpy as np

from mace.elements import ISOTOPES, mass_of
from mace.errors import UserError
from mace.formats.comment_line import first_repeated, parse_comment
from mace.formats.frame import Frame
from mace.formats.plain_extended_xyz import read_plain_frames

UNREADABLE_TEXT = (UnicodeDecodeError, OSError, EOFError, zlib.error, lzma.LZMAError)
"""What opening and decompressing a text file may raise."""

_READ_TOGETHER = 64
"""How many frames are cut before they are read."""

_PROPERTIES = re.compile(r"""(?<![\w-])(?i:Properties)\s*=\s*(?:"([^"]*)"|'([^']*)'|(\S+))""")


def iterate_extended_xyz(file: str) -> Iterator[Frame]:
    """Yield the structures of an extended XYZ file, regardless of the file's name.

    Raises:
        UserError: If a structure cannot be read; the message names its index, counted from zero.
    """
    # split into frames first: ASE's own loop neither names the bad frame nor continues after an empty line
    index, frames = 0, _cut_extended_xyz(file)
    while True:
        cut: list[list[str]] = []
        failure: UserError | None = None
        try:
            for lines in itertools.islice(frames, _READ_TOGETHER):
                cut.append(lines)
        except UserError as error:  # raised after the frames before it
            failure = error
        for lines, frame in zip(cut, read_plain_frames(cut), strict=True):
            yield frame if frame is not None else _ask_ase("".join(lines), file, index)
            index += 1
        if failure is not None:
            raise failure
        if not cut:
            return


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
        raise unreadable(file, index, reason_of(error)) from error
    if masses is not None:
        frame.arrays["masses"] = masses
    return frame


def _cut_extended_xyz(file: str) -> Iterator[list[str]]:
    """Yield the lines of each frame; empty lines between frames are skipped."""
    lines = _lines(file)
    index = 0
    line = next(lines, "").removeprefix("\N{BYTE ORDER MARK}") or None
    while line is not None:
        if not line.strip():
            line = next(lines, None)
            continue
        try:
            n_atoms = int(line)
        except ValueError as error:
            found = line.strip()[:40]
            raise unreadable(file, index, f"a number of atoms is expected where '{found}' stands") from error
        if n_atoms < 0:
            raise unreadable(file, index, f"its number of atoms is {n_atoms}")
        frame = [line, *itertools.islice(lines, n_atoms + 1)]
        if len(frame) < n_atoms + 2:
            raise unreadable(file, index, f"the file ends after {max(len(frame) - 2, 0)} of its {n_atoms} atoms")
        line = next(lines, None)
        while line is not None and line.lstrip().startswith("VEC"):
            frame.append(line)  # some programs write the lattice as pseudo-atoms named VEC1 to VEC3
            line = next(lines, None)
        yield frame
        index += 1


def _lines(file: str) -> Iterator[str]:
    """Yield the lines of a text file, which may be compressed, as UTF-8 regardless of the locale."""
    from ase.io.formats import open_with_compression

    try:
        with open_with_compression(file, "rb") as binary, io.TextIOWrapper(binary, encoding="utf-8") as stream:
            yield from stream
    except UNREADABLE_TEXT as error:
        raise UserError(f"{file}: this is not a readable text file ({reason_of(error)}).") from error


def _check_columns(text: str) -> tuple[str, np.ndarray | None]:
    """Check that each atom has the columns declared in the comment line; ASE would ignore surplus columns.

    Returns:
        The text with isotopes of hydrogen, which ASE does not know, replaced by H, and in that case the masses of all
        atoms.

    Raises:
        UserError: If an atom has other columns, a column occurs twice, or a symbol is not an element.
    """
    from ase.data import atomic_numbers

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
    for place, symbol in enumerate(symbols):
        if symbol.isdecimal():
            raise UserError(
                f"its atom {place} has the symbol '{symbol}', which is none; call a column of atomic numbers Z:I:1"
            )
        if symbol not in atomic_numbers and symbol not in ISOTOPES:
            raise UserError(f"its atom {place} has the symbol '{symbol}', which is no chemical element")
    if not set(symbols) & ISOTOPES.keys():
        return text, None
    for place, symbol in enumerate(symbols):
        if symbol in ISOTOPES:
            words = rows[place].split()
            words[column] = "H"
            rows[place] = " ".join(words) + "\n"
    masses = None if "masses" in names else np.array([mass_of(symbol) for symbol in symbols])
    return "".join([count, comment, *rows]), masses


def unreadable(file: str, index: int, reason: str) -> UserError:
    """Return the error that names a structure and says what is wrong with it."""
    return UserError(f"{file}: structure {index} cannot be read: {reason}; correct it or take it out.")


def reason_of(error: BaseException) -> str:
    """Describe an error in one line, with its type if the text alone would not be clear."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, KeyError):
        return f"{text} is not known"
    return f"{type(error).__name__}: {text}"[:200].rstrip(": ")
