"""Every conversion factor of the project; inside, energies are eV, lengths Angstrom, stresses eV/Angstrom^3.

Source: CODATA 2014 values as collected by ASE (``ase.units``), written out so that this file imports nothing.
"""

HARTREE = 27.211386024367243
"""One Hartree in eV."""

BOHR = 0.5291772105638411
"""One Bohr radius in Angstrom."""

KCAL_PER_MOL = 0.04336410390059322
"""One kilocalorie per mole in eV."""

KJ_PER_MOL = 0.010364269574711572
"""One kilojoule per mole in eV."""

GIGAPASCAL = 0.006241509125883258
"""One gigapascal in eV/Angstrom^3."""

KILOBAR = 0.1 * GIGAPASCAL
"""One kilobar in eV/Angstrom^3."""

DEBYE = 0.20819433442462576
"""One Debye in e*Angstrom."""

DEBYE_OF_MACE_TORCH = 0.20819433270935597
"""One Debye in e*Angstrom with the charge of the electron as defined since 2019: the number by which mace-torch divides
charges times positions, so that dipoles of its models are turned into e*Angstrom exactly."""

MILLI = 1.0e-3
"""For printing: one thousandth of a unit."""

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": MILLI,
    "Hartree": HARTREE,
    "Rydberg": 0.5 * HARTREE,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
}
"""Units of energy that data may have, in eV."""

LENGTH_UNITS = {"Angstrom": 1.0, "bohr": BOHR, "nm": 10.0}
"""Units of length that data may have, in Angstrom."""

STRESS_UNITS = {
    "eV/Angstrom^3": 1.0,
    "GPa": GIGAPASCAL,
    "kbar": KILOBAR,
    "Hartree/bohr^3": HARTREE / BOHR**3,
}
"""Units of stress that data may have, in eV/Angstrom^3."""
