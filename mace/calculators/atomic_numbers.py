"""The elements of a model under the names by which scripts for mace-torch ask for them."""

from __future__ import annotations

from mace.elements import ElementTable


class AtomicNumberTable(ElementTable):
    """The elements a model knows, with ``zs`` and the way from number to index and back.

    >>> table = AtomicNumberTable((8, 1))
    >>> table.zs, len(table), table.z_to_index(8), table.index_to_z(0)
    ([1, 8], 2, 1, 1)
    """

    @property
    def zs(self) -> list[int]:
        """The atomic numbers, ascending."""
        return list(self.atomic_numbers)

    def index_to_z(self, index: int) -> int:
        """Return the atomic number at an index."""
        return self.atomic_numbers[index]

    def z_to_index(self, atomic_number: int) -> int:
        """Return the index of an atomic number.

        Raises:
            ValueError: If the model does not know it.
        """
        return self.atomic_numbers.index(atomic_number)
