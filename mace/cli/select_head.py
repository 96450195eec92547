"""The command ``mace_select_head``: take one head out of a model that has several."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pathlib import Path
from typing import ClassVar, Literal

from mace.cli.command import LogLevel, log_level, messages_on_stderr, quiet, run_program
from mace.errors import UserError, plain
from mace.files.outputs import check_output
from mace.settings.declaration import Settings, setting
from mace.settings.reading import parse_settings

REPLAYED = "pt_head"
"""The head of structures that are replayed, which is not taken unless it is named."""


class SelectHeadSettings(Settings):
    """Which head is taken, and where the model is written."""

    program: ClassVar[str] = "mace_select_head"
    description: ClassVar[str] = (
        "Take one head out of a model that has several; the new model has one, and predicts what this head predicts."
    )
    positionals: ClassVar[tuple[str, ...]] = ("model_file",)

    model_file: str = setting(
        ..., "model file of this program or of mace-torch", group="Files", placeholder="MODEL_FILE"
    )
    head_name: str | None = setting(
        None, "head to take", group="Files", short="n", placeholder="NAME", default_words=f"the only one but {REPLAYED}"
    )
    list_heads: bool = setting(False, "print the names of the heads only", group="Files", short="l", kind="switch")
    output_file: str | None = setting(
        None,
        "file to write",
        group="Files",
        short="o",
        placeholder="FILE",
        default_words="<model_file>.<head_name>, and the target device behind it",
    )
    overwrite: bool = setting(False, "replace the output if it exists", group="Files", kind="switch")
    format: Literal["mace-train", "mace-torch"] = setting(
        "mace-train", "program for which the model is written", group="Files"
    )
    python: str | None = setting(
        None,
        "python of an environment with mace-torch, which writes and checks a file for it",
        group="Files",
        placeholder="FILE",
        default_words="none",
    )
    target_device: str | None = setting(
        None,
        "device whose name the default name of the output ends in; the model opens on every device",
        group="Files",
        short="d",
        placeholder="DEVICE",
        default_words="none",
    )
    log_level: LogLevel = log_level("WARNING")
    quiet: bool = quiet()


def run(arguments: Sequence[str]) -> None:
    """Take a head with the given command-line arguments.

    Raises:
        UserError: If the model cannot be opened or written, or has no such head.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(SelectHeadSettings, arguments)
    if settings.list_heads and (settings.head_name is not None or settings.output_file is not None):
        raise UserError("--list_heads only prints the names of the heads; give it alone, or leave it out to take one.")
    if (settings.format == "mace-torch") != (settings.python is not None):
        raise UserError("--format=mace-torch needs --python, an environment with mace-torch; give both or neither.")
    with messages_on_stderr(settings):
        # torch is loaded only once the arguments are known to be good
        from mace.compat.importing import heads_in

        heads = heads_in(settings.model_file)
        if settings.list_heads:
            print(plain("\n".join(["Available heads:", *(f"  {head}" for head in heads)])))
            return
        head = _head_to_take(settings, heads)
        device = f".{settings.target_device}" if settings.target_device is not None else ""
        named = settings.output_file or f"{settings.model_file}.{head}{device}"
        output = check_output(named, "new model", {"model": [settings.model_file]}, settings.overwrite)
        _write(settings, head, output)


def _head_to_take(settings: SelectHeadSettings, heads: Sequence[str]) -> str:
    """Find the head that is meant.

    Raises:
        UserError: If there is no such head, or it is not clear which one is meant.
    """
    from mace.model.heads import find_head

    if len(heads) == 1:
        raise UserError(f"{settings.model_file}: the model has one head, {heads[0]}; use it as it is.")
    if settings.head_name is not None:
        return find_head(heads, settings.head_name, settings.model_file)
    others = [head for head in heads if head != REPLAYED]
    if len(others) > 1:
        listed = ", ".join(heads)
        raise UserError(f"{settings.model_file}: the model has {len(heads)} heads ({listed}); name one (--head_name).")
    return others[0]


def _write(settings: SelectHeadSettings, head: str, output: Path) -> None:
    """Write the model with one head, and say so."""
    from mace.compat.exporting import export_to_original
    from mace.compat.importing import open_model
    from mace.model.model_file import save_model

    loaded = open_model(settings.model_file, head=head)
    done = f"Wrote {output}, the head {head} of {settings.model_file}"
    if settings.python is not None:
        export = export_to_original(loaded.model.requires_grad_(False), output, settings.python)
        deviations = ", ".join(f"{name} {value:.1e}" for name, value in export.deviations.items())
        done += f", with mace-torch {export.version}; it computes the same (relative deviation: {deviations})"
    else:
        taken = f"the head {head} of {Path(settings.model_file).name}"
        comment = "; ".join(filter(None, [loaded.metadata.comment, taken]))
        save_model(output, loaded.model, loaded.metadata.model_copy(update={"comment": comment}))
    if not settings.quiet:
        print(plain(done))


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
