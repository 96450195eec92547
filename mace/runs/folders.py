"""Where the files of a run go."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from mace.errors import UserError
from mace.files.ownership import Ownership
from mace.processes.launch import Launch, started_together
from mace.settings import TrainingSettings

LONGEST_NAME = 255
"""Bytes in the name of a file, on usual file systems."""

LONGEST_ENDING = 60
"""Bytes that the names of a run's files have besides its tag, while they are written."""


@dataclass(frozen=True)
class RunFolders:
    """The folders of a run, existing and writable.

    Attributes:
        work: For the indices of validation structures.
        log: For log files.
        model: For model files.
        checkpoints: For checkpoints.
        results: For JSON lines and plots.
        tag: ``<name>_run-<seed>``, with which file names begin.
    """

    work: Path
    log: Path
    model: Path
    checkpoints: Path
    results: Path
    tag: str


def make_folders(settings: TrainingSettings, create: bool = True) -> RunFolders:
    """Create the folders of a run.

    Args:
        settings: Their names.
        create: Whether this process writes files; if not, the folders are only named.

    Raises:
        UserError: If one of them cannot be created or written to; nothing has been trained then.
    """
    work = Path(settings.work_dir)
    folders = RunFolders(
        work=work,
        log=Path(settings.log_dir) if settings.log_dir else work / "logs",
        model=Path(settings.model_dir) if settings.model_dir else work,
        checkpoints=Path(settings.checkpoints_dir) if settings.checkpoints_dir else work / "checkpoints",
        results=Path(settings.results_dir) if settings.results_dir else work / "results",
        tag=f"{settings.name}_run-{settings.seed}",
    )
    _check_name(settings.name, folders.tag)
    if not create:
        return folders
    for kind in ("work", "log", "model", "checkpoints", "results"):
        folder: Path = getattr(folders, kind)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{folders.tag}.writable"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise UserError(
                f"{folder}: files cannot be written there ({reason}); choose another --{kind}_dir."
            ) from error
    return folders


def own_files(folders: RunFolders, settings: TrainingSettings, launch: Launch | None, writes: bool) -> Ownership:
    """Return what makes the files of a run this process's own.

    Args:
        folders: Where they are.
        settings: Of the run; a dry run owns nothing.
        launch: The place of this process among those of the run, if there are several.
        writes: Whether this process writes files.
    """
    together = started_together(os.environ) if launch is None else 1
    advice = f", or add --distributed if the {together} processes started together are to be one run"
    places = [folders.checkpoints, folders.results, folders.model] if writes and not settings.dry_run else []
    return Ownership(folders.tag, places, new_run_id(), settings.take_over, advice if together > 1 else "")


def new_run_id() -> str:
    """Return a name for a run that no other one has: time and chance."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _check_name(name: str, tag: str) -> None:
    """Make sure that files can be called after the run.

    Raises:
        UserError: If the name has no place in a file name, or leaves none for the ends of the names.
    """
    if "/" in name or name in ("", ".", "..") or not name.isprintable():
        raise UserError(f"--name={name!r} cannot begin a file name; use letters, digits, '-' and '_'.")
    try:
        excess = len(os.fsencode(tag)) + LONGEST_ENDING - LONGEST_NAME
    except UnicodeEncodeError as error:
        raise UserError(
            f"--name={ascii(name)} cannot be written as a file name here, where the encoding of file names is "
            f"{error.encoding}; use letters, digits, '-' and '_', or set LC_ALL=C.UTF-8."
        ) from error
    if excess > 0:
        raise UserError(f"--name={name[:20]}... is too long for file names: choose one that is {excess} bytes shorter.")


def model_files(settings: TrainingSettings, folders: RunFolders, stage: str) -> tuple[Path, Path]:
    """Name the model files of a stage: the one for use, and that of the seed, which scripts take out of `checkpoints`.

    Args:
        settings: Of the run.
        folders: Its folders.
        stage: ``one`` or ``two``.
    """
    ending = f"{'_stagetwo' if stage == 'two' else ''}.model"
    return folders.model / f"{settings.name}{ending}", folders.checkpoints / f"{folders.tag}{ending}"
