"""Settings of the data: files, labels, reference energies, scaling."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from mace.errors import UserError
from mace.settings.declaration import Settings, as_list, read_literal, setting, shown
from mace.settings.labels import Files

_FILES = "a path, a pattern such as data/*.xyz, a table such as {file: a.xyz, energy_key: E}, or a list of them"


def _check_atomic_numbers(numbers: list[int]) -> list[int]:
    from mace.elements import LARGEST_ATOMIC_NUMBER  # here, so that help needs no numpy

    if not numbers or len(set(numbers)) != len(numbers) or not all(1 <= z <= LARGEST_ATOMIC_NUMBER for z in numbers):
        raise ValueError("not atomic numbers")
    return numbers


AtomicNumbers = Annotated[list[int], AfterValidator(_check_atomic_numbers)]
"""Elements as a list of different atomic numbers."""


def parse_E0s_literal(text: str) -> dict[int, float]:
    """Read reference energies written as a Python or JSON dictionary.

    Args:
        text: For example ``{1: -13.6, 8: -2041.8}``; symbols and JSON's quoted keys are read as well.

    Returns:
        Energy of the isolated atom in eV by atomic number.

    Raises:
        ValueError: If the text is no such dictionary.
    """
    try:
        table = read_literal(text)
    except ValueError as error:
        raise ValueError(
            f"is not a dictionary of energies in eV by atomic number, such as {{1: -13.6, 8: -2041.8}}: {shown(text)}."
        ) from error
    return _energies_by_number(table)


def _energies_by_number(table: Any) -> dict[int, float]:
    from mace.elements import atomic_number  # here, so that help needs no numpy

    if not isinstance(table, dict) or not table:
        raise ValueError(f"must map atomic numbers to energies in eV, such as {{1: -13.6}}, not {shown(table)}.")
    energies: dict[int, float] = {}
    for key, value in table.items():
        try:
            number, energy = atomic_number(str(key)), float(value)
        except (TypeError, ValueError, UserError) as error:
            raise ValueError(f"must map elements to energies in eV, not {shown(key)} to {shown(value)}.") from error
        if not math.isfinite(energy):
            raise ValueError(f"must map elements to finite energies in eV, not {shown(key)} to {shown(value)}.")
        if number in energies:
            raise ValueError(f"gives atomic number {number} twice.")
        energies[number] = energy
    return energies


def read_E0s(value: Any) -> Any:
    """Turn reference energies written as text into a dictionary, and words for their source into lower case."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return parse_E0s_literal(value.strip())
    if isinstance(value, str) and value.lower() in ("average", "foundation", "estimated"):
        return value.lower()
    if isinstance(value, str) and value.lower() in ("isolated", "isolatedatom", "isolated_atom"):
        return "isolated"
    if value is None or isinstance(value, str):
        return value
    return _energies_by_number(value)


