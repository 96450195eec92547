"""The command ``mace_run_train``: train a model from labeled structures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mace.cli.command import check_arguments, run_program
from mace.compat.arguments import settings_of
from mace.runs.local_start import check_devices, is_to_start, run_together
from mace.settings import TrainingSettings, parse_training_settings
from mace.settings.command_line import as_flags


def run(arguments: Sequence[str] | argparse.Namespace) -> None:
    """Train with the given command-line arguments.

    Args:
        arguments: The words after the name of the program, or the namespace that a parser made of them.

    Raises:
        UserError: If settings or data do not allow it.
        SystemExit: With status 0 after ``--help``; with that of the processes started for ``--devices`` if it is not 0.
    """
    if isinstance(arguments, argparse.Namespace):
        settings = settings_of(arguments)
    else:
        check_arguments(arguments, "mace_run_train")
        settings = parse_training_settings(arguments)
    if is_to_start(settings.devices, settings.launcher, os.environ):
        if status := _run_processes(settings):
            sys.exit(status)
        return
    from mace.runs.run import run_training  # torch is loaded only once the settings are known to be good

    run_training(settings)


def _run_processes(settings: TrainingSettings) -> int:
    """Run this program once for each of the devices asked for; return the exit status."""
    from mace.processes.devices import device_count  # here, because it loads torch

    devices = settings.devices or 1
    check_devices(devices, settings.device, device_count(settings.device))
    return run_together([sys.executable, __file__, *as_flags(settings)], devices)


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run, output_needed=False)


if __name__ == "__main__":
    main()
