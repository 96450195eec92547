"""Reference energies of every head."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from mace.elements import ElementTable, chemical_symbol
from mace.errors import UserError
from mace.finetuning.estimated_energies import estimate_energies
from mace.preparation.heads import Head
from mace.preparation.reading import InputData
from mace.reporting.tables import residual_table
from mace.structures.collection import StructureCollection
from mace.structures.reference_energies import ReferenceEnergies, resolve_reference_energies

_LOGGER = logging.getLogger(__name__)


def reference_energies(
    data: InputData, train: Mapping[str, StructureCollection], elements: ElementTable
) -> dict[str, ReferenceEnergies]:
    """Determine and log the reference energies of every head for all elements of the model.

    A head has its own energies of the elements in its own structures. Energies of other elements, which it meets only
    in predictions, are taken from the same source, else from the foundation model, else from the first head that has
    them; the log says so.

    Args:
        data: The input data.
        train: Training structures of each head.
        elements: The elements of the model.

    Raises:
        UserError: If an element of a head's structures has no energy, or a fit does not determine one while there are
            several heads.
    """
    foundation = {} if data.foundation is None else data.foundation.energies
    found = {name: _of_head(head, data, train[name], elements) for name, head in data.heads.items()}
    wanted = set(elements).union(*(energies.energies for energies in found.values()))
    complete = {}
    for name, energies in found.items():
        added, origin = dict[int, float](), dict[str, list[str]]()
        for number in sorted(wanted - energies.energies.keys()):
            sources = {"the same source": energies.unused, "the foundation model": foundation} | {
                f"head {other}": {**one.unused, **one.energies} for other, one in found.items()
            }
            source = next((word for word, known in sources.items() if number in known), None)
            if source is None:
                raise UserError(
                    f"--atomic_numbers: no head has a reference energy of {chemical_symbol(number)}, which no "
                    "structure contains; give it to a head with E0s, or leave the element out."
                )
            added[number] = sources[source][number]
            origin.setdefault(source, []).append(chemical_symbol(number))
        unused = ", ".join(chemical_symbol(number) for number in energies.unused if number not in wanted)
        if unused:
            _LOGGER.info("The reference energies of %s are not needed: no structure has these elements.", unused)
        for source, symbols in origin.items():
            _LOGGER.info("Head %s has no structure with %s; E0s from %s", name, ", ".join(symbols), source)
        energies = replace(energies, energies=dict(sorted((energies.energies | added).items())))
        _LOGGER.info("Isolated Atomic Energies (E0s) from: %s", energies.source)
        shown = ", ".join(f"{z} ({chemical_symbol(z)}): {energy:.10g}" for z, energy in energies.energies.items())
        _LOGGER.info("Atomic Energies used (z: eV) for head %s: {%s}", name, shown)
        if energies.residuals:
            _LOGGER.info("What these energies leave unexplained:\n%s", residual_table(energies.residuals))
        complete[name] = energies
    return complete


def _of_head(head: Head, data: InputData, train: StructureCollection, elements: ElementTable) -> ReferenceEnergies:
    """Determine the reference energies of the elements in a head's structures."""
    settings, foundation = head.settings, data.foundation
    own = elements if head.is_alone else ElementTable(train.elements)
    known, fit = None, None
    if foundation is not None:
        known = foundation.energies
        if settings.E0s == "estimated":
            fit = partial(estimate_energies, foundation, train, own, settings.batch_size)
    isolated_atoms = data.sets[head.name].training.isolated_atoms
    with head.named_in_errors():
        energies = resolve_reference_energies(settings.E0s, isolated_atoms, train, own, known, fit)
        # those of other heads are on another scale, on which energies that any other would fit as well are useless
        if energies.residuals and energies.warnings and not head.is_alone:
            raise UserError(" ".join(energies.warnings))
    if known is not None and settings.foundation_model_elements:
        energies = replace(energies, energies=dict(sorted((known | energies.energies).items())))
    return energies
