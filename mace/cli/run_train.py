"""The command ``mace_run_train``: train a model from labeled structures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mace.cli.command import check_arguments, run_program
from mace.compat.arguments import settings_of
from mace.settings import parse_training_settings


def run(arguments: Sequence[str] | argparse.Namespace) -> None:
    """Train with the given command-line arguments.

    Args:
        arguments: The words after the name of the program, or the namespace that a parser made of them.

    Raises:
        UserError: If settings or data do not allow it.
        SystemExit: With status 0 after ``--help``.
    """
    if isinstance(arguments, argparse.Namespace):
        settings = settings_of(arguments)
    else:
        check_arguments(arguments, "mace_run_train")
        settings = parse_training_settings(arguments)
    from mace.runs.run import run_training  # torch is loaded only once the settings are known to be good

    run_training(settings)


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run, output_needed=False)


if __name__ == "__main__":
    main()
