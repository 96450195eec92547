"""Reads extended XYZ one frame at a time, so that an unreadable frame can be named by its index."""

from __future__ import annotations

import io
import itertools
import lzma
import re
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mace.elements import ISOTOPES, mass_of
from mace.errors import UserError
from mace.formats.comment_line import first_repeated, parse_comment
from mace.formats.frame import Frame
from mace.formats.frame_file import FrameFile, reason_of, unreadable
from mace.formats.plain_extended_xyz import read_plain_frames

UNREADABLE_TEXT = (UnicodeDecodeError, OSError, EOFError, zlib.error, lzma.LZMAError)
"""What opening and decompressing a text file may raise."""

COMPRESSIONS = (".gz", ".bz2", ".xz")
"""Endings of compressed files, which stand behind those that tell the format."""

_READ_TOGETHER = 64
"""How many frames are cut before they are read."""

_STRIDE = 16
"""Every how many frames the place in the file is kept: half a byte per frame, and a few frames too many to cut."""

_PROPERTIES = re.compile(r"""(?<![\w-])(?i:Properties)\s*=\s*(?:"([^"]*)"|'([^']*)'|(\S+))""")


class ExtendedXYZFile(FrameFile):
    """An extended XYZ file, regardless of its name; also a compressed one, which is read from its beginning."""

    @cached_property
    def _places(self) -> _Places:
        return _find_frames(self.path)

    def count(self) -> int:
        """Return the number of structures, from one look at all lines that converts none of them to numbers.

        Raises:
            UserError: If it cannot be told where a structure ends; the message names its index.
        """
        if self._places.complete:
            return self._places.count
        index, offset = self._places.before(self._places.count)
        return index + sum(1 for _ in _cut_extended_xyz(self.path, index, offset))

    def starting_at(self, index: int) -> ExtendedXYZFile:
        """Return a reader of the same file that knows where one structure begins."""
        smaller = ExtendedXYZFile(self.path)
        first, offset = self._places.before(index)
        smaller._places = _Places(array("q", [offset]), first + 1, complete=False, first=first)
        return smaller

    def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
        index, offset = self._places.before(start) if start else (0, 0)
        # split into frames first: ASE's own loop neither names the bad frame nor continues after an empty line
        frames = _cut_extended_xyz(self.path, index, offset)
        frames = itertools.islice(frames, start - index, None if stop is None else stop - index)
        while True:
            cut: list[list[str]] = []
            failure: UserError | None = None
            try:
                for lines in itertools.islice(frames, _READ_TOGETHER):
                    cut.append(lines)
            except UserError as error:  # raised after the frames before it
                failure = error
            for lines, frame in zip(cut, read_plain_frames(cut), strict=True):
                yield frame if frame is not None else _ask_ase("".join(lines), self.path, start)
                start += 1
            if failure is not None:
                raise failure
            if not cut:
                return


@dataclass(frozen=True)
class _Places:
    """Where structures begin in a file.

    Attributes:
        offsets: Position in bytes of every `_STRIDE`-th structure, as far as the file is as usual.
        count: How many structures there are so far.
        complete: Whether that is all of the file.
        first: Index of the first structure whose place is known.
    """

    offsets: array[int]
    count: int
    complete: bool
    first: int = 0

    def before(self, index: int) -> tuple[int, int]:
        """Return index and position of the last known structure that is not behind one."""
        known = min((index - self.first) // _STRIDE, len(self.offsets) - 1)
        return (self.first + known * _STRIDE, self.offsets[known]) if known >= 0 else (0, 0)


def _find_frames(file: str) -> _Places:
    """Find where structures begin, up to the first line that only `_cut_extended_xyz` understands."""
    offsets = array("q")
    count = offset = 0
    if Path(file).suffix.lower() in COMPRESSIONS:
        return _Places(offsets, 0, complete=False)
    with open(file, "rb", buffering=1 << 20) as stream:
        line = stream.readline()
        while line:
            if line.isspace():
                offset += len(line)
                line = stream.readline()
                continue
            if not line.strip().isdigit():
                break
            n_atoms = int(line)
            lines = list(itertools.islice(stream, n_atoms + 1))
            frame = b"".join(lines)
            # a carriage return alone ends a line of text too
            if len(lines) != n_atoms + 1 or (b"\r" in frame and frame.count(b"\r") != frame.count(b"\r\n")):
                break
            if count % _STRIDE == 0:
                offsets.append(offset)
            count += 1
            offset += len(line) + len(frame)
            line = stream.readline()
            while line.lstrip().startswith(b"VEC"):
                offset += len(line)
                line = stream.readline()
    return _Places(offsets, count, complete=not line)


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


def _cut_extended_xyz(file: str, index: int = 0, offset: int = 0) -> Iterator[list[str]]:
    """Yield the lines of each frame; empty lines between frames are skipped.

    Args:
        file: Name of the file.
        index: Index of the first frame.
        offset: Where it begins, in bytes.
    """
    lines = _lines(file, offset)
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


def _lines(file: str, offset: int = 0) -> Iterator[str]:
    """Yield the lines of a text file, which may be compressed, as UTF-8 regardless of the locale."""
    from ase.io.formats import open_with_compression

    try:
        with open_with_compression(file, "rb") as binary:
            binary.seek(offset)
            with io.TextIOWrapper(binary, encoding="utf-8") as stream:
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
