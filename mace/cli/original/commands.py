"""Commands of mace-torch that this package has not: each says what to use instead."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from mace.cli.command import USER_ERROR
from mace.elsewhere import COMMANDS, absence
from mace.errors import UserError


def refusal(command: str) -> Callable[[], NoReturn]:
    """Make a program that only says what to use instead of a command."""
    sentence = absence(command)

    def refuse() -> NoReturn:
        print(sentence, file=sys.stderr)
        sys.exit(USER_ERROR)

    return refuse


def refused_call(command: str) -> Callable[..., NoReturn]:
    """Make the function by which other programs call a command: it raises a `UserError` that says the same."""
    sentence = absence(command)

    def run(*arguments: Any, **keywords: Any) -> NoReturn:
        raise UserError(sentence)

    return run


def __getattr__(name: str) -> Callable[[], NoReturn]:
    """Return the program of a command; the entry points of the package name them."""
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return refusal(name)
