"""Compare the time of energy and forces with mace-torch: structures through the calculators, and batches.

python benchmarks/inference.py --peer-python other/bin/python [--symmetrix-python third/bin/python]
python benchmarks/inference.py --peer-python other/bin/python --sizes 15 120 960 7680
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import ase.io
from ase import Atoms
from comparison import SYMMETRIX_VERSION, Comparison, compare, make_parser, shared_settings
from molecules import pack_box, read_molecules, structure_of_size
from report import machine_facts, summary, tell
from rich.console import Console
from workers import BenchmarkError, Settings

DISPLACEMENT = 0.01
"""Standard deviation in Angstrom of how far atoms move from call to call, so that nothing can be remembered."""

ATOMS_IN_A_TURN = 400
"""Of smaller structures there are so many steps in each of `--steps`, as the time of a single one would say little."""

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
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        metavar="ATOMS",
        help="instead of these cases, structures of several sizes: one molecule in vacuum (15), and periodic boxes",
    )
    parser.add_argument(
        "--largest-of-peer", type=int, default=960, metavar="ATOMS", help="of --sizes, the largest mace-torch evaluates"
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
            "sizes": options.sizes,
        }
        if options.sizes:
            results = [summary(measure_size(size, options, settings, console)) for size in sorted(options.sizes)]
        else:
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
    box = pack_box(read_molecules(options.data), options.neighbors, BOX_RANGE)
    return _of_structure(f"{wanted}, periodic box", box, options, settings, console)


def measure_size(size: int, options: argparse.Namespace, settings: Settings, console: Console) -> Comparison:
    """Measure a molecule or a box of some number of atoms.

    Raises:
        BenchmarkError: See `measure`.
    """
    structure = structure_of_size(read_molecules(options.data), size, options.neighbors, BOX_RANGE)
    more = argparse.Namespace(**vars(options) | {"steps": options.steps * max(1, ATOMS_IN_A_TURN // size)})
    wanted = "energy, forces and stress" if options.stress else "energy and forces"
    return _of_structure(f"{wanted} of structures that move", structure, more, settings, console)


def _of_structure(
    title: str, structure: Atoms, options: argparse.Namespace, settings: Settings, console: Console
) -> Comparison:
    """Let all sides evaluate a structure, Symmetrix only where it is periodic."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "structure.xyz"
        ase.io.write(file, structure, format="extxyz")
        symmetrix = options.symmetrix_python if structure.pbc.any() else None
        too_large = bool(options.sizes) and len(structure) > options.largest_of_peer
        given = settings | {"task": "box", "box": str(file)}
        return compare(title, options, given, console, symmetrix, too_large)


if __name__ == "__main__":
    sys.exit(main())
