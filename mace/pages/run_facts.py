"""The facts about a run that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from mace.inspection.distributions import Distribution
from mace.inspection.inspection import DataReport
from mace.reporting.history import RunHistory
from mace.reporting.predictions import Predictions
from mace.reporting.set_names import shown_name, table_row
from mace.reporting.worst import Suspect
from mace.structures.configuration import DEFAULT_HEAD

Condition = Literal["running", "finished", "stopped", "failed"]
"""``stopped`` is on request, ``failed`` with an error."""


@dataclass(frozen=True)
class SettingFact:
    """A setting: its group, name, value and default in words, whether somebody gave it, and what it does."""

    group: str
    name: str
    value: str
    default: str
    given: bool
    help: str


@dataclass(frozen=True)
class SetFact:
    """A set of structures: role, name, number of structures, atoms and directed edges; its head of several."""

    role: str
    name: str
    structures: int
    atoms: int
    edges: int
    head: str = ""


@dataclass(frozen=True)
class ElementFact:
    """An element of the model.

    Attributes:
        symbol: Its symbol.
        energy: E0 in eV; None for a model without energies.
        atoms: Atoms of it in the training set.
        neighbors: Mean number of neighbors of these; None if there are none among those whose neighbors are counted.
        fewest: The smallest.
        most: The largest.
        head: Which of several heads E0 and training structures are of; empty for the only one.
    """

    symbol: str
    energy: float | None
    atoms: int
    neighbors: float | None
    fewest: int
    most: int
    head: str = ""


@dataclass(frozen=True)
class HeadFact:
    """A head of the model.

    Attributes:
        name: Its name.
        weight: Weight of its structures, in the loss or, with ``--head_sampling=weight``, in the sampling.
        training: Its training structures.
        in_epoch: How many are gone through in an epoch.
        validation: Its validation structures.
        scale: Factor on the learned energy in eV; None for a model without energies.
        shift: Constant added to the energy of an atom in eV.
        energies_source: Where its E0s come from.
    """

    name: str
    weight: float
    training: int
    in_epoch: int
    validation: int
    scale: float | None
    shift: float | None
    energies_source: str


@dataclass(frozen=True)
class CommandFact:
    """A command or a piece of code for the reader, and what it is for."""

    purpose: str
    text: str


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before its first step.

    Attributes:
        name: Its name.
        tag: Name and seed, as in file names.
        identity: Id of the run.
        started: When the program was started.
        epochs: Epochs it is to have.
        interval: Epochs from one evaluation to the next.
        patience: Evaluations without gain after which a stage ends.
        machine: Where it runs, in words.
        settings: All settings that the program has, in the order of their groups.
        decisions: What became of them: names and values in words.
        sets: The sets of structures.
        data: What the files of each head hold.
        data_pages: Name of the page on the data of each head, beside that of the run.
        heads: Of the model.
        head_sampling: How their structures are mixed, a value of ``--head_sampling``.
        elements: Of the model, for each head.
        neighbors: Number of neighbors of the atoms of the training set of each head.
        looked_at: Number of structures of each head, drawn by lot, whose neighbors were counted; 0 if all were.
        average_neighbors: The number that the model divides by.
        r_max: Cutoff in Angstrom.
        versions: Of programs.
        commands: To reproduce, resume, evaluate and use.
    """

    name: str
    tag: str
    identity: str
    started: datetime
    epochs: int
    interval: int
    patience: int
    machine: str
    settings: Sequence[SettingFact]
    decisions: Mapping[str, str]
    sets: Sequence[SetFact]
    data: Mapping[str, DataReport]
    data_pages: Mapping[str, str]
    heads: Sequence[HeadFact]
    head_sampling: str
    elements: Sequence[ElementFact]
    neighbors: Mapping[str, Distribution]
    looked_at: int
    average_neighbors: float
    r_max: float
    versions: Mapping[str, str]
    commands: Sequence[CommandFact]


@dataclass(frozen=True)
class Warned:
    """A warning of the run: when, how serious, what; and how often it came."""

    time: datetime
    level: str
    sentence: str
    times: int = 1


@dataclass(frozen=True)
class MeasuredStage:
    """What was measured of the model of a stage.

    Attributes:
        stage: ``one`` or ``two``.
        epoch: The epoch its weights are from; None for those it started with.
        metrics: Errors by the name of the set, as in the error tables.
        predictions: Errors in every part of the data.
        worst: The structures with the largest errors, by property.
        heads: Of the model.
        head_of: The head of each set, by its name.
    """

    stage: str
    epoch: int | None
    metrics: Mapping[str, Mapping[str, float]]
    predictions: Predictions
    worst: Mapping[str, Sequence[Suspect]]
    heads: Sequence[str] = (DEFAULT_HEAD,)
    head_of: Mapping[str, str] = field(default_factory=dict)

    def metrics_of(self, group: str) -> dict[str, Mapping[str, float]]:
        """Return the errors of the training or validation structures, ``train`` or ``valid``, by head."""
        rows = {head: table_row(group, head) for head in self.heads}
        return {head: self.metrics[row] for head, row in rows.items() if row in self.metrics}

    def test_metrics(self) -> dict[str, Mapping[str, float]]:
        """Return the errors of the test sets by their name."""
        learned = {table_row(group, head) for group in ("train", "valid") for head in self.heads}
        return {shown_name(row): values for row, values in self.metrics.items() if row not in learned}


@dataclass
class RunState:
    """What changes while a run goes on.

    Attributes:
        condition: Whether it goes on.
        sentence: Why it ended, or what it does.
        written: When the page was written.
        history: Its course.
        stage_two_start: First epoch of stage two, if there is one.
        best_epochs: Epoch of the lowest validation loss, by stage.
        times_back: How often it went back because something was not a number.
        warnings: What was warned of.
        stages: What was measured of the finished models.
        latest: What the last validation measured, until then.
    """

    condition: Condition
    sentence: str
    written: datetime
    history: RunHistory
    stage_two_start: int | None = None
    best_epochs: Mapping[str, int] = field(default_factory=dict)
    times_back: int = 0
    warnings: Sequence[Warned] = ()
    stages: Sequence[MeasuredStage] = ()
    latest: MeasuredStage | None = None
