"""The command ``mace_plot_train``: draw the course of runs, one or several over each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from typing import ClassVar, Literal

from mace.cli.command import LogLevel, log_level, messages_on_stderr, quiet, run_program
from mace.errors import UserError
from mace.settings.declaration import Settings, setting
from mace.settings.reading import parse_settings

_DRAWN = "What is drawn"


class PlotSettings(Settings):
    """Which runs are drawn, and what of them."""

    program: ClassVar[str] = "mace_plot_train"
    description: ClassVar[str] = (
        "Draw losses, errors, learning rates and times of runs from their records, results/*_train.txt, as a page and "
        "as a picture; several runs are laid over each other."
    )
    positionals: ClassVar[tuple[str, ...]] = ("paths",)

    paths: list[str] = setting(
        [],
        "records of a run, or a folder with such files",
        group="Files",
        kind="repeated",
        aliases=("path",),
        placeholder="FILE|DIR...",
        default_words="none",
    )
    output: str | None = setting(
        None,
        "files to write, without ending",
        group="Files",
        placeholder="FILE",
        default_words="beside a single file of records, comparison for several",
    )
    output_format: Literal["png", "pdf", "svg", "none"] = setting(
        "png", "kind of the picture, none for the page alone", group="Files"
    )
    keys: str | None = setting(
        None,
        "panels of the picture, separated by commas, for example loss,rmse_f",
        group=_DRAWN,
        placeholder="KEY,...",
        default_words="all but MAE",
    )
    min_epoch: int = setting(0, "first epoch that is drawn", group=_DRAWN)
    start_stage_two: int | None = setting(
        None, "where stage two begins, if the records do not say it", group=_DRAWN, aliases=("start_swa",)
    )
    linear: bool = setting(
        False, "linear vertical axes in the picture; the page has a switch", group=_DRAWN, kind="switch"
    )
    heads: str | None = setting(
        None, "heads that are drawn, separated by commas", group=_DRAWN, placeholder="NAME,...", default_words="all"
    )
    log_level: LogLevel = log_level()
    quiet: bool = quiet()
    error_bars: bool = setting(
        False,
        "draw the spread of losses within epochs",
        kind="switch",
        unsupported="spreads are not drawn, the page shows losses step by step; remove the flag.",
    )


def run(arguments: Sequence[str]) -> None:
    """Draw with the given command-line arguments.

    Raises:
        UserError: If records are missing or cannot be read, or files cannot be written.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(PlotSettings, arguments)
    if not settings.paths:
        raise UserError("Name the records to draw, for example: mace_plot_train results/mace_run-123_train.txt")
    # what draws is loaded only once the arguments are known to be good
    from pathlib import Path

    from mace.pages.comparison import KEYS, Drawing, compare_runs

    keys = settings.keys.split(",") if settings.keys else None
    unknown = sorted(set(keys or ()) - set(KEYS))
    if unknown:
        raise UserError(f"--keys: there is no panel '{unknown[0]}'; choose from {', '.join(KEYS)}.")
    wanted = Drawing(
        output=Path(settings.output).with_suffix("") if settings.output else None,
        picture=None if settings.output_format == "none" else settings.output_format,
        keys=keys,
        min_epoch=settings.min_epoch,
        stage_two_start=settings.start_stage_two,
        linear=settings.linear,
        heads=settings.heads.split(",") if settings.heads else None,
    )
    with messages_on_stderr(settings):
        for path in compare_runs(settings.paths, wanted):
            if not settings.quiet:
                print(f"Wrote {path}")


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
