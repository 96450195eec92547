"""The command ``mace_check_data``: say what labeled structures hold and what is wrong with them, without training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mace.cli.command import USER_ERROR, run_program
from mace.settings.other_commands import CheckSettings
from mace.settings.reading import parse_settings


def run(arguments: Sequence[str]) -> int:
    """Check with the given command-line arguments.

    Returns:
        The exit status: 0, or 2 if training would refuse the data.

    Raises:
        UserError: If settings or files do not allow it.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(CheckSettings, arguments)
    from mace.preparation.check import check_data  # torch is loaded only once the settings are known to be good

    return USER_ERROR if any(report.errors for report in check_data(settings).values()) else 0


def main() -> None:
    """Run as a program: return at the end, exit with 2 if there are errors in data or settings."""
    run_program(run)


if __name__ == "__main__":
    main()
