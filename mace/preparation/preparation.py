"""Preparation of training: sets of graphs, elements, reference energies, statistics and the model plan."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import ValidationError

from mace.console.progress import TrainingProgress
from mace.elements import ElementTable
from mace.errors import UserError
from mace.finetuning.foundation import foundation_plan
from mace.graphs.batch_plan import HeadSampling, sampled
from mace.graphs.dataset import Dataset, Subset
from mace.graphs.prepared import dataset_of
from mace.model.plan import OUTPUTS, ModelPlan, first_problem
from mace.planning.model_plan import NO_SCALING, decide_neighbors, decide_scaling, plan_model
from mace.planning.objectives import ways_out
from mace.preparation.condition_keys import conditions_of
from mace.preparation.energies import reference_energies
from mace.preparation.heads import Head
from mace.preparation.reading import InputData, labels_needed
from mace.reporting.set_names import table_row
from mace.reporting.tables import contents_line
from mace.settings import TrainingSettings
from mace.structures.collection import ListedStructures, StructureCollection, together
from mace.structures.labels import require_labels
from mace.structures.reference_energies import ReferenceEnergies
from mace.structures.sources import files_of
from mace.structures.splitting import check_elements, split_validation, write_valid_indices
from mace.structures.statistics import Scaling, summarize
from mace.training.checkpoints import file_digests
from mace.training.loss import Loss

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """The data and the model plan from which training starts.

    Attributes:
        data: The input data of the run.
        plan: The plan of the model.
        energies: Reference energies and their source, by head; empty for a model without energies.
        train: The training graphs, those of a head together, in the order of the heads.
        sampling: How often the structures of each head are used.
        valid: The validation graphs, by head.
        tests: The test graphs, by name of the set.
        digests: SHA-256 of each training and validation file.
        saved: The saved state to resume from; None to start from the beginning.
    """

    data: InputData
    plan: ModelPlan
    energies: Mapping[str, ReferenceEnergies]
    train: Dataset
    sampling: HeadSampling
    valid: dict[str, Dataset]
    tests: dict[str, Dataset]
    digests: dict[str, str]
    saved: dict[str, Any] | None = None

    def train_of(self, head: str) -> Dataset:
        """Return the training graphs of a head."""
        return train_of(self.train, self.sampling, head)

    def sets(self) -> dict[str, tuple[str, Dataset]]:
        """Return the role (``train``, ``valid`` or ``test``) and graphs of each set, by its row in error tables."""
        return {
            **{table_row("train", head): ("train", self.train_of(head)) for head in self.valid},
            **{table_row("valid", head): ("valid", dataset) for head, dataset in self.valid.items()},
            **{name: ("test", dataset) for name, dataset in self.tests.items()},
        }

    @property
    def digest(self) -> str:
        """SHA-256 of all digests together."""
        return hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()


def train_of(train: Dataset, sampling: HeadSampling, head: str) -> Dataset:
    """Return the part of a training set that belongs to a head."""
    if len(sampling.sizes) == 1:
        return train
    names = list(sampling.sizes)
    first = sum(sampling.sizes[name] for name in names[: names.index(head)])
    return Subset(train, np.arange(first, first + sampling.sizes[head]))


@dataclass(frozen=True)
class Division:
    """The structures of a head by what they are for.

    Attributes:
        train: Structures to train on.
        valid: Structures to validate on.
        tests: Structures to test on, by name of the set.
        is_split: Whether those to validate on were taken from the training files.
    """

    train: StructureCollection
    valid: StructureCollection
    tests: dict[str, StructureCollection]
    is_split: bool


def divide(head: Head, data: InputData) -> Division:
    """Split off the validation set of a head, and check that the labels needed for training exist.

    Args:
        head: The head, with its settings of files and split.
        data: The input data; the training files need the labels of its losses.

    Raises:
        UserError: See `require_labels` and `split_validation`.
    """
    settings, sets, ways = head.settings, data.sets[head.name], ways_out(data.losses)
    training, needed = sets.training, labels_needed(head, data.losses, data.sets)
    require_labels(training.report, needed, ways)
    configurations = training.configurations
    if sets.validation is None:
        split = split_validation(configurations, settings.valid_fraction, settings.seed, needed)
        train, valid = split.train, split.valid
        for note in split.notes:
            _LOGGER.warning("%s", note)
        _LOGGER.info("%s%s", head.prefix, contents_line("Random Split Training set", train))
        _LOGGER.info("%s%s", head.prefix, contents_line("Random Split Validation set", valid))
    else:
        train, valid = configurations, sets.validation.configurations
        if not len(valid):
            names = ", ".join(files_of(settings.valid_file or ()))
            raise UserError(f"{names}: there is no structure to validate with, isolated atoms only.")
    if settings.keep_isolated_atoms:
        # added after the split, because isolated atoms are useless for validation
        train = together([train, ListedStructures(training.isolated_atoms)])
    # unless the sampling weights the heads already
    factor = 1.0 if settings.head_sampling == "weight" else head.weight
    if factor != 1.0:
        train, valid = train.changed(factor), valid.changed(factor)
    for loss in filter(None, data.losses):
        _require_weight(train, loss, "training", head)
        _require_weight(valid, loss, "validation", head)
    tests = dict[str, StructureCollection]()
    for name, result in sets.tests.items():
        structures = result.configurations
        if name:  # those of a folder form one set per file
            tests[name if head.is_alone else table_row(name, head.name)] = structures
            continue
        for kind in structures.config_types.present():
            tests[table_row(kind, head.name)] = structures.take(np.flatnonzero(structures.config_types.where(kind)))
    counts = ", ".join(f"{name}: {len(items)}" for name, items in tests.items())
    text = "%sTotal number of configurations: train=%d, valid=%d, tests=[%s]"
    _LOGGER.info(text, head.prefix, len(train), len(valid), counts)
    return Division(train, valid, tests, is_split=sets.validation is None)


def _require_weight(configurations: StructureCollection, loss: Loss, purpose: str, head: Head) -> None:
    """Check that a set has labels for a loss: without labels the loss would be zero, and so seem the lowest."""
    missing = [term.name for term in loss.terms if not configurations.has_weight(term.name).any()]
    file = configurations[0].file
    of_head = "" if head.is_alone else f" for the head {head.name}"
    if len(missing) == len(loss.terms):
        raise UserError(
            f"{file}: no {purpose} structure{of_head} has a label with weight for the loss {loss} "
            f"({', '.join(missing)}); label the structures, or choose other ones."
        )
    for name in missing:
        _LOGGER.warning(
            "No %s structure%s has a label '%s' with weight; that term of %s is zero there",
            purpose,
            of_head,
            name,
            loss,
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
    foundation, heads = data.foundation, data.heads
    divisions = dict[str, Division]()
    for name, head in heads.items():
        with head.named_in_errors():
            divisions[name] = divide(head, data)
    if split := {name: division.valid for name, division in divisions.items() if division.is_split}:
        every = together(list(split.values()))
        path = write_valid_indices(settings.work_dir, settings.name, settings.seed, every) if writes else ""
        for name in split:
            _LOGGER.info(
                "%sUsing random %g%% of training set for validation with indices saved in: %s",
                heads[name].prefix,
                100 * heads[name].settings.valid_fraction,
                path,
            )
    elements = _elements(settings, heads, divisions)
    _LOGGER.info("Atomic Numbers used: %s", list(elements.atomic_numbers))
    energies, scaling = dict[str, ReferenceEnergies](), dict.fromkeys(heads, NO_SCALING)
    if "energy" in OUTPUTS[settings.model]:
        to_learn = {name: division.train for name, division in divisions.items()}
        energies = reference_energies(data, to_learn, elements)
        scaling = {name: _scaling(head, to_learn[name], energies[name]) for name, head in heads.items()}
        elements = ElementTable(tuple(sorted(next(iter(energies.values())).energies)))
    if "dipole" in OUTPUTS[settings.model]:
        _log_charges(together([each for division in divisions.values() for each in (division.train, division.valid)]))
    r_max = settings.r_max if foundation is None else foundation.plan.r_max

    def search(structures: StructureCollection, name: str) -> Dataset:
        track = partial(progress.track, description=f"Neighbors of {name}")
        return dataset_of(structures, elements, r_max, tuple(heads), track)

    sampling = _sampling(settings, heads, {name: len(division.train) for name, division in divisions.items()})
    train = search(together([division.train for division in divisions.values()]), "the training set")
    valid = {name: search(division.valid, "the validation set") for name, division in divisions.items()}
    # built before training, so that errors in test sets appear early and not at the end
    tests = {name: search(configurations, name) for name, configurations in _tests_of_all(divisions).items()}
    conditions = conditions_of(settings, foundation)
    try:
        plan = plan_model(settings, elements, energies, scaling, decide_neighbors(settings, train), conditions)
    except ValidationError as error:
        raise UserError(f"There is no model of these settings and data: {first_problem(error)}.") from error
    if foundation is not None:
        shifts = {name: head.settings.mean for name, head in heads.items() if head.settings.mean is not None}
        adapted = {name: train_of(train, sampling, name) for name, head in heads.items() if not head.is_replay}
        plan = foundation_plan(settings, foundation, plan, adapted, shifts)
    _LOGGER.info("Average number of neighbors: %s", plan.avg_num_neighbors)
    for one in plan.every_head if energies else ():
        of_head = f" of head {one.name}" if plan.heads else ""
        _LOGGER.info(
            "Scale of the interaction energy%s: %.8g eV, shift: %.8g eV per atom", of_head, one.scale, one.shift
        )
    return Preparation(data, plan, energies, train, sampling, valid, tests, file_digests(data.files()))


def _repeated(settings: TrainingSettings, heads: Mapping[str, Head], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the structures of each head in an epoch, where few structures stand beside many that are replayed."""
    n_replayed = sum(size for name, size in sizes.items() if heads[name].is_replay)
    ratio = (sum(sizes.values()) - n_replayed) / n_replayed if n_replayed else math.inf
    if ratio >= settings.real_pt_data_ratio_threshold:
        return dict(sizes)
    times = 1 + int(settings.real_pt_data_ratio_threshold / ratio)
    _LOGGER.info(
        "There are %.3g structures for each that is replayed, less than --real_pt_data_ratio_threshold=%g: they are "
        "drawn %d times in an epoch",
        ratio,
        settings.real_pt_data_ratio_threshold,
        times,
    )
    return {name: size if heads[name].is_replay else times * size for name, size in sizes.items()}