class DataSettings(Settings):
    """Which structures are learned from, and which the model is judged by."""

    train_file: Files | None = setting(
        None,
        "structures to train on (any format ASE reads, HDF5 of mace-torch, LMDB; also folders)",
        group="Data",
        kind="several",
        placeholder="FILE...",
        expects=_FILES,
        default_words="required, unless every head has one of its own",
    )
    valid_file: Files | None = setting(
        None,
        "structures to validate on",
        group="Data",
        kind="several",
        placeholder="FILE...",
        expects=_FILES,
        default_words="valid_fraction of the training set",
    )
    valid_fraction: float = setting(
        0.1,
        "fraction of the training set to validate on when there is no valid_file",
        group="Data",
        ge=0,
        le=1,
        expects="a number above 0 and below 1",
    )
    test_file: Files | None = setting(
        None,
        "structures to test the final model on",
        group="Data",
        kind="several",
        placeholder="FILE...",
        expects=_FILES,
    )
    test_dir: str | None = setting(
        None, "folder with several test sets, each a file or a folder of parts", group="Data", placeholder="DIR"
    )
    batch_size: int = setting(10, "structures per training step, of each process", group="Data", ge=1)
    batch_edges: int | None = setting(
        None,
        "fill the batches of training, of each process, up to so many directed edges (a pair of neighbors has two) "
        "instead of a number of structures, for structures of very different sizes; every structure counts as before",
        group="Data",
        ge=1,
        default_words="batch_size decides",
    )
    batch_atoms: int | None = setting(
        None, "the same, up to so many atoms", group="Data", ge=1, default_words="batch_size decides"
    )
    valid_batch_size: int = setting(
        10,
        "structures per evaluation step",
        group="Data",
        ge=1,
        default_words="10, unless batch_edges or batch_atoms is given, which then hold for evaluations too",
    )
    valid_batch_edges: int | None = setting(
        None,
        "fill the batches of evaluations up to so many directed edges; no error depends on that",
        group="Data",
        ge=1,
        default_words="as in training",
    )
    valid_batch_atoms: int | None = setting(
        None, "the same, up to so many atoms", group="Data", ge=1, default_words="as in training"
    )
    max_edges_per_batch: int | None = setting(
        None,
        "edges computed at a time; a batch with more is divided, and its parts add up to the same loss, so that it "
        "saves memory and changes no number, unlike batch_edges, which chooses the structures of a step",
        group="Data",
        ge=1,
        default_words="no limit until memory runs out",
    )
    keep_isolated_atoms: bool = setting(
        False, "train on structures of config_type IsolatedAtom too, after reading E0s from them", group="Data"
    )


class CheckingSettings(Settings):
    """What is let pass although it looks wrong."""

    allow: Annotated[str | list[str], AfterValidator(as_list)] = setting(
        [],
        "let a finding of the data report pass by its name; may be given several times",
        group="Data",
        kind="repeated",
        placeholder="NAME...",
        default_words="none",
        expects="the name of a finding, or several, such as close-atoms",
    )


class ReferenceSettings(Settings):
    """Energies of isolated atoms, and the scale and shift of what is learned on top of them."""

    E0s: Annotated[str | dict[int, float] | None, BeforeValidator(read_E0s)] = setting(
        None,
        "energies of isolated atoms: isolated (structures of config_type IsolatedAtom), average (least squares), "
        "foundation (those of the foundation model), estimated (those, with a least-squares fit of what its "
        "predictions miss), a JSON file, or a dictionary by atomic number; such structures come before a fit",
        group="Reference energies and scaling",
        unit="eV",
        placeholder="isolated|average|foundation|estimated|FILE|{Z:E,...}",
        default_words="from structures of config_type IsolatedAtom",
        expects="average, the name of a JSON file, or a dictionary such as {1: -13.6}",
    )
    atomic_numbers: AtomicNumbers | None = setting(
        None,
        "elements the model knows, as a list of atomic numbers",
        group="Reference energies and scaling",
        placeholder="[Z,...]",
        default_words="those in the data",
        expects="a list of different atomic numbers such as [1,6,8]",
    )
    scaling: Literal["std_scaling", "rms_forces_scaling", "no_scaling"] = setting(
        "rms_forces_scaling", "what the learned energies are measured in", group="Reference energies and scaling"
    )
    mean: float | None = setting(
        None,
        "shift of the energy per atom",
        group="Reference energies and scaling",
        unit="eV",
        default_words="from the training set",
    )
    std: float | None = setting(
        None,
        "scale of the learned energies",
        group="Reference energies and scaling",
        unit="eV or eV/Angstrom",
        gt=0,
        default_words="from the training set",
    )
    statistics_file: str | None = setting(
        None,
        "file statistics.json of mace_prepare_data, from which E0s, elements, scale, shift and the mean number of "
        "neighbors are taken unless they are typed",
        group="Reference energies and scaling",
        placeholder="FILE",
    )
    compute_avg_num_neighbors: bool = setting(
        True, "measure the mean number of neighbors on the training set", group="Reference energies and scaling"
    )
    avg_num_neighbors: float = setting(
        1.0,
        "mean number of neighbors messages are divided by, when it is not measured",
        group="Reference energies and scaling",
        gt=0,
    )
