"""What all console scripts have in common: errors in one sentence, exit statuses, and a clear name for the package."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from mace.console.streams import BROKEN_PIPE, standard_streams, start_in_utf8
from mace.errors import RunInterrupted, UserError
from mace.installation import require_own_files

USER_ERROR = 2
"""Exit status after a problem the user can solve."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def run_command(main: Callable[[Sequence[str]], int | None], output_needed: bool = True) -> int:
    """Run a console script with the arguments it was started with.

    Args:
        main: Does the work; gets the arguments without the program's name, and returns the exit status, None for 0.
        output_needed: Whether the work is in vain once nobody reads standard output.

    Returns:
        The exit status, for ``sys.exit``. A `UserError` becomes one sentence on stderr; other errors are defects and
        keep their traceback.
    """
    with standard_streams(output_needed):
        try:
            require_own_files()
            status = main(sys.argv[1:])
            sys.stdout.flush()
        except UserError as error:
            print(error, file=sys.stderr)
            return USER_ERROR
        except RunInterrupted as error:
            print(error, file=sys.stderr)
            return error.status
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            return BROKEN_PIPE
    return status or 0


def run_program(main: Callable[[Sequence[str]], int | None], output_needed: bool = True) -> None:
    """Run a console script; return at the end, so that scripts and notebooks that call it go on.

    Args:
        main: See `run_command`.
        output_needed: See `run_command`.

    Raises:
        SystemExit: With the exit status of `run_command`, if it is not 0.
    """
    start_in_utf8()
    if status := run_command(main, output_needed):
        sys.exit(status)


def check_arguments(arguments: object, command: str) -> None:
    """Refuse what is no list of arguments, as scripts for mace-torch hand over.

    Raises:
        UserError: If it is a parsed namespace, or one string.
    """
    if isinstance(arguments, (str, argparse.Namespace)):
        raise UserError(
            f"{command}: run() takes the arguments as a list of strings, run(['--name=first', ...]), not "
            f"{type(arguments).__name__}; with the settings in a YAML file, run(['--config=settings.yaml'])."
        )


def add_output_flags(parser: argparse.ArgumentParser, log_level: str = "INFO") -> None:
    """Add what every command has: how much it says.

    Args:
        parser: Of the command.
        log_level: What is shown by default.
    """
    group = parser.add_argument_group("Messages")
    group.add_argument(
        "--log_level",
        choices=LOG_LEVELS,
        default=log_level,
        help=f"least important messages that are shown (default: {log_level})",
    )
    group.add_argument("--quiet", action="store_true", help="show warnings and errors only")


@contextmanager
def messages_on_stderr(options: argparse.Namespace) -> Iterator[None]:
    """Let a command whose output is its result write messages beside it, inside a ``with`` block."""
    from mace.console.logs import close_logging, setup_logging
    from mace.console.terminal import PlainConsole  # here, so that help needs neither

    setup_logging(options.log_level, None, PlainConsole(stderr=True), options.quiet)
    try:
        yield
    finally:
        close_logging()


class FlagParser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong, without the list of all flags before it."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.prog}: {message}; --help lists all flags.")


def parse_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Read flags, and name the nearest one that exists where one does not.

    Raises:
        UserError: If a flag is unknown, missing or has no such value.
        SystemExit: With status 0 after ``--help``.
    """
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        given = unknown[0].partition("=")[0]
        nearest = difflib.get_close_matches(given, flags, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "--help lists all flags."
        raise UserError(f"{given} is no flag of {parser.prog}; {hint}")
    return options
