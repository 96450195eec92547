"""Fast formatting of structures as extended XYZ, identical to the output of ASE to the last character."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain, groupby, islice
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.io.extxyz import PROPERTY_NAME_MAP, SPECIAL_3_3_KEYS, escape, key_val_dict_to_str, write_xyz

from mace.formats.frame import Frame

_FORMATS = {"f": ("R", "%16.8f"), "i": ("I", "%8d"), "U": ("S", "%-2s"), "b": ("L", " %.1s")}
"""Type letter in the comment line and format of each kind of NumPy type, as in ASE."""

_SPECIAL = frozenset({"symbols", "species", "pos", "move_mask"})
"""Names of arrays that ASE treats specially."""


def frame_texts(frames: Sequence[Frame]) -> list[str]:
    """Format structures without calculator results; those with the same columns together, which is faster.

    Args:
        frames: The structures.

    Returns:
        For each, the text that ``ase.io.extxyz.write_xyz`` would write.

    Raises:
        ValueError: As raised by ASE for data that the format cannot hold; also TypeError and KeyError.
    """
    texts: list[str] = []
    for layout, group in groupby(frames, key=_layout):
        if layout is not None:
            texts += _plain_texts(list(group), layout)
            continue
        for frame in group:
            stream = io.StringIO()
            write_xyz(stream, [frame.to_atoms()], write_results=False)
            texts.append(stream.getvalue())
    return texts


def _layout(frame: Frame) -> tuple[tuple[str, str, int], ...] | None:
    """Return name, kind and width of the columns after symbols and positions; None if ASE must write the frame."""
    are_plain = (  # one or several numbers, strings or booleans for each atom
        name not in _SPECIAL
        and array.dtype.kind in _FORMATS
        and (array.ndim == 1 or array.ndim == 2 and array.size > 0)
        for name, array in frame.arrays.items()
    )
    if not len(frame) or frame.constraints or not all(are_plain):
        return None
    return tuple(
        (name, array.dtype.kind, 0 if array.ndim == 1 else array.shape[1]) for name, array in frame.arrays.items()
    )


def _plain_texts(frames: Sequence[Frame], layout: tuple[tuple[str, str, int], ...]) -> list[str]:
    """Format structures that have the same columns."""
    properties, formats = ["species:S:1:pos:R:3"], ["%-2s", "%16.8f", "%16.8f", "%16.8f"]
    symbols = [chemical_symbols[number] for frame in frames for number in frame.numbers.tolist()]
    components = [symbols, *np.concatenate([frame.positions for frame in frames]).T.tolist()]
    for name, kind, width in layout:
        word, form = _FORMATS[kind]
        properties.append(f"{PROPERTY_NAME_MAP.get(name, name)}:{word}:{width or 1}")
        formats += [form] * (width or 1)
        values = np.concatenate([frame.arrays[name] for frame in frames])
        components += values.T.tolist() if width else [values.tolist()]
    rows = (" ".join(formats) + "\n") * len(symbols) % tuple(chain.from_iterable(zip(*components, strict=True)))
    lines, columns, texts = iter(rows.splitlines(keepends=True)), ":".join(properties), []
    for frame in frames:
        of_frame, cell = "".join(islice(lines, len(frame))), frame.cell.ravel().tolist()
        lattice = f'Lattice="{" ".join(map(str, cell))}" ' if any(cell) else ""
        info = {**frame.info, "pbc": " ".join("T" if periodic else "F" for periodic in frame.pbc)}
        entries = " ".join(filter(None, map(_entry, info.keys(), info.values())))
        texts.append(f"{len(frame)}\n{lattice}Properties={columns} {entries}\n{of_frame}")
    return texts


def _entry(key: str, value: Any) -> str:
    """Format an entry of the comment line: numbers and text here, rare types by ASE."""
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
