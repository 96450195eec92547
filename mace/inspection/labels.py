"""Checks of labels by themselves: incomplete, not finite, absurdly large, zero where they should not be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from mace.formats.near_keys import is_near
from mace.inspection.findings import Evidence, Finding, found
from mace.inspection.flat import FlatFile
from mace.properties import PROPERTIES
from mace.structures.labels import FileLabels

LARGEST_FORCE = 100.0
"""eV/Angstrom; forces above it are rarely wanted."""

LARGEST_STRESS = 1.0
"""eV/Angstrom^3; half of the structures above it means another unit."""

_OUTLIER_WIDTHS = 15.0
_OUTLIER_ENERGY = 5.0
_FEWEST_FOR_OUTLIERS = 10
_UNBALANCED = 0.3
_SOME_FORCE = 0.02
_FEWEST_PUSHED = 3
_MOST = 0.9


def check_file_labels(labels: FileLabels) -> Iterator[Finding]:
    """Turn what the reader noted about a file into findings."""
    faults = defaultdict(list)
    for fault in labels.faults:
        faults[fault.name, fault.key].append(fault.index)
    for (name, key), places in faults.items():
        yield found("non-finite-label", labels.file, f": the label '{name}' (key '{key}') is NaN or infinite", places)
    misspelled = defaultdict(list)
    for fault in labels.misspelled:
        misspelled[fault.name, fault.key].append(fault.index)
    for (name, key), places in misspelled.items():
        right = next(word for word in labels.of(name).candidates if is_near(key, (word,)))
        text = f"have no '{right}' but '{key}', which is not read without --{name}_key={key}"
        yield found("misspelled-key", labels.file, text, places, labels.frames + labels.isolated_atoms)
    for note in labels.notes:
        yield Finding("label-remarks", labels.file, note)
    if labels.constrained:
        frames = labels.frames + labels.isolated_atoms
        yield found("constraints", labels.file, "have constraints", labels.constrained, frames)


def check_coverage(file: FlatFile) -> Iterator[Evidence]:
    """Note the structures without a label; it is a finding if others have it, see `is_partly_labeled`."""
    for name in PROPERTIES:
        labeled = file.flat.labeled(name)
        if not labeled.all():
            yield file.saw("partly-labeled", f"have no label '{name}', which others have", ~labeled, key=name)


def is_partly_labeled(name: str, labeled: Mapping[str, int], frames: int) -> bool:
    """Whether a label that some structures lack is worth a note.

    Args:
        name: The label.
        labeled: How many structures have each label.
        frames: How many structures there are.
    """
    is_converted = name == "virials" and labeled["virials"] == labeled["stress"]
    return 0 < labeled[name] < frames and not is_converted


def check_large_forces(file: FlatFile) -> Iterator[Evidence]:
    """Find forces above `LARGEST_FORCE`."""
    norms = np.linalg.norm(file.forces, axis=1)
    large = norms > LARGEST_FORCE  # false for NaN
    if large.any():
        largest = float(np.nanmax(norms))
        text = f"have forces above {LARGEST_FORCE:g} eV/Angstrom (largest: {largest:.4g})"
        yield file.saw("large-forces", text, np.unique(file.structure_of_atom[large]), severity=largest)


def check_large_stress(file: FlatFile) -> Iterator[Evidence]:
    """Find a file most of whose stresses are beyond what matter bears."""
    largest = np.abs(file.stresses).reshape(-1, 9).max(axis=1, initial=0.0)
    labeled = np.isfinite(largest)
    if labeled.any() and np.median(largest[labeled]) > LARGEST_STRESS:
        large = labeled & (largest > LARGEST_STRESS)
        median = float(np.median(largest[labeled]))
        text = f"have a stress above {LARGEST_STRESS:g} eV/Angstrom^3 (median of the largest component: {median:.4g})"
        yield file.saw("large-stress", text, large, severity=median, is_of_part=True)


def check_net_forces(file: FlatFile) -> Iterator[Evidence]:
    """Find molecules all of which are pushed away as a whole; where a few are, see `check_zeroed_forces`."""
    rest = np.linalg.norm(file.sums(file.forces), axis=1)
    size = np.sqrt(file.sums((file.forces**2).sum(axis=1)) / file.n_atoms)
    molecules = ~file.pbc.any(axis=1) & (file.n_atoms > 1) & np.isfinite(rest) & (size > 0.0)
    pushed = molecules & (rest > _UNBALANCED * size) & (rest > _SOME_FORCE)
    if pushed.sum() >= _FEWEST_PUSHED and pushed.sum() > _MOST * molecules.sum():
        median = float(np.median(rest[pushed]))
        text = f"have forces that add up to {median:.3g} eV/Angstrom (median), not zero"
        yield file.saw("net-forces", text, pushed, severity=median, is_of_part=True)


def check_zeroed_forces(file: FlatFile, constrained: Collection[int]) -> Iterator[Evidence]:
    """Find structures where some but not all forces are exactly zero, and not by symmetry.

    Symmetry makes pairs of forces cancel, so their sum stays zero; forces that were set to zero are missing from it.
    """
    zero = (file.forces == 0.0).all(axis=1)
    counts = file.sums(zero.astype(np.int64))
    some = (counts > 0) & (counts < file.n_atoms)
    size = np.sqrt(file.sums((file.forces**2).sum(axis=1)) / np.maximum(file.n_atoms - counts, 1))
    rest = np.linalg.norm(file.sums(file.forces), axis=1)
    held = some & np.isin(file.index, list(constrained))
    unbalanced = some & (rest > _UNBALANCED * size) & (rest > _SOME_FORCE)
    for chosen, what in ((held, "constraints and atoms"), (unbalanced & ~held, "atoms")):
        if chosen.any():
            text = f"have {what} whose forces are exactly zero"
            if what == "atoms":
                text += f", and forces that add up to {rest[chosen].max():.3g} eV/Angstrom, not zero"
            yield file.saw("zeroed-forces", text, chosen, key=what, severity=float(rest[chosen].max()))


def check_energy_outliers(file: str, index: np.ndarray, energies: np.ndarray) -> Iterator[Finding]:
    """Find energies far from all others.

    Args:
        file: The file.
        index: Places of the structures in it, ``[structures]``.
        energies: eV per atom with the reference energies subtracted, ``[structures]``.
    """
    labeled = np.isfinite(energies)
    if labeled.sum() < _FEWEST_FOR_OUTLIERS:
        return
    middle = np.median(energies[labeled])
    distance = np.abs(energies - middle)
    width = 1.4826 * np.median(distance[labeled])
    far = distance > max(_OUTLIER_WIDTHS * width, _OUTLIER_ENERGY)
    if far.any():
        text = (
            f"have energies per atom (E0s subtracted) up to {np.nanmax(distance):.4g} eV from the median of "
            f"{middle:.4g}"
        )
        yield found("energy-outliers", file, text, index[far], len(index))
