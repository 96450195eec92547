"""The command ``mace_info``: say what a model file is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
from typing import Any

from mace.cli.command import FlagParser, add_output_flags, messages_on_stderr, parse_flags, run_program
from mace.errors import UserError, plain

FAILED_CHECK = 1
"""Exit status when a check of the model fails."""


def build_parser() -> argparse.ArgumentParser:
    """Declare the arguments."""
    parser = FlagParser(
        prog="mace_info",
        description="Say what a model file is; one of mace-torch is read without being run.",
    )
    parser.add_argument("file", help="model file of this program or of mace-torch")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--head", help="describe one head of a model that has several")
    parser.add_argument("--no_checks", action="store_true", help="leave out the checks, which evaluate the model")
    add_output_flags(parser, "WARNING")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Describe with the given command-line arguments.

    Returns:
        The exit status: 0, or 1 if a check fails.

    Raises:
        UserError: If the file cannot be opened.
        SystemExit: See `mace.cli.command.parse_flags`.
    """
    options = parse_flags(build_parser(), arguments)
    if options.quiet and options.json:
        raise UserError("--quiet leaves nothing to write as JSON; give one of --quiet and --json.")
    with messages_on_stderr(options):
        return _describe(options)


def _describe(options: argparse.Namespace) -> int:
    """Open the model, say what it is, and return the exit status."""
    # torch is loaded only once the arguments are known to be good
    from mace.evaluation.description import describe_model
    from mace.potential.potential import open_potential

    potential = open_potential(
        options.file, precision="float64", head=options.head, kernels="torch", committee=False, caller="mace_info"
    )
    told = describe_model(options.file, potential, checks=not options.no_checks)
    failed = [name.replace("_", " ") for name, good in told["checks"].items() if not good]
    if options.quiet and failed:
        print(plain(f"{options.file}: failed checks: {', '.join(failed)}"), file=sys.stderr)
    elif not options.quiet:
        print(json.dumps(told, indent=1) if options.json else _text(told), end="\n" if options.json else "")
    return FAILED_CHECK if failed else 0


def _text(told: Mapping[str, Any]) -> str:
    """Write the description as a table."""
    from io import StringIO

    from rich import box
    from rich.table import Table

    from mace.console.terminal import PlainConsole

    table = Table(title=told["file"], box=box.ASCII, show_header=False, title_justify="left")
    for name, value in _rows(told).items():
        table.add_row(name, value)
    stream = StringIO()
    PlainConsole(file=stream, width=120).print(table)
    return stream.getvalue()


def _rows(told: Mapping[str, Any]) -> dict[str, str]:
    plan, origin = told["plan"], told["origin"]
    hidden = " + ".join(f"{plan['n_channels']}x{l}{'eo'[l % 2]}" for l in plan["hidden_l"])
    energies = _of_elements(told["reference_energies"])
    rows = {
        "model": f"{told['model']}, {len(plan['interactions'])} layers, {hidden}, l_max {plan['l_max']}, correlation "
        f"{plan['correlation']}",
        "interactions": "\n".join(told["interactions"]),
        "variants": ", ".join(told["variants"]),
        "conditions": "\n".join(told["conditions"]),
        "elements": ", ".join(told["elements"]),
        "cutoff": f"{told['r_max']:.6g} Angstrom, receptive field {told['receptive_field']:.6g} Angstrom",
        "radial functions": f"{plan['num_radial_basis']} {plan['radial_type']}, transform {plan['distance_transform']}"
        f"{', ZBL repulsion' if plan['pair_repulsion'] else ''}",
        "size": f"{told['parameters']:,} parameters, {told['precision']}, {told['bytes'] / 1e6:.2f} MB",
        "E0s / eV": energies,
        "scale and shift / eV": f"{plan['scale']:.6g}, {plan['shift']:.6g}" if energies else "",
        "heads": ", ".join(told["heads"]),
        **{
            f"head {name}": f"E0s / eV: {_of_elements(head['reference_energies'])}\n"
            f"scale and shift / eV: {head['scale']:.6g}, {head['shift']:.6g}"
            for name, head in told["heads"].items()
        },
        "neighbors": f"{plan['avg_num_neighbors']:.4g} on average",
        "origin": "\n".join(f"{key}: {value}" for key, value in origin.items() if value is not None),
        "training": "\n".join(f"{key}: {value}" for key, value in told["training"].items()),
        "metrics": "\n".join(
            f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items() if v is not None)
            for name, values in told["metrics"].items()
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in told["versions"].items()),
        "checks": "\n".join(
            f"{name.replace('_', ' ')}: {'yes' if good else 'NO'}" for name, good in told["checks"].items()
        ),
    }
    return {name: value for name, value in rows.items() if value}


def _of_elements(energies: Mapping[str, float]) -> str:
    return ", ".join(f"{symbol} {energy:.6f}" for symbol, energy in energies.items())


def main() -> None:
    """Run as a program: return at the end, exit with 1 if a check fails, with 2 if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
