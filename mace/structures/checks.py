"""Checks of what a file says about one structure, brought into shape: geometry, weights, labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mace.elements import LARGEST_ATOMIC_NUMBER
from mace.errors import UserError
from mace.formats.frame import Frame
from mace.properties import PROPERTIES
from mace.structures.configuration import DEFAULT_TYPE, Configuration
from mace.structures.stress import full_tensor

_WEIGHT_KEYS = frozenset({"config_weight", *(f"config_{name}_weight" for name in PROPERTIES)})

_ATOM_WEIGHT_KEYS = {"forces": "forces_weight"}
"""Column with the weights of atoms, by property."""

STRUCTURE_KEYS = _WEIGHT_KEYS | {*_ATOM_WEIGHT_KEYS.values(), "config_type", "numbers", "positions"}
"""Keys that hold no label, whatever a user calls the labels."""

SHORTEST_LATTICE_VECTOR = 0.5
"""Angstrom; two hydrogen atoms are 0.74 apart, and nothing repeats more closely than that."""

FARTHEST, LARGEST_CELL = 1.0e6, 1.0e9
"""Angstrom; coordinates so large are a fault of the file or of a simulation that has broken down, and so are cells."""


def check_geometry(configuration: Configuration) -> None:
    """Check that a structure has atoms of known elements, finite positions, and the lattice vectors it repeats with.

    Raises:
        UserError: If it does not.
    """
    numbers, positions, cell = configuration.atomic_numbers, configuration.positions, configuration.cell
    if configuration.n_atoms == 0:
        raise UserError(f"{configuration.where()} has no atoms; take it out.")
    if numbers.max() > LARGEST_ATOMIC_NUMBER:
        raise UserError(
            f"{configuration.where()} has an atom of atomic number {numbers.max()}, but there are "
            f"{LARGEST_ATOMIC_NUMBER} elements; correct it or take the structure out."
        )
    if numbers.min() < 1:
        raise UserError(
            f"{configuration.where()} has an atom 'X' that is no chemical element; name its element or take it out."
        )
    check_places(positions, cell, configuration.pbc, configuration.where())
    if configuration.n_atoms > 1 and not positions.any():
        raise UserError(
            f"{configuration.where()} has all its atoms at the origin, as if the file gave no positions; add them."
        )
    if not any(configuration.pbc):
        return
    where, vectors = configuration.where(), cell[list(configuration.pbc)]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if lengths.min() < 1e-6 or np.linalg.svd(vectors / lengths, compute_uv=False)[-1] < 1e-6:
        directions = " ".join("T" if periodic else "F" for periodic in configuration.pbc)
        raise UserError(
            f'{where} repeats along pbc="{directions}" but its lattice vectors there are zero or linearly dependent; '
            "give it a cell, or set pbc to F where it does not repeat."
        )
    if lengths.min() < SHORTEST_LATTICE_VECTOR:
        raise UserError(
            f"{where} has a lattice vector of {lengths.min():.3g} Angstrom, shorter than any atom is wide; correct the "
            "cell, or name its unit with --length_unit."
        )


def check_places(positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], where: str) -> None:
    """Check that positions and cell are finite and small enough for a neighbor search.

    Args:
        positions: Angstrom, ``[atoms, 3]``.
        cell: Rows are lattice vectors in Angstrom, ``[3, 3]``.
        pbc: Which lattice directions are periodic.
        where: Name of the structure, for messages.

    Raises:
        UserError: If a position is NaN, infinite or beyond `FARTHEST`, or the cell is larger than `LARGEST_CELL`.
    """
    for name, values, limited, limit in (
        ("position", positions, positions, FARTHEST),
        ("cell", cell, cell[list(pbc)], LARGEST_CELL),
    ):
        if np.abs(values).max(initial=0.0) < limit:  # which is not so if one is NaN
            continue
        if not np.isfinite(values).all():
            raise UserError(f"{where} has a {name} that is NaN or infinite; correct it or take the structure out.")
        if np.abs(limited).max(initial=0.0) >= limit:
            raise UserError(
                f"{where} has a {name} of {np.abs(limited).max():.3g} Angstrom, where less than {limit:.0e} makes "
                "sense; correct it, or take the structure out."
            )


def attach_weights(
    configuration: Configuration, info: Mapping[str, Any], type_weights: Mapping[str, float]
) -> Configuration:
    """Return a configuration with the weights of its type and of its comment line.

    Raises:
        UserError: If a weight is not a finite number of at least zero.
    """
    type_weight = type_weights.get(configuration.config_type, type_weights.get(DEFAULT_TYPE, 1.0))
    given = {key: _check_weight(info[key], key, configuration.where()) for key in _WEIGHT_KEYS & info.keys()}
    if not given and type_weight == 1.0:
        return configuration
    property_weights = {name: given[f"config_{name}_weight"] for name in PROPERTIES if f"config_{name}_weight" in given}
    weight = type_weight * given.get("config_weight", 1.0)
    return replace(configuration, weight=weight, property_weights=property_weights)


def attach_atom_weights(configuration: Configuration, frame: Frame) -> Configuration:
    """Return a configuration with the weights of its atoms, if the file has a column for them.

    Raises:
        UserError: If the column does not hold one weight per atom.
    """
    weights: dict[str, np.ndarray] = {}
    for name, key in _ATOM_WEIGHT_KEYS.items():
        if key in frame.info:
            raise UserError(
                f"{configuration.where()}: '{key}' is the weight of each atom and stands in a column of its own; the "
                f"weight of the {name} of the whole structure is called 'config_{name}_weight'."
            )
        if key not in frame.arrays:
            continue
        array = np.asarray(frame.arrays[key])
        if array.shape not in ((configuration.n_atoms,), (configuration.n_atoms, 1)):
            raise UserError(
                f"{configuration.where()}: the column '{key}' has the shape {list(array.shape)}; it holds one weight "
                "per atom."
            )
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all() or array.min() < 0:
            raise UserError(
                f"{configuration.where()}: the column '{key}' holds what is no weight; a weight is a finite number, "
                "zero or larger."
            )
        weights[name] = array.reshape(-1).astype(np.float64)
    return replace(configuration, atom_weights=weights) if weights else configuration


def _check_weight(value: Any, name: str, where: str) -> float:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.size != 1 or not math.isfinite(array.item()) or array.item() < 0:
        raise UserError(f"{where}: the weight '{name}' is {value!r}; a weight is a finite number, zero or larger.")
    return float(array.item())


def check_type_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of configuration types as numbers.

    Raises:
        UserError: If a weight is not a finite number of at least zero.
    """
    return {str(name): _check_weight(weight, str(name), "--config_type_weights") for name, weight in weights.items()}


