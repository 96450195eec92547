"""The command ``mace_import_model``: convert a model of mace-torch to a model file of this program."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import math
from pathlib import Path

from mace.cli.command import FlagParser, add_output_flags, messages_on_stderr, parse_flags, run_program
from mace.cli.outputs import check_output
from mace.errors import UserError, plain


def build_parser() -> argparse.ArgumentParser:
    """Declare the arguments."""
    parser = FlagParser(
        prog="mace_import_model",
        description="Convert a model or training checkpoint of mace-torch 0.2 to 0.3.16; nothing in the file is run.",
    )
    add = parser.add_argument_group("Files").add_argument
    add("old", help="model (.model) or training checkpoint (.pt) of mace-torch")
    add("new", help="model file to write")
    add("--head", help="head to take of a model that has several; without it all are kept")
    add("--overwrite", action="store_true", help="replace the new file if it exists")
    add = parser.add_argument_group("What a training checkpoint does not tell").add_argument
    add("--like", metavar="FILE", help="model of the same run, for what a checkpoint does not tell")
    add("--avg_num_neighbors", type=float, help="average number of neighbors, for a checkpoint")
    add("--gate", choices=["silu", "tanh", "abs", "None"], help="activation of the last readout, for a checkpoint")
    add_output_flags(parser, "WARNING")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Convert with the given command-line arguments.

    Raises:
        UserError: If the file cannot be converted.
        SystemExit: See `mace.cli.command.parse_flags`.
    """
    options = parse_flags(build_parser(), arguments)
    count = options.avg_num_neighbors
    if count is not None and not (math.isfinite(count) and count > 0.0):
        raise UserError(f"--avg_num_neighbors is {count}; it must be a finite number above zero.")
    inputs = {"model to convert": [options.old], "model of --like": [options.like] if options.like else []}
    new = check_output(options.new, "new model", inputs, options.overwrite)
    with messages_on_stderr(options):
        _convert(options, new)


def _convert(options: argparse.Namespace, new: Path) -> None:
    """Convert, and say what was found."""
    # torch is loaded only once the arguments are known to be good
    from mace.compat.importing import completed, import_original, known_from
    from mace.compat.reader import Known
    from mace.model.model_file import save_model

    known = known_from(options.like) if options.like else Known()
    imported = import_original(options.old, options.head, completed(known, options.avg_num_neighbors, options.gate))
    for name in ("like", "avg_num_neighbors", "gate"):
        if getattr(options, name) is not None and imported.kind != "checkpoint":
            raise UserError(f"--{name} has no effect on {options.old}, a whole model that tells it; remove the flag.")
    save_model(new, imported.model, imported.metadata)
    if not options.quiet:
        print(plain(f"{options.old}: {imported.summary()}"))
        print(f"Wrote {new}")


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
