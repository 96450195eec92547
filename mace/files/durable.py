"""Files that are never half there: written beside their place, put on the disk, then moved in one step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_CANNOT_SYNCHRONIZE = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What network and FUSE file systems answer that know no such call; the file is as good as it can be there."""


def write_durably(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file so that at any moment, also after a crash, either the old or the new content is there.

    Args:
        path: Where to; its folder is created.
        content: All of the file.
        previous: Another name that the old content gets, once the new one is on the disk.

    Raises:
        OSError: If it cannot be written; the old file is untouched then, and no part of the new one stays behind.
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
    """Return the place where a file is written before it moves to its own."""
    return path.with_name(f".{path.name}.tmp")


def free_name(folder: Path, begin: str, end: str = "") -> Path:
    """Return a place that nothing has taken, with the lowest number between two parts of its name."""
    number = 1
    while os.path.lexists(place := folder / f"{begin}{number}{end}"):
        number += 1
    return place


def keep_copy(path: Path, copy: Path) -> None:
    """Give the present content of a file a second name, so that it outlives the file's replacement.

    Args:
        path: The file; nothing is done if there is none.
        copy: The other name; what had it is replaced.
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
    """Put the names in a folder on the disk; where folders cannot be opened (not on POSIX), nothing is done."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        synchronize(descriptor)
    finally:
        os.close(descriptor)


def synchronize(descriptor: int) -> None:
    """Put a file or folder on the disk, if its file system can be asked to.

    Raises:
        OSError: If that failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNCHRONIZE:
            raise


def is_full(error: BaseException | None) -> bool:
    """Tell whether an error says that there is no room: on the disk, or in what the user may take of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
