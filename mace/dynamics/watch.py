"""Detection of simulations that have exploded."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from mace.dynamics.plan import SimulationPlan
from mace.graphs.pairs import find_pairs


def sign_of_explosion(atoms: Atoms, plan: SimulationPlan, distances: bool) -> str | None:
    """Check a simulation for unphysical numbers.

    Args:
        atoms: The current structure; its calculator has just computed the forces.
        plan: The simulation plan, with the limits.
        distances: Whether to check distances too, which takes slightly longer.

    Returns:
        A short description of what is wrong, or None.
    """
    forces, momenta = atoms.get_forces(apply_constraint=False), atoms.get_momenta()
    energy = atoms.get_potential_energy()
    for name, values in (("positions", atoms.positions), ("momenta", momenta), ("forces", forces), ("energy", energy)):
        if not np.isfinite(values).all():
            return f"the {name} are no longer finite numbers" if name != "energy" else "the energy is not finite"
    largest = np.linalg.norm(forces, axis=1)
    if largest.max() > plan.max_force:
        return (
            f"the force on atom {int(largest.argmax())} is {largest.max():.4g} eV/Angstrom, beyond "
            f"--max_force={plan.max_force:g}"
        )
    if len(atoms) > 1 and largest.max() == 0.0:
        return "no atom feels any other: they have flown apart"
    temperature = atoms.get_temperature()
    if temperature > plan.max_temperature_K:
        return f"the temperature is {temperature:.4g} K, beyond --max_temperature_K={plan.max_temperature_K:g}"
    if distances:
        pbc = (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2]))
        first, second, _ = find_pairs(atoms.positions, atoms.cell.array, pbc, plan.min_distance)
        if len(first):
            return f"atoms {first[0]} and {second[0]} are closer than --min_distance={plan.min_distance:g} Angstrom"
    return None
