"""A complete check of data: read, inspect, show and write a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

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
from mace.reporting.document import document_text, write_text
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
        _show(settings, heads, reports, console)
        if settings.json_file is not None:
            _LOGGER.info("Wrote %s", write_text(settings.json_file, document_text(reports), "--json"))
    finally:
        close_logging()
    return reports


def _show(
    settings: CheckSettings, heads: Mapping[str, Head], reports: Mapping[str, DataReport], console: Console
) -> None:
    """Print the reports, and write their pages."""
    several = len(heads) > 1
    files = {name: head.settings.train_file for name, head in heads.items()}
    first = next(given for given in files.values() if given is not None)  # a head that is replayed may have none
    names = {head: settings.name or name_of_files(given or first) for head, given in files.items()}
    pages = {head: _page(settings, name, head if several else "") for head, name in names.items()}
    links = {head: path.name for head, path in pages.items()} if several else None
    for head, report in reports.items():
        if several and not (settings.quiet and not (report.errors or report.of_level("warning"))):
            console.print(Text(f"\nHead {head}", style="bold"), soft_wrap=True)
        if settings.quiet:
            print_findings(report, console, ("error", "warning"))
        else:
            print_report(report, console)
        written = write_text(pages[head], write_page(report, f"Data of {names[head]}", links, head), "--html")
        _LOGGER.info("Wrote %s", written)


def _page(settings: CheckSettings, name: str, head: str) -> Path:
    """Choose the path of a page, with the name of the head if there are several."""
    of_head = head and f"_{head}"
    if settings.html is None:
        return Path(settings.work_dir) / f"{name}{of_head}_data.html"
    wanted = Path(settings.html)
    return wanted.with_name(f"{wanted.stem}{of_head}{wanted.suffix}")


def name_of_files(files: Files) -> str:
    """Return the first file's name without folder and ending, keeping only letters, digits, hyphen and underscore."""
    while not isinstance(files, str):
        files = files[0] if isinstance(files, list) else files.file  # type: ignore[assignment]  # a list of lists
    stem = Path(files).name.partition(".")[0]
    return "".join(letter for letter in stem if letter.isalnum() or letter in "-_") or "data"
