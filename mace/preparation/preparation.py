"""Preparation of training: sets of graphs, elements, reference energies, statistics and the model plan."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from mace.console.progress import TrainingProgress
from mace.elements import ElementTable, chemical_symbol
from mace.errors import UserError
from mace.finetuning.estimated_energies import estimate_energies
from mace.finetuning.foundation import foundation_plan
from mace.graphs.dataset import Dataset
from mace.graphs.in_memory import InMemoryDataset
from mace.model.plan import OUTPUTS, ModelPlan, first_problem
from mace.planning.model_plan import NO_SCALING, decide_neighbors, decide_scaling, plan_model
from mace.planning.objectives import ways_out
from mace.preparation.condition_keys import conditions_of
from mace.preparation.reading import InputData
from mace.reporting.set_names import table_row
from mace.reporting.tables import contents_line, residual_table
from mace.settings import TrainingSettings
from mace.structures.configuration import DEFAULT_HEAD, Configuration
from mace.structures.labels import require_labels
from mace.structures.reference_energies import ReferenceEnergies, resolve_reference_energies
from mace.structures.sources import files_of
from mace.structures.splitting import check_elements, split_validation, write_valid_indices
from mace.structures.statistics import summarize
from mace.training.checkpoints import file_digests
from mace.training.loss import Loss

_LOGGER = logging.getLogger(__name__)

Divided = tuple[list[Configuration], list[Configuration], dict[str, list[Configuration]]]


@dataclass(frozen=True)
class Preparation:
    """The data and the model plan from which training starts.

    Attributes:
        data: The input data of the run.
        plan: The plan of the model.
        energies: Reference energies and their source; None for a model without energies.
        train: The training graphs.
        valid: The validation graphs, by head.
        tests: The test graphs, by name of the set.
        digests: SHA-256 of each training and validation file.
        saved: The saved state to resume from; None to start from the beginning.
    """

    data: InputData
    plan: ModelPlan
    energies: ReferenceEnergies | None
    train: Dataset
    valid: dict[str, Dataset]
    tests: dict[str, Dataset]
    digests: dict[str, str]
    saved: dict[str, Any] | None = None

    def sets(self) -> dict[str, tuple[str, Dataset]]:
        """Return the role (``train``, ``valid`` or ``test``) and graphs of each set, by its row in error tables."""
        return {
            table_row("train", DEFAULT_HEAD): ("train", self.train),
            **{table_row("valid", head): ("valid", dataset) for head, dataset in self.valid.items()},
            **{name: ("test", dataset) for name, dataset in self.tests.items()},
        }

    @property
    def digest(self) -> str:
        """SHA-256 of all digests together."""
        return hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()


def divide(settings: TrainingSettings, data: InputData, writes: bool = True) -> Divided:
    """Split off the validation set, and check that the labels needed for training exist.

    Args:
        settings: Settings of files and split.
        data: The input data; the training files need the labels of its losses.
        writes: Whether this process writes files.

    Returns:
        The training structures, the validation structures, and the test structures by name of the set.

    Raises:
        UserError: See `require_labels` and `split_validation`.
    """
    sets, training, needed = data.sets, data.sets.training, ways_out(data.losses)
    require_labels(training.report, sorted(needed), needed)
    configurations = training.configurations
    if settings.valid_file is None or sets.validation is None:
        split = split_validation(configurations, settings.valid_fraction, settings.seed, sorted(needed))
        train, valid = split.train, split.valid
        for note in split.notes:
            _LOGGER.warning("%s", note)
        path = write_valid_indices(settings.work_dir, settings.name, settings.seed, valid) if writes else ""
        _LOGGER.info(
            "Using random %g%% of training set for validation with indices saved in: %s",
            100 * settings.valid_fraction,
            path,
        )
        _LOGGER.info(contents_line("Random Split Training set", train))
        _LOGGER.info(contents_line("Random Split Validation set", valid))
    else:
        train, valid = configurations, sets.validation.configurations
        if not valid:
            names = ", ".join(files_of(settings.valid_file))
            raise UserError(f"{names}: there is no structure to validate with, isolated atoms only.")
    if settings.keep_isolated_atoms:
        # added after the split, because isolated atoms are useless for validation
        train = [*train, *training.isolated_atoms]
    for loss in filter(None, data.losses):
        _require_weight(train, loss, "training")
        _require_weight(valid, loss, "validation")
    tests = dict[str, list[Configuration]]()
    for name, result in sets.tests.items():
        for each in result.configurations:
            # structures of a test file are split by config_type; those of a folder form one set per file
            tests.setdefault(name or table_row(each.config_type, each.head), []).append(each)
    counts = ", ".join(f"{name}: {len(items)}" for name, items in tests.items())
    _LOGGER.info("Total number of configurations: train=%d, valid=%d, tests=[%s]", len(train), len(valid), counts)
    return train, valid, tests


def _require_weight(configurations: Sequence[Configuration], loss: Loss, purpose: str) -> None:
    """Check that a set has labels for a loss: without labels the loss would be zero, and so seem the lowest."""
    missing = [term.name for term in loss.terms if not any(c.has_weight(term.name) for c in configurations)]
    file = configurations[0].file
    if len(missing) == len(loss.terms):
        raise UserError(
            f"{file}: no {purpose} structure has a label with weight for the loss {loss} ({', '.join(missing)}); label "
            "the structures, or choose other ones."
        )
    for name in missing:
        _LOGGER.warning(
            "No %s structure has a label '%s' with weight; that term of %s is zero there", purpose, name, loss
        )


def prepare(
    settings: TrainingSettings, data: InputData, progress: TrainingProgress, writes: bool = True
) -> Preparation:
    """Split the structures, compute their statistics, and plan the model.

    Args:
        settings: The given settings.
        data: The input data, read and checked.
        progress: The progress display.
        writes: Whether this process writes files.

    Raises:
        UserError: If data or settings are not usable for training.
    """
    foundation, to_learn, to_validate, to_test = data.foundation, *divide(settings, data, writes)
    files = files_of(settings.train_file) + (files_of(settings.valid_file) if settings.valid_file else [])
    digests = file_digests(files)
    elements = ElementTable.from_arrays(c.atomic_numbers for c in to_learn)
    if settings.atomic_numbers is not None:
        elements = ElementTable(tuple(settings.atomic_numbers))
        check_elements(elements, to_learn, purpose="--atomic_numbers")
    for configurations in (to_validate, *to_test.values()):
        check_elements(elements, configurations)
    _LOGGER.info("Atomic Numbers used: %s", list(elements.atomic_numbers))
    energies, scaling = None, NO_SCALING
    if "energy" in OUTPUTS[settings.model]:
        energies = _reference_energies(settings, data, to_learn, elements)
        scaling = decide_scaling(settings, summarize(to_learn, energies.energies))
        for warning in scaling.warnings:
            _LOGGER.warning(warning)
        elements = ElementTable(tuple(sorted(energies.energies)))
    if "dipole" in OUTPUTS[settings.model]:
        _log_charges([*to_learn, *to_validate])
    r_max = settings.r_max if foundation is None else foundation.plan.r_max

    def search(configurations: Sequence[Configuration], name: str) -> Dataset:
        description = f"Neighbors of {name}"
        return InMemoryDataset(configurations, elements, r_max, lambda items: progress.track(items, description))

    train = search(to_learn, "the training set")
    valid = {DEFAULT_HEAD: search(to_validate, "the validation set")}
    # built before training, so that errors in test sets appear early and not at the end
    tests = {name: search(configurations, name) for name, configurations in to_test.items()}
    conditions = conditions_of(settings, foundation)
    try:
        plan = plan_model(settings, elements, energies, scaling, decide_neighbors(settings, train), conditions)
    except ValidationError as error:
        raise UserError(f"There is no model of these settings and data: {first_problem(error)}.") from error
    if foundation is not None:
        plan = foundation_plan(settings, foundation, plan, train)
    _LOGGER.info("Average number of neighbors: %s", plan.avg_num_neighbors)
    if "energy" in plan.outputs:
        _LOGGER.info("Scale of the interaction energy: %.8g eV, shift: %.8g eV per atom", plan.scale, plan.shift)
    return Preparation(data, plan, energies, train, valid, tests, digests)


def _reference_energies(
    settings: TrainingSettings, data: InputData, train: Sequence[Configuration], elements: ElementTable
) -> ReferenceEnergies:
    """Determine and log the reference energies; a foundation model supplies those missing in the data."""
    known, fit, foundation = None, None, data.foundation
    if foundation is not None:
        known = foundation.energies
        if settings.E0s == "estimated":
            fit = partial(estimate_energies, foundation, train, elements, settings.batch_size)
    isolated_atoms = data.sets.training.isolated_atoms
    energies = resolve_reference_energies(settings.E0s, isolated_atoms, train, elements, known, fit)
    if known is not None and settings.foundation_model_elements:
        energies = replace(energies, energies=dict(sorted((known | energies.energies).items())))
    _LOGGER.info("Isolated Atomic Energies (E0s) from: %s", energies.source)
    shown = ", ".join(f"{z} ({chemical_symbol(z)}): {energy:.10g}" for z, energy in energies.energies.items())
    _LOGGER.info("Atomic Energies used (z: eV) for head %s: {%s}", DEFAULT_HEAD, shown)
    if energies.residuals:
        _LOGGER.info("What these energies leave unexplained:\n%s", residual_table(energies.residuals))
    for note in energies.notes:
        _LOGGER.info(note)
    return energies


def _log_charges(configurations: Sequence[Configuration]) -> None:
    """Log whether charges contribute to dipoles: a model trained without charges is wrong with them."""
    count = sum(configuration.charges is not None for configuration in configurations)
    if count == 0:
        _LOGGER.info("The structures have no charges, so the whole dipole is learned")
        return
    _LOGGER.info("Charges of %d structures enter their dipoles as charge times position", count)
    if count < len(configurations):
        _LOGGER.warning(
            "%d of %d structures have no charges and count as uncharged; give all of them charges, or none",
            len(configurations) - count,
            len(configurations),
        )
    if any(c.charges is not None and any(c.pbc) for c in configurations):
        _LOGGER.warning(
            "Charges of periodic structures make their dipoles depend on which images of the atoms the files give"
        )