def parse_label(name: str, key: str, value: Any, configuration: Configuration, factor: float = 1.0) -> Any:
    """Check one label and give it the shape it has in a `Configuration`.

    Args:
        name: The property.
        key: Its key in the file.
        value: Its value in the file.
        configuration: The structure.
        factor: Conversion factor from the unit of the file to ours.

    Raises:
        UserError: If it is not an array of finite numbers of the right shape.
    """
    row = PROPERTIES[name]
    is_number = not row.shape and not row.of_atoms
    if is_number and isinstance(value, float) and math.isfinite(value):
        return factor * float(value)
    label = f"{configuration.where()}: the label '{name}' (key '{key}')"
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{label} is not an array of numbers; correct it.") from error
    if array.dtype.kind not in "iuf":
        raise UserError(f"{label} is {str(value)[:40]!r} and not a number; correct it, or leave it out where unknown.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{label} is NaN or infinite; correct it, or leave it out where it is unknown.")
    if factor != 1.0:
        array *= factor
    if row.shape == (3, 3) and array.shape in ((6,), (9,), (3, 3)):
        return full_tensor(array)
    if is_number and array.size == 1:
        return float(array.item())
    n_atoms = configuration.n_atoms
    shape, accepted = row.shape, [row.shape, (1, *row.shape)]
    if row.of_atoms:
        shape = (n_atoms, *row.shape)
        accepted = [shape] + [row.shape] * (n_atoms == 1) + [(n_atoms, 1)] * (not row.shape)
    if row.shape != (3, 3) and array.shape in accepted:
        return array.reshape(shape)
    if row.shape == (3, 3):
        expected = "[6], [9] or [3, 3]"
    else:
        expected = str(list(shape)) if shape else "one number"
    raise UserError(
        f"{label} has the shape {list(array.shape)} where {expected} is expected; correct "
        f"it, or name the right key with --{name}_key."
    )
