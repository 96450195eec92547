"""The parsers of commands as programs for mace-torch use them: arguments, a namespace, ``run(namespace)``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from mace.errors import UserError
from mace.settings.command_line import Given, SettingsParser
from mace.settings.declaration import nearest
from mace.settings.other_commands import PrepareSettings
from mace.settings.reading import build_settings, layered
from mace.settings.training import TrainingSettings


class TrainingArguments(argparse.Namespace):
    """The value of every setting, as attributes; what is not set anew later keeps how it was typed."""

    __slots__ = ("parsed", "typed")

    def __init__(self, settings: TrainingSettings, typed: dict[str, Given]) -> None:
        super().__init__(**{name: getattr(settings, name) for name in type(settings).model_fields})
        self.parsed, self.typed = settings, typed


class TrainingParser(SettingsParser):
    """The parser of all settings; `parse_args` reads the YAML file too, and checks the values."""

    def __init__(self, model: type[TrainingSettings] = TrainingSettings) -> None:
        super().__init__(model)
        self.settings_class = model

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> TrainingArguments:  # type: ignore[override]
        """Read and check arguments.

        Args:
            args: The arguments; None for those the program was started with.
            namespace: Must be None.

        Returns:
            A namespace for ``run`` of the command. Its values may be changed before.

        Raises:
            UserError: If an argument cannot be understood or obeyed, or a namespace is given.
        """
        if namespace is not None:
            raise UserError("parse_args of the settings makes a namespace of its own; leave namespace out.")
        typed = layered(self, sys.argv[1:] if args is None else args)
        return TrainingArguments(build_settings(self.settings_class, typed), typed)


def build_default_arg_parser() -> TrainingParser:
    """Return the parser of ``mace_run_train``, under the name by which other programs ask mace-torch for it."""
    return TrainingParser()


def build_preprocess_arg_parser() -> TrainingParser:
    """Return the parser of ``mace_prepare_data``, under the name by which other programs ask mace-torch for it."""
    return TrainingParser(PrepareSettings)


def settings_of(arguments: argparse.Namespace, model: type[TrainingSettings] = TrainingSettings) -> TrainingSettings:
    """Understand a namespace, whether `TrainingParser` made it or somebody else.

    Args:
        arguments: Its attributes are settings. Those at their default count as not given, unless they were typed.
        model: The settings of the command.

    Returns:
        The checked settings.

    Raises:
        UserError: If an attribute is no setting, or has a value that cannot be obeyed.
    """
    fields, given = model.model_fields, {}
    before = arguments if isinstance(arguments, TrainingArguments) else None
    for name, value in vars(arguments).items():
        if name not in fields:
            match = nearest(name, fields)
            hint = f"did you mean {match}?" if match else "remove it."
            raise UserError(f"run: the namespace has {name!r}, which is not a setting; {hint}")
        if before is not None and value == getattr(before.parsed, name):
            if name in before.typed:
                given[name] = before.typed[name]
        elif value != fields[name].default:
            given[name] = Given(value, f"--{name}")
    return build_settings(model, given)
