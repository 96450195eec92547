"""From an argument list and a YAML file to checked settings: defaults < YAML ``--config`` < command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mace.errors import UserError
from mace.settings.command_line import Given, SettingsParser
from mace.settings.declaration import Settings, declarations, nearest, shown

Group = TypeVar("Group", bound=BaseModel)
Command = TypeVar("Command", bound=Settings)


def parse_settings(model: type[Command], argv: Sequence[str]) -> Command:
    """Read, layer and check the settings of a command: defaults < YAML ``--config`` < command line.

    Args:
        model: The class of settings; its field ``config``, if it has one, names the YAML file.
        argv: The arguments after the name of the program.

    Returns:
        The checked settings; ``model_fields_set`` tells which ones somebody gave.

    Raises:
        UserError: With one sentence per mistake, one per line.
        SystemExit: With status 0 after ``--help`` or ``--help-all``.
    """
    return build_settings(model, layered(SettingsParser(model), argv))


def layered(parser: SettingsParser, argv: Sequence[str]) -> dict[str, Given]:
    """Read a command line and the YAML file it names, without checking the values; the command line wins.

    Raises:
        UserError: If either cannot be understood.
        SystemExit: With status 0 after ``--help`` or ``--help-all``.
    """
    typed = parser.read(argv)
    if "config" not in typed:
        return typed
    from mace.settings.yaml_file import read_yaml_settings  # needed by few runs, so not at the top: help stays quick

    return {**read_yaml_settings(os.path.expanduser(str(typed["config"].value)), parser.model), **typed}


def build_settings(model: type[Group], given: dict[str, Given]) -> Group:
    """Check values and build the settings from them.

    Args:
        model: The class of settings.
        given: What was typed, by the name of the setting.

    Returns:
        The checked settings.

    Raises:
        UserError: With one sentence per mistake, one per line.
    """
    try:
        return model(**{name: item.value for name, item in given.items()})
    except ValidationError as error:
        sentences: dict[str, str] = {}
        for problem in error.errors():
            cause = str(problem.get("ctx", {}).get("error", ""))
            name = str(problem["loc"][0]) if problem["loc"] else ""
            if not name:
                sentence = cause
            elif name not in given:
                sentence = f"{declarations(model)[name].flag} is required: {declarations(model)[name].help}."
            else:
                declaration, typed = declarations(model)[name], given[name]
                match = nearest(str(typed.value), declaration.choices)
                hint = f"; did you mean {match}?" if match else "."
                sentence = f"{typed.spelling} must be {declaration.expectation}, not {shown(typed.value)}{hint}"
                if problem["type"] == "value_error" and cause.endswith((".", "?")):
                    sentence = f"{typed.spelling} {cause}"
                if problem["type"] == "unsupported":
                    sentence = f"{typed.spelling} {typed.value}: {problem['msg']}"
                if declaration.unsupported:
                    sentence = f"{typed.spelling}: {declaration.unsupported}"
            sentences.setdefault(name, sentence)
        raise UserError("\n".join(sentences.values())) from error
