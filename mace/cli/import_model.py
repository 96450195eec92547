"""The command ``mace_import_model``: convert a model of mace-torch to a model file of this program."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from typing import ClassVar, Literal

from mace.cli.command import LogLevel, log_level, messages_on_stderr, quiet, run_program
from mace.errors import UserError, plain
from mace.files.outputs import check_output
from mace.settings.declaration import Settings, setting
from mace.settings.reading import parse_settings

_CHECKPOINTS = "What a training checkpoint does not tell"


class ImportSettings(Settings):
    """What is converted into what."""

    program: ClassVar[str] = "mace_import_model"
    description: ClassVar[str] = (
        "Convert a model or training checkpoint of mace-torch 0.2 to 0.3.16; nothing in the file is run."
    )
    positionals: ClassVar[tuple[str, ...]] = ("old", "new")

    old: str = setting(
        ...,
        "model (.model) or training checkpoint (.pt) of mace-torch",
        group="Files",
        placeholder="OLD_FILE",
    )
    new: str = setting(..., "model file to write", group="Files", placeholder="NEW_FILE")
    head: str | None = setting(
        None, "head to take of a model that has several", group="Files", placeholder="NAME", default_words="all"
    )
    overwrite: bool = setting(False, "replace the new file if it exists", group="Files", kind="switch")
    like: str | None = setting(
        None, "model of the same run, for what a checkpoint does not tell", group=_CHECKPOINTS, placeholder="FILE"
    )
    avg_num_neighbors: float | None = setting(
        None, "average number of neighbors, for a checkpoint", group=_CHECKPOINTS, gt=0
    )
    gate: Literal["silu", "tanh", "abs", "None"] | None = setting(
        None, "activation of the last readout, for a checkpoint", group=_CHECKPOINTS, default_words="not told"
    )
    log_level: LogLevel = log_level("WARNING")
    quiet: bool = quiet()


def run(arguments: Sequence[str]) -> None:
    """Convert with the given command-line arguments.

    Raises:
        UserError: If the file cannot be converted.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(ImportSettings, arguments)
    inputs = {"model to convert": [settings.old], "model of --like": [settings.like] if settings.like else []}
    new = check_output(settings.new, "new model", inputs, settings.overwrite)
    with messages_on_stderr(settings):
        # torch is loaded only once the arguments are known to be good
        from mace.compat.importing import completed, import_original, known_from
        from mace.compat.reader import Known
        from mace.model.model_file import save_model

        known = known_from(settings.like) if settings.like else Known()
        known = completed(known, settings.avg_num_neighbors, settings.gate)
        imported = import_original(settings.old, settings.head, known)
        for name in ("like", "avg_num_neighbors", "gate"):
            if getattr(settings, name) is not None and imported.kind != "checkpoint":
                raise UserError(
                    f"--{name} has no effect on {settings.old}, a whole model that tells it; remove the flag."
                )
        save_model(new, imported.model, imported.metadata)
        if not settings.quiet:
            print(plain(f"{settings.old}: {imported.summary()}"))
            print(f"Wrote {new}")


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
