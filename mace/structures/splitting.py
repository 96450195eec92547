"""Setting structures aside for validation, and making sure that no structure has unknown elements or heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mace.elements import chemical_symbol
from mace.errors import UserError
from mace.structures.configuration import HEAD_KEY, Configuration


def split_validation(
    configurations: Sequence[Configuration], fraction: float, seed: int
) -> tuple[list[Configuration], list[Configuration], list[int]]:
    """Set a random part of the structures aside; the same seed always sets the same ones aside.

    For the same structures, fraction and seed these are the ones mace-torch takes. Both parts keep the given order.

    Args:
        configurations: At least two.
        fraction: Share of the structures for validation, between zero and one, rounded down; at least one is taken.
        seed: Of the random numbers.

    Returns:
        The structures to train on, those to validate on, and the places of the latter in ``configurations``.

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
    order = list(range(count))
    np.random.Generator(np.random.PCG64(seed)).shuffle(order)
    n_valid = max(int(fraction * count), 1)
    indices = sorted(order[count - n_valid :])
    chosen = set(indices)
    train = [configuration for place, configuration in enumerate(configurations) if place not in chosen]
    return train, [configurations[place] for place in indices], indices


def write_valid_indices(directory: str | Path, name: str, seed: int, valid: Sequence[Configuration]) -> Path:
    """Write down which structures were set aside, as ``<name>_valid_indices_<seed>.txt``.

    Each line has the place of a structure in its file, counted from zero, and the name of that file.

    Returns:
        The path of the written file.

    Raises:
        UserError: If it cannot be written.
    """
    path = Path(directory) / f"{name}_valid_indices_{seed}.txt"
    lines = [f"{configuration.index} {configuration.file}\n" for configuration in valid]
    try:
        path.write_text("".join(["# place in the file, counted from zero; file\n", *lines]), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: the list of validation structures cannot be written there ({reason}).") from error
    return path


def check_heads(names: Sequence[str], configurations: Iterable[Configuration]) -> None:
    """Make sure that a model of several heads has the head of every structure.

    Args:
        names: The heads of the model; a single one is for all structures.
        configurations: The structures.

    Raises:
        UserError: If a structure is for another head; the message names its file, its place and the heads there are.
    """
    if len(names) == 1:
        return
    for configuration in configurations:
        if configuration.head not in names:
            raise UserError(
                f"{configuration.where()} is for the head '{configuration.head}', which the model does not have; its "
                f"heads are {', '.join(names)}. Name one for all structures with --head, or for each with {HEAD_KEY}= "
                "in its comment line."
            )


def check_elements(
    training_elements: Iterable[int], others: Iterable[Configuration], purpose: str = "the training data"
) -> None:
    """Make sure that other structures hold only elements that are trained on.

    Args:
        training_elements: Atomic numbers; an `ElementTable`'s will do.
        others: Structures for validation or testing.
        purpose: What ``training_elements`` is taken from, as the message calls it.

    Raises:
        UserError: If a structure holds another element; the message names its file, its place and the element.
    """
    known = frozenset(training_elements)
    for configuration in others:
        unknown = sorted(set(configuration.atomic_numbers.tolist()) - known)
        if unknown:
            names = " and ".join(chemical_symbol(number) for number in unknown)
            raise UserError(
                f"{configuration.where()} contains {names}, which {purpose} does not; "
                "add structures with it to the training data, or take this one out."
            )
