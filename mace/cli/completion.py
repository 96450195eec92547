"""The command ``mace_completion``: print what a shell needs to complete the flags of all commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
from typing import ClassVar, Literal, get_args

from mace.cli.command import run_program
from mace.cli.eval_configs import EvaluationSettings
from mace.cli.export import ExportSettings
from mace.cli.fine_tuning_select import SelectSettings
from mace.cli.import_model import ImportSettings
from mace.cli.info import InfoSettings
from mace.cli.md import DynamicsSettings
from mace.cli.plot_train import PlotSettings
from mace.cli.select_head import SelectHeadSettings
from mace.settings.command_line import SettingsParser
from mace.settings.declaration import Settings, setting
from mace.settings.other_commands import CheckSettings, PrepareSettings, QuickstartSettings
from mace.settings.reading import parse_settings
from mace.settings.training import TrainingSettings

Shell = Literal["bash", "zsh", "fish"]
SHELLS = get_args(Shell)


class CompletionSettings(Settings):
    """Which shell completes."""

    program: ClassVar[str] = "mace_completion"
    description: ClassVar[str] = (
        "Print what a shell needs to complete the flags of all commands. bash: mace_completion bash > "
        "~/.mace_completion, and 'source ~/.mace_completion' in ~/.bashrc; the same for zsh; fish: mace_completion "
        "fish > ~/.config/fish/conf.d/mace.fish"
    )
    positionals: ClassVar[tuple[str, ...]] = ("shell",)

    shell: Shell = setting(..., "shell to complete in", group="Shell")


COMMANDS: tuple[type[Settings], ...] = (
    TrainingSettings,
    CheckSettings,
    PrepareSettings,
    QuickstartSettings,
    EvaluationSettings,
    DynamicsSettings,
    InfoSettings,
    ImportSettings,
    ExportSettings,
    SelectSettings,
    SelectHeadSettings,
    PlotSettings,
    CompletionSettings,
)
"""The settings of all commands."""


def parser_of(model: type[Settings]) -> SettingsParser:
    """Make the parser of a command that knows what it otherwise checks later: choices, help, which values are files."""
    import shtab  # here, so that help needs nothing

    parser = SettingsParser(model)
    actions: list[argparse.Action] = list(parser._actions)
    for name in model.positionals:
        actions.append(parser.add_argument(name, nargs="*" if parser.declarations[name].takes_several else "?"))
    for action in actions:
        declaration = parser.declarations.get(action.dest)
        if declaration is None:
            action.help = "show the flags, or all of them, and leave"
            continue
        about = "not supported yet: " if declaration.unsupported else "no effect: " if declaration.inert else ""
        action.help = f"{about}{declaration.help}"
        if action.nargs != 0:
            action.choices = ["True", "False"] if declaration.types[0] is bool else declaration.choices or None
        if "FILE" in declaration.placeholder or "DIR" in declaration.placeholder:
            # an attribute of its own that shtab reads
            action.complete = shtab.FILE if "FILE" in declaration.placeholder else shtab.DIRECTORY  # type: ignore[attr-defined]
    return parser


def run(arguments: Sequence[str]) -> None:
    """Print with the given command-line arguments.

    Raises:
        UserError: If the shell is not known.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(CompletionSettings, arguments)
    import shtab

    for model in COMMANDS:
        print(shtab.complete(parser_of(model), shell=settings.shell, root_prefix=model.program))


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()
