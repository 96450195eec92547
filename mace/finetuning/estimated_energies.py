"""Reference energies with which a foundation model fits the labeled energies best (``--E0s=estimated``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mace.elements import ElementTable
from mace.finetuning.foundation import Foundation
from mace.graphs.assembly import graph_of_structures
from mace.model.prediction import predict
from mace.structures.collection import collected
from mace.structures.configuration import Configuration
from mace.structures.reference_energies import fit_reference_energies, require_foundation
from mace.structures.statistics import interaction_energies_per_atom

_LOGGER = logging.getLogger(__name__)


def estimate_energies(
    foundation: Foundation,
    configurations: Sequence[Configuration],
    elements: ElementTable,
    batch_size: int,
    known: Mapping[int, float] | None = None,
) -> tuple[dict[int, float], list[str]]:
    """Correct the foundation model's reference energies by a fit to its prediction errors.

    The differences between labeled and predicted energies are fitted by the numbers of atoms of each element, with the
    same weights as ``--E0s=average`` uses to fit the labels themselves; of several solutions, the smallest change is
    taken. Differences in the level of theory thus go into the reference energies, and training starts with small
    errors.

    Args:
        foundation: The foundation model; it must know all elements.
        configurations: Training structures.
        elements: The elements that need a reference energy.
        batch_size: Number of structures to evaluate at a time.
        known: Reference energies to keep, in eV by atomic number; the others are corrected.

    Returns:
        The reference energies in eV by atomic number, and warnings.

    Raises:
        UserError: If no structure has an energy with weight, or the foundation model does not know an element.
    """
    require_foundation(foundation.energies, elements, "estimated")
    structures = collected(configurations)
    labeled = structures.take(np.flatnonzero(structures.has_weight("energy")))
    table, predicted = ElementTable(foundation.plan.atomic_numbers), list[float]()
    for start in range(0, len(labeled), batch_size):  # so that memory does not grow with the data
        graph = graph_of_structures(labeled[start : start + batch_size], table, foundation.plan.r_max)
        energy = predict(foundation.model, graph, forces=False).energy
        assert energy is not None, "asked of models with energies only"
        predicted += energy.detach().cpu().double().tolist()
    differences = [
        replace(configuration, energy=configuration.energy - energy)
        for configuration, energy in zip(labeled, predicted, strict=True)
        if configuration.energy is not None
    ]
    changes = {z: energy - foundation.energies[z] for z, energy in (known or {}).items() if z in elements}
    corrections, warnings = fit_reference_energies(differences, elements, changes, "estimated")
    before, after = (
        float(np.sqrt(np.square(interaction_energies_per_atom(differences, each)).mean()))
        for each in (dict.fromkeys(corrections, 0.0), corrections)
    )
    _LOGGER.info("The foundation model misses the labels by %.6g eV per atom (rms), %.6g with these E0s", before, after)
    return {z: foundation.energies[z] + corrections[z] for z in elements}, warnings
