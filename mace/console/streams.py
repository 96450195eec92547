"""Standard output and error that cannot be written: closed, a pipe whose reader has gone, or a full disk."""

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
        name: Its name in messages.
        needed: Whether the command is pointless without it; otherwise the command goes on, and `lost` says why nothing
            is shown.
    """

    def __init__(self, stream: TextIO, name: str, needed: bool) -> None:
        self._stream, self._name, self._needed = stream, name, needed
        self.lost: str | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it if the stream is lost."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Redirect the lost stream, so that no later write fails, here or when the interpreter exits.

        Raises:
            SystemExit: With status 141 if the output is needed and its reader has gone.
            UserError: If the output is needed and cannot be written for another reason.
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
        """Pass every other attribute on to the stream."""
        return getattr(self._stream, name)


@contextmanager
def standard_streams(output_needed: bool) -> Iterator[None]:
    """Make standard output and error safe to write to inside a ``with`` block.

    Args:
        output_needed: Whether a command is pointless once nobody reads its output. Commands that write their results to
            files, such as training, go on.
    """
    _fill_closed_descriptors()
    before = sys.stdout, sys.stderr
    # a closed file descriptor has been reopened by now, but Python has no stream for it
    output = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    errors = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    for stream in (output, errors):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for names that the locale cannot encode
    sys.stdout = StandardStream(output, "standard output", output_needed)
    sys.stderr = StandardStream(errors, "standard error", False)
    try:
        yield
        sys.stdout.flush()  # here, so that a closed pipe is noticed while it can still be handled
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _fill_closed_descriptors() -> None:
    """Open closed standard descriptors: otherwise the next file opened takes their number and gets their output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def start_in_utf8() -> None:
    """Restart this command in Python's UTF-8 mode if its file system encoding is ASCII.

    With that encoding, file names with other letters become text that cannot be written to logs, pages or tables.
    Nothing is done if Python chooses the UTF-8 mode by itself, as it does in the C locale unless told not to, or if
    the command is called from within another program.
    """
    program = Path(getattr(sys.modules["__main__"], "__file__", None) or "").absolute()
    is_command = program.name.startswith("mace_") or program.resolve().parent == _COMMANDS
    if is_command and sys.getfilesystemencoding() == "ascii":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
