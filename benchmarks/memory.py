"""Compare the peak memory of a training step with mace-torch: same data, same model, same weights.

python benchmarks/memory.py --peer-python other/bin/python

What counts is by how much a step exceeds the resident memory right before it; libraries, model and data set do not
count. By default it is the very first step, which also creates the state of the optimizer. Every measurement has a
process of its own.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from comparison import FOLDER, TOLERANCE, make_parser, shared_settings
from report import machine_facts, print_machine, write_json
from rich.console import Console
from rich.table import Table
from training import RECIPE
from workers import BenchmarkError, Settings, Worker

MIB = 2**20


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = make_parser("Peak memory of a training step above that before it: mace-torch and ours, each by itself.")
    parser.set_defaults(repeats=1, steps=1, warmup=0)
    options = parser.parse_args(arguments)
    console = Console()
    try:
        facts = machine_facts()
        settings = shared_settings(options) | RECIPE | {"task": "training"}
        result = _measure(options, settings, console)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    print_machine(console, facts, settings, [result])
    _print(console, result)
    if options.json:
        write_json(options.json, facts, settings, [result])
    return 0


def _measure(options: Namespace, settings: Settings, console: Console) -> dict[str, Any]:
    """Run both sides as often as wanted; the largest peak of each counts.

    Raises:
        BenchmarkError: If a worker fails, or both do not compute the same forces.
    """
    found: dict[str, list[dict[str, Any]]] = {"peer": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder, console.status("memory") as status:
        told = {"weights": str(Path(folder) / "weights.npz"), "steps": options.steps, "warmup": options.warmup}
        for repeat in range(options.repeats):
            for side in ("peer", "ours"):  # in this order: the peer writes the weights that ours reads
                status.update(f"repeat {repeat + 1} of {options.repeats}: {side}")
                results = str(Path(folder) / f"{side}.npz")
                found[side].append(_run(side, options, settings | told | {"side": side, "results": results}))
        _check_agreement(Path(folder), TOLERANCE[settings["dtype"]])
    peaks = {side: [facts["peak_bytes"] for facts in runs] for side, runs in found.items()}
    sides = {side: runs[0] | {"peak_bytes": max(peaks[side]), "peaks": peaks[side]} for side, runs in found.items()}
    return {"title": "memory of a training step", **sides, "ratio": max(peaks["peer"]) / max(peaks["ours"])}


def _run(side: str, options: Namespace, settings: Settings) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    python, path = (options.peer_python, None) if side == "peer" else (options.our_python, FOLDER.parent)
    with Worker(side, python, FOLDER / "memory_worker.py", options.threads, path) as worker:
        return worker.prepare(settings)


def _check_agreement(folder: Path, tolerance: float) -> None:
    with np.load(folder / "peer.npz") as peer, np.load(folder / "ours.npz") as ours:
        gap = np.abs(peer["forces"] - ours["forces"]).max() / np.sqrt(np.mean(peer["forces"] ** 2))
    if not gap < tolerance:
        raise BenchmarkError(f"Forces of both sides differ by {gap:.1e} of their root mean square; work is not equal.")


def _print(console: Console, result: dict[str, Any]) -> None:
    """Print the peaks and their ratio."""
    ours = result["ours"]
    table = Table(
        title=f"{result['title']}: {ours['atoms']:.0f} atoms, {ours['edges']:.0f} edges", title_justify="left"
    )
    for heading in ("", "before MiB", "step adds MiB", "KiB/edge"):
        table.add_column(heading, justify="right" if heading else "left")
    for side in ("peer", "ours"):
        told = result[side]
        peak = told["peak_bytes"]
        values = (told["before_bytes"] / MIB, peak / MIB, peak / told["edges"] / 1024)
        table.add_row(told["package"], *(f"{value:.1f}" for value in values))
    console.print(table)
    console.print(f"ratio {result['ratio']:.2f}", highlight=False)
    if not (result["peer"]["maximum_forgotten"] and ours["maximum_forgotten"]):
        console.print("This system cannot forget the peak of the preparations, which may hide that of the step.")


if __name__ == "__main__":
    sys.exit(main())
