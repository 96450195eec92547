"""The command ``mace_export``: write a model for other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
from pathlib import Path

from mace.cli.command import FlagParser, add_output_flags, messages_on_stderr, parse_flags, run_program
from mace.cli.outputs import check_output

_FOR_CPP = ("torchscript", "torch.jit", "torch.export")
"""Formats for C++ programs, which are asked for but cannot be written."""


def build_parser() -> argparse.ArgumentParser:
    """Declare the arguments."""
    parser = FlagParser(
        prog="mace_export",
        description="Write a model for programs that open models of mace-torch: LAMMPS, OpenMM, Symmetrix.",
    )
    add = parser.add_argument_group("Files").add_argument
    add("model", help="model file of this program (or of mace-torch, to renew it)")
    add("output", help="file to write")
    add(
        "--format",
        type=_format,
        choices=["mace-torch"],
        required=True,
        help="mace-torch: the .model file that mace-torch opens",
    )
    add("--python", required=True, help="python of an environment with mace-torch, which writes and checks the file")
    add("--head", help="head to take of a model that has several; without it all are written")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add_output_flags(parser, "WARNING")
    return parser


def _format(name: str) -> str:
    """Give the reason where a format is known but not there.

    Raises:
        ArgumentError: If it is such a format.
    """
    if name.lower() in _FOR_CPP:
        raise argparse.ArgumentError(
            None,
            f"--format={name} is not possible, because such a file would compute only structures with as many atoms of "
            "each element and as many neighbors as the one it was traced with; use --format=mace-torch, from which "
            "mace-torch's own converters make files for C++ programs such as LAMMPS",
        )
    return name


def run(arguments: Sequence[str]) -> None:
    """Export with the given command-line arguments.

    Raises:
        UserError: If the model cannot be exported.
        SystemExit: See `mace.cli.command.parse_flags`.
    """
    options = parse_flags(build_parser(), arguments)
    output = check_output(options.output, "exported model", {"model": [options.model]}, options.overwrite)
    with messages_on_stderr(options):
        _export(options, output)


def _export(options: argparse.Namespace, output: Path) -> None:
    """Export, and say how well it agrees."""
    # torch is loaded only once the arguments are known to be good
    from mace.compat.exporting import export_to_original
    from mace.compat.importing import open_model

    model = open_model(options.model, head=options.head).model.requires_grad_(False)
    export = export_to_original(model, output, options.python)
    listed = ", ".join(f"{name} {value:.1e}" for name, value in export.deviations.items())
    if not options.quiet:
        print(
            f"Wrote {export.path} with mace-torch {export.version}; it computes the same (relative deviation: {listed})"
        )


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
