"""What all console scripts have in common: errors in one sentence, exit statuses, and a clear name for the package."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from mace.console.streams import BROKEN_PIPE, standard_streams, start_in_utf8
from mace.errors import RunInterrupted, UserError
from mace.installation import require_own_files
from mace.processes.cores import bound_spinning
from mace.settings.declaration import setting

USER_ERROR = 2
"""Exit status after a problem the user can solve."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def run_program(main: Callable[[Sequence[str]], int | None], output_needed: bool = True) -> None:
    """Run a console script with the arguments it was started with.

    At the end it returns, so that scripts and notebooks that call it go on. A `UserError` becomes one sentence on
    stderr; other errors are defects and keep their traceback.

    Args:
        main: Does the work; gets the arguments without the program's name, and returns the exit status, None for 0.
        output_needed: Whether the work is in vain once nobody reads standard output.

    Raises:
        SystemExit: With the exit status, if it is not 0.
    """
    start_in_utf8()
    if "torch" not in sys.modules:
        bound_spinning(os.environ)
    with standard_streams(output_needed):
        try:
            require_own_files()
            status = main(sys.argv[1:])
            sys.stdout.flush()
        except UserError as error:
            print(error, file=sys.stderr)
            status = USER_ERROR
        except RunInterrupted as error:
            print(error, file=sys.stderr)
            status = error.status
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            status = INTERRUPTED
        except BrokenPipeError:
            status = BROKEN_PIPE
    if status:
        sys.exit(status)


def check_arguments(arguments: object, command: str) -> None:
    """Refuse anything but a list of arguments, such as the namespaces that scripts for mace-torch pass.

    Raises:
        UserError: If it is a parsed namespace, or one string.
    """
    if isinstance(arguments, (str, argparse.Namespace)):
        raise UserError(
            f"{command}: run() takes the arguments as a list of strings, run(['--name=first', ...]), not "
            f"{type(arguments).__name__}; with the settings in a YAML file, run(['--config=settings.yaml'])."
        )


def log_level(default: str = "INFO") -> Any:
    """Declare the setting that every command has: the least level that is shown."""
    return setting(default, "least important messages that are shown", group="Messages")


def quiet() -> Any:
    """Declare the setting that every command has: whether it says little."""
    return setting(False, "show warnings and errors only", group="Messages", kind="switch")


@contextmanager
def messages_on_stderr(settings: Any) -> Iterator[None]:
    """Let a command whose output is its result write messages beside it, inside a ``with`` block.

    Args:
        settings: Of the command, with `log_level` and `quiet`.
    """
    from mace.console.logs import close_logging, setup_logging
    from mace.console.terminal import PlainConsole  # here, so that help needs neither

    setup_logging(settings.log_level, None, PlainConsole(stderr=True), settings.quiet)
    try:
        yield
    finally:
        close_logging()
