"""Splits off a validation set, and checks that no structure has unknown elements or heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mace.elements import chemical_symbol
from mace.errors import UserError
from mace.structures.collection import StructureCollection, collected
from mace.structures.configuration import HEAD_KEY, Configuration


@dataclass(frozen=True)
class Split:
    """Structures to train on and to validate on, in the order of the files.

    Attributes:
        train: The training set.
        valid: The validation set; also part of ``train`` if no structure can be spared.
        indices: Indices of ``valid`` among all structures.
        notes: Sentences about what could not be done as requested.
    """

    train: StructureCollection
    valid: StructureCollection
    indices: list[int]
    notes: tuple[str, ...] = ()


def split_validation(
    configurations: Sequence[Configuration], fraction: float, seed: int, labels: Sequence[str] = ()
) -> Split:
    """Set a random part of the structures aside for validation; the same seed always selects the same structures.

    For the same structures, fraction and seed, the selection is that of mace-torch, unless the training set would then
    lack some element, head, label or type of structure, or the validation set would lack all labels. In that case as
    few structures as possible are exchanged for the next ones in the random order.

    Args:
        configurations: At least two structures.
        fraction: Share of the structures for validation, between zero and one, rounded down; at least one is taken.
        seed: Seed of the random numbers.
        labels: Labels that the loss needs.

    Raises:
        UserError: If there are fewer than two structures or the fraction is not between zero and one.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"--valid_fraction is {fraction:g}; it must be larger than zero and smaller than one.")
    count = len(configurations)
    if count < 2:
        file = configurations[0].file + ": " if configurations else ""
        raise UserError(
            f"{file}{count} structures cannot be divided into training and validation; "
            "add structures, or name validation data with --valid_file."
        )
    structures, order = collected(configurations), np.arange(count)
    np.random.Generator(np.random.PCG64(seed)).shuffle(order)
    n_valid = max(int(fraction * count), 1)
    wanted = order[count - n_valid :].tolist()
    spared = _spare(structures, order[: count - n_valid], wanted, labels)
    notes = []
    if len(spared) < n_valid:
        notes.append(
            f"--valid_fraction={fraction:g} asks for {n_valid} of {count} structures, but the others are the only ones "
            f"with some element, head or label: {len(spared)} are validated with and not trained on"
            + ("" if spared else f", so {n_valid} are both trained on and validated with")
            + "; add structures, or name others with --valid_file."
        )
    indices = sorted(spared or wanted)
    train, valid = structures.take(np.delete(np.arange(count), spared)), structures.take(np.array(indices))
    return Split(train, valid, indices, tuple(notes))


_Subject = tuple[str, Hashable]
"""Something that can be learned, by its kind: an element, a head, a label of a head, a type of structure."""


def _spare(
    configurations: StructureCollection, train: np.ndarray, valid: Sequence[int], labels: Sequence[str]
) -> list[int]:
    """Choose validation structures that the training set can do without.

    Args:
        configurations: All structures.
        train: Indices of the training structures, in random order.
        valid: Indices of the validation structures, in random order.
        labels: Labels that the loss needs.

    Returns:
        ``valid`` if nothing is missing from ``train`` then; otherwise ``valid`` with as few exchanges as possible.
    """
    kinds = configurations.config_types
    types = dict(zip(kinds.names, np.bincount(kinds.codes, minlength=len(kinds.names)).tolist(), strict=True))

    def subjects(place: int) -> set[_Subject]:
        """List what can be learned from a structure; a type with a single structure does not count."""
        configuration = configurations[place]
        head, kind = configuration.head, configuration.config_type
        found: set[_Subject] = {("element", number) for number in set(configuration.atomic_numbers.tolist())}
        found |= {("label", (head, name)) for name in labels if configuration.has_weight(name)}
        return found | {("head", head)} | ({("type", kind)} if types[kind] > 1 else set())

    in_valid = _count_subjects(configurations.take(np.sort(np.array(valid))), labels)
    missing = {(kind, one) for (kind, one), n in in_valid.items() if n and (kind != "type" or types[str(one)] > 1)}
    is_labeled = not labels or _has_label(missing)
    for place in train.tolist():  # as a rule, the first few have everything
        if not missing:
            break
        missing -= subjects(place)
    if not missing and is_labeled:
        return list(valid)
    counts = _count_subjects(configurations.take(train), labels)
    kept = []
    for place in valid:
        if missing & subjects(place):
            counts.update(subjects(place))
            missing -= subjects(place)
        else:
            kept.append(place)

    def take(accept: Callable[[set[_Subject]], bool]) -> list[int]:
        """Find the next structure whose subjects also occur in other training structures."""
        for place in train[::-1].tolist():
            own = subjects(place)
            if place not in kept and accept(own) and all(counts[subject] > 1 for subject in own):
                counts.subtract(own)
                return [place]
        return []

    if labels and not any(_has_label(subjects(place)) for place in kept) and (found := take(_has_label)):
        kept = [*kept[: len(valid) - 1], *found]
    while len(kept) < len(valid) and (found := take(lambda own: True)):
        kept += found
    return kept


