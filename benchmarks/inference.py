"""Compare the time of energy and forces with mace-torch: a periodic box through the calculators, and batches.

python benchmarks/inference.py --peer-python other/bin/python [--symmetrix-python third/bin/python]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import ase.io
from comparison import SYMMETRIX_VERSION, Comparison, compare, make_parser, shared_settings
from molecules import pack_box, read_molecules
from report import machine_facts, summary, tell
from rich.console import Console
from workers import BenchmarkError, Settings

DISPLACEMENT = 0.01
"""Standard deviation in Angstrom of how far atoms move from call to call, so that nothing can be remembered."""

BOX_RANGE = 5.0
"""Cutoff in Angstrom of the neighbors by which the density of the box is chosen."""


def make_options() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = make_parser("Time of energy and forces: mace-torch and ours in turns.")
    parser.add_argument(
        "--symmetrix-python",
        metavar="PATH",
        help=f"interpreter of an environment with {SYMMETRIX_VERSION}, which then evaluates the box too",
    )
    parser.add_argument(
        "--case",
        choices=["box", "batch", "both"],
        default="both",
        help="the periodic box, batches of molecules, or both",
    )
    parser.add_argument("--neighbors", type=float, default=37.0, help=f"neighbors within {BOX_RANGE:g} A in the box")
    parser.add_argument("--stress", action="store_true", help="ask all sides for stress too")
    parser.add_argument(
        "--through",
        choices=["calculator", "predict"],
        default="calculator",
        help="how ours evaluates the box; the peer always uses its calculator",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = make_options()
    options = parser.parse_args(arguments)
    if options.symmetrix_python and options.case == "batch":
        parser.error("--symmetrix-python: Symmetrix evaluates the box only; ask for --case box or both")
    console = Console()
    try:
        facts = machine_facts()
        settings = shared_settings(options) | {
            "stress": options.stress,
            "through": options.through,
            "displacement": DISPLACEMENT,
        }
        cases = ["box", "batch"] if options.case == "both" else [options.case]
        results = [summary(measure(case, options, settings, console)) for case in cases]
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    tell(console, options.json, facts, settings, results)
    return 0


def measure(case: str, options: argparse.Namespace, settings: Settings, console: Console) -> Comparison:
    """Measure the box or batches of molecules.

    Raises:
        BenchmarkError: If the box cannot be packed, a worker fails, or the sides disagree.
    """
    wanted = "energy, forces and stress" if options.stress else "energy and forces"
    if case == "batch":
        return compare(f"{wanted}, batches of molecules", options, settings | {"task": "batch"}, console)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "box.xyz"
        ase.io.write(file, pack_box(read_molecules(options.data), options.neighbors, BOX_RANGE), format="extxyz")
        box = settings | {"task": "box", "box": str(file)}
        return compare(f"{wanted}, periodic box", options, box, console, options.symmetrix_python)


if __name__ == "__main__":
    sys.exit(main())
