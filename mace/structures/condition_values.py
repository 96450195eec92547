"""Values of conditions in structures: found under their keys, checked and brought into shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mace.conditions import Condition
from mace.errors import UserError
from mace.structures.collection import StructureCollection
from mace.structures.configuration import Configuration


@dataclass(frozen=True)
class FoundConditions:
    """The conditions of one structure.

    Attributes:
        values: By name, ``[1]`` of the structure or ``[atoms, values]`` of its atoms, float64.
        keys: By name, the key under which each was found; None if the default was used.
    """

    values: dict[str, np.ndarray]
    keys: dict[str, str | None]


def find_conditions(
    conditions: Sequence[Condition],
    given: Mapping[str, str],
    info: Mapping[str, Any],
    arrays: Mapping[str, Any],
    n_atoms: int,
    where: str,
) -> FoundConditions:
    """Find the values of conditions in a structure.

    Args:
        conditions: The conditions that models need. One name may occur with several ranges; the value must lie in all
            of them.
        given: Keys given by the user, by name of the condition; only these are used.
        info: The structure's entries.
        arrays: Its per-atom columns, ``[atoms, ...]``.
        n_atoms: Number of atoms.
        where: Name of the structure in messages.

    Raises:
        UserError: If a value is missing, invalid, or given twice with different values.
    """
    found = FoundConditions({}, {})
    for condition in conditions:
        keys = (given[condition.name],) if condition.name in given else condition.keys
        of_structure = condition.per == "structure"
        place, other = (info, arrays) if of_structure else (arrays, info)
        names = {
            key: f"{where}: {condition.name}" + ("" if key == condition.name else f" (key '{key}')") for key in keys
        }
        values: dict[str | None, np.ndarray] = {
            key: _checked(condition, place[key], n_atoms, names[key]) for key in keys if place.get(key) is not None
        }
        if not values:
            if (key := next((key for key in keys if other.get(key) is not None), None)) is not None:
                raise UserError(
                    f"{names[key]} is a column (array), but the model wants one number in the comment line (info); "
                    "move it there."
                    if of_structure
                    else f"{names[key]} is an entry of the comment line (info), but the model wants a column (array) "
                    "with a row for each atom; move it there."
                )
            if condition.default is None:
                listed = " or ".join(f"'{key}'" for key in keys)
                each = "" if of_structure else "for each of its atoms "
                raise UserError(f"{where} has no {listed}, which the model needs {each}to know; add it.")
            what = f"{where}: {condition.name}, by default"
            values = {None: _checked(condition, condition.default, n_atoms, what)}
        first, *others = values
        for key in others:
            if not np.array_equal(values[key], values[first]):
                raise UserError(
                    f"{where} says two things of {condition.name}, under '{first}' and under '{key}'; remove one of "
                    "them, or say which key counts."
                )
        before = found.values.get(condition.name)
        if before is not None and before.shape != values[first].shape:
            raise UserError(
                f"'{condition.name}' belongs to structures in one model and to atoms in the other; use them apart."
            )
        found.values[condition.name], found.keys[condition.name] = values[first], first
    return found


def _checked(condition: Condition, value: Any, n_atoms: int, what: str) -> np.ndarray:
    """Check the value of a condition and return it in its proper shape.

    Raises:
        UserError: If it is not of the right kind, shape or range.
    """
    shown = str(value).replace("\n", " ")[:40]
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise UserError(f"{what} is {shown} and no finite number; correct it.")
    if condition.per == "structure":
        fits, shape = array.size == 1, "one number"
    else:
        fits = array.shape == (n_atoms, condition.n_values) or (condition.n_values == 1 and array.shape == (n_atoms,))
        shape = f"[{n_atoms}, {condition.n_values}]"
    if not fits:
        raise UserError(f"{what} has the shape {list(array.shape)} where {shape} is expected; correct it.")
    values = array.astype(np.float64).reshape((1,) if condition.per == "structure" else (n_atoms, condition.n_values))
    if condition.kind == "continuous":
        return values
    if (fraction := values[values != np.rint(values)]).size:
        raise UserError(f"{what} is {fraction[0]:g}; the model knows whole numbers only, so round or correct it.")
    low, high = condition.bounds
    if (outside := values[(values < low) | (values > high)]).size:
        raise UserError(
            f"{what} is {outside[0]:g}, but the model knows values from {low:g} to {high:g}; correct it or take the "
            "structure out."
        )
    return values


def check_values(conditions: Sequence[Condition], structures: StructureCollection) -> None:
    """Check that values that structures were read with, perhaps for another model, are among those of conditions.

    Args:
        conditions: The conditions; their values have the shape that they ask for.
        structures: The structures.

    Raises:
        UserError: If a value is not of the right kind or range.
    """
    first = 0
    for block in structures.blocks() if any(condition.n_classes for condition in conditions) else ():
        for condition in conditions:
            low, high = condition.bounds if condition.n_classes else (-np.inf, np.inf)
            values = block.conditions()[condition.name]
            is_wrong = ((values < low) | (values > high) | (values != np.rint(values))).any(axis=1)
            if condition.n_classes and is_wrong.any():
                place = int(np.searchsorted(np.cumsum(block.n_atoms), is_wrong.argmax(), side="right"))
                found = structures[first + place]
                what = f"{found.where()}: {condition.name}"
                _checked(condition, found.conditions[condition.name], found.n_atoms, what)
        first += len(block)


def check_condition_keys(argument: str, keys: Mapping[Any, Any], conditions: Sequence[Condition]) -> None:
    """Check that keys are only given for conditions that exist.

    Args:
        argument: Name of the argument in messages.
        keys: The keys, by name of the condition.
        conditions: The conditions that may be named.

    Raises:
        UserError: If a condition does not exist, or a key is not text.
    """
    known = sorted({condition.name for condition in conditions})
    for name, key in keys.items():
        if name not in known:
            there_are = f"there are {', '.join(known)}" if known else "there are none"
            raise UserError(f"{argument} names '{name}', which is no such condition of the model; {there_are}.")
        if not isinstance(key, str) or not key:
            raise UserError(f"{argument} says {key!r} for '{name}', which is no key; write text.")


def example_values(conditions: Sequence[Condition], n_atoms: int, seed: int | None = None) -> dict[str, np.ndarray]:
    """Make up values of the conditions for a made-up structure.

    Args:
        conditions: The conditions that the model needs.
        n_atoms: Number of atoms of the structure.
        seed: Seed of random values; None for the defaults, or the nearest values the model knows.

    Returns:
        The values by name, as in `FoundConditions`.
    """
    random = None if seed is None else np.random.default_rng(seed)
    made = {}
    for condition in conditions:
        shape = (1,) if condition.per == "structure" else (n_atoms, condition.n_values)
        low, high = condition.bounds
        if random is None:
            made[condition.name] = np.full(shape, min(max(condition.default or 0.0, low), high))
        elif condition.kind == "categorical":
            made[condition.name] = random.integers(int(low), int(high), shape, endpoint=True).astype(np.float64)
        else:
            made[condition.name] = random.normal(size=shape)
    return made


def conditions_of_atoms(configurations: Sequence[Configuration]) -> dict[str, np.ndarray]:
    """Expand the conditions of structures to their atoms, by name ``[atoms, values]``.

    Raises:
        ValueError: If the structures have different conditions.
    """
    names = tuple(configurations[0].conditions) if configurations else ()
    if any(tuple(c.conditions) != names for c in configurations):
        raise ValueError("all structures of a set have the same conditions, in the same order")
    rows = {name: [(c.n_atoms, c.conditions[name]) for c in configurations] for name in names}
    return {
        name: np.concatenate([np.broadcast_to(values, (n_atoms, values.shape[-1])) for n_atoms, values in of_name])
        for name, of_name in rows.items()
    }
