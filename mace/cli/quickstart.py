"""The command ``mace_quickstart``: propose settings for a training, with reasons and the time they take."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mace.cli.command import run_program
from mace.settings.other_commands import QuickstartSettings
from mace.settings.reading import parse_settings


def run(arguments: Sequence[str]) -> None:
    """Propose with the given command-line arguments.

    Raises:
        UserError: If settings or data do not allow it.
        SystemExit: With status 0 after ``--help``.
    """
    someone = sys.stdin.isatty() and sys.stdout.isatty()
    if not arguments and someone:
        from mace.console.terminal import PlainConsole
        from mace.quickstart.questions import ask_for_files

        arguments = ask_for_files(PlainConsole())
    settings = parse_settings(QuickstartSettings, arguments)
    start = time.perf_counter()
    from mace.quickstart.session import run_quickstart  # torch is loaded only once the settings are known to be good

    run_quickstart(settings, asks=someone and not settings.yes, seconds_before=time.perf_counter() - start)


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
