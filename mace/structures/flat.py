"""Labeled structures as flat arrays over all of them and all of their atoms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mace.properties import PROPERTIES
from mace.structures.configuration import Configuration

OF_ATOMS = frozenset(
    {
        *("numbers", "positions"),
        *(f"label/{name}" for name, row in PROPERTIES.items() if row.of_atoms),
    }
)
"""Columns with a row for each atom, besides those that begin with ``atom_``; all others have one per structure."""


_NESTED = {
    "condition": "conditions",
    "atom_condition": "conditions",
    "weight": "property_weights",
    "atom_weight": "atom_weights",
}
"""Attributes of a `Configuration` that hold several columns, by the first word of these."""


def is_of_atoms(column: str) -> bool:
    """Return whether a column has a row for each atom."""
    return column in OF_ATOMS or column.startswith("atom_")


def ragged_rows(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the indices of consecutive rows, of which the first ones and their numbers are given."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - counts), counts)


class FlatStructures:
    """Structures, one after the other, in columns; a column that says the same of all structures is left out.

    Args:
        n_atoms: ``[structures]``.
        columns: By name, each with a row per structure or per atom:

            - ``numbers``, ``positions`` (Angstrom), ``cell`` (Angstrom, ``[structures, 3, 3]``), ``pbc``;
            - ``label/energy``, ...: labels, zero where there is none; missing if no structure has one;
            - ``labeled/energy``, ...: which structures have the label; missing if all have it, or none;
            - ``weight``: of structures; missing if all are one;
            - ``weight/energy``, ...: of the labels of structures; missing if all are one;
            - ``atom_weight/forces``: of the labels of atoms; missing if all are one;
            - ``condition/total_charge`` or ``atom_condition/...``, as in `Configuration.conditions`.

            A mapping that reads a column when it is asked for will do.
    """

    def __init__(self, n_atoms: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        self.n_atoms, self.columns = n_atoms, columns

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.n_atoms)

    @classmethod
    def of(cls, configurations: Sequence[Configuration]) -> FlatStructures:
        """Collect structures in arrays.

        Args:
            configurations: One at least, all with the same conditions.

        Raises:
            ValueError: If they have different conditions.
        """
        n_atoms = np.array([c.n_atoms for c in configurations], dtype=np.int64)
        columns = {
            "numbers": np.concatenate([c.atomic_numbers for c in configurations]),
            "positions": np.concatenate([c.positions for c in configurations]),
            "cell": np.stack([c.cell for c in configurations]),
            "pbc": np.array([c.pbc for c in configurations], dtype=bool),
        }
        for name, row in PROPERTIES.items():
            labels = [getattr(c, name) for c in configurations]
            labeled = np.array([label is not None for label in labels])
            if not labeled.any():
                continue
            for place in np.flatnonzero(~labeled):
                labels[place] = np.zeros((n_atoms[place], *row.shape) if row.of_atoms else row.shape)
            columns[f"label/{name}"] = np.concatenate(labels) if row.of_atoms else np.array(labels, dtype=np.float64)
            if not labeled.all():
                columns[f"labeled/{name}"] = labeled
        if any(c.weight != 1.0 for c in configurations):
            columns["weight"] = np.array([c.weight for c in configurations])
        for name in dict.fromkeys(name for c in configurations for name in c.property_weights):
            columns[f"weight/{name}"] = np.array([c.property_weights.get(name, 1.0) for c in configurations])
        for name in dict.fromkeys(name for c in configurations for name in c.atom_weights):
            weights = [c.atom_weights.get(name, np.ones(c.n_atoms)) for c in configurations]
            columns[f"atom_weight/{name}"] = np.concatenate(weights)
        names = tuple(configurations[0].conditions)
        if any(tuple(c.conditions) != names for c in configurations):
            raise ValueError("all structures of a set have the same conditions, in the same order")
        for name in names:
            values = [c.conditions[name] for c in configurations]
            is_of_structures = all(each.ndim == 1 for each in values)
            columns[f"condition/{name}" if is_of_structures else f"atom_condition/{name}"] = (
                np.stack(values) if is_of_structures else np.concatenate(values)
            )
        return cls(n_atoms, columns)

    def take(self, structures: np.ndarray) -> FlatStructures:
        """Gather some structures, in any order."""
        atoms = ragged_rows((np.cumsum(self.n_atoms) - self.n_atoms)[structures], self.n_atoms[structures])
        columns = {name: values[atoms if is_of_atoms(name) else structures] for name, values in self.columns.items()}
        return FlatStructures(self.n_atoms[structures], columns)

    @property
    def numbers(self) -> np.ndarray:
        """Atomic numbers, int64, ``[atoms]``."""
        return self.columns["numbers"].astype(np.int64, copy=False)

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        labeled = self.columns.get(f"labeled/{name}")
        return np.full(len(self), f"label/{name}" in self.columns) if labeled is None else labeled

    def labels(self, name: str) -> np.ndarray:
        """Return the labels of a property, zero where there is none, ``[structures, ...]`` or ``[atoms, ...]``."""
        row, values = PROPERTIES[name], self.columns.get(f"label/{name}")
        return self._filled(0.0, row.of_atoms, row.shape) if values is None else values

    def weights(self, name: str = "") -> np.ndarray:
        """Return the weights of structures, or those of their labels of a property, ``[structures]``."""
        values = self.columns.get(f"weight/{name}" if name else "weight")
        return self._filled(1.0) if values is None else values

    def atom_weights(self, name: str) -> np.ndarray:
        """Return the weights of the labels of atoms, ``[atoms]``."""
        values = self.columns.get(f"atom_weight/{name}")
        return self._filled(1.0, of_atoms=True) if values is None else values

    def has_weight(self, name: str) -> np.ndarray:
        """Return which structures have a label with weight in the loss, ``[structures]``."""
        found = self.labeled(name) & (self.weights() * self.weights(name) > 0.0)
        if f"atom_weight/{name}" in self.columns and len(self):
            found &= np.logical_or.reduceat(self.atom_weights(name) > 0.0, np.cumsum(self.n_atoms) - self.n_atoms)
        return found

    def conditions(self) -> dict[str, np.ndarray]:
        """Return what each atom is under, by name, ``[atoms, values]``."""
        found = {}
        for column in self.columns:
            kind, _, name = column.partition("/")
            if kind.endswith("condition"):
                values = self.columns[column]
                found[name] = values if is_of_atoms(column) else np.repeat(values, self.n_atoms, axis=0)
        return found

    def compositions(self, elements: Sequence[int]) -> np.ndarray:
        """Count the atoms of each element, ``[structures, elements]``, float64; other elements are not counted."""
        place = np.full(int(max(*elements, self.numbers.max(initial=0), 0)) + 1, len(elements))
        place[list(elements)] = np.arange(len(elements))
        cell = np.repeat(np.arange(len(self)), self.n_atoms) * (len(elements) + 1) + place[self.numbers]
        counts = np.bincount(cell, minlength=len(self) * (len(elements) + 1)).reshape(len(self), -1)
        return counts[:, :-1].astype(np.float64)

    def _filled(self, value: float, of_atoms: bool = False, shape: Iterable[int] = ()) -> np.ndarray:
        return np.full((int(self.n_atoms.sum()) if of_atoms else len(self), *shape), value)

    def configurations(self, **names: Sequence[Any]) -> list[Configuration]:
        """Return the structures one by one.

        Args:
            **names: For each structure its ``config_type``, ``head``, ``file`` and ``index``, what of them is known.
        """
        ends = np.cumsum(self.n_atoms)
        columns, numbers, made = dict(self.columns), self.numbers, []
        for place, (first, last) in enumerate(zip((ends - self.n_atoms).tolist(), ends.tolist(), strict=True)):
            atoms, nested = slice(first, last), dict[str, dict[str, Any]]()
            given: dict[str, Any] = {name: values[place] for name, values in names.items()}
            for column, values in columns.items():
                kind, _, name = column.partition("/")
                value = values[atoms] if is_of_atoms(column) else values[place]
                if kind == "label":
                    labeled = columns.get(f"labeled/{name}")
                    if labeled is None or labeled[place]:
                        given[name] = float(value) if value.ndim == 0 else value
                elif column == "weight":
                    given["weight"] = float(value)
                elif kind in _NESTED:
                    nested.setdefault(_NESTED[kind], {})[name] = float(value) if kind == "weight" else value
            first_direction, second, third = map(bool, columns["pbc"][place])
            given |= nested
            made.append(
                Configuration(
                    numbers[atoms],
                    columns["positions"][atoms],
                    columns["cell"][place],
                    (first_direction, second, third),
                    **given,
                )
            )
        return made


def joined(parts: Sequence[FlatStructures]) -> FlatStructures:
    """Put structures one after the other, filling in what some of them leave out.

    Args:
        parts: One at least, all with the same conditions.
    """
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.columns)
    names |= {f"labeled/{name}": None for name in PROPERTIES if any(f"label/{name}" not in p.columns for p in parts)}
    columns = {}
    for column in names:
        kind, _, name = column.partition("/")
        if kind == "labeled":
            if f"label/{name}" in names:
                columns[column] = np.concatenate([part.labeled(name) for part in parts])
        elif kind == "label":
            columns[column] = np.concatenate([part.labels(name) for part in parts])
        elif kind == "weight":
            columns[column] = np.concatenate([part.weights(name) for part in parts])
        elif kind == "atom_weight":
            columns[column] = np.concatenate([part.atom_weights(name) for part in parts])
        else:
            columns[column] = np.concatenate([part.columns[column] for part in parts])
    return FlatStructures(np.concatenate([part.n_atoms for part in parts]), columns)
