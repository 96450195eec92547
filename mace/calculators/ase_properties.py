"""All results of a calculator as ASE properties, including those that ASE has no name for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotPresent
from ase.outputs import Properties, all_outputs


class AllProperties(Properties):  # type: ignore[misc]  # types of ASE are not checked
    """ASE's table of properties, extended by those it does not know: atomic energies, committee results and so on."""

    def _setvalue(self, name: str, value: Any) -> None:
        if name in all_outputs:
            super()._setvalue(name, value)
        else:
            self._dct[name] = value


class CalculatorOfAllProperties(Calculator):  # type: ignore[misc]
    """A calculator whose ``atoms.get_properties(names)`` accepts results that ASE has no name for."""

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> AllProperties:
        """Compute all results of a structure.

        Args:
            atoms: The structure.
            properties: Names of results that must be present.

        Raises:
            PropertyNotPresent: If a result is missing.
        """
        self.calculate(atoms, properties)
        if missing := [name for name in properties if name not in self.results]:
            raise PropertyNotPresent(missing[0])
        return self.export_properties()

    def export_properties(self) -> AllProperties:
        """Return the results as ASE's table of properties."""
        return AllProperties(self.results)
