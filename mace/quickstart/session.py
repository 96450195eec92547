"""A quickstart from beginning to end: read, look, ask, propose, measure, predict, write."""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mace.console.logs import close_logging, setup_logging
from mace.console.progress import TrainingProgress
from mace.console.terminal import PlainConsole
from mace.errors import UserError
from mace.files.durable import write_durably
from mace.inspection.findings import check_allowed
from mace.inspection.inspection import DataReport
from mace.planning.model_choices import settings_for_model
from mace.planning.objectives import make_losses, with_labels
from mace.preparation.check import name_of_files
from mace.preparation.condition_keys import conditions_of
from mace.preparation.heads import heads_of
from mace.preparation.reading import DataSets, InputData, inspect_data, read_sets
from mace.quickstart.course import Limits, Prediction, propose_course
from mace.quickstart.document import proposal_table, yaml_document
from mace.quickstart.facts import Facts, Machine, gather_facts, look_at_machine
from mace.quickstart.pace import Pace, measure_pace
from mace.quickstart.proposal import Proposal, choose_size, propose_data, propose_loss, propose_model
from mace.quickstart.questions import ask
from mace.reporting.terminal import print_report, verdict
from mace.settings import TrainingSettings, provided
from mace.settings.declaration import as_list
from mace.settings.labels import FileSettings
from mace.settings.other_commands import QuickstartSettings

_LOGGER = logging.getLogger(__name__)

_OWN = frozenset(QuickstartSettings.model_fields) - frozenset(TrainingSettings.model_fields)
_OTHER_WORK = {
    "foundation_model": "only trainings from scratch are proposed; start a fine-tuning with mace_run_train itself.",
    "distributed": "times are measured in one process; remove the flag here, and add it to the file that is written.",
    "restart_latest": "there is nothing to resume in a proposal; remove the flag here, and give it to mace_run_train.",
    "take_over": "a proposal owns no files; remove the flag here, and give it to mace_run_train.",
    "dry_run": "a proposal trains nothing; remove the flag.",
    "heads": "one head is proposed; remove the flag here, and add it to the file that is written.",
    "head_key": "one head is proposed; remove the flag here, and add it to the file that is written.",
}
_NOT_KEPT = _OWN | {"config", "name"}
"""Settings that say how to propose, and are not part of what is proposed."""


@dataclass(frozen=True)
class Outcome:
    """What a quickstart found and wrote.

    Attributes:
        file: The YAML file.
        proposal: What is in it.
        pace: What was measured.
        prediction: The time a training takes.
    """

    file: Path
    proposal: Proposal
    pace: Pace
    prediction: Prediction


def run_quickstart(
    settings: QuickstartSettings, console: Console | None = None, asks: bool = False, seconds_before: float = 0.0
) -> Outcome:
    """Do what ``mace_quickstart`` does.

    Args:
        settings: What was given.
        console: Where to show; standard output if None.
        asks: Whether somebody is there to answer questions.
        seconds_before: Seconds it took to load the program.

    Returns:
        What was found and written.

    Raises:
        UserError: If settings or data do not allow a training, or the file exists.
    """
    console = console or PlainConsole()
    for name, why in _OTHER_WORK.items():  # neither decisions nor times would be right for it
        if getattr(settings, name):
            raise UserError(f"--{name}: {why}")
    _free_output(settings)  # said at once, not after minutes
    check_allowed(settings.allow)
    level = settings.log_level if "log_level" in provided(settings) else "WARNING"
    setup_logging(level, None, console, settings.quiet)
    if settings.quiet:
        console = PlainConsole(quiet=True)  # the file says it all; warnings have the other one
    try:
        with TrainingProgress(console, "off" if settings.quiet else settings.progress) as progress:
            start = time.perf_counter()
            (head,) = heads_of(settings).values()
            sets = read_sets(head, progress, conditions_of(settings))
            if not sets.training.configurations:
                raise UserError(f"{_files(settings)}: there is no structure to train on, isolated atoms only.")
            facts = gather_facts(sets.training)
            read_in = seconds_before + time.perf_counter() - start
            machine = look_at_machine(settings.device if "device" in provided(settings) else None, settings.num_threads)
            _say(console, f"{_files(settings)}: {facts.line()}")
            _say(console, f"Machine: {machine.line()}")
            if asks:
                settings = ask(settings, facts, machine, console)
            return _propose(settings, sets, facts, machine, read_in, console, progress)
    finally:
        close_logging()


