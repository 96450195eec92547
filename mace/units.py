"""Every conversion factor of the project; inside, energies are eV, lengths Angstrom, stresses eV/Angstrom^3.

Source: CODATA 2018 values as collected by ASE (``ase.units``), written out so that this file imports nothing.
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

MILLI = 1.0e-3
"""For printing: one thousandth of a unit."""
