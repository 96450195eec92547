"""Checks of output files before any work is done, so that no work is wasted and no file is lost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mace.errors import UserError


def check_output(
    path: str | Path, what: str, inputs: Mapping[str, Iterable[str | Path]], overwrite: bool | None = None
) -> Path:
    """Check that a file can be written and does not replace a file that is needed.

    Args:
        path: The file.
        what: What it is going to be, for the message.
        inputs: Files that must stay, by what they are.
        overwrite: Whether it may exist already; None if that goes without saying.

    Returns:
        The file.

    Raises:
        UserError: If it cannot be written or would replace such a file.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: the {what} is a directory; name a file.")
    for name, files in inputs.items():
        if any(Path(file).exists() and path.resolve() == Path(file).resolve() for file in files):
            raise UserError(f"{path}: the {what} would take the place of the {name}; choose another name.")
    if path.exists() and overwrite is False:
        raise UserError(f"{path}: the file exists; choose another name, or replace it with --overwrite.")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"{path}: the {what} cannot be written, because {nearest} is no folder; choose another name.")
    if not os.access(path if path.exists() else nearest, os.W_OK):
        raise UserError(f"{path}: the {what} cannot be written; change the permissions or choose another name.")
    return path
