"""Prepared sets in place of files: what was decided when a set was prepared must be what a run asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from mace.conditions import Condition
from mace.errors import UserError
from mace.properties import PROPERTIES
from mace.structures.collection import StructureCollection
from mace.structures.condition_values import check_values
from mace.structures.configuration import DEFAULT_HEAD, DEFAULT_TYPE, Configuration
from mace.structures.labels import FileLabels
from mace.structures.prepared import StoredStructures, isolated_atoms_of, select
from mace.structures.sources import FileUnits, HeadNaming, Source


@dataclass(frozen=True)
class StoredPart:
    """What a prepared set has for one head.

    Attributes:
        stored: The set.
        places: The structures of the set that are for the head, in order; some are left out.
        configurations: The structures.
        isolated_atoms: Its frames of isolated atoms.
        labels: Where the labels were found, in each file that it was prepared from.
    """

    stored: StoredStructures
    places: np.ndarray
    configurations: StructureCollection
    isolated_atoms: list[Configuration]
    labels: tuple[FileLabels, ...]


def read_stored(folder: str, source: Source, naming: HeadNaming) -> StoredPart:
    """Open a prepared set in place of a file.

    Args:
        folder: The folder of the set.
        source: How files would be read.
        naming: Which head the structures are for.

    Raises:
        UserError: If the set is damaged, or was prepared with other keys, units or conditions than are asked for, or
            names heads that do not exist.
    """
    stored = StoredStructures(folder)
    manifest = stored.manifest
    labels = {head: [FileLabels.of_document(each) for each in files] for head, files in manifest.labels.items()}
    found = [each for files in labels.values() for each in files]
    _check_keys(folder, source, stored, found)
    columns = [column for columns in manifest.layout.values() for column in columns]
    if lacking := [item.name for item in source.conditions if _column(item) not in columns]:
        raise UserError(
            f"{folder}: this set was prepared without {' and '.join(lacking)}, on which the model depends, or in "
            "another form; prepare it again with the same --embedding_specs and keys."
        )
    stored = stored.under([item.name for item in source.conditions])
    if dict(source.config_type_weights) not in ({}, {DEFAULT_TYPE: 1.0}):  # what a run has that gives none
        stored = stored.with_type_weights(source.config_type_weights)
    isolated, chosen = isolated_atoms_of(stored), np.arange(len(stored))
    present = stored.heads.present()
    names_heads = present != (DEFAULT_HEAD,)
    if not names_heads or (not naming.known and naming.key is None):
        stored = stored.changed(head=naming.head)
        isolated = [replace(atom, head=naming.head) for atom in isolated]
    if naming.known and names_heads:
        if unknown := [name for name in present if name not in naming.known]:
            raise UserError(
                f"{folder}: structures of this set are for the head '{unknown[0]}'; it is for several heads, and its "
                f"structures name one of {', '.join(naming.known)}. Prepare it again with other names, add the name to "
                "--heads, or give each head its own set there."
            )
        chosen = np.flatnonzero(stored.heads.where(naming.head))
        isolated = [atom for atom in isolated if atom.head == naming.head]
        found = labels.get(naming.head, [])
    elif len(present) > 1:
        others = tuple(sorted({*present} - {naming.head}))
        found = [replace(each, other_heads=others) for each in found]
    structures, places = select(stored, chosen)
    check_values(source.conditions, structures)
    return StoredPart(stored, places, structures, isolated, tuple(found))


def _column(condition: Condition) -> tuple[str, tuple[int, ...]]:
    """Return the column in which a set holds a condition, and the shape of its rows."""
    if condition.per == "structure":
        return f"condition/{condition.name}", (1,)
    return f"atom_condition/{condition.name}", (condition.n_values,)


def _check_keys(folder: str, source: Source, stored: StoredStructures, labels: Sequence[FileLabels]) -> None:
    """Check that keys and units that were given are those that the set was prepared with."""
    for name in PROPERTIES:
        given, before = source.keys.given(name), stored.manifest.keys.get(name)
        used = {each.of(name).key for each in labels if each.of(name).labeled}
        if given is not None and given != before and used != {given}:
            was = " and ".join(f"'{key}'" for key in sorted(filter(None, used))) or "none"
            raise UserError(
                f"{folder}: --{name}_key={given} is given, but this set was prepared with other keys ({name}: {was}); "
                "leave it out, or prepare the set again with it."
            )
    for item in fields(FileUnits):
        given, before = getattr(source.units, item.name), stored.manifest.units.get(item.name)
        if given is not None and given != before:
            raise UserError(
                f"{folder}: --{item.name}_unit={given} is given, but numbers were converted when this set was prepared "
                f"({'from ' + before if before else 'from the default unit'}); leave it out, or prepare the set again."
            )
