"""Fast reader of ordinary extended XYZ frames: many at a time, with the same numbers and types as ASE.

ASE's parser goes through a comment line character by character and makes a record array of every structure, which takes
longer than computing the forces with a small model. Only what is unambiguous is read here; everything else is left to
`mace.formats.extended_xyz`, which uses ASE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from mace.formats.comment_line import RESERVED, find_mistaken
from mace.formats.frame import Frame

_ENTRY = re.compile(r"""([A-Za-z_][A-Za-z0-9_-]*)=(?:"([^"'\\{}\[\]=]+)"|([^\s"'\\{}\[\]=]+))(?: +|$)""")
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBERS = re.compile(rf"[ ,]*{_NUMBER}(?:[ ,]+{_NUMBER})*[ ,]*")
_INTEGERS = re.compile(r"[ ,]*[+-]?\d{1,18}(?:[ ,]+[+-]?\d{1,18})*[ ,]*")
_NO_INTEGER = re.compile("[.eE]")
_TRUTHS = {word: True for word in ("T", "true", "True", "TRUE")} | {
    word: False for word in ("F", "false", "False", "FALSE")
}
_TRUTHS_IN_COLUMNS = {"T": True, "True": True, "F": False, "False": False}
_NAMED_DIFFERENTLY = {"Z", "charge", "numbers", "positions", "symbols", "initial_charges", "move_mask"}
"""Columns that ASE gives another name or meaning."""

_TENSORS = {"Lattice", "stress", "virial"}
_NINE_OF_SIX = np.array([0, 5, 4, 5, 1, 3, 4, 3, 2])


class _Unusual(Exception):
    """The frame contains something that is left to ASE."""


class _Header(NamedTuple):
    """A parsed comment line: the three reserved entries, and all others."""

    info: dict[str, Any]
    results: dict[str, Any]
    properties: str
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]


class _Column(NamedTuple):
    """One entry of ``Properties``."""

    name: str
    kind: str
    first: int
    width: int


class _Plain(NamedTuple):
    """A frame whose comment line has been parsed; its atoms are still text."""

    place: int
    header: _Header
    rows: list[list[str]]


def read_plain_frames(frames: Sequence[list[str]]) -> list[Frame | None]:
    """Read frames as far as they are ordinary.

    Args:
        frames: The lines of each frame: number of atoms, comment, one line per atom.

    Returns:
        For each frame, what ASE would read from it, or None if ASE has to read it.
    """
    found: list[Frame | None] = [None] * len(frames)
    understood: list[_Plain] = []
    for place, lines in enumerate(frames):
        try:
            header = _parse_header(lines[1].strip())
            width = sum(column.width for column in _columns(header.properties))
        except _Unusual:
            continue
        rows = [line.split() for line in lines[2:]]
        if rows and all(len(row) == width for row in rows):
            understood.append(_Plain(place, header, rows))
    for properties, group in groupby(understood, key=lambda plain: plain.header.properties):
        plains = list(group)
        try:
            made = _make_frames(plains, _columns(properties))
        except (_Unusual, ValueError, OverflowError, KeyError):
            continue
        for plain, frame in zip(plains, made, strict=True):
            found[plain.place] = frame
    return found


def _parse_header(comment: str) -> _Header:
    if not (comment.isascii() and comment.isprintable()):
        raise _Unusual
    entries: dict[str, Any] = {}
    end = 0
    for match in _ENTRY.finditer(comment):
        key, quoted, bare = match.groups()
        key = RESERVED.get(key.lower(), key)
        if match.start() != end or key in entries or key.lower() == "uid" or (key in _TENSORS and not quoted):
            raise _Unusual
        end = match.end()
        value = _parse_value(quoted or bare)
        if key in _TENSORS:  # nine numbers, or six in the usual order xx yy zz yz xz xy
            if isinstance(value, np.ndarray) and value.shape == (6,) and key != "Lattice":
                value = value[_NINE_OF_SIX]
            if not isinstance(value, np.ndarray) or value.shape != (9,):
                raise _Unusual
            value = value.reshape((3, 3), order="F")
        entries[key] = value
    if find_mistaken(entries) is not None:
        raise _Unusual
    if end != len(comment) or not isinstance(properties := entries.pop("Properties", "species:S:1:pos:R:3"), str):
        raise _Unusual
    lattice = entries.pop("Lattice", None)
    pbc = entries.pop("pbc", [lattice is not None] * 3)
    if not (isinstance(pbc, list) and len(pbc) == 3):
        raise _Unusual
    cell = np.zeros((3, 3)) if lattice is None else np.array(lattice.T, dtype=np.float64, order="C")
    of_calculator = entries.keys() & _known_to_calculators()[0]
    results = {key: entries.pop(key) for key in list(entries) if key in of_calculator} if of_calculator else {}
    return _Header(entries, results, properties, cell, (pbc[0], pbc[1], pbc[2]))


def _parse_value(text: str) -> Any:
    """Turn the text of a value into numbers, truth values or, if it is neither, text."""
    value = _parse_word(text)
    if value is not None:
        return list(value) if isinstance(value, tuple) else value
    parts = text.replace(",", " ").split()
    if _INTEGERS.fullmatch(text):
        return np.int_(parts[0]) if len(parts) == 1 else np.array(list(map(int, parts)), dtype=int)
    if _NUMBERS.fullmatch(text) and _NO_INTEGER.search(text):  # integers that are too long are left to ASE
        return np.float64(parts[0]) if len(parts) == 1 else np.array(list(map(float, parts)))
    raise _Unusual


@lru_cache(maxsize=1024)
def _parse_word(text: str) -> str | bool | tuple[bool, ...] | None:
    """Return text or truth values; None for what may be numbers.

    Raises:
        _Unusual: If ASE may read a part of it as a number, or all of it as JSON.
    """
    if _NUMBERS.fullmatch(text):
        return None
    parts = text.replace(",", " ").split()
    if not parts or text.startswith("_JSON") or any(part.lower().startswith(("nan", "inf")) for part in parts):
        raise _Unusual
    if all(part in _TRUTHS for part in parts):
        truths = tuple(_TRUTHS[part] for part in parts)
        return truths[0] if len(truths) == 1 else truths
    if any(part[0].isalpha() for part in parts):
        return text
    raise _Unusual


@lru_cache(maxsize=256)
def _columns(properties: str) -> tuple[_Column, ...]:
    """Split ``Properties`` into columns.

    Raises:
        _Unusual: Unless they include the symbol and the position of each atom, and each column occurs once.
    """
    parts = properties.split(":")
    names, kinds, counts = parts[::3], parts[1::3], parts[2::3]
    if len(parts) % 3 or len(set(names)) != len(names) or _NAMED_DIFFERENTLY & set(names):
        raise _Unusual
    columns: list[_Column] = []
    first = 0
    for name, kind, count in zip(names, kinds, counts, strict=True):
        is_count = count.isascii() and count.isdecimal() and 0 < int(count) < 10000
        if not (name and is_count and kind in _PARSERS):
            raise _Unusual
        columns.append(_Column(name, kind, first, int(count)))
        first += int(count)
    shapes = {column.name: (column.kind, column.width) for column in columns}
    if shapes.get("species") != ("S", 1) or shapes.get("pos") != ("R", 3):
        raise _Unusual
    return tuple(columns)


def _make_frames(plains: Sequence[_Plain], columns: tuple[_Column, ...]) -> list[Frame]:
    """Convert the text of frames with the same columns to numbers, all at once, and split them by frame."""
    from ase.data import atomic_numbers

    words = list(zip(*(row for plain in plains for row in plain.rows), strict=True))
    arrays: dict[str, np.ndarray] = {}
    for column in columns:
        chosen = words[column.first : column.first + column.width]
        if column.name == "species":
            number_of = {symbol: atomic_numbers[symbol.capitalize()] for symbol in set(chosen[0])}
            arrays["species"] = np.array([number_of[symbol] for symbol in chosen[0]], dtype=int)
            continue
        parse, dtype = _PARSERS[column.kind]
        parsed = np.array([list(map(parse, of_column)) for of_column in chosen], dtype=dtype)
        arrays[column.name] = parsed[0] if column.width == 1 else np.ascontiguousarray(parsed.T)
    numbers, positions = arrays.pop("species"), arrays.pop("pos")
    known = _known_to_calculators()[1]
    frames = []
    start = 0
    for plain in plains:
        header, stop = plain.header, start + len(plain.rows)
        own = {name: array[start:stop] for name, array in arrays.items()}
        # with the types that a calculator returns
        results: dict[str, Any] = {name: array.astype(np.float64) for name, array in own.items() if name in known}
        for key, value in header.results.items():
            if key == "stress":
                value = value[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            results[key] = value if key in ("energy", "free_energy", "magmom") else np.array(value, dtype=np.float64)
        others = {name: array for name, array in own.items() if name not in known}
        place = slice(start, stop)
        frames.append(Frame(numbers[place], positions[place], header.cell, header.pbc, header.info, others, results))
        start = stop
    return frames


_PARSERS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "R": (float, "d"),
    "I": (int, "i"),
    "S": (str, object),
    "L": (_TRUTHS_IN_COLUMNS.__getitem__, "bool"),
}
"""What ASE makes of a word in a column, and the type of the array."""


@lru_cache(maxsize=1)
def _known_to_calculators() -> tuple[frozenset[str], frozenset[str]]:
    """Return the entries and the columns that ASE stores in a calculator."""
    from ase.io.extxyz import all_properties, per_config_properties

    return frozenset(per_config_properties), frozenset(all_properties)
