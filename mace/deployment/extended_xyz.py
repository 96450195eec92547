"""The text of a structure in extended XYZ: that of ASE to the last character, made in a fraction of its time."""

from __future__ import annotations

import io
from itertools import chain

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io.extxyz import PROPERTY_NAME_MAP, key_val_dict_to_str, write_xyz

_FORMATS = {"f": ("R", "%16.8f"), "i": ("I", "%8d"), "U": ("S", "%-2s"), "b": ("L", " %.1s")}
"""Word of the comment line and format by the kind of NumPy's types, as ASE has them."""

_SPECIAL = frozenset({"symbols", "species", "pos", "move_mask"})
"""Names of arrays that ASE treats in ways of its own."""


def frame_text(atoms: Atoms) -> str:
    """Write a structure without looking at its calculator.

    Args:
        atoms: The structure.

    Returns:
        What ``ase.io.extxyz.write_xyz`` would write.

    Raises:
        ValueError: As ASE does to data the format cannot hold; TypeError and KeyError too.
    """
    columns = {name: array for name, array in atoms.arrays.items() if name not in ("numbers", "positions")}
    if not len(atoms) or atoms.constraints or not all(_is_plain(name, array) for name, array in columns.items()):
        stream = io.StringIO()
        write_xyz(stream, [atoms], write_results=False)
        return stream.getvalue()
    properties, formats = ["species:S:1:pos:R:3"], ["%-2s", "%16.8f", "%16.8f", "%16.8f"]
    components = [[chemical_symbols[number] for number in atoms.numbers.tolist()], *atoms.positions.T.tolist()]
    for name, array in columns.items():
        kind, layout = _FORMATS[array.dtype.kind]
        width = 1 if array.ndim == 1 else array.shape[1]
        properties.append(f"{PROPERTY_NAME_MAP.get(name, name)}:{kind}:{width}")
        formats += [layout] * width
        components += [array.tolist()] if array.ndim == 1 else array.T.tolist()
    rows = (" ".join(formats) + "\n") * len(atoms) % tuple(chain.from_iterable(zip(*components, strict=True)))
    cell = atoms.cell.array
    lattice = f'Lattice="{" ".join(map(str, cell.ravel().tolist()))}" ' if cell.any() else ""
    entries = key_val_dict_to_str({**atoms.info, "pbc": atoms.get_pbc()})
    return f"{len(atoms)}\n{lattice}Properties={':'.join(properties)} {entries}\n{rows}"


def _is_plain(name: str, array: np.ndarray) -> bool:
    """Tell whether an array is a column like any other, one number, word or truth value or several for each atom."""
    return (
        name not in _SPECIAL
        and array.dtype.kind in _FORMATS
        and (array.ndim == 1 or (array.ndim == 2 and array.size > 0))
    )
