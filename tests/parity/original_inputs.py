"""What `make_references` and `make_models` give the original: structures, energies of isolated atoms, its words.

Both run beside the original, in an environment of its own, so nothing of this project is imported here.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule

CHANNELS = 4
ENERGIES = {1: -13.6, 6: -1027.2, 8: -2041.8, 13: -57.0, 14: -102.5}
"""Energies of isolated atoms in eV by atomic number; these are the elements of every model."""

RESIDUAL, PLAIN = "RealAgnosticResidualInteractionBlock", "RealAgnosticInteractionBlock"
DENSITY, DENSITY_RESIDUAL = "RealAgnosticDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock"
ATTENTION, NONLINEAR = "RealAgnosticAttResidualInteractionBlock", "RealAgnosticResidualNonLinearInteractionBlock"


def structures() -> list[Atoms]:
    """Methanol, a skewed silicon cell with one carbon, an aluminium slab with hydrogen."""
    rng = np.random.default_rng(7)
    methanol = molecule("CH3OH")
    methanol.rattle(0.08, rng=rng)
    silicon = bulk("Si", "diamond", a=5.43).repeat((2, 1, 1))
    silicon.numbers[1] = 6
    silicon.set_cell(
        silicon.cell.array @ (np.eye(3) + np.array([[0.03, 0.11, 0.0], [0.0, -0.02, 0.07], [0.05, 0, 0]])), True
    )
    silicon.rattle(0.06, rng=rng)
    slab = fcc111("Al", (2, 1, 2), vacuum=6.0, orthogonal=False)
    slab.append("H")
    slab.positions[-1] = slab.positions[-2] + [0.3, 0.2, 1.6]
    slab.rattle(0.05, rng=rng)
    slab.pbc = (True, True, False)
    return [methanol, silicon, slab]


def atoms_arrays(atoms: Atoms) -> dict[str, np.ndarray]:
    """Return the arrays that make up a structure."""
    return {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
