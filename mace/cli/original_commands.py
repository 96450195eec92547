"""Commands of mace-torch that this package has not: each says what to use instead."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from mace.cli.command import USER_ERROR
from mace.elsewhere import COMMANDS, PROGRAMS


def refusal(command: str) -> Callable[[], NoReturn]:
    """Make a program that only says what to use instead of one of `COMMANDS` or `PROGRAMS`."""
    instead = {**COMMANDS, **PROGRAMS}[command]

    def refuse() -> NoReturn:
        print(f"{command} does not exist in mace-train: {instead}.", file=sys.stderr)
        sys.exit(USER_ERROR)

    return refuse


def __getattr__(name: str) -> Callable[[], NoReturn]:
    """Return the program of a command; the entry points of the package name them."""
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return refusal(name)
