"""The comment line of extended XYZ, parsed as ASE does, after refusing what could be read in two ways.

Words without ``=`` are free text, not keys. ``Lattice``, ``pbc`` and ``Properties`` are accepted in upper or lower
case, as GPUMD writes them; synonyms are refused, because otherwise a crystal would be read as a molecule.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.formats.near_keys import is_near

RESERVED = {"lattice": "Lattice", "pbc": "pbc", "properties": "Properties"}
"""Words with a meaning of their own, in small letters and as the format has them."""

_MISTAKEN = {
    "Lattice": (
        "lattice",
        "cell",
        "box",
        "unit_cell",
        "simulation_cell",
        "lattice_vectors",
        "cell_vectors",
        "box_vectors",
    ),
    "pbc": ("pbc", "periodic", "periodicity", "periodic_boundary_conditions"),
    "Properties": ("properties", "property", "columns"),
}
"""Words that are taken for a reserved one, if what stands there could be meant and the right word is missing."""

_NUMBERS = re.compile(r"[-+.\deE\s,;()\[\]{}]+")
_COLUMNS = re.compile(r"\w+:[SIRL]:\d+(?::\w+:[SIRL]:\d+)*")

_VOIGT = re.compile(r"""(?<![\w-])(stress|virial)\s*=\s*(?:"([^"]*)"|'([^']*)'|\{([^}]*)\}|\[([^\]]*)\])""")
_ANY_QUOTED = r"""\\.|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{(?:\\.|[^}\\])*\}|\[(?:\\.|[^\]\\])*\]"""
_QUOTED = re.compile(_ANY_QUOTED)
_WORD = re.compile(rf"""(?:{_ANY_QUOTED}|[^\s"'{{\[\\])+""")
_NO_VALUE = re.compile(r"(?:^|\s)(\S+)=\s+[^\s=]+\s*=")
_EQUALS = re.compile(r"\s*=\s*")
_EMPTY = re.compile(r"""(?:^|\s)[^\s="']+\s*=\s*(?:""|'')(?=\s|$)""")
_PIECE = re.compile(
    rf"""\s*(?:(?P<key>(?:"[^"\\]*"|'[^'\\]*'|[^\s="'{{\[\\])+)\s*=\s*(?:{_ANY_QUOTED}|[^\s"'{{\[\\])+(?=\s|$)"""
    rf"""|(?P<free>(?:{_ANY_QUOTED}|(?!["{{\[])[^\s=\\]+)(?=\s|$)(?!\s*=)))"""
)
"""An entry, or a word of free text; one after the other as far as nothing is doubtful."""

_PLAIN = re.compile(r"[\w.,:;()+/-]+")


