"""What structures are labeled with and models predict; every table of properties is made from these rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Property:
    """A quantity of structures or atoms.

    Attributes:
        name: As in labels, predictions and settings.
        shape: Of one structure's value or, if `of_atoms`, one atom's.
        title: What its values are called in headings.
        parity: Sign that it takes on when all positions are inverted.
        energy: Power of energy in its dimension.
        length: Power of length in its dimension.
        charge: Power of charge in its dimension.
        symbol: Where there is little room.
        suffix: Last word of the names of its errors, as in ``rmse_e``, which users' scripts look for; none if empty.
        of_atoms: Whether there is one row for each atom.
        extensive: Whether it grows with the number of atoms, so that errors divided by it are reported too.
        relative: Whether errors relative to the size of the labels are reported too, in percent.
        predicted: Whether models predict it and losses have a term of it.
        derivative_of: The property of which it is a derivative, so that what predicts that one predicts it too.
        derived: Whether another property says the same, so that tables show the other one where both exist.
        plural: What is said of its values within a sentence; its name if empty.
    """

    name: str
    shape: tuple[int, ...]
    title: str
    parity: int
    energy: int
    length: int
    charge: int
    symbol: str
    suffix: str
    of_atoms: bool = False
    extensive: bool = False
    relative: bool = False
    predicted: bool = True
    derivative_of: str = ""
    derived: bool = False
    plural: str = ""

    @property
    def unit(self) -> str:
        """Its unit inside the program, for people.

        >>> [PROPERTIES[name].unit for name in ("energy", "stress", "polarizability", "charges")]
        ['eV', 'eV/\u00c5\u00b3', 'e\u00b2\u00b7\u00c5\u00b2/eV', 'e']
        """
        powers = (("e", self.charge), ("\u00c5", self.length), ("eV", self.energy))
        above = "\u00b7".join(unit + _SUPERSCRIPTS[power] for unit, power in powers if power > 0)
        below = "/".join(unit + _SUPERSCRIPTS[-power] for unit, power in powers if power < 0)
        return "/".join(part for part in (above, below) if part)

    @property
    def shown_unit(self) -> str:
        """The unit of values and, with a thousandth before it, of errors where they are shown."""
        return f"{self.unit}/atom" if self.extensive else self.unit

    def factor(self, energy: float, length: float) -> float:
        """Return what values are multiplied by that are in other units of energy and length.

        Args:
            energy: The other unit of energy in eV.
            length: The other unit of length in Angstrom.
        """
        powers = ((energy, self.energy), (length, self.length))
        above = prod(unit**power for unit, power in powers if power > 0)
        return above / prod(unit**-power for unit, power in powers if power < 0)

    @property
    def shown_suffix(self) -> str:
        """Last words of the names of the errors that are shown, as in ``rmse_e_per_atom`` and ``rmse_f``."""
        return f"{self.suffix}_per_atom" if self.extensive else self.suffix


ASCII = str.maketrans({"\u00b7": "*", "\u00c5": "Angstrom", "\u00b2": "^2", "\u00b3": "^3"})
"""How units are written in files of the program, for `str.translate`.

>>> [PROPERTIES[name].unit.translate(ASCII) for name in ("stress", "dipole")]
['eV/Angstrom^3', 'e*Angstrom']
"""

_SUPERSCRIPTS = {1: "", 2: "\u00b2", 3: "\u00b3"}

PROPERTIES = {
    row.name: row
    for row in (
        Property("energy", (), "Energy", 1, 1, 0, 0, "E", "e", extensive=True, plural="energies"),
        Property(
            *("forces", (3,), "Force components", -1, 1, -1, 0, "F", "f"),
            of_atoms=True,
            relative=True,
            derivative_of="energy",
        ),
        Property("stress", (3, 3), "Stress components", 1, 1, -3, 0, "S", "stress", derivative_of="energy"),
        Property(
            *("virials", (3, 3), "Virials", 1, 1, 0, 0, "virials", "virials"),
            extensive=True,
            derivative_of="energy",
            derived=True,
        ),
        Property(
            *("dipole", (3,), "Dipole components", -1, 0, 1, 1, "\u03bc", "mu"),
            extensive=True,
            relative=True,
            plural="dipoles",
        ),
        Property(
            "polarizability",
            (3, 3),
            "Polarizability components",
            1,
            -1,
            2,
            2,
            "\u03b1",
            "polarizability",
            extensive=True,
            predicted=False,
        ),
        Property("charges", (), "Charges", 1, 0, 0, 1, "q", "", of_atoms=True, predicted=False),
    )
}
"""Every label a structure can carry, in the order in which tables show them.

Each has a key, ``--<property>_key``, and a weight of its own in the loss, ``config_<property>_weight``.
"""

PREDICTED = tuple(name for name, row in PROPERTIES.items() if row.predicted)
"""What models predict; losses have a term and settings a weight of each."""

COMPARED = tuple(name for name in PREDICTED if not PROPERTIES[name].derived)
"""The same without what another one says already: what users are given, and what is compared with labels."""


def predicted_with(*read_out: str) -> tuple[str, ...]:
    """List what a model predicts that reads some properties out of its features: these, and their derivatives.

    >>> predicted_with("energy")
    ('energy', 'forces', 'stress', 'virials')
    """
    return tuple(name for name in PREDICTED if (PROPERTIES[name].derivative_of or name) in read_out)
