"""The work of the case ``box``: a periodic box whose atoms move a little between two evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from workers import Settings


def through_calculator(settings: Settings, atoms: Atoms, calculator: Any) -> Callable[[], None]:
    """Give a box a calculator and write its results; return what is asked of it in every step."""
    atoms.calc = calculator
    np.savez(settings["results"], energies=atoms.get_potential_energy(), forces=atoms.get_forces())

    def evaluate() -> None:
        atoms.get_forces()
        atoms.get_potential_energy()
        if settings["stress"]:
            atoms.get_stress()

    return evaluate


def moving(settings: Settings, atoms: Atoms, evaluate: Callable[[], None]) -> Callable[[], None]:
    """Return a step that moves all atoms about where they are now and evaluates."""
    home = atoms.positions.copy()
    generator = np.random.default_rng(settings["model"]["seed"])

    def step() -> None:
        atoms.positions = home + settings["displacement"] * generator.normal(size=home.shape)
        evaluate()

    return step
