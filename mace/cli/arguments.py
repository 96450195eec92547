"""Flags of the small commands: unknown ones are refused with the nearest that exists."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from mace.errors import UserError


def parse_known(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Read flags.

    Raises:
        UserError: If a flag is unknown.
        SystemExit: With status 0 after ``--help``, with status 2 if an argument is missing or has no such value.
    """
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        given = unknown[0].partition("=")[0]
        nearest = difflib.get_close_matches(given, flags, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "--help lists all flags."
        raise UserError(f"{given} is no argument of {parser.prog}; {hint}")
    return options
