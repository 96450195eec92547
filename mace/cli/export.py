"""The command ``mace_export``: write a model for other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from mace.cli.command import LogLevel, log_level, messages_on_stderr, quiet, run_program
from mace.files.outputs import check_output
from mace.settings.declaration import Settings, setting
from mace.settings.reading import parse_settings

_FOR_CPP = (
    "such a file would compute only structures with as many atoms of each element and as many neighbors as the one it "
    "was traced with; use --format=mace-torch, from which mace-torch's own converters make files for C++ programs such "
    "as LAMMPS."
)


class ExportSettings(Settings):
    """What is written, and by which python."""

    program: ClassVar[str] = "mace_export"
    description: ClassVar[str] = "Write a model for programs that open models of mace-torch: LAMMPS, OpenMM, Symmetrix."
    positionals: ClassVar[tuple[str, ...]] = ("model", "output")

    model: str = setting(
        ...,
        "model file of this program (or of mace-torch, to renew it)",
        group="Files",
        placeholder="MODEL_FILE",
    )
    output: str = setting(..., "file to write", group="Files", placeholder="OUTPUT_FILE")
    format: Annotated[Literal["mace-torch", "torchscript", "torch.jit", "torch.export"], BeforeValidator(str.lower)] = (
        setting(
            ...,
            "mace-torch: the .model file that mace-torch opens",
            group="Files",
            unsupported_values=dict.fromkeys(("torchscript", "torch.jit", "torch.export"), _FOR_CPP),
        )
    )
    python: str = setting(
        ...,
        "python of an environment with mace-torch, which writes and checks the file",
        group="Files",
        placeholder="FILE",
    )
    head: str | None = setting(
        None, "head to take of a model that has several", group="Files", placeholder="NAME", default_words="all"
    )
    overwrite: bool = setting(False, "replace the output if it exists", group="Files", kind="switch")
    log_level: LogLevel = log_level("WARNING")
    quiet: bool = quiet()


def run(arguments: Sequence[str]) -> None:
    """Export with the given command-line arguments.

    Raises:
        UserError: If the model cannot be exported.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(ExportSettings, arguments)
    output = check_output(settings.output, "exported model", {"model": [settings.model]}, settings.overwrite)
    with messages_on_stderr(settings):
        # torch is loaded only once the arguments are known to be good
        from mace.compat.exporting import export_to_original
        from mace.compat.importing import open_model

        model = open_model(settings.model, head=settings.head).model.requires_grad_(False)
        export = export_to_original(model, output, settings.python)
        deviations = ", ".join(f"{name} {value:.1e}" for name, value in export.deviations.items())
        if not settings.quiet:
            print(
                f"Wrote {export.path} with mace-torch {export.version}; it computes the same (relative deviation: "
                f"{deviations})"
            )


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
