"""Compare what mace_quickstart proposes with the default settings: predicted time, time, errors on a test set.

    python benchmarks/quickstart.py train.xyz --test_file test.xyz --time 3min

trains twice, with the proposed file as it is and with all defaults but the number of epochs, which is chosen so that
this takes the same time. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from mace.console.progress import TrainingProgress
from mace.planning.objectives import make_losses
from mace.preparation.reading import read_and_check
from mace.quickstart.pace import Pace, measure_pace
from mace.quickstart.session import Outcome, run_quickstart
from mace.settings import parse_training_settings
from mace.settings.other_commands import QuickstartSettings
from mace.settings.reading import parse_settings


def propose(options: argparse.Namespace, folder: Path) -> Outcome:
    """Write the file of settings."""
    settings = parse_settings(
        QuickstartSettings,
        [
            *options.train_file,
            *("--test_file", *options.test_file),
            f"--time={options.time}",
            f"--output={folder / 'proposed.yaml'}",
            *("--name=proposed", f"--work_dir={folder}", "--yes", "--quiet"),
        ],
    )
    return run_quickstart(settings, Console())


def default_flags(options: argparse.Namespace, folder: Path) -> list[str]:
    """Flags of a training with default settings."""
    return [
        *("--name=default", f"--work_dir={folder}", "--train_file", *options.train_file),
        *("--test_file", *options.test_file, *(["--E0s=average"] if options.average else [])),
    ]


def default_epochs(options: argparse.Namespace, folder: Path, seconds: float) -> int:
    """Find how many epochs with default settings fit into a time."""
    settings = parse_training_settings(default_flags(options, folder))
    progress = TrainingProgress(Console(), "off")
    data = read_and_check(settings, make_losses(settings), progress, page=None)
    pace: Pace = measure_pace(settings, data, progress)
    epoch = pace.updates * pace.step + pace.save + pace.evaluation
    return max(1, math.ceil((seconds - 8.0 - pace.prepare - pace.final) / epoch))


def train(name: str, folder: Path, flags: list[str]) -> float:
    """Train, print the errors on the test set, and return the seconds it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mace.cli.run_train", *flags, "--quiet"], check=True)
    seconds = time.perf_counter() - start
    log = (folder / "logs" / f"{name}_run-123.log").read_text(encoding="utf-8")
    tables = re.findall(r"Error-table on TEST:\n((?:[+|].*\n)+)", log)
    print(f"{name}: {seconds:.0f} s", *tables, sep="\n")  # one table for each stage
    return seconds


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train_file", nargs="+")
    parser.add_argument("--test_file", nargs="+", required=True)
    parser.add_argument("--time", default="3min")
    parser.add_argument("--average", action="store_true", help="the data have no isolated atoms")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        predicted = propose(options, folder).prediction.total
        seconds = train("proposed", folder, [f"--config={folder / 'proposed.yaml'}"])
        epochs = default_epochs(options, folder, predicted)
        train("default", folder, [*default_flags(options, folder), f"--max_num_epochs={epochs}"])
        print(f"predicted {predicted:.0f} s, took {seconds:.0f} s: factor {seconds / predicted:.2f}")


if __name__ == "__main__":
    main()
