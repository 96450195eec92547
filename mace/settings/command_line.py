"""Settings as the command line that gives them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from mace.settings.declaration import Declaration, declarations


def as_flags(settings: BaseModel) -> list[str]:
    """Write the settings that somebody gave, in a YAML file or on the command line, as arguments of one command.

    Args:
        settings: The settings.

    Returns:
        One argument per setting and, where it takes several, per value; to be quoted for a shell. Read again, they give
        the same settings.
    """
    known = declarations(type(settings))
    given = [name for name in type(settings).model_fields if name in settings.model_fields_set and name != "config"]
    return [word for name in given for word in _flags(known[name], getattr(settings, name))]


def _flags(declaration: Declaration, value: Any) -> list[str]:
    flag = f"--{declaration.name}"
    if declaration.kind == "switch":
        return [flag if value else f"--{declaration.negations[0]}"]
    if declaration.kind == "switch_off":
        return [] if value else [flag]
    if declaration.kind in ("several", "repeated") and isinstance(value, (list, tuple, set, frozenset)):
        return [flag, *(_word(item) for item in value)] if value else []
    if declaration.kind in ("several", "repeated"):
        return [flag, _word(value)]
    return [f"{flag}={_word(value)}"]


def _word(value: Any) -> str:
    """Write a value as it is typed; tables without what nobody gave."""
    if isinstance(value, BaseModel):
        return repr(value.model_dump(exclude_unset=True))
    return str(value)