def _count_subjects(structures: StructureCollection, labels: Sequence[str]) -> Counter[_Subject]:
    """Count the structures from which each subject can be learned."""
    elements, kinds, heads = structures.elements, structures.config_types, structures.heads
    counts: Counter[_Subject] = Counter({("type", name): kinds.count(name) for name in kinds.present()})
    counts.update({("head", name): heads.count(name) for name in heads.present()})
    with_element = sum((block.compositions(elements) > 0.0).sum(axis=0) for block in structures.blocks())
    counts.update({("element", number): int(n) for number, n in zip(elements, np.ravel(with_element), strict=True)})
    for label in labels:
        has_weight = structures.has_weight(label)
        for name in heads.present():
            counts["label", (name, label)] = int(np.count_nonzero(has_weight & heads.where(name)))
    return counts


def _has_label(subjects: Iterable[_Subject]) -> bool:
    return any(kind == "label" for kind, _ in subjects)


def write_valid_indices(directory: str | Path, name: str, seed: int, valid: Sequence[Configuration]) -> Path:
    """Write the list of validation structures to ``<name>_valid_indices_<seed>.txt``.

    Each line has the index of a structure in its file, counted from zero, and the name of that file.

    Returns:
        The path of the written file.

    Raises:
        UserError: If it cannot be written.
    """
    path = Path(directory) / f"{name}_valid_indices_{seed}.txt"
    structures = collected(valid)
    names = (structures.files.names[code] for code in structures.files.codes.tolist())
    lines = [f"{index} {name}\n" for index, name in zip(structures.file_index.tolist(), names, strict=True)]
    try:
        path.write_text("".join(["# place in the file, counted from zero; file\n", *lines]), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: the list of validation structures cannot be written there ({reason}).") from error
    return path


def check_heads(names: Sequence[str], structures: StructureCollection) -> None:
    """Check that a model with several heads has the head of every structure.

    Args:
        names: The heads of the model; a single head is used for all structures.
        structures: The structures.

    Raises:
        UserError: If a structure is for another head; the message names its file, its index and the existing heads.
    """
    if len(names) == 1:
        return
    for head in structures.heads.present():
        if head not in names:
            first = structures[int(structures.heads.where(head).argmax())]
            raise UserError(
                f"{first.where()} is for the head '{head}', which the model does not have; its heads are "
                f"{', '.join(names)}. Name one for all structures with --head, or for each with {HEAD_KEY}= in its "
                "comment line."
            )


def check_elements(
    training_elements: Iterable[int], others: Iterable[Configuration], purpose: str = "the training data"
) -> None:
    """Check that other structures contain only elements that are trained on.

    Args:
        training_elements: Atomic numbers, for example an `ElementTable`.
        others: Structures for validation or testing.
        purpose: Where ``training_elements`` comes from, in the words of the message.

    Raises:
        UserError: If a structure contains another element; the message names its file, its index and the element.
    """
    if found := first_with_others(training_elements, others):
        raise UserError(
            f"{found[0].where()} contains {found[1]}, which {purpose} does not; "
            "add structures with it to the training data, or take this one out."
        )


def first_with_others(
    elements: Iterable[int], configurations: Iterable[Configuration]
) -> tuple[Configuration, str] | None:
    """Find the first structure with other elements than some.

    Args:
        elements: Atomic numbers, for example an `ElementTable`.
        configurations: The structures.

    Returns:
        The structure, and the symbols of its other elements in words; None if there is none.
    """
    known = frozenset(elements)
    if isinstance(configurations, StructureCollection) and known.issuperset(configurations.elements):
        return None
    for configuration in configurations:
        if unknown := sorted(set(configuration.atomic_numbers.tolist()) - known):
            return configuration, " and ".join(map(chemical_symbol, unknown))
    return None
