"""Files become structures, one at a time, so that an unreadable one can be named by its place in the file."""

from __future__ import annotations

import glob
import io
import itertools
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mace.errors import UserError
from mace.structures.frame import Frame
from mace.structures.plain_frames import read_plain_frames

_VOIGT_IN_COMMENT = re.compile(r"""(?<![\w-])(stress|virial)\s*=\s*(?:"([^"]*)"|'([^']*)'|\{([^}]*)\}|\[([^\]]*)\])""")

_PROPERTIES = re.compile(r"""(?<![\w-])Properties\s*=\s*(?:"([^"]*)"|'([^']*)'|(\S+))""")
_QUOTED = r"""\\.|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{(?:\\.|[^}\\])*\}|\[(?:\\.|[^\]\\])*\]"""
_QUOTED_IN_COMMENT = re.compile(_QUOTED)
_WORD_IN_COMMENT = re.compile(rf"""(?:{_QUOTED}|[^\s"'{{\[\\])+""")
_NO_VALUE_IN_COMMENT = re.compile(r"(?:^|\s)(\S+)=\s+[^\s=]+\s*=")
_EQUALS_IN_COMMENT = re.compile(r"\s*=\s*")
_EMPTY_IN_COMMENT = re.compile(r"""(?:^|\s)[^\s="']+\s*=\s*(?:""|'')(?=\s|$)""")

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
    from ase.io.formats import UnknownFileTypeError, filetype

    try:
        file_format = filetype(file)
    except (UnknownFileTypeError, *_UNREADABLE_TEXT) as error:
        raise UserError(f"{file}: ASE cannot tell the format of this file ({_reason(error)}).") from error
    frames = iterate_extended_xyz(file) if file_format == "extxyz" else _other_frames(file, file_format)
    is_empty = True
    for frame in frames:
        is_empty = False
        yield frame
    if is_empty:
        raise UserError(f"{file}: the file holds no structure.")


def _other_frames(file: str, file_format: str) -> Iterator[Frame]:
    from ase.io import iread

    count = 0
    try:
        for atoms in iread(file, index=":", format=file_format, do_not_split_by_at_sign=True):
            yield Frame.of_atoms(atoms)
            count += 1
    except Exception as error:  # ASE has a reader per format, and each fails in its own way
        raise _unreadable(file, count, _reason(error)) from error


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
        _check_columns(text)
        return Frame.of_atoms(next(read_xyz(io.StringIO(text), index=0, properties_parser=_parse_comment)))
    except Exception as error:  # the parser raises KeyError, ValueError, IndexError, OSError... for bad text
        raise _unreadable(file, index, _reason(error)) from error


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
    """Yield the lines of a text file that may be compressed."""
    from ase.io.formats import open_with_compression

    try:
        with open_with_compression(file, "r") as stream:
            yield from stream
    except _UNREADABLE_TEXT as error:
        raise UserError(f"{file}: this is not a readable text file ({_reason(error)}).") from error


def _check_columns(text: str) -> None:
    """Make sure that each atom has the columns its comment line promises: ASE alone ignores what is too much.

    Raises:
        UserError: If one has not, or a column comes twice.
    """
    _, comment, *rows = text.splitlines()
    match = _PROPERTIES.search(comment)
    if match is None:
        return
    parts = next(part for part in match.groups() if part is not None).split(":")
    names, counts = parts[::3], parts[2::3]
    if (twice := _first_repeated(names)) is not None:
        raise UserError(f"it has the column '{twice}' twice")
    if len(parts) % 3 or not all(count.isdecimal() for count in counts):
        raise UserError(f"its Properties are '{':'.join(parts)}', which is not name:type:columns for each")
    expected = sum(int(count) for count in counts)
    for place, row in enumerate(rows):
        found = len(row.split())
        if found != expected and not row.startswith("VEC"):
            raise UserError(f"its atom {place} has {found} columns where Properties names {expected}")


def _first_repeated(words: Sequence[str]) -> str | None:
    return next((word for word, count in Counter(words).items() if count > 1), None)


def _parse_comment(line: str) -> dict[str, Any]:
    """Parse the comment line, with six-component ``stress`` and ``virial`` entries, which ASE alone refuses.

    Raises:
        UserError: If a key comes twice, of which ASE alone takes the last; if a quote does not end or a key has no
            value, where ASE alone takes the next keys for text, as it does between two apostrophes; or if ``pbc`` is a
            word, which ASE alone takes for yes.
    """
    from ase.io.extxyz import key_val_str_to_dict

    line = _EMPTY_IN_COMMENT.sub(" ", line)
    if (twice := _first_repeated(_keys_in_comment(line))) is not None:
        raise UserError(f"its comment line has the key '{twice}' twice")
    if "stress" in line or "virial" in line:
        line = _VOIGT_IN_COMMENT.sub(_voigt_to_nine, line)
    parse: Callable[[str], dict[str, Any]] = key_val_str_to_dict
    entries = parse(line)
    if isinstance(entries.get("pbc"), str):
        raise UserError(f"its pbc is '{entries['pbc']}', which is neither T nor F for each direction")
    return entries


def _keys_in_comment(line: str) -> list[str]:
    """List the keys of a comment line as ASE divides it, which takes no notice of what looks wrong."""
    if _WORD_IN_COMMENT.sub("", line).strip():
        raise UserError("its comment line has a quote or bracket that does not end")
    for quoted in _QUOTED_IN_COMMENT.finditer(line):
        _refuse_swallowed_key(line, quoted)
    plain = _QUOTED_IN_COMMENT.sub("0", line)
    if (match := _NO_VALUE_IN_COMMENT.search(plain)) is not None:
        raise UserError(f"its comment line has no value for the key '{match.group(1)}'")
    return [word.partition("=")[0] for word in _EQUALS_IN_COMMENT.sub("=", plain).split()]


def _refuse_swallowed_key(line: str, match: re.Match[str]) -> None:
    """Make sure that a quoted stretch with ``=`` in it is a value, and not keys between two apostrophes.

    A backslash outside of quotes makes text of what follows, a blank between two keys for example.
    """
    text = match.group()
    if text[0] == "\\" and (text[1] == "=" or text[1].isspace()):
        raise UserError(
            "its comment line has a backslash before a blank or =, by which no key is read from what follows"
        )
    before, after = line[: match.start()][-1:], line[match.end() :][:1]
    is_apart = (not before or before == "=" or before.isspace()) and (not after or after == "=" or after.isspace())
    if "=" in text and not (is_apart and not text[:-1].rstrip().endswith("=")):
        raise UserError(
            f"its comment line has a quote or bracket inside a word, by which {text[:40]} is text and no key is read "
            "from it"
        )


def _voigt_to_nine(match: re.Match[str]) -> str:
    key, *values = match.groups()
    parts = next(value for value in values if value is not None).replace(",", " ").split()
    if len(parts) != 6:
        return match.group(0)
    xx, yy, zz, yz, xz, xy = parts
    return f'{key}="{xx} {xy} {xz} {xy} {yy} {yz} {xz} {yz} {zz}"'


def _unreadable(file: str, index: int, reason: str) -> UserError:
    return UserError(f"{file}: structure {index} cannot be read: {reason}; correct it or take it out.")


def _reason(error: BaseException) -> str:
    """One line that says what went wrong, with the kind of error where its text alone would not."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}"[:200].rstrip(": ")