def parse_comment(line: str) -> dict[str, Any]:
    """Parse a comment line, including six-component ``stress`` and ``virial`` entries, which ASE refuses.

    Raises:
        UserError: If a key occurs twice (ASE would use the last value); if a quotation mark is not closed or a key has
            no value (ASE would read the next keys as text, as it does between two apostrophes); if ``pbc`` is a
            word (ASE would take it as true); or if another word is used in place of a reserved one.
    """
    from ase.io.extxyz import key_val_str_to_dict

    line = _without_free_words(_EMPTY.sub(" ", line))
    if not line.strip():
        return {}
    # split as ASE does, which ignores what looks wrong
    if _WORD.sub("", line).strip():
        raise UserError("its comment line has a quote or bracket that does not end")
    for match in _QUOTED.finditer(line):
        text = match.group()
        if text[0] == "\\" and (text[1] == "=" or text[1].isspace()):
            raise UserError(
                "its comment line has a backslash before a blank or =, by which no key is read from what follows"
            )
        # quoted text that contains = must be a value, not keys between two apostrophes
        before, after = line[: match.start()][-1:], line[match.end() :][:1]
        is_apart = (not before or before == "=" or before.isspace()) and (not after or after == "=" or after.isspace())
        if "=" in text and not (is_apart and not text[:-1].rstrip().endswith("=")):
            raise UserError(
                f"its comment line has a quote or bracket inside a word, by which {text[:40]} is text and no key is "
                "read from it"
            )
    plain = _QUOTED.sub("0", line)
    if (without := _NO_VALUE.search(plain)) is not None:
        raise UserError(f"its comment line has no value for the key '{without.group(1)}'")
    keys = [word.partition("=")[0] for word in _EQUALS.sub("=", plain).split()]
    if (twice := first_repeated([RESERVED.get(key.lower(), key) for key in keys])) is not None:
        raise UserError(f"its comment line has the key '{twice}' twice")
    if "stress" in line or "virial" in line:
        line = _VOIGT.sub(_voigt_to_nine, line)
    parse: Callable[[str], dict[str, Any]] = key_val_str_to_dict
    entries = {RESERVED.get(key.lower(), key): value for key, value in parse(line).items()}
    if "Lattice" in entries:
        value = entries["Lattice"]
        if not (isinstance(value, np.ndarray) and value.dtype.kind in "if" and value.size == 9):
            raise UserError("its Lattice is not nine numbers")
        # as ASE's parser returns it, with the vectors in columns
        entries["Lattice"] = value if value.ndim == 2 else value.reshape((3, 3), order="F")
    if isinstance(entries.get("pbc"), str):
        raise UserError(f"its pbc is '{entries['pbc']}', which is neither T nor F for each direction")
    if (mistaken := find_mistaken(entries)) is not None:
        key, right = mistaken
        raise UserError(f"its comment line has '{key}' but no '{right}', so its meaning would be lost; write {right}=")
    return entries


def first_repeated(words: Sequence[str]) -> str | None:
    """Return the first word that occurs twice."""
    return next((word for word, count in Counter(words).items() if count > 1), None)


def find_mistaken(entries: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find a key that is used in place of a reserved word; return it with that word."""
    for right, words in _MISTAKEN.items():
        if right in entries:
            continue
        for key, value in entries.items():
            if (key in words or is_near(key, words)) and _may_be_meant(right, value, entries):
                return key, right
    return None


def _may_be_meant(right: str, value: Any, entries: Mapping[str, Any]) -> bool:
    """Return whether a value would be valid under a reserved word and would change something."""
    if right == "Properties":
        return isinstance(value, str) and _COLUMNS.fullmatch(value) is not None
    if right == "pbc":
        directions = value if isinstance(value, list) else [value] * 3
        return all(isinstance(x, bool) for x in directions) and directions != ["Lattice" in entries] * 3
    if isinstance(value, str) and _NUMBERS.fullmatch(value):
        return len(re.findall(r"[^\s,;()\[\]{}]+", value)) in (3, 6, 9)
    return isinstance(value, np.ndarray) and value.dtype.kind in "if" and value.size in (3, 6, 9)


def _without_free_words(line: str) -> str:
    """Remove free words from a comment line; those that cannot be mistaken for a key are kept, once each."""
    pieces: list[re.Match[str]] = []
    end = 0
    while (found := _PIECE.match(line, end)) is not None:
        pieces.append(found)
        end = found.end()
    taken = {match["key"] for match in pieces if match["key"] is not None}
    kept = []
    for match in pieces:
        if (word := match["free"]) is not None:
            if word in taken or word.lower() in RESERVED or not _PLAIN.fullmatch(word):
                continue
            taken.add(word)
        kept.append(match.group())
    return "".join(kept) + line[end:]


def _voigt_to_nine(match: re.Match[str]) -> str:
    key, *values = match.groups()
    parts = next(value for value in values if value is not None).replace(",", " ").split()
    if len(parts) != 6:
        return match.group(0)
    xx, yy, zz, yz, xz, xy = parts
    return f'{key}="{xx} {xy} {xz} {xy} {yy} {yz} {xz} {yz} {zz}"'
