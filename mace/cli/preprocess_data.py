"""The command ``mace_prepare_data``: write structures as prepared sets, from which trainings of any size read."""

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
from mace.settings.other_commands import PrepareSettings
from mace.settings.reading import parse_settings


def run(arguments: Sequence[str] | argparse.Namespace) -> None:
    """Prepare with the given command-line arguments.

    Args:
        arguments: The words after the name of the program, or the namespace that a parser made of them.

    Raises:
        UserError: If settings or files do not allow it; what is finished is kept.
        SystemExit: With status 0 after ``--help``.
    """
    if isinstance(arguments, argparse.Namespace):
        settings = settings_of(arguments, PrepareSettings)
        assert isinstance(settings, PrepareSettings)
    else:
        check_arguments(arguments, "mace_prepare_data")
        settings = parse_settings(PrepareSettings, arguments)
    from mace.packing.packing import prepare_data  # torch is loaded only once the settings are known to be good

    prepare_data(settings)


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
