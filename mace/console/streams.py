"""Standard output and error of a command when nobody reads them: closed, a pipe whose reader has gone, a full disk."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from mace.errors import UserError

BROKEN_PIPE = 141
"""Exit status when the reader of the output has gone, as shells have it."""

_COMMANDS = Path(__file__).resolve().parents[1] / "cli"


class StandardStream:
    """A standard stream that may be lost while the program runs.

    Args:
        stream: The stream.
        name: What it is called in messages.
        needed: Whether the work is in vain without it; otherwise it goes on, and `lost` tells why nothing is shown.
    """

    def __init__(self, stream: TextIO, name: str, needed: bool) -> None:
        self._stream, self._name, self._needed = stream, name, needed
        self.lost: str | None = None

    def write(self, text: str) -> int:
        """Write text, or leave it out where nobody can get it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Send what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Let nothing more fail, here or at the end of the interpreter.

        Raises:
            SystemExit: With status 141 if the reader of what is needed has gone.
            UserError: If what is needed cannot be written for another reason.
        """
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        self.lost = error.strerror or str(error)
        if self._needed:
            self._end(error)

    def _end(self, error: OSError) -> NoReturn:
        if error.errno == errno.EPIPE:
            raise SystemExit(BROKEN_PIPE)
        raise UserError(f"{self._name} cannot be written ({self.lost}); send it somewhere else.") from error

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self._stream, name)


@contextmanager
def standard_streams(output_needed: bool) -> Iterator[None]:
    """Make standard output and error safe to write to inside a ``with`` block.

    Args:
        output_needed: Whether a command is in vain once nobody reads its output. Training and the like have their
            results in files, and go on.
    """
    _fill_closed_descriptors()
    before = sys.stdout, sys.stderr
    # a file descriptor that was closed is open again by now, but Python has no stream for it
    output = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    errors = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    for stream in (output, errors):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that the locale has no letters for
    sys.stdout = StandardStream(output, "standard output", output_needed)
    sys.stderr = StandardStream(errors, "standard error", False)
    try:
        yield
        sys.stdout.flush()  # here, so that a closed pipe is noticed while it can still be handled
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _fill_closed_descriptors() -> None:
    """Open standard descriptors that are closed: the next file would get their number, and what is meant for them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def start_in_utf8() -> None:
    """Replace this process by the same command in Python's UTF-8 mode, if it can only name files in ASCII.

    Names of files with other letters are text there that no log, page or table can be written with. Nothing happens
    where Python chooses the mode by itself, as it does in the locale C unless it is told not to, nor in a program that
    calls the command: only in one that is nothing else.
    """
    program = Path(getattr(sys.modules["__main__"], "__file__", None) or "").absolute()
    is_command = program.name.startswith("mace_") or program.resolve().parent == _COMMANDS
    if is_command and sys.getfilesystemencoding() == "ascii":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