def _tests_of_all(divisions: Mapping[str, Division]) -> dict[str, StructureCollection]:
    """Return the test structures of all heads by name of the set, checking that no two sets have the same."""
    tests = dict[str, StructureCollection]()
    others = {table_row(role, head) for role in ("train", "valid") for head in divisions}
    for division in divisions.values():
        for name, configurations in division.tests.items():
            if name in tests or name in others:
                raise UserError(
                    f"{configurations[0].file}: these structures would have the same name in tables, {name}, as "
                    "another set; give another config_type, or another name to the head or the file."
                )
            tests[name] = configurations
    return tests


def _scaling(head: Head, train: StructureCollection, energies: ReferenceEnergies) -> Scaling:
    """Decide scale and shift of a head, and log what they cannot be computed from."""
    scaling = decide_scaling(head.settings, summarize(train, energies.energies))
    for warning in scaling.warnings:
        _LOGGER.warning("%s%s", head.prefix, warning)
    return scaling


def _elements(settings: TrainingSettings, heads: Mapping[str, Head], divisions: Mapping[str, Division]) -> ElementTable:
    """Return the elements of the model, checking that each head is trained on those it is validated and tested on.

    With ``--atomic_numbers`` they are these, and those of the structures that are replayed.
    """
    given = None if settings.atomic_numbers is None else ElementTable(tuple(settings.atomic_numbers))
    found: set[int] = set()
    for name, division in divisions.items():
        own = ElementTable(division.train.elements)
        if given is not None and not heads[name].is_replay:
            check_elements(given, division.train, purpose="--atomic_numbers")
            own = given
        for configurations in (division.valid, *division.tests.values()):
            check_elements(own, configurations)
        found.update(own)
    return ElementTable(tuple(sorted(found)))


