"""Compare the time of a training step with mace-torch: same data, same model, same weights, in turns.

python benchmarks/training.py --peer-python other/bin/python
"""

from __future__ import annotations

import sys

from comparison import compare, make_parser, shared_settings
from report import machine_facts, summary, tell
from rich.console import Console
from workers import BenchmarkError

RECIPE = {
    "loss_weights": {"energy": 1.0, "forces": 100.0},
    "lr": 0.01,
    "weight_decay": 5.0e-7,
    "ema_decay": 0.99,
    "clip_grad": 10.0,
}
"""How both sides train: the defaults of the command line, with the moving average switched on."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    options = make_parser("Time of a training step, collation included: mace-torch and ours in turns.").parse_args(
        arguments
    )
    console = Console()
    try:
        facts = machine_facts()
        settings = shared_settings(options) | RECIPE | {"task": "training"}
        results = [summary(compare("training step", options, settings, console))]
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    tell(console, options.json, facts, settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
