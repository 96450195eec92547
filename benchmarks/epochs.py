"""Compare whole trainings with mace-torch, evaluation and saving included: the same command of both, in turns.

python benchmarks/epochs.py --peer-python other/bin/python
python benchmarks/epochs.py --peer-python other/bin/python --epochs 5 --hidden_irreps=64x0e
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from comparison import DEFAULT_DATA, FOLDER, PEER_VERSION, new_file, positive
from molecules import TRAINING_FILE, read_molecules, read_reference_energies
from report import machine_facts, print_machine_lines, write_json
from rich.console import Console
from rich.table import Table
from workers import BenchmarkError, environment_for

FLAGS = (
    "--name=run", "--valid_fraction=0.05", "--model=MACE", "--hidden_irreps=128x0e + 128x1o", "--r_max=5.0",
    "--batch_size=10", "--ema", "--ema_decay=0.99", "--amsgrad", "--device=cpu", "--default_dtype=float32",
    "--energy_key=energy", "--forces_key=forces", "--seed=1", "--plot=False",
)  # fmt: skip
"""The command of the usual training guides, without stage two, a test set and pictures."""

END_OF_EPOCH = re.compile(r"INFO: Epoch (\d+): (.*)")
"""The line that both write once an epoch is evaluated."""


class Run(NamedTuple):
    """Times of one training.

    Attributes:
        epochs: Seconds from the end of one epoch to that of the next, the first one excepted.
        total: Seconds from the start of the program to its end.
        last: What the program said of the last epoch.
    """

    epochs: list[float]
    total: float
    last: str


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Time of whole epochs of mace_run_train, both in turns; other flags are given to both.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--peer-python", required=True, metavar="PATH", help=f"interpreter of an environment with {PEER_VERSION}"
    )
    parser.add_argument("--our-python", default=sys.executable, metavar="PATH", help="interpreter for this checkout")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help="acetylacetone data")
    parser.add_argument("--structures", type=positive, metavar="N", help="use the first so many of the data")
    parser.add_argument(
        "--epochs", type=positive, default=3, help="epochs of each run, of which the first is not counted"
    )
    parser.add_argument("--repeats", type=positive, default=2, help="runs of each side")
    parser.add_argument("--threads", type=positive, default=2, help="threads of each side")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="also write every time and fact here")
    options, flags = parser.parse_known_args(arguments)
    if options.epochs < 2:
        parser.error("--epochs must be at least 2, as the first epoch is not counted")
    facts = machine_facts()
    try:
        runs = _take_turns(options, [*FLAGS, f"--max_num_epochs={options.epochs}", *flags])
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    result = summary(runs)
    _print(Console(), facts, result)
    if options.json is not None:
        write_json(options.json, facts, {"flags": [*FLAGS, *flags]} | vars(options), [result])
    return 0


def _take_turns(options: argparse.Namespace, flags: list[str]) -> dict[str, list[Run]]:
    """Run both sides as often as wanted; who begins changes with every repeat.

    Raises:
        BenchmarkError: If data are missing or a program fails.
    """
    energies = read_reference_energies(options.data)
    flags = [*flags, f"--E0s={energies}"]
    sides = {"peer": (options.peer_python, None), "ours": (options.our_python, FOLDER.parent)}
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        file = options.data.resolve() / TRAINING_FILE
        molecules = read_molecules(options.data)[: options.structures]
        if options.structures is not None:
            file = Path(folder) / TRAINING_FILE
            ase.io.write(file, molecules, format="extxyz")
        for repeat in range(options.repeats):
            for side in list(sides)[:: 1 - 2 * (repeat % 2)]:
                python, import_from = sides[side]
                place = Path(folder) / f"{side}_{repeat}"
                place.mkdir()
                command = [python, "-m", "mace.cli.run_train", f"--train_file={file}", *flags]
                runs[side].append(run(command, place, environment_for(options.threads, import_from), options.epochs))
    return runs


def run(command: list[str], folder: Path, environment: dict[str, str], n_epochs: int) -> Run:
    """Train once.

    Args:
        command: The command.
        folder: The folder in which it runs.
        environment: Its environment.
        n_epochs: Number of epochs that it is to end.

    Returns:
        Its times.

    Raises:
        BenchmarkError: If it fails, or does not tell the end of every epoch.
    """
    said, ends, last = deque[str](maxlen=20), dict[int, float](), ""
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := END_OF_EPOCH.search(line):
                ends.setdefault(int(found[1]), time.perf_counter())
                last = found[2]
    total = time.perf_counter() - start
    if process.returncode != 0 or len(ends) != n_epochs:
        told = f"ended with status {process.returncode} after {len(ends)} epochs of {n_epochs}"
        raise BenchmarkError(f"{' '.join(command)} {told}.\n{''.join(said)}")
    return Run(np.diff([ends[epoch] for epoch in sorted(ends)]).tolist(), total, last)


def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Condense the times: medians of each side, and how many times longer the peer takes, with the range by repeat."""
    result: dict[str, Any] = {}
    for side, of_side in runs.items():
        epochs = [seconds for each in of_side for seconds in each.epochs]
        result[side] = {
            "epoch_s": float(np.median(epochs)),
            "total_s": float(np.median([each.total for each in of_side])),
            "runs": [each._asdict() for each in of_side],
        }
    pairs = list(zip(runs["peer"], runs["ours"], strict=True))
    for name, by_repeat in (
        ("epoch", [float(np.median(peer.epochs) / np.median(ours.epochs)) for peer, ours in pairs]),
        ("total", [peer.total / ours.total for peer, ours in pairs]),
    ):
        result[f"ratio_of_{name}"] = result["peer"][f"{name}_s"] / result["ours"][f"{name}_s"]
        result[f"ratio_of_{name}_by_repeat"] = [min(by_repeat), max(by_repeat)]
    return result


def _print(console: Console, facts: dict[str, Any], result: dict[str, Any]) -> None:
    print_machine_lines(console, facts)
    table = Table()
    for heading in ("", "epoch, s", "whole run, s", "last epoch"):
        table.add_column(heading, justify="right" if heading.endswith("s") else "left")
    for side in ("peer", "ours"):
        told = result[side]
        table.add_row(side, f"{told['epoch_s']:.2f}", f"{told['total_s']:.2f}", told["runs"][-1]["last"])
    console.print(table)
    for name in ("epoch", "total"):
        low, high = result[f"ratio_of_{name}_by_repeat"]
        ratio = f"{result[f'ratio_of_{name}']:.2f} ({low:.2f} to {high:.2f} by repeat)"
        console.print(f"ratio of medians peer to ours, {name}: {ratio}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
