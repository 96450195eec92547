"""A complete check of data: read, inspect, show and write a report."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console

from mace.console.logs import close_logging, setup_logging
from mace.console.progress import TrainingProgress
from mace.console.terminal import PlainConsole
from mace.finetuning.foundation import open_foundation
from mace.inspection.findings import check_allowed
from mace.inspection.inspection import DataReport
from mace.pages.data_page import write_page
from mace.planning.objectives import make_losses, with_labels
from mace.preparation.condition_keys import conditions_of
from mace.preparation.heads import Head, heads_of
from mace.preparation.reading import inspect_data, labels_of_all, read_heads
from mace.processes.devices import PRECISIONS
from mace.reporting.document import as_document, document_text, write_text
from mace.reporting.terminal import print_findings, print_report
from mace.settings.labels import Files
from mace.settings.other_commands import CheckSettings

_LOGGER = logging.getLogger(__name__)


def check_data(settings: CheckSettings, console: Console | None = None) -> dict[str, DataReport]:
    """Check data as ``mace_check_data`` does.

    Args:
        settings: The settings.
        console: Where to show output; standard output if None.

    Returns:
        The reports, by head.

    Raises:
        UserError: If settings or files are not usable.
    """
    console = console or PlainConsole()
    losses = make_losses(settings)
    check_allowed(settings.allow)
    setup_logging(settings.log_level, None, console, settings.quiet)
    try:
        with TrainingProgress(console, "off" if settings.quiet else settings.progress) as progress:
            foundation = open_foundation(settings, PRECISIONS[settings.default_dtype])
            heads = heads_of(settings)
            conditions = conditions_of(settings, foundation)
            sets = read_heads(heads, progress, conditions, foundation)
            losses = with_labels(settings, losses, labels_of_all(sets))
            reports = {name: inspect_data(head, losses, sets, progress, foundation) for name, head in heads.items()}
        for name, report in reports.items():
            _show(settings, heads[name], report, console)
        if settings.json_file is not None:
            documents = {name: as_document(report) for name, report in reports.items()}
            whole = documents if len(documents) > 1 else next(iter(documents.values()))
            _LOGGER.info("Wrote %s", write_text(settings.json_file, document_text(whole), "--json"))
    finally:
        close_logging()
    return reports


def _show(settings: CheckSettings, head: Head, report: DataReport, console: Console) -> None:
    """Print the report on a head, and write its page."""
    files = head.settings.train_file
    assert files is not None, "required of every head"
    name = settings.name or name_of_files(files)
    page = Path(settings.html or Path(settings.work_dir) / f"{name}_data.html")
    if not head.is_alone:
        console.print(f"Head {head.name}", highlight=False)
        page = page.with_name(f"{page.stem.removesuffix('_data')}_{head.name}_data{page.suffix}")
    if settings.quiet:
        print_findings(report, console, ("error", "warning"))
    else:
        print_report(report, console)
    title = f"Data of {name}" + ("" if head.is_alone else f", head {head.name}")
    _LOGGER.info("Wrote %s", write_text(str(page), write_page(report, title), "--html"))


def name_of_files(files: Files) -> str:
    """Return the first file's name without folder and ending, keeping only letters, digits, hyphen and underscore."""
    while not isinstance(files, str):
        files = files[0] if isinstance(files, list) else files.file  # type: ignore[assignment]  # a list of lists
    stem = Path(files).name.partition(".")[0]
    return "".join(letter for letter in stem if letter.isalnum() or letter in "-_") or "data"