def _propose(
    settings: QuickstartSettings,
    sets: DataSets,
    facts: Facts,
    machine: Machine,
    read_in: float,
    console: Console,
    progress: TrainingProgress,
) -> Outcome:
    """Decide, check, measure, predict and write."""
    size, why = choose_size(settings.size, machine)
    proposal = Proposal({name: getattr(settings, name) for name in sorted(provided(settings) - _NOT_KEPT)})
    name = settings.name or name_of_files(_train_files(settings))
    proposal.put("Run", "name", name, "all files of the run begin with it")
    proposal.put("Data", "train_file", None, "")
    propose_model(proposal, facts, machine, size, why)
    propose_data(proposal, facts, machine)
    propose_loss(proposal, facts)
    tried, _ = settings_for_model(training_settings(proposal))
    losses = with_labels(tried, make_losses(tried), sets.training.report)
    start = time.perf_counter()
    heads = heads_of(tried)
    (head,) = heads.values()
    report = inspect_data(head, losses, {head.name: sets}, progress)
    checked_in = time.perf_counter() - start
    print_report(report, console)
    report.refuse_errors()
    _say(console, "\nTiming the model on this machine (the first time, its inner loops are compiled) ...")
    pace = measure_pace(tried, InputData(heads, {head.name: sets}, losses, {head.name: report}), progress)
    prediction = propose_course(proposal, pace, machine, Limits(size, settings.time, read_in + checked_in))
    training_settings(proposal)  # all of it is valid together
    console.print(proposal_table(proposal), highlight=False)
    output = _free_output(settings)
    introduction = _introduction(settings, facts, machine, report, pace, prediction)
    for line in introduction:
        _say(console, line)
    command = f"mace_run_train --config {shlex.quote(str(output))}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_durably(output, yaml_document(proposal, introduction, command).encode())
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written ({error.strerror or error}).") from error
    _say(console, f"\nWrote {output}. Train with:\n\n    {command}\n")
    return Outcome(output, proposal, pace, prediction)


def training_settings(proposal: Proposal) -> TrainingSettings:
    """Build the settings a training with this proposal has."""
    return TrainingSettings(**{name: value for name, value in proposal.values().items() if value is not None})


def _introduction(
    settings: QuickstartSettings, facts: Facts, machine: Machine, report: DataReport, pace: Pace, prediction: Prediction
) -> list[str]:
    """Describe what the proposal is made for, in lines for the terminal and the file."""
    memory = f"memory: about {pace.memory / 1e9:.2g} GB at the peak"
    if machine.memory and pace.memory > 0.8 * machine.memory:
        memory += (
            f", which this machine hardly has ({machine.memory / 1e9:.2g} GB): choose a smaller batch_size or size"
        )
    return [
        f"Data: {_files(settings)}: {facts.line()}. {verdict(report)}",
        f"Machine: {machine.line()}",
        f"Model: {pace.parameters:,} parameters; {memory}",
        f"Time: {prediction.line()} ({pace.steps} steps were timed, {1e3 * pace.step:.3g} ms each)",
    ]


def _train_files(settings: QuickstartSettings) -> list[str | FileSettings]:
    """List the training files, which a proposal needs."""
    assert settings.train_file is not None, "required without heads"
    return list(as_list(settings.train_file))


def _files(settings: QuickstartSettings) -> str:
    files = _train_files(settings)
    return ", ".join(file if isinstance(file, str) else str(file.file) for file in files)


def _free_output(settings: QuickstartSettings) -> Path:
    """Return the file to write; one that exists is in the way."""
    output = Path(settings.output or f"{settings.name or name_of_files(_train_files(settings))}.yaml")
    if output.exists() and not settings.overwrite:
        raise UserError(
            f"{output}: the file exists; choose another name with --output, or replace it with --overwrite."
        )
    return output


def _say(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)
