"""The context of a training run from beginning to end: processes, signals, folders, log and report page."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console

from mace import __version__
from mace.console.interruption import Interruption
from mace.console.logs import close_logging, log_path, setup_logging, setup_logging_of_others
from mace.console.progress import TrainingProgress
from mace.console.terminal import PlainConsole
from mace.errors import RunInterrupted, UserError
from mace.files.ownership import Ownership
from mace.planning.model_choices import reported_table
from mace.planning.objectives import Losses
from mace.processes.devices import products_in
from mace.processes.launch import Launch, started_together
from mace.processes.team import make_team
from mace.reporting.tables import errors_in_words
from mace.runs.environment import log_environment
from mace.runs.folders import RunFolders, make_folders, new_run_id
from mace.runs.run_report import RunReport
from mace.settings import TrainingSettings
from mace.training.checkpoints import CheckpointFolder
from mace.training.context import TrainingContext

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """Choices made before anything is read or written.

    Attributes:
        settings: The settings, completed.
        losses: The losses of the stages.
        launch: How this process was launched among those of the run; None if it is the only one.
        device: The device of this process.
        notes: Choices made on behalf of the user, as sentences for the log.
        warnings: Settings given by the user that have no effect, as sentences for the log.
    """

    settings: TrainingSettings
    losses: Losses
    launch: Launch | None
    device: torch.device
    notes: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class RunContext(TrainingContext):
    """The context of a training run; extends `TrainingContext`.

    Attributes:
        folders: The folders for the files of the run.
        checkpoints: The checkpoints of the run.
        ownership: Checks that the files belong to this run.
        console: Where output is shown.
        report: The report page of the run.
    """

    folders: RunFolders
    checkpoints: CheckpointFolder
    ownership: Ownership
    console: Console
    report: RunReport


@contextmanager
def run_context(choices: Choices, console: Console | None = None) -> Iterator[RunContext]:
    """Connect to the other processes, claim the files of the run and set up logging, inside a ``with`` block.

    Args:
        choices: The choices made beforehand.
        console: Where to show output; standard output if None.

    Raises:
        UserError: If processes do not agree, or files cannot be written or are in use by another run.
        RunInterrupted: If a signal to stop arrived.
    """
    settings, device = choices.settings, choices.device
    with (
        Interruption() as interruption,
        products_in(device, settings.tf32) as notes_on_products,
        make_team(choices.launch, device) as team,
    ):
        facts = {f"--{n}": json.dumps(v) for n, v in settings.model_dump(mode="json", exclude={"config"}).items()}
        team.require_agreement("settings", {"the version of mace": __version__} | facts)
        console = console or PlainConsole(quiet=not team.is_first)
        folders = make_folders(settings, create=team.is_first)
        mode = settings.progress if team.is_first and not settings.quiet else "off"
        progress = TrainingProgress(console, mode, errors_in_words=errors_in_words(reported_table(settings)))
        together = started_together(os.environ) if choices.launch is None else 1
        advice = f", or add --distributed if the {together} processes started together are to be one run"
        owns_files = team.is_first and not settings.dry_run
        places = [folders.checkpoints, folders.results, folders.model] if owns_files else []
        with Ownership(
            folders.tag, places, new_run_id(), settings.take_over, advice if together > 1 else ""
        ) as ownership:
            if team.is_first:  # the only process that writes to terminal and log file
                file = log_path(folders.log, settings.name, settings.seed)
                setup_logging(settings.log_level, file, console, settings.quiet)
            else:
                setup_logging_of_others(team.rank)
            try:
                log_environment(settings, device, team)
                for note in choices.notes:
                    _LOGGER.info("%s", note)
                for warning in [*choices.warnings, *notes_on_products, *ownership.notes]:
                    _LOGGER.warning("%s", warning)
                writes_page = team.is_first and settings.report and not settings.dry_run
                page = folders.results / f"{folders.tag}.html" if writes_page else None
                keeps_all = settings.keep_checkpoints or settings.save_all_checkpoints
                with RunReport(page) as report, progress, team.explaining(interruption.ignore):
                    yield RunContext(
                        settings=settings,
                        device=device,
                        team=team,
                        interruption=interruption,
                        progress=progress,
                        folders=folders,
                        checkpoints=CheckpointFolder(folders.checkpoints, folders.tag, keeps_all),
                        ownership=ownership,
                        console=console,
                        report=report,
                    )
            except (UserError, RunInterrupted) as error:
                logging.getLogger("mace").debug("stopped: %s", error)
                raise
            finally:
                close_logging()
