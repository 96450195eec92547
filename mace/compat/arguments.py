"""The parser of ``mace_run_train`` as programs for mace-torch use it: arguments, a namespace, ``run(namespace)``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mace.elsewhere import absence
from mace.errors import UserError
from mace.settings.command_line import Given, SettingsParser
from mace.settings.declaration import nearest
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

    def __init__(self) -> None:
        super().__init__(TrainingSettings)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> TrainingArguments:  # type: ignore[override]
        """Read and check arguments.

        Args:
            args: The arguments; None for those the program was started with.
            namespace: Must be None.

        Returns:
            A namespace for `mace.cli.run_train.run`. Its values may be changed before.

        Raises:
            UserError: If an argument cannot be understood or obeyed, or a namespace is given.
        """
        if namespace is not None:
            raise UserError("parse_args of the settings makes a namespace of its own; leave namespace out.")
        typed = layered(self, sys.argv[1:] if args is None else args)
        return TrainingArguments(build_settings(TrainingSettings, typed), typed)


def build_default_arg_parser() -> TrainingParser:
    """Return the parser of ``mace_run_train``, under the name by which other programs ask mace-torch for it."""
    return TrainingParser()


def build_preprocess_arg_parser() -> NoReturn:
    """Refuse to prepare data, which other programs begin by asking mace-torch for this parser.

    Raises:
        UserError: Always; it says what to do instead.
    """
    raise UserError(absence("mace_prepare_data"))


def settings_of(arguments: argparse.Namespace) -> TrainingSettings:
    """Understand a namespace, whether `TrainingParser` made it or somebody else.

    Args:
        arguments: Its attributes are settings. Those at their default count as not given, unless they were typed.

    Returns:
        The checked settings.

    Raises:
        UserError: If an attribute is no setting, or has a value that cannot be obeyed.
    """
    fields, given = TrainingSettings.model_fields, {}
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
    return build_settings(TrainingSettings, given)