def _sampling(settings: TrainingSettings, heads: Mapping[str, Head], sizes: Mapping[str, int]) -> HeadSampling:
    """Decide how often the structures of each head are used, and log it."""
    weights = None
    if settings.head_sampling == "balanced":
        weights = dict.fromkeys(heads, 1.0)
    elif settings.head_sampling == "weight":
        weights = {name: head.weight for name, head in heads.items()}
    sampling = sampled(sizes, weights)
    if weights is None:
        sampling = replace(sampling, draws=_repeated(settings, heads, sizes))
    if len(heads) > 1:
        words = (f"{name} {count} (of {sizes[name]})" for name, count in sampling.draws.items())
        _LOGGER.info("Structures per epoch by head, --head_sampling=%s: %s", settings.head_sampling, ", ".join(words))
        if settings.head_sampling != "weight":
            words = (f"{name} {head.weight:g}" for name, head in heads.items())
            _LOGGER.info("Weights of the heads in the loss: %s", ", ".join(words))
    return sampling


def _log_charges(structures: StructureCollection) -> None:
    """Log whether charges contribute to dipoles: a model trained without charges is wrong with them."""
    charged = structures.labeled("charges")
    count = int(np.count_nonzero(charged))
    if count == 0:
        _LOGGER.info("The structures have no charges, so the whole dipole is learned")
        return
    _LOGGER.info("Charges of %d structures enter their dipoles as charge times position", count)
    if count < len(structures):
        _LOGGER.warning(
            "%d of %d structures have no charges and count as uncharged; give all of them charges, or none",
            len(structures) - count,
            len(structures),
        )
    if any((block.labeled("charges") & block.columns["pbc"].any(axis=1)).any() for block in structures.blocks()):
        _LOGGER.warning(
            "Charges of periodic structures make their dipoles depend on which images of the atoms the files give"
        )
