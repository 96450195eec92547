"""Units of a file, and what its numbers are multiplied by to become eV, Angstrom and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mace.errors import UserError
from mace.properties import PROPERTIES
from mace.units import ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS


@dataclass(frozen=True)
class FileUnits:
    """The units of the numbers in a file; ``None`` stands for the first of each table in `mace.units`.

    Attributes:
        energy: Of energies and virials, and in forces and polarizabilities; a key of `ENERGY_UNITS`.
        length: Of positions and cells, and in forces, dipoles and polarizabilities; a key of `LENGTH_UNITS`.
        stress: Of stresses, whatever the other two are; a key of `STRESS_UNITS`.

    Raises:
        UserError: If a unit is unknown.
    """

    energy: str | None = None
    length: str | None = None
    stress: str | None = None

    def __post_init__(self) -> None:
        """Refuse units that are in no table."""
        for item, table in zip(fields(self), (ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS), strict=True):
            given = getattr(self, item.name)
            if given is not None and given not in table:
                raise UserError(f"--{item.name}_unit must be one of {', '.join(table)}, not '{given}'.")

    @property
    def of_length(self) -> float:
        """What positions and cells are multiplied by."""
        return LENGTH_UNITS[self.length or "Angstrom"]

    def of_label(self, name: str) -> float:
        """What a label is multiplied by.

        Args:
            name: One of `mace.properties.PROPERTIES`.

        >>> FileUnits(energy="meV").of_label("forces"), FileUnits(length="nm").of_label("forces")
        (0.001, 0.1)
        """
        if name == "stress":
            return STRESS_UNITS[self.stress or "eV/Angstrom^3"]
        return PROPERTIES[name].factor(ENERGY_UNITS[self.energy or "eV"], self.of_length)

    @property
    def leave_stress_open(self) -> bool:
        """Whether another unit was changed while that of stresses was left to the default."""
        changed = (self.energy or "eV") != "eV" or (self.length or "Angstrom") != "Angstrom"
        return changed and self.stress is None

    @property
    def text(self) -> str:
        """The units in words if one of them is not the default, else nothing."""
        words = (self.energy or "eV", self.length or "Angstrom", self.stress or "eV/Angstrom^3")
        return "" if words == ("eV", "Angstrom", "eV/Angstrom^3") else f"converted from {', '.join(words)}"
