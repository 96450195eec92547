"""Folders and names for the files of a run."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from mace.errors import UserError
from mace.settings import TrainingSettings
from mace.structures.configuration import DEFAULT_HEAD

LONGEST_NAME = 255
"""Maximum length of a file name in bytes on common file systems."""

LONGEST_ENDING = 60
"""Maximum number of bytes that file names of a run, including temporary ones, have in addition to its tag."""


@dataclass(frozen=True)
class RunFolders:
    """The folders of a run, existing and writable.

    Attributes:
        work: Folder for the indices of validation structures.
        log: Folder for log files.
        model: Folder for model files.
        checkpoints: Folder for checkpoints.
        results: Folder for JSON lines and plots.
        tag: ``<name>_run-<seed>``, the beginning of file names.
    """

    work: Path
    log: Path
    model: Path
    checkpoints: Path
    results: Path
    tag: str

    def data_page(self, head: str = DEFAULT_HEAD) -> Path:
        """Return the path of the page on the data of a head."""
        of_head = "" if head == DEFAULT_HEAD else f"_{head}"
        return self.results / f"{self.tag}{of_head}_data.html"


def make_folders(settings: TrainingSettings, create: bool = True) -> RunFolders:
    """Create the folders of a run.

    Args:
        settings: Settings with the names of the folders.
        create: Whether to create the folders, for the process that writes files; otherwise they are only named.

    Raises:
        UserError: If the name of the run is not usable in file names, or a folder cannot be created or written to.
            Nothing has been trained at that point.
    """
    work, name = Path(settings.work_dir), settings.name
    folders = RunFolders(
        work=work,
        log=Path(settings.log_dir) if settings.log_dir else work / "logs",
        model=Path(settings.model_dir) if settings.model_dir else work,
        checkpoints=Path(settings.checkpoints_dir) if settings.checkpoints_dir else work / "checkpoints",
        results=Path(settings.results_dir) if settings.results_dir else work / "results",
        tag=f"{settings.name}_run-{settings.seed}",
    )
    if "/" in name or name in ("", ".", "..") or not name.isprintable():
        raise UserError(f"--name={name!r} cannot begin a file name; use letters, digits, '-' and '_'.")
    try:
        excess = len(os.fsencode(folders.tag)) + LONGEST_ENDING - LONGEST_NAME
    except UnicodeEncodeError as error:
        raise UserError(
            f"--name={ascii(name)} cannot be written as a file name here, where the encoding of file names is "
            f"{error.encoding}; use letters, digits, '-' and '_', or set LC_ALL=C.UTF-8."
        ) from error
    if excess > 0:
        raise UserError(f"--name={name[:20]}... is too long for file names: choose one that is {excess} bytes shorter.")
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


def new_run_id() -> str:
    """Return a unique id for a run, made of the time and random digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def model_files(settings: TrainingSettings, folders: RunFolders, stage: str) -> tuple[Path, Path]:
    """Return two model files of a stage: one for use, and one named by seed among the checkpoints, for scripts.

    Args:
        settings: Settings of the run.
        folders: Folders of the run.
        stage: ``one`` or ``two``.
    """
    ending = f"{'_stagetwo' if stage == 'two' else ''}.model"
    return folders.model / f"{settings.name}{ending}", folders.checkpoints / f"{folders.tag}{ending}"
