"""The text of a structure in extended XYZ: that of ASE to the last character, made in a fraction of its time."""

from __future__ import annotations

import io
from itertools import chain
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.io.extxyz import PROPERTY_NAME_MAP, SPECIAL_3_3_KEYS, escape, key_val_dict_to_str, write_xyz

from mace.structures.frame import Frame

_FORMATS = {"f": ("R", "%16.8f"), "i": ("I", "%8d"), "U": ("S", "%-2s"), "b": ("L", " %.1s")}
"""Word of the comment line and format by the kind of NumPy's types, as ASE has them."""

_SPECIAL = frozenset({"symbols", "species", "pos", "move_mask"})
"""Names of arrays that ASE treats in ways of its own."""


def frame_text(frame: Frame) -> str:
    """Write a structure without its calculator's results.

    Args:
        frame: The structure.

    Returns:
        What ``ase.io.extxyz.write_xyz`` would write.

    Raises:
        ValueError: As ASE does to data the format cannot hold; TypeError and KeyError too.
    """
    if not len(frame) or frame.constraints or not all(_is_plain(name, array) for name, array in frame.arrays.items()):
        stream = io.StringIO()
        write_xyz(stream, [frame.to_atoms()], write_results=False)
        return stream.getvalue()
    properties, formats = ["species:S:1:pos:R:3"], ["%-2s", "%16.8f", "%16.8f", "%16.8f"]
    components = [[chemical_symbols[number] for number in frame.numbers.tolist()], *frame.positions.T.tolist()]
    for name, array in frame.arrays.items():
        kind, layout = _FORMATS[array.dtype.kind]
        width = 1 if array.ndim == 1 else array.shape[1]
        properties.append(f"{PROPERTY_NAME_MAP.get(name, name)}:{kind}:{width}")
        formats += [layout] * width
        components += [array.tolist()] if array.ndim == 1 else array.T.tolist()
    rows = (" ".join(formats) + "\n") * len(frame) % tuple(chain.from_iterable(zip(*components, strict=True)))
    lattice = f'Lattice="{" ".join(map(str, frame.cell.ravel().tolist()))}" ' if frame.cell.any() else ""
    info = {**frame.info, "pbc": " ".join("T" if periodic else "F" for periodic in frame.pbc)}
    entries = " ".join(filter(None, map(_entry, info.keys(), info.values())))
    return f"{len(frame)}\n{lattice}Properties={':'.join(properties)} {entries}\n{rows}"


def _entry(key: str, value: Any) -> str:
    """Write an entry of the comment line: numbers and text here, what is rare with ASE."""
    if isinstance(value, str):
        return f"{escape(key)}={escape(value)}"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{escape(key)}={value}"
    if isinstance(value, np.ndarray) and value.dtype.kind in "if" and value.dtype.itemsize <= 8:
        if key in SPECIAL_3_3_KEYS:
            value = value.reshape(value.size, order="F")
        if value.ndim == 1:
            return f"{escape(key)}={escape(' '.join(map(str, value.tolist())))}"
    text: str = key_val_dict_to_str({key: value})
    return text


def _is_plain(name: str, array: np.ndarray) -> bool:
    """Tell whether an array is a column like any other, one number, word or truth value or several for each atom."""
    return (
        name not in _SPECIAL
        and array.dtype.kind in _FORMATS
        and (array.ndim == 1 or (array.ndim == 2 and array.size > 0))
    )
