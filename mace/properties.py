"""What structures are labeled with and models predict; every table of properties is made from these rows."""

from __future__ import annotations

from dataclasses import dataclass


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
        derived: Whether another property says the same, so that tables show the other one where both exist.
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
    derived: bool = False

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


_SUPERSCRIPTS = {1: "", 2: "\u00b2", 3: "\u00b3"}

PROPERTIES = {
    row.name: row
    for row in (
        Property("energy", (), "Energy", 1, 1, 0, 0, "E", "e", extensive=True),
        Property("forces", (3,), "Force components", -1, 1, -1, 0, "F", "f", of_atoms=True, relative=True),
        Property("stress", (3, 3), "Stress components", 1, 1, -3, 0, "S", "stress"),
        Property("virials", (3, 3), "Virials", 1, 1, 0, 0, "virials", "virials", extensive=True, derived=True),
        Property("dipole", (3,), "Dipole components", -1, 0, 1, 1, "\u03bc", "mu", extensive=True, relative=True),
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
