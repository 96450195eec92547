"""Files that are never half-written: written beside their destination, flushed to disk, then renamed in one step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_CANNOT_SYNCHRONIZE = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What network and FUSE file systems answer that know no such call; the file is as good as it can be there."""


def write_durably(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file so that at any moment, even after a crash, it has either the old or the new content.

    Args:
        path: The file to write; its folder is created.
        content: The complete content.
        previous: A second name under which the old content is kept, once the new content is on disk.

    Raises:
        OSError: If it cannot be written; the old file is then untouched, and no part of the new one is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            synchronize(stream.fileno())
        if previous is not None:
            keep_copy(path, previous)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    synchronize_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """Return the temporary path at which a file is written before it is renamed."""
    return path.with_name(f".{path.name}.tmp")


def free_name(folder: Path, begin: str, end: str = "") -> Path:
    """Return an unused path, with the lowest free number between the two given parts of its name."""
    number = 1
    while os.path.lexists(place := folder / f"{begin}{number}{end}"):
        number += 1
    return place


def keep_copy(path: Path, copy: Path) -> None:
    """Give the current content of a file a second name, so that it survives when the file is replaced.

    Args:
        path: The file; nothing is done if it does not exist.
        copy: The second name; a file that already has it is replaced.
    """
    if not path.exists():
        return
    temporary = temporary_beside(copy)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        os.replace(path, copy)
        return
    os.replace(temporary, copy)


def synchronize_folder(folder: Path) -> None:
    """Flush the names in a folder to disk; does nothing where folders cannot be opened (outside POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        synchronize(descriptor)
    finally:
        os.close(descriptor)


def synchronize(descriptor: int) -> None:
    """Flush a file or folder to disk, if its file system supports it.

    Raises:
        OSError: If flushing fails.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNCHRONIZE:
            raise


def is_full(error: BaseException | None) -> bool:
    """Return whether an error says that the disk is full or the user's quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
