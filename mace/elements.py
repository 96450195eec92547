"""Chemical elements: their symbols, their covalent radii, and the table that numbers those a model knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mace.errors import UserError

LARGEST_ATOMIC_NUMBER = 118
"""Oganesson; nothing heavier has a symbol."""

ISOTOPES = {"D": 2.014101778, "T": 3.016049281}
"""Symbols of deuterium and tritium, which are hydrogen to a model, and their masses.

Source:
    AME2020, Wang et al., Chinese Phys. C 45, 030003 (2021).
"""


def mass_of(symbol: str) -> float:
    """Mass of an atom in atomic mass units, as ASE has it, also of deuterium and tritium.

    >>> mass_of("H"), mass_of("D")
    (1.008, 2.014101778)
    """
    from ase.data import atomic_masses, atomic_numbers

    return ISOTOPES[symbol] if symbol in ISOTOPES else float(atomic_masses[atomic_numbers[symbol]])


def chemical_symbol(atomic_number: int) -> str:
    """Write an element as people do, for example ``"Fe"`` for 26.

    Numbers that belong to no element come back as ``"Z=<number>"``, so that an error message can still be written.

    >>> chemical_symbol(26), chemical_symbol(200)
    ('Fe', 'Z=200')
    """
    from ase.data import chemical_symbols  # here, so that importing this module stays light

    if 1 <= atomic_number <= LARGEST_ATOMIC_NUMBER:
        return str(chemical_symbols[atomic_number])
    return f"Z={atomic_number}"


def atomic_number(element: str | int) -> int:
    """Understand an element written as a symbol, a number, or a number in text; deuterium and tritium are hydrogen.

    Raises:
        UserError: If there is no such element.

    >>> atomic_number("Fe"), atomic_number("26"), atomic_number(26), atomic_number("D")
    (26, 26, 26, 1)
    """
    from ase.data import atomic_numbers

    number: int | None = None
    if isinstance(element, str):
        text = element.strip()
        number = int(text) if text.isascii() and text.isdigit() else atomic_numbers.get(text.capitalize())
        number = 1 if text in ISOTOPES else number
    elif isinstance(element, (int, np.integer)) and not isinstance(element, bool):
        number = int(element)
    if number is None or not 1 <= number <= LARGEST_ATOMIC_NUMBER:
        raise UserError(f"{element!r} is not a chemical element; write a symbol such as 'Fe' or an atomic number.")
    return number


def covalent_radii(atomic_numbers: Iterable[int]) -> np.ndarray:
    """Covalent radii in Angstrom, one for each of the given elements, ``[elements]``.

    Source:
        Cordero et al., Dalton Trans. 2008, 2832, as collected by ASE (0.2 where unknown).
    """
    from ase.data import covalent_radii as radii

    return np.array([radii[atomic_number(number)] for number in atomic_numbers], dtype=np.float64)


@dataclass(frozen=True)
class ElementTable:
    """The elements a model knows, ascending and without repetition; an element's place is its index.

    Attributes:
        atomic_numbers: Strictly ascending; any order and repetition are accepted and put right.
    """

    atomic_numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Sort the numbers, drop repetitions, and refuse what is no element."""
        object.__setattr__(self, "atomic_numbers", tuple(sorted({atomic_number(z) for z in self.atomic_numbers})))

    @classmethod
    def from_arrays(cls, arrays: Iterable[np.ndarray]) -> ElementTable:
        """Collect the elements of many structures, each given by its atomic numbers ``[atoms]``."""
        found: set[int] = set()
        for array in arrays:
            found.update(array.tolist())
        return cls(tuple(found))

    def __len__(self) -> int:
        """Number of elements."""
        return len(self.atomic_numbers)

    def __iter__(self) -> Iterator[int]:
        """The atomic numbers in the order of the indices."""
        return iter(self.atomic_numbers)

    def __contains__(self, number: int) -> bool:
        """Whether the element with this atomic number has an index."""
        return number in self.atomic_numbers

    @property
    def symbols(self) -> tuple[str, ...]:
        """Chemical symbols in the order of the indices."""
        return tuple(chemical_symbol(z) for z in self.atomic_numbers)

    def index(self, atomic_numbers: np.ndarray) -> np.ndarray:
        """Replace atomic numbers by indices into the table.

        Args:
            atomic_numbers: Any shape, integers.

        Returns:
            Indices of the same shape, int64.

        Raises:
            UserError: If an element is not in the table; the message names its symbol.

        >>> ElementTable((8, 1, 1)).index(np.array([1, 8, 8])).tolist()
        [0, 1, 1]
        """
        numbers = np.asarray(atomic_numbers, dtype=np.int64)
        unknown = sorted(set(numbers.ravel().tolist()).difference(self.atomic_numbers))
        if unknown:
            names = ", ".join(chemical_symbol(z) for z in unknown)
            known = ", ".join(self.symbols) or "none"
            raise UserError(f"The element table has no {names}; it knows {known}.")
        return np.searchsorted(np.array(self.atomic_numbers, dtype=np.int64), numbers).astype(np.int64)
