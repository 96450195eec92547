"""The interface of many labeled structures, wherever they are stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np

from mace.properties import PROPERTIES
from mace.structures.configuration import Configuration
from mace.structures.flat import FlatStructures, joined

IN_A_BLOCK = 8192
"""Structures that are gone through at once where results are added up over many of them."""


@dataclass(frozen=True)
class Names:
    """A name of every structure, of which there are few.

    Attributes:
        names: The names, each once.
        codes: Place of each structure's name among them, ``[structures]``.
    """

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, given: Sequence[str]) -> Names:
        """Collect names in the order in which they come."""
        places = {name: place for place, name in enumerate(dict.fromkeys(given))}
        return cls(tuple(places), np.array([places[name] for name in given], dtype=np.int32))

    def __getitem__(self, structure: int) -> str:
        """Return the name of a structure."""
        return self.names[int(self.codes[structure])]

    def take(self, structures: np.ndarray) -> Names:
        """Return those of some structures."""
        return Names(self.names, self.codes[structures])

    def present(self) -> tuple[str, ...]:
        """Return the names that structures have, in the order of `names`."""
        counts = np.bincount(self.codes, minlength=len(self.names))
        return tuple(name for name, count in zip(self.names, counts, strict=True) if count)

    def count(self, name: str) -> int:
        """Return how many structures have a name."""
        return int(np.count_nonzero(self.where(name)))

    def where(self, name: str) -> np.ndarray:
        """Return which structures have a name, ``[structures]``."""
        return self.codes == (self.names.index(name) if name in self.names else -1)


class StructureCollection(Sequence[Configuration]):
    """Labeled structures of which single ones, columns of all, and blocks of consecutive ones can be had.

    A collection of more structures than fit into memory holds a few numbers of each.

    Attributes:
        condition_names: Names of the conditions that all structures are under.
    """

    condition_names: tuple[str, ...]

    @property
    @abstractmethod
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each structure, ``[structures]``."""

    @property
    @abstractmethod
    def config_types(self) -> Names:
        """The config_type of each structure."""

    @property
    @abstractmethod
    def heads(self) -> Names:
        """The head that each structure is for."""

    @property
    @abstractmethod
    def files(self) -> Names:
        """The file that each structure was read from, as the user named it."""

    @property
    @abstractmethod
    def file_index(self) -> np.ndarray:
        """Place of each structure in its file, counted from zero, ``[structures]``."""

    @abstractmethod
    def flat(self, structures: Sequence[int] | np.ndarray) -> FlatStructures:
        """Gather some structures, in any order."""

    @abstractmethod
    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""

    @abstractmethod
    def has_weight(self, name: str) -> np.ndarray:
        """Return which structures have a label with weight in the loss, ``[structures]``."""

    @abstractmethod
    def changed(self, factor: float = 1.0, head: str | None = None) -> StructureCollection:
        """Return the same structures with weights times a factor, for a head if one is named."""

    def _configurations(self, structures: np.ndarray) -> list[Configuration]:
        """Build some structures one by one."""
        names = {"config_type": self.config_types, "head": self.heads, "file": self.files}
        known: dict[str, Sequence[str] | list[int]] = {
            name: [column[place] for place in structures.tolist()] for name, column in names.items()
        }
        return self.flat(structures).configurations(**known, index=self.file_index[structures].tolist())

    @overload
    def __getitem__(self, place: int) -> Configuration: ...

    @overload
    def __getitem__(self, place: slice) -> StructureCollection: ...

    def __getitem__(self, place: int | slice) -> Configuration | StructureCollection:
        """Return a structure, or several as a collection."""
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._configurations(np.array([place % len(self)]))[0]

    def __iter__(self) -> Iterator[Configuration]:
        """Iterate over the structures; in a large set this takes much longer than going through blocks."""
        for places in in_blocks(len(self), 256):
            yield from self._configurations(places)

    def take(self, structures: np.ndarray) -> StructureCollection:
        """Return some of the structures, in any order, as a collection."""
        return Selection(self, np.asarray(structures, dtype=np.int64))

    def blocks(self, structures_at_once: int = IN_A_BLOCK) -> Iterator[FlatStructures]:
        """Yield all structures in consecutive blocks; columns that nobody asks for are not read."""
        return (self.flat(places) for places in in_blocks(len(self), structures_at_once))

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, in rising order."""
        present = np.zeros(256, dtype=bool)
        for block in self.blocks():
            present[block.numbers] = True
        return tuple(np.flatnonzero(present).tolist())

    def label_counts(self) -> dict[str, int]:
        """Count the structures that have each label, by property."""
        return {name: int(np.count_nonzero(self.labeled(name))) for name in PROPERTIES}


def in_blocks(count: int, at_once: int) -> Iterator[np.ndarray]:
    """Divide indices from zero into consecutive blocks."""
    return (np.arange(first, min(first + at_once, count)) for first in range(0, count, at_once))


class ListedStructures(StructureCollection):
    """Structures in a list.

    Args:
        configurations: The structures.
    """

    def __init__(self, configurations: Iterable[Configuration]) -> None:
        self._listed = list(configurations)
        self.condition_names = tuple(self._listed[0].conditions) if self._listed else ()

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self._listed)

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, in rising order."""
        numbers = [c.atomic_numbers for c in self._listed]
        return tuple(np.unique(np.concatenate(numbers)).tolist()) if numbers else ()

    def __iter__(self) -> Iterator[Configuration]:
        """Iterate over the structures."""
        return iter(self._listed)

    def _configurations(self, structures: np.ndarray) -> list[Configuration]:
        """Return some structures one by one."""
        return [self._listed[place] for place in structures.tolist()]

    def take(self, structures: np.ndarray) -> StructureCollection:
        """Return some of the structures, in any order, as a collection."""
        return ListedStructures(self._configurations(np.asarray(structures)))

    @cached_property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each structure, ``[structures]``."""
        return np.array([c.n_atoms for c in self._listed], dtype=np.int64)

    @cached_property
    def config_types(self) -> Names:
        """The config_type of each structure."""
        return Names.of([c.config_type for c in self._listed])

    @cached_property
    def heads(self) -> Names:
        """The head that each structure is for."""
        return Names.of([c.head for c in self._listed])

    @cached_property
    def files(self) -> Names:
        """The file that each structure was read from, as the user named it."""
        return Names.of([c.file for c in self._listed])

    @cached_property
    def file_index(self) -> np.ndarray:
        """Place of each structure in its file, counted from zero, ``[structures]``."""
        return np.array([c.index for c in self._listed], dtype=np.int64)

    @cached_property
    def _all(self) -> FlatStructures:
        return FlatStructures.of(self._listed)

    def flat(self, structures: Sequence[int] | np.ndarray) -> FlatStructures:
        """Gather some structures, in any order."""
        return self._all.take(np.asarray(structures, dtype=np.int64))

    def blocks(self, structures_at_once: int = IN_A_BLOCK) -> Iterator[FlatStructures]:
        """Yield all structures in consecutive blocks."""
        if len(self) <= structures_at_once:  # without copying it
            return iter([self._all] if self._listed else [])
        return super().blocks(structures_at_once)

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        return np.array([getattr(c, name) is not None for c in self._listed], dtype=bool)

    def has_weight(self, name: str) -> np.ndarray:
        """Return which structures have a label with weight in the loss, ``[structures]``."""
        return np.array([c.has_weight(name) for c in self._listed], dtype=bool)

    def changed(self, factor: float = 1.0, head: str | None = None) -> StructureCollection:
        """Return the same structures with weights times a factor, for a head if one is named."""
        return ListedStructures(replace(c, weight=c.weight * factor, head=head or c.head) for c in self._listed)


class Selection(StructureCollection):
    """Some structures of a collection, in any order.

    Args:
        whole: The collection.
        structures: Indices of the structures in it.
    """

    def __init__(self, whole: StructureCollection, structures: np.ndarray) -> None:
        self.whole, self.structures, self.condition_names = whole, structures, whole.condition_names

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.structures)

    def _configurations(self, structures: np.ndarray) -> list[Configuration]:
        """Build some structures one by one."""
        return self.whole._configurations(self.structures[structures])

    def take(self, structures: np.ndarray) -> StructureCollection:
        """Return some of the structures, in any order, as a collection."""
        return Selection(self.whole, self.structures[structures])

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each structure, ``[structures]``."""
        return self.whole.n_atoms[self.structures]

    @property
    def config_types(self) -> Names:
        """The config_type of each structure."""
        return self.whole.config_types.take(self.structures)

    @property
    def heads(self) -> Names:
        """The head that each structure is for."""
        return self.whole.heads.take(self.structures)

    @property
    def files(self) -> Names:
        """The file that each structure was read from, as the user named it."""
        return self.whole.files.take(self.structures)

    @property
    def file_index(self) -> np.ndarray:
        """Place of each structure in its file, counted from zero, ``[structures]``."""
        return self.whole.file_index[self.structures]

    def flat(self, structures: Sequence[int] | np.ndarray) -> FlatStructures:
        """Gather some structures, in any order."""
        return self.whole.flat(self.structures[np.asarray(structures, dtype=np.int64)])

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        return self.whole.labeled(name)[self.structures]

    def has_weight(self, name: str) -> np.ndarray:
        """Return which structures have a label with weight in the loss, ``[structures]``."""
        return self.whole.has_weight(name)[self.structures]

    def changed(self, factor: float = 1.0, head: str | None = None) -> StructureCollection:
        """Return the same structures with weights times a factor, for a head if one is named."""
        return Selection(self.whole.changed(factor, head), self.structures)


