"""The scale of energies and forces in the training data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mace.errors import UserError
from mace.structures.collection import collected
from mace.structures.configuration import Configuration


@dataclass(frozen=True)
class Summary:
    """The scale of energies and forces; a number that the data do not define is ``None``.

    Attributes:
        mean_energy: eV per atom; mean over the structures with an energy of (E - sum of E0) / atoms.
        std_energy: eV per atom; standard deviation of the same, with n - 1 in the denominator; needs two structures.
        rms_forces: eV/Angstrom; root mean square of the force components of all atoms with forces.
    """

    mean_energy: float | None
    std_energy: float | None
    rms_forces: float | None


def interaction_energies_per_atom(
    configurations: Iterable[Configuration], reference_energies: Mapping[int, float]
) -> np.ndarray:
    """Compute the interaction energy per atom, (E - sum of E0) / atoms.

    Args:
        configurations: Those without an energy are left out.
        reference_energies: E0 in eV by atomic number.

    Returns:
        eV per atom, ``[structures with an energy]``.

    Raises:
        KeyError: If an element has no reference energy; `resolve_reference_energies` ensures that all have one.
    """
    structures = collected(configurations)
    elements = structures.elements
    own = np.array([reference_energies[number] for number in elements])
    found = [np.zeros(0)]
    for block in structures.blocks():
        labeled = block.labeled("energy")
        rest = block.labels("energy") - (block.compositions(elements) * own).sum(axis=1)
        found.append((rest / block.n_atoms)[labeled])
    return np.concatenate(found)


def summarize(configurations: Iterable[Configuration], reference_energies: Mapping[int, float]) -> Summary:
    """Compute the scales of a set of structures; those without a label are left out of the numbers based on it."""
    structures = collected(configurations)
    energies = interaction_energies_per_atom(structures, reference_energies)
    squares, n_components = list[float](), 0
    for block in structures.blocks():
        if (labeled := block.labeled("forces")).any():
            # zero where there is no label
            squares.append(float(np.square(block.labels("forces")).sum()))
            n_components += 3 * int(block.n_atoms[labeled].sum())
    return Summary(
        mean_energy=float(energies.mean()) if len(energies) else None,
        std_energy=float(energies.std(ddof=1)) if len(energies) > 1 else None,
        rms_forces=math.sqrt(math.fsum(squares) / n_components) if n_components else None,
    )


@dataclass(frozen=True)
class Scaling:
    """How the model's raw atomic energies become eV: ``scale * raw + shift``.

    Attributes:
        shift: eV per atom.
        scale: eV per atom, or eV/Angstrom where it comes from forces; never zero.
        warnings: Sentences about what could not be computed.
    """

    shift: float
    scale: float
    warnings: tuple[str, ...] = ()


def choose_scaling(summary: Summary, scaling: str) -> Scaling:
    """Compute shift and scale for the value of ``--scaling``.

    ``std_scaling`` takes mean and standard deviation of the interaction energy per atom, ``rms_forces_scaling`` takes
    the same mean and the root mean square of the forces, ``no_scaling`` takes zero and one. A scale that is zero or
    that no label defines is replaced by one, a shift that no label defines by zero, each with a warning.

    Raises:
        UserError: If ``scaling`` is none of these.
    """
    if scaling == "no_scaling":
        return Scaling(0.0, 1.0)
    sources = {
        "std_scaling": (summary.std_energy, "the standard deviation of the interaction energies per atom"),
        "rms_forces_scaling": (summary.rms_forces, "the root mean square of the forces"),
    }
    if scaling not in sources:
        raise UserError(f"--scaling is '{scaling}'; choose one of std_scaling, rms_forces_scaling, no_scaling.")
    warnings = []
    scale, name = sources[scaling]
    shift = summary.mean_energy
    if shift is None:
        warnings.append("No training structure has an energy, so the model's energies are not shifted.")
        shift = 0.0
    if not scale:
        state = "is not defined by the training data" if scale is None else "is zero"
        warnings.append(f"--scaling {scaling}: {name} {state}, so the model is scaled by one instead.")
        scale = 1.0
    return Scaling(shift, scale, tuple(warnings))
