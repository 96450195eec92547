"""The text ``--help`` prints: one entry per setting, grouped by task, with unit and default."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mace.settings.declaration import (
    NOT_SUPPORTED,
    WITHOUT_EFFECT,
    Declaration,
    alternatives,
    choices_of,
    declarations,
)

_INDENT = 28
_HOW_TO_GIVE = (
    "Every setting can also be a line 'setting: value' of a YAML file given with --config; the command line wins over "
    "the file, and of a flag given twice the last one counts. Bare flags (shown without a value) are switched off "
    "again by --no_<flag>."
)


def supported_groups(model: type[BaseModel]) -> dict[str, list[Declaration]]:
    """Sort the supported settings that have an effect by group, in the order of declaration."""
    groups: dict[str, list[Declaration]] = {}
    for declaration in declarations(model).values():
        if not declaration.unsupported and not declaration.inert:
            groups.setdefault(declaration.group, []).append(declaration)
    return groups


def unsupported_settings(model: type[BaseModel]) -> list[Declaration]:
    """List the settings that are refused by name."""
    return [declaration for declaration in declarations(model).values() if declaration.unsupported]


def inert_settings(model: type[BaseModel]) -> list[Declaration]:
    """List the settings that are accepted and change nothing."""
    return [declaration for declaration in declarations(model).values() if declaration.inert]


def default_words(field: FieldInfo, declaration: Declaration) -> str:
    """Say what happens when the setting is not given."""
    if declaration.default_words:
        return declaration.default_words
    return "required" if field.is_required() else str(field.default)


def placeholder(field: FieldInfo, declaration: Declaration) -> str:
    """The word, or the choices, that stand for the value; empty for bare flags."""
    if declaration.kind in ("switch", "switch_off"):
        return ""
    if declaration.placeholder:
        return declaration.placeholder
    refused = declaration.unsupported_values or {}
    choices = [choice for choice in choices_of(field) if choice not in refused]
    if choices:
        return "{" + ",".join(choices) + "}"
    words: dict[Any, str] = {bool: "{True,False}", int: "N", float: "X", str: "TEXT"}
    return words.get(alternatives(field.annotation)[0], "LITERAL")


def help_text(
    model: type[BaseModel], program: str, description: str, everything: bool = False, bare: str | None = None
) -> str:
    """Write the help of a command.

    Args:
        model: The class of settings; if it has ``help_groups``, only these are shown unless everything is wanted.
        program: Name of the command.
        description: One sentence about the command.
        everything: Whether unsupported settings get entries of their own instead of one compact list.
        bare: Setting whose values may be given without a flag.

    Returns:
        The text, without a newline at its end.
    """
    width = min(shutil.get_terminal_size().columns, 120)
    chosen: Sequence[str] | None = None if everything else getattr(model, "help_groups", None)
    lines = [_usage(model, program, bare), ""]
    lines += textwrap.wrap(description, width)
    lines += textwrap.wrap(_HOW_TO_GIVE, width)
    groups = supported_groups(model)
    for group in groups if chosen is None else chosen:
        lines += ["", f"{group}:"]
        for declaration in groups[group]:
            lines += _entry(model.model_fields[declaration.name], declaration, width)
    if chosen is None:
        reasons = {d.name: d.inert for d in inert_settings(model)}
        lines += ["", f"{WITHOUT_EFFECT}:", *_list_lines(model, reasons, width, everything)]
        reasons = {d.name: d.unsupported for d in unsupported_settings(model)}
        lines += ["", f"{NOT_SUPPORTED}:", *_list_lines(model, reasons, width, everything)]
    lines += ["", "Help:"]
    lines += [f"  {'--help':<{_INDENT - 2}}show this text and leave"]
    more = (
        "say for every setting that is not supported or has no effect why, and leave"
        if chosen is None
        else "show all settings"
    )
    lines += [f"  {'--help-all':<{_INDENT - 2}}{more}"]
    return "\n".join(lines)


def _usage(model: type[BaseModel], program: str, bare: str | None) -> str:
    """Write the first line: what is required, and that there is more."""
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    words = [model_placeholder(model, name) if name == bare else f"--{name}=..." for name in required]
    return f"usage: {program} {' '.join(words)} [--setting=value ...]"


def model_placeholder(model: type[BaseModel], name: str) -> str:
    """The word that stands for the value of a setting, see `placeholder`."""
    return placeholder(model.model_fields[name], declarations(model)[name])


def _entry(field: FieldInfo, declaration: Declaration, width: int) -> list[str]:
    flag = f"  --{declaration.name} {placeholder(field, declaration)}".rstrip()
    unit = f" [{declaration.unit}]" if declaration.unit else ""
    also = f"; also --{', --'.join(declaration.aliases)}" if declaration.aliases else ""
    text = f"{declaration.help}{unit} (default: {default_words(field, declaration)}{also})"
    if field.is_required():
        text = f"{declaration.help}{unit} (required{also})"
    return _two_columns(flag, text, width)


def _two_columns(left: str, right: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(right, max(width - _INDENT, 40), break_on_hyphens=False)
    body = [" " * _INDENT + line for line in wrapped]
    if len(left) < _INDENT - 1:
        return [f"{left:<{_INDENT}}{wrapped[0]}", *body[1:]]
    return [left, *body]


def _list_lines(model: type[BaseModel], reasons: dict[str, str], width: int, everything: bool) -> list[str]:
    """Write names and reasons one under the other, or the names alone."""
    if everything:
        known = declarations(model)
        entries = [_two_columns(f"  --{name}", f"{known[name].help}. {why}", width) for name, why in reasons.items()]
        return [line for entry in entries for line in entry]
    names = ", ".join(f"--{name}" for name in reasons)
    return textwrap.wrap(names, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
