"""The command ``mace_plot_train``: draw the course of runs, one or several over each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse

from mace.cli.command import FlagParser, add_output_flags, messages_on_stderr, parse_flags, run_program
from mace.errors import UserError

_FORMATS = ("png", "pdf", "svg", "none")


def build_parser() -> argparse.ArgumentParser:
    """Declare the arguments."""
    parser = FlagParser(
        prog="mace_plot_train",
        description="Draw losses, errors, learning rates and times of runs from their records, results/*_train.txt, as "
        "a page and as a picture; several runs are laid over each other.",
    )
    add = parser.add_argument_group("Files").add_argument
    add("paths", nargs="*", metavar="FILE|DIR", help="records of a run, or a folder with such files")
    add("--path", action="append", default=[], help="the same, as in mace-torch")
    add("--output", help="files to write, without ending; beside a single file of records, comparison for several")
    add("--output_format", choices=_FORMATS, default="png", help="kind of the picture, none for the page alone")
    add = parser.add_argument_group("What is drawn").add_argument
    add("--keys", help="panels of the picture, separated by commas, for example loss,rmse_f; all but MAE by default")
    add("--min_epoch", type=int, default=0, help="first epoch that is drawn")
    add("--start_stage_two", "--start_swa", type=int, help="where stage two begins, if the records do not say it")
    add("--linear", action="store_true", help="linear vertical axes in the picture; the page has a switch")
    add("--heads", help="heads that are drawn, separated by commas")
    add_output_flags(parser)
    add = parser.add_argument_group("Not supported").add_argument
    add("--error_bars", action="store_true", help="the page draws losses step by step")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Draw with the given command-line arguments.

    Raises:
        UserError: If records are missing or cannot be read, or files cannot be written.
        SystemExit: See `mace.cli.command.parse_flags`.
    """
    options = parse_flags(build_parser(), arguments)
    paths = [*options.paths, *options.path]
    if not paths:
        raise UserError("Name the records to draw, for example: mace_plot_train results/mace_run-123_train.txt")
    if options.error_bars:
        raise UserError("--error_bars: spreads are not drawn, the page shows losses step by step; remove the flag.")
    # what draws is loaded only once the arguments are known to be good
    from pathlib import Path

    from mace.pages.comparison import KEYS, Drawing, compare_runs

    keys = options.keys.split(",") if options.keys else None
    unknown = sorted(set(keys or ()) - set(KEYS))
    if unknown:
        raise UserError(f"--keys: there is no panel '{unknown[0]}'; choose from {', '.join(KEYS)}.")
    wanted = Drawing(
        output=Path(options.output).with_suffix("") if options.output else None,
        picture=None if options.output_format == "none" else options.output_format,
        keys=keys,
        min_epoch=options.min_epoch,
        stage_two_start=options.start_stage_two,
        linear=options.linear,
        heads=options.heads.split(",") if options.heads else None,
    )
    with messages_on_stderr(options):
        for path in compare_runs(paths, wanted):
            if not options.quiet:
                print(f"Wrote {path}")


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
