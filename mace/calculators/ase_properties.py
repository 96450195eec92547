"""All results of a calculator where ASE asks for properties by name, those it has no name for too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotPresent
from ase.outputs import Properties, all_outputs


class AllProperties(Properties):  # type: ignore[misc]  # the types of ASE are not looked at
    """ASE's table of properties, with those it does not know: energies of atoms, committees and so on."""

    def _setvalue(self, name: str, value: Any) -> None:
        if name in all_outputs:
            super()._setvalue(name, value)
        else:
            self._dct[name] = value


class CalculatorOfAllProperties(Calculator):  # type: ignore[misc]
    """A calculator whose ``atoms.get_properties(names)`` does not stumble over results that ASE has no name for."""

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> AllProperties:
        """Compute all results of a structure.

        Args:
            atoms: The structure.
            properties: Names of results that must be among them.

        Raises:
            PropertyNotPresent: If there is no result of such a name.
        """
        self.calculate(atoms, properties)
        if missing := [name for name in properties if name not in self.results]:
            raise PropertyNotPresent(missing[0])
        return self.export_properties()

    def export_properties(self) -> AllProperties:
        """Return the results as ASE's table of properties."""
        return AllProperties(self.results)
