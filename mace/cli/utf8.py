"""Letters beyond ASCII in names and data, where the locale has none: the program starts again in UTF-8."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_COMMANDS = Path(__file__).resolve().parent


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
