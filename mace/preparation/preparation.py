"""Everything that is known before the first step: structures, elements, reference energies, statistics, the plan."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from mace.conditions import Condition
from mace.console.progress import ReadingProgress, TrainingProgress
from mace.elements import ElementTable, chemical_symbol
from mace.errors import UserError
from mace.finetuning.estimated_energies import estimate_energies
from mace.finetuning.foundation import Foundation, foundation_plan
from mace.graphs.dataset import Dataset
from mace.graphs.in_memory import InMemoryDataset
from mace.inspection.inspection import DataReport
from mace.model.plan import OUTPUTS, ModelPlan, first_problem
from mace.planning.model_plan import NO_SCALING, decide_neighbors, decide_scaling, plan_model
from mace.planning.objectives import Losses, ways_out, with_labels
from mace.preparation.condition_keys import conditions_of, keys_without_condition
from mace.preparation.data_report import DataSets, inspect_data, tell_report
from mace.reporting.set_names import table_row
from mace.reporting.tables import contents_line, residual_table
from mace.settings import TrainingSettings
from mace.structures.configuration import DEFAULT_HEAD, Configuration
from mace.structures.labels import LabelReport, require_labels
from mace.structures.reading import ReadResult, read_sources
from mace.structures.reference_energies import ReferenceEnergies, resolve_reference_energies
from mace.structures.sources import Source, files_of, sources_of
from mace.structures.splitting import check_elements, split_validation, write_valid_indices
from mace.structures.statistics import Scaling, summarize
from mace.training.checkpoints import file_digests
from mace.training.loss import Loss

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Structures:
    """The structures of a run before any neighbor is searched.

    Attributes:
        train: To learn from.
        valid: To validate with.
        tests: Sets to test on, by name.
        isolated_atoms: Frames of isolated atoms in the training files.
        report: Which labels the training files have.
        digests: SHA-256 of each training and validation file.
    """

    train: list[Configuration]
    valid: list[Configuration]
    tests: dict[str, list[Configuration]]
    isolated_atoms: list[Configuration]
    report: LabelReport
    digests: dict[str, str]


@dataclass(frozen=True)
class Preparation:
    """What training starts from.

    Attributes:
        plan: The plan of the model.
        energies: Reference energies and where they come from; None for a model without energies.
        train: Graphs to learn from.
        valid: Graphs to validate with, by head.
        tests: Graphs to test on, by name.
        digests: SHA-256 of each training and validation file.
        losses: The losses of the stages, without terms that no structure has labels for.
        report: What the checks found in all files, if they were made.
    """

    plan: ModelPlan
    energies: ReferenceEnergies | None
    train: Dataset
    valid: dict[str, Dataset]
    tests: dict[str, Dataset]
    digests: dict[str, str]
    losses: Losses
    report: DataReport | None = None

    def sets(self) -> dict[str, tuple[str, Dataset]]:
        """Return the role of each set, ``train``, ``valid`` or ``test``, and its graphs, by its row in error tables."""
        return {
            table_row("train", DEFAULT_HEAD): ("train", self.train),
            **{table_row("valid", head): ("valid", dataset) for head, dataset in self.valid.items()},
            **{name: ("test", dataset) for name, dataset in self.tests.items()},
        }

    @property
    def digest(self) -> str:
        """SHA-256 over all of them."""
        return hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()


def read_sets(settings: TrainingSettings, progress: TrainingProgress, conditions: Sequence[Condition] = ()) -> DataSets:
    """Read all files and log where their labels were found; labels that are NaN are left out and reported.

    Args:
        settings: File names, keys, units and weights.
        progress: What to show.
        conditions: What the model wants to know besides; see `mace.preparation.condition_keys`.

    Raises:
        UserError: See `mace.structures.reading.read_sources`.
    """
    validation = None
    training = _read(sources_of(settings, settings.train_file, conditions), "Training set", progress)
    if settings.valid_file:
        validation = _read(sources_of(settings, settings.valid_file, conditions), "Validation set", progress)
    return DataSets(training, validation, _read_tests(settings, progress, conditions))


def divide(settings: TrainingSettings, losses: Losses, sets: DataSets, writes: bool = True) -> Structures:
    """Set validation structures aside, and make sure the labels that are fitted exist.

    Args:
        settings: File names and split.
        losses: The losses of the stages; their labels are needed in the training files.
        sets: What was read.
        writes: Whether this process writes files.

    Returns:
        The structures.

    Raises:
        UserError: See `require_labels` and `split_validation`.
    """
    training = sets.training
    needed = ways_out(losses)
    require_labels(training.report, sorted(needed), needed)
    configurations = training.configurations
    files = files_of(settings.train_file)
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
        files += files_of(settings.valid_file)
        if not valid:
            names = ", ".join(files_of(settings.valid_file))
            raise UserError(f"{names}: there is no structure to validate with, isolated atoms only.")
    if settings.keep_isolated_atoms:
        # after the split: an isolated atom among the validation structures says nothing about what is learned
        train = [*train, *training.isolated_atoms]
    for loss in filter(None, losses):
        _require_weight(train, loss, "training")
        _require_weight(valid, loss, "validation")
    tests = _named_tests(sets.tests)
    counts = ", ".join(f"{name}: {len(items)}" for name, items in tests.items())
    _LOGGER.info("Total number of configurations: train=%d, valid=%d, tests=[%s]", len(train), len(valid), counts)
    digests = file_digests(files)
    return Structures(train, valid, tests, training.isolated_atoms, training.report, digests)


def _require_weight(configurations: Sequence[Configuration], loss: Loss, purpose: str) -> None:
    """Make sure that a set says something about a loss: one without labels would make it zero, and so the best."""
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


def _read(sources: Sequence[Source], what: str, progress: TrainingProgress) -> ReadResult:
    """Read files and log what was found in them."""
    reading = ReadingProgress(progress)
    try:
        result = read_sources(sources, progress=reading, skip_non_finite=True)
    finally:
        reading.close()
    for line in result.report.lines():
        _LOGGER.info("%s: %s", what, line)
    return result


def _read_tests(
    settings: TrainingSettings, progress: TrainingProgress, conditions: Sequence[Condition]
) -> dict[str, ReadResult]:
    """Read the test structures: those of the test file under an empty name, those of a folder by file."""
    tests: dict[str, ReadResult] = {}
    if settings.test_file is not None:
        tests[""] = _read(sources_of(settings, settings.test_file, conditions), "Test set", progress)
    if settings.test_dir is not None:
        folder = Path(settings.test_dir)
        if not folder.is_dir():
            raise UserError(f"--test_dir: {folder} is not a folder.")
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            tests[file.stem] = _read(sources_of(settings, str(file), conditions), "Test set", progress)
    return tests


def _named_tests(results: Mapping[str, ReadResult]) -> dict[str, list[Configuration]]:
    """Divide the structures of a test file by config_type; those of a folder stay file by file."""
    tests: dict[str, list[Configuration]] = {}
    for name, result in results.items():
        for configuration in result.configurations:
            by_type = table_row(configuration.config_type, configuration.head)
            tests.setdefault(name or by_type, []).append(configuration)
    return tests


def prepare(
    settings: TrainingSettings,
    losses: Losses,
    files: Path,
    progress: TrainingProgress,
    writes: bool = True,
    foundation: Foundation | None = None,
) -> Preparation:
    """Read the data, check and measure them, and decide the model.

    Args:
        settings: What was typed.
        losses: The losses of the stages.
        files: Beginning of the names of the report on the data, its folder included.
        progress: What to show.
        writes: Whether this process writes files.
        foundation: The model that is fine-tuned, if any.

    Returns:
        What training starts from.

    Raises:
        UserError: If data or settings do not allow a training.
    """
    conditions = conditions_of(settings, foundation)
    for key in keys_without_condition(settings, conditions):
        _LOGGER.warning("%s", key)
    sets = read_sets(settings, progress, conditions)
    _LOGGER.info(contents_line("Total Training set", sets.training.configurations))
    if sets.validation is not None:
        _LOGGER.info(contents_line("Total Validation set", sets.validation.configurations))
    losses = with_labels(settings, losses, sets.training.report)
    report = inspect_data(settings, losses, sets, progress, foundation)
    page = files.with_name(f"{files.name}_data.html") if writes else None
    tell_report(report, page, f"Data of {files.name}")
    report.refuse_errors()
    return replace(decide(settings, losses, sets, progress, writes, foundation), report=report)


def decide(
    settings: TrainingSettings,
    losses: Losses,
    sets: DataSets,
    progress: TrainingProgress,
    writes: bool = True,
    foundation: Foundation | None = None,
) -> Preparation:
    """Measure data that were read and checked, and decide the model.

    Args:
        settings: What was typed.
        losses: The losses of the stages.
        sets: What was read.
        progress: What to show.
        writes: Whether this process writes files.
        foundation: The model that is fine-tuned, if any.

    Returns:
        What training starts from.

    Raises:
        UserError: If data or settings do not allow a training.
    """
    structures = divide(settings, losses, sets, writes)
    elements = _element_table(settings, structures)
    energies, scaling = _decide_energies(settings, structures, elements, foundation)
    if energies is not None:
        elements = ElementTable(tuple(sorted(energies.energies)))
    if "dipole" in OUTPUTS[settings.model]:
        _tell_charges([*structures.train, *structures.valid])
    r_max = settings.r_max if foundation is None else foundation.plan.r_max
    train = build_dataset(structures.train, elements, r_max, progress, "Neighbors of the training set")
    valid = {
        DEFAULT_HEAD: build_dataset(structures.valid, elements, r_max, progress, "Neighbors of the validation set")
    }
    tests = {  # before training, so that nothing in them can spoil its end
        name: build_dataset(configurations, elements, r_max, progress, f"Neighbors of {name}")
        for name, configurations in structures.tests.items()
    }
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
    return Preparation(plan, energies, train, valid, tests, structures.digests, losses)


def _decide_energies(
    settings: TrainingSettings, structures: Structures, elements: ElementTable, foundation: Foundation | None
) -> tuple[ReferenceEnergies | None, Scaling]:
    """Find reference energies, scale and shift, for a model that has energies."""
    if "energy" not in OUTPUTS[settings.model]:
        return None, NO_SCALING
    energies = _reference_energies(settings, structures, elements, foundation)
    _tell_energies(energies)
    scaling = decide_scaling(settings, summarize(structures.train, energies.energies))
    for warning in scaling.warnings:
        _LOGGER.warning(warning)
    return energies, scaling


def _tell_charges(configurations: Sequence[Configuration]) -> None:
    """Say whether charges enter the dipoles: a model that learned without them is wrong with them."""
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


def build_dataset(
    configurations: Sequence[Configuration],
    elements: ElementTable,
    r_max: float,
    progress: TrainingProgress,
    description: str,
) -> Dataset:
    """Search the neighbors of all structures, with progress."""

    def tracked(items: Sequence[Configuration]) -> Iterable[Configuration]:
        return progress.track(items, description)

    return InMemoryDataset(configurations, elements, r_max, tracked)


def _element_table(settings: TrainingSettings, structures: Structures) -> ElementTable:
    """Collect the elements of the training set, or take those given, and compare all other sets with them."""
    found = ElementTable.from_arrays(c.atomic_numbers for c in structures.train)
    elements = found
    if settings.atomic_numbers is not None:
        elements = ElementTable(tuple(settings.atomic_numbers))
        check_elements(elements, structures.train, purpose="--atomic_numbers")
    check_elements(elements, structures.valid)
    for configurations in structures.tests.values():
        check_elements(elements, configurations)
    _LOGGER.info("Atomic Numbers used: %s", list(elements.atomic_numbers))
    return elements


def _reference_energies(
    settings: TrainingSettings, structures: Structures, elements: ElementTable, foundation: Foundation | None
) -> ReferenceEnergies:
    """Find the reference energies, those of elements the data lack in the foundation model."""
    known, fit = (None, None) if foundation is None else (
        foundation.energies,
        partial(estimate_energies, foundation, structures.train, elements, settings.batch_size),
    )  # fmt: skip
    energies = resolve_reference_energies(
        settings.E0s,
        structures.isolated_atoms,
        structures.train,
        elements,
        known,
        fit if settings.E0s == "estimated" else None,
    )
    if known is None or not settings.foundation_model_elements:
        return energies
    return replace(energies, energies=dict(sorted((known | energies.energies).items())))


def _tell_energies(energies: ReferenceEnergies) -> None:
    """Log the reference energies and what is worth noting; the report on the data has said what is wrong with them."""
    _LOGGER.info("Isolated Atomic Energies (E0s) from: %s", energies.source)
    shown = ", ".join(f"{z} ({chemical_symbol(z)}): {energy:.10g}" for z, energy in energies.energies.items())
    _LOGGER.info("Atomic Energies used (z: eV) for head %s: {%s}", DEFAULT_HEAD, shown)
    if energies.residuals:
        _LOGGER.info("What these energies leave unexplained:\n%s", residual_table(energies.residuals))
    for note in energies.notes:
        _LOGGER.info(note)
