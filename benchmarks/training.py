"""Compare the time of a training step with mace-torch: same data, same model, same weights, in turns.

python benchmarks/training.py --peer-python other/bin/python
python benchmarks/training.py --peer-python other/bin/python --table --json table.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from comparison import compare, make_parser, shared_settings
from make_alloy import write_alloy
from report import machine_facts, print_table, summary, tell, write_json
from rich.console import Console
from workers import BenchmarkError, Settings

RECIPE = {
    "loss_weights": {"energy": 1.0, "forces": 100.0},
    "lr": 0.01,
    "weight_decay": 5.0e-7,
    "ema_decay": 0.99,
    "clip_grad": 10.0,
}
"""How both sides train: the defaults of the command line, with the moving average switched on."""

ALLOY = Path("alloy")
"""Stands for a folder with random alloys of 89 elements, which is made where it is needed."""

CASES: dict[str, dict[str, Any]] = {
    "128x0e+128x1o": {},
    "one thread": {"threads": 1},
    "float64": {"dtype": "float64"},
    "128x0e+128x1o+128x2e": {"hidden_irreps": "128x0e+128x1o+128x2e"},
    "64x0e": {"hidden_irreps": "64x0e"},
    "32x0e+32x1o, l_max 2, correlation 2": {"hidden_irreps": "32x0e+32x1o", "l_max": 2, "correlation": 2},
    "89 elements": {"data": ALLOY, "batch_size": 2},
    "torch kernels": {"kernels": "torch"},
}
"""The rows of the table: in which options each differs from those of the command line."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = make_parser("Time of a training step, collation included: mace-torch and ours in turns.")
    parser.add_argument("--table", action="store_true", help="measure models of many kinds, and print one table")
    options = parser.parse_args(arguments)
    console, facts = Console(), machine_facts()
    if options.table:
        return _measure_all(options, console, facts)
    try:
        settings, result = _measure("training step", options, console)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    tell(console, options.json, facts, settings, [result])
    return 0


def _measure(title: str, options: argparse.Namespace, console: Console) -> tuple[Settings, dict[str, Any]]:
    """Compare once; return the settings and the condensed times."""
    settings = shared_settings(options) | RECIPE | {"task": "training"}
    return settings, summary(compare(title, options, settings, console))


def _measure_all(options: argparse.Namespace, console: Console, facts: dict[str, Any]) -> int:
    """Measure all rows of the table; one that fails is told and left out, and what was measured is always written."""
    results, failed = list[dict[str, Any]](), False
    with tempfile.TemporaryDirectory() as folder:
        for title, changes in CASES.items():
            own = argparse.Namespace(**vars(options) | changes)
            if own.data is ALLOY:
                own.data = Path(folder)
                write_alloy(own.data)
            try:
                settings, result = _measure(title, own, console)
            except BenchmarkError as error:
                print(f"{title}: {error}", file=sys.stderr)
                failed = True
                continue
            results.append(result | {"settings": settings})
            if options.json is not None:
                write_json(options.json, facts, RECIPE, results)
    if results:
        print_table(console, facts, results)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
