"""The command ``mace_completion``: print what a shell needs to complete the flags of all commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
from typing import Any

from mace.cli import eval_configs, export, import_model, info, md, plot_train
from mace.cli.command import FlagParser, parse_flags, run_program
from mace.settings.declaration import alternatives, choices_of
from mace.settings.other_commands import PROGRAM as CHECK
from mace.settings.other_commands import PROGRAM as QUICKSTART
from mace.settings.other_commands import CheckSettings, QuickstartSettings
from mace.settings.reading import SettingsParser
from mace.settings.training import PROGRAM as TRAIN
from mace.settings.training import TrainingSettings

SHELLS = ("bash", "zsh", "fish")

_FILES = ("FILE", "DIR", "NAME|FILE", "FILE...", "FILE|DIR", "FILE.yaml")
_FILE_FLAGS = (
    "structure",
    "model",
    "trajectory",
    "configs",
    "output",
    "plot",
    "file",
    "old",
    "new",
    "like",
    "python",
    "path",
    "paths",
)


def build_parser() -> argparse.ArgumentParser:
    """Declare the arguments."""
    parser = FlagParser(
        prog="mace_completion",
        description="Print what a shell needs to complete the flags of all commands. bash: "
        "mace_completion bash > ~/.mace_completion, and 'source ~/.mace_completion' in ~/.bashrc; the same for zsh; "
        "fish: mace_completion fish > ~/.config/fish/conf.d/mace.fish",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS, help="shell to complete in")
    return parser


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of each command, with choices and help."""
    for model, program, bare in (
        (TrainingSettings, TRAIN, None),
        (CheckSettings, CHECK, None),
        (QuickstartSettings, QUICKSTART, "train_file"),
    ):
        yield _with_choices(SettingsParser(model, program, "", bare))
    for command in (eval_configs, md, info, import_model, export, plot_train):
        yield _with_files(command.build_parser())
    yield build_parser()


def _with_choices(parser: SettingsParser) -> SettingsParser:
    """Tell a parser of settings what it otherwise checks later: choices, help, and which values are files."""
    import shtab

    for action in parser._actions:
        declaration = parser.declarations.get(action.dest)
        if declaration is None:
            continue
        field = parser.model.model_fields[declaration.name]
        about = "not supported yet: " if declaration.unsupported else "no effect: " if declaration.inert else ""
        action.help = f"{about}{declaration.help}"
        refused = declaration.unsupported_values or {}
        if action.nargs != 0:
            choices = [choice for choice in choices_of(field) if choice not in refused]
            is_truth = alternatives(field.annotation)[:1] == [bool]
            action.choices = ["True", "False"] if is_truth else choices or None
        if declaration.placeholder in _FILES:
            _complete(action, shtab.DIRECTORY if declaration.placeholder == "DIR" else shtab.FILE)
    if parser.bare is not None:
        _complete(parser.add_argument(parser.bare, nargs="*"), shtab.FILE)
    return parser


def _with_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Mark the arguments that are files."""
    import shtab

    for action in parser._actions:
        if action.dest in _FILE_FLAGS:
            _complete(action, shtab.FILE)
    return parser


def _complete(action: argparse.Action, kind: Any) -> None:
    """Tell shtab, which reads an attribute of its own, what completes an argument."""
    action.complete = kind  # type: ignore[attr-defined]


def run(arguments: Sequence[str]) -> None:
    """Print with the given command-line arguments.

    Raises:
        SystemExit: See `mace.cli.command.parse_flags`.
    """
    options = parse_flags(build_parser(), arguments)
    import shtab  # here, so that help needs nothing

    for parser in parsers():
        print(shtab.complete(parser, shell=options.shell, root_prefix=parser.prog))


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