class Joined(StructureCollection):
    """The structures of several collections, one after the other.

    Args:
        parts: The collections, one at least.
    """

    def __init__(self, parts: Sequence[StructureCollection]) -> None:
        self.parts, self.condition_names = list(parts), parts[0].condition_names
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """Return the number of structures."""
        return int(self.ends[-1])

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, in rising order."""
        return tuple(sorted({number for part in self.parts for number in part.elements}))

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in self.parts])

    def _names(self, name: str) -> Names:
        columns = [getattr(part, name) for part in self.parts]
        names = tuple(dict.fromkeys(each for column in columns for each in column.names))
        places = [np.array([names.index(each) for each in column.names], dtype=np.int32) for column in columns]
        return Names(names, np.concatenate([place[c.codes] for place, c in zip(places, columns, strict=True)]))

    @cached_property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each structure, ``[structures]``."""
        return self._column("n_atoms")

    @cached_property
    def config_types(self) -> Names:
        """The config_type of each structure."""
        return self._names("config_types")

    @cached_property
    def heads(self) -> Names:
        """The head that each structure is for."""
        return self._names("heads")

    @property
    def files(self) -> Names:
        """The file that each structure was read from, as the user named it."""
        return self._names("files")

    @property
    def file_index(self) -> np.ndarray:
        """Place of each structure in its file, counted from zero, ``[structures]``."""
        return self._column("file_index")

    def places(self, structures: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Find structures: for each part concerned its number, the places there, and the places among those given."""
        part_of = np.searchsorted(self.ends, structures, side="right")
        found = []
        for part in np.unique(part_of).tolist():
            given = np.flatnonzero(part_of == part)
            found.append((part, structures[given] - (self.ends[part] - len(self.parts[part])), given))
        return found

    def _configurations(self, structures: np.ndarray) -> list[Configuration]:
        """Build some structures one by one."""
        made: dict[int, Configuration] = {}
        for part, places, given in self.places(structures):
            made |= zip(given.tolist(), self.parts[part]._configurations(places), strict=True)
        return [made[place] for place in range(len(structures))]

    def flat(self, structures: Sequence[int] | np.ndarray) -> FlatStructures:
        """Gather some structures, in any order."""
        found = self.places(np.asarray(structures, dtype=np.int64))
        gathered = joined([self.parts[part].flat(places) for part, places, _ in found])
        order = np.argsort(np.concatenate([given for *_, given in found]))
        return gathered if (order == np.arange(len(order))).all() else gathered.take(order)

    def labeled(self, name: str) -> np.ndarray:
        """Return which structures have a label, ``[structures]``."""
        return np.concatenate([part.labeled(name) for part in self.parts])

    def has_weight(self, name: str) -> np.ndarray:
        """Return which structures have a label with weight in the loss, ``[structures]``."""
        return np.concatenate([part.has_weight(name) for part in self.parts])

    def changed(self, factor: float = 1.0, head: str | None = None) -> StructureCollection:
        """Return the same structures with weights times a factor, for a head if one is named."""
        return Joined([part.changed(factor, head) for part in self.parts])


def together(collections: Sequence[StructureCollection]) -> StructureCollection:
    """Put collections one after the other; in memory they become one list."""
    filled = [each for each in collections if len(each)] or list(collections[:1])
    if len(filled) == 1:
        return filled[0]
    if all(isinstance(each, ListedStructures) for each in filled):
        return ListedStructures([configuration for each in filled for configuration in each])
    return Joined(filled)


def collected(structures: Iterable[Configuration]) -> StructureCollection:
    """Return structures as they are if they are a collection, else a list of them."""
    return structures if isinstance(structures, StructureCollection) else ListedStructures(structures)
