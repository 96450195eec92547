"""How one setting is declared: one typed field with its metadata, from which everything else is derived.

A group of settings is a class derived from `Settings`; every field is made with `setting`. The flag, its aliases, the
key in YAML files, the check of its value, its line of help, its row in the documentation and its JSON schema are read
from that one declaration.
"""

from __future__ import annotations

import ast
import difflib
import functools
import os
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Kind = Literal["value", "several", "repeated", "switch", "switch_off"]
"""How a flag is written: with one value, with one or more values, the same but collecting the values of every use, bare
for True, or bare for False."""

NOT_SUPPORTED = "Not supported yet"
"""The group of the settings that are only recognized, so that they can be refused by name."""

WITHOUT_EFFECT = "Accepted without effect"
"""The group of the settings of mace-torch that change nothing here: command lines with them work as they are."""


@dataclass(frozen=True)
class Declaration:
    """Everything known about one setting besides its type and its default.

    Attributes:
        name: The field, the flag without dashes, and the key in YAML files.
        help: One line that says what the setting does.
        group: The heading under which help and documentation show it.
        aliases: Other spellings of the name.
        negations: Spellings that set a switch to False.
        unit: Physical unit of the value, or empty.
        kind: How the flag is written on the command line.
        placeholder: Word that stands for the value in help; derived from the type when empty.
        expects: What a valid value is, in words; derived from the type when empty.
        default_words: What the default means where the value alone does not say it.
        unsupported: Why any value other than an inactive one is refused; empty for supported settings.
        unsupported_values: Single values that are refused, each with the reason.
        inactive: Values besides the default at which an unsupported setting changes nothing.
        inert: What is done instead, for a setting that is accepted and changes nothing; empty for all others.
        only_with: Without what a setting changes nothing, and is accepted even where it is not supported; one of
            `mace.settings.unsupported.CONDITIONS`, or empty.
        may_be_empty: Whether an empty text may be given, as which None counts too; it is not the same as nothing given.
    """

    name: str
    help: str
    group: str
    aliases: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()
    unit: str = ""
    kind: Kind = "value"
    placeholder: str = ""
    expects: str = ""
    default_words: str = ""
    unsupported: str = ""
    unsupported_values: Mapping[str, str] | None = None
    inactive: tuple[Any, ...] = ()
    inert: str = ""
    only_with: str = ""
    may_be_empty: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The name followed by its aliases, without dashes."""
        return (self.name, *self.aliases)


def setting(
    default: Any,
    help: str,
    *,
    group: str = "",
    aliases: Iterable[str] = (),
    negations: Iterable[str] = (),
    unit: str = "",
    kind: Kind = "value",
    placeholder: str = "",
    expects: str = "",
    default_words: str = "",
    unsupported: str = "",
    unsupported_values: Mapping[str, str] | None = None,
    inactive: Iterable[Any] = (),
    inert: str = "",
    only_with: str = "",
    may_be_empty: bool = False,
    **constraints: float,
) -> Any:
    """Declare a setting as a field of a `Settings` class.

    Args:
        default: Value when nobody gives one; ``...`` makes the setting required.
        help: See `Declaration` for this and the following arguments.
        group: May be left empty for settings that are unsupported or inert.
        aliases: Other spellings.
        negations: Spellings that mean False; a switch gets ``no_<name>`` for each of its names by itself.
        unit: Unit of the value.
        kind: How the flag is written.
        placeholder: Stands for the value in help.
        expects: A valid value in words.
        default_words: The default in words.
        unsupported: Reason of refusal, a sentence that goes on after ``--flag:``.
        unsupported_values: Reasons of refusal of single values.
        inactive: Harmless values of an unsupported setting.
        inert: What is done instead, a sentence without its end that goes on after ``--flag=value:``.
        only_with: Without what it changes nothing.
        may_be_empty: Whether it may be an empty text.
        **constraints: Bounds of a number: ``gt``, ``ge``, ``lt``, ``le``.

    Returns:
        A pydantic field.
    """
    extra: dict[str, Any] = {
        "group": NOT_SUPPORTED if unsupported else WITHOUT_EFFECT if inert else group,
        "aliases": list(aliases),
        "negations": list(negations),
        "unit": unit,
        "kind": kind,
        "placeholder": placeholder,
        "expects": expects,
        "default_words": default_words,
        "unsupported": unsupported,
        "unsupported_values": dict(unsupported_values or {}),
        "inactive": list(inactive),
        "inert": inert,
        "only_with": only_with,
        "may_be_empty": may_be_empty,
    }
    field: Any = Field
    return field(
        default,
        description=help,
        json_schema_extra={key: value for key, value in extra.items() if value or key == "group"},
        **constraints,
    )


def declaration_of(name: str, field: FieldInfo) -> Declaration:
    """Read the declaration back from a field made with `setting`."""
    extra: dict[str, Any] = dict(field.json_schema_extra) if isinstance(field.json_schema_extra, dict) else {}
    listed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in extra.items()}
    declaration = Declaration(name=name, help=field.description or "", **listed)
    if declaration.kind != "switch":
        return declaration
    listed["negations"] = (*(f"no_{spelling}" for spelling in declaration.names), *declaration.negations)
    return Declaration(name=name, help=declaration.help, **listed)


@functools.cache
def declarations(model: type[BaseModel]) -> dict[str, Declaration]:
    """Collect the declarations of all settings of a class, by name."""
    return {name: declaration_of(name, field) for name, field in model.model_fields.items()}


def alternatives(annotation: Any) -> list[Any]:
    """List the types a value may have, without ``None`` and without annotations.

    ``int | list[int] | None`` gives ``[int, list[int]]``.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in alternatives(member)]
    return [] if annotation is type(None) else [annotation]


def is_optional(annotation: Any) -> bool:
    """Tell whether ``None`` is a valid value."""
    if get_origin(annotation) is Annotated:
        return is_optional(get_args(annotation)[0])
    return type(None) in get_args(annotation)


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """List the words a setting may take; empty when it is not a choice."""
    for part in alternatives(field.annotation):
        if get_origin(part) is Literal:
            return get_args(part)
    return ()


def is_container(annotation: Any) -> bool:
    """Tell whether a type is a list or a dictionary."""
    return (get_origin(annotation) or annotation) in (list, dict)


def read_literal(text: str) -> Any:
    """Read a number, list or dictionary written as a Python or JSON literal.

    Raises:
        ValueError: If the text is neither, or a dictionary has a key twice.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{shown(text)} is not a Python literal") from error
    for node in ast.walk(tree):
        keys = [ast.dump(key) for key in node.keys if key is not None] if isinstance(node, ast.Dict) else []
        if len(set(keys)) < len(keys):
            raise ValueError(f"{shown(text)} has a key twice, of which the last alone would count")
    return value


def expectation(field: FieldInfo, declaration: Declaration) -> str:
    """Say in words what a valid value is, as in ``must be <expectation>``."""
    if declaration.expects:
        words = declaration.expects
    elif choices_of(field):
        refused = declaration.unsupported_values or {}
        words = "one of " + ", ".join(choice for choice in choices_of(field) if choice not in refused)
    else:
        words = " or ".join(_type_words(part) for part in alternatives(field.annotation)) + _bounds_words(field)
    unit = f" ({declaration.unit})" if declaration.unit else ""
    return words + unit + (" or None" if is_optional(field.annotation) else "")


def _type_words(annotation: Any) -> str:
    origin = get_origin(annotation) or annotation
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return words.get(origin, "a dictionary")


def _bounds_words(field: FieldInfo) -> str:
    bounds = {
        key: getattr(entry, key) for entry in field.metadata for key in ("gt", "ge", "lt", "le") if hasattr(entry, key)
    }
    if "ge" in bounds and "le" in bounds:
        return f" from {bounds['ge']:g} to {bounds['le']:g}"
    if set(bounds) == {"ge"}:
        return f" of at least {bounds['ge']:g}"
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    text = " and ".join(f"{words[key]} {value:g}" for key, value in bounds.items())
    return f" {text}" if text else ""


def shown(value: Any) -> str:
    """Write a value as it was typed, without the middle of a long one.

    >>> shown("abc"), len(shown("a" * 5000))
    ("'abc'", 63)
    """
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:40]}...{text[-20:]}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Find the known word closest to a misspelt one, or ``None`` if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def _from_home(value: Any) -> Any:
    """Write out the home folder that ``~`` stands for at the start of a path, or of each of several."""
    if isinstance(value, list):
        return [_from_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value != "~" else value


class Settings(BaseModel):
    """Base of all groups of settings: frozen, closed, and reading text the way it is typed in a shell."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Turn what a shell or a YAML file can hold into what the type of the field wants."""
        field = cls.model_fields[info.field_name or ""]
        if re.search("FILE|DIR", declarations(cls)[info.field_name or ""].placeholder):
            value = _from_home(value)
        parts = alternatives(field.annotation)
        if value is None and "None" in choices_of(field):
            return "None"
        if not isinstance(value, str):
            return value
        is_none = is_optional(field.annotation) and value.lower() in ("none", "null")
        if (is_none or not value) and declaration_of(info.field_name or "", field).may_be_empty:
            return ""
        if is_none:
            return None
        if not value and str in parts and field.default != "":
            raise ValueError("is empty; give a value or remove it.")
        if str not in parts and any(is_container(part) for part in parts):
            return read_literal(value)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_unsupported(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what is declared but not available, with the declared sentence."""
        name = info.field_name or ""
        field = cls.model_fields[name]
        declaration = declaration_of(name, field)
        sentence = ""
        if declaration.unsupported and not declaration.only_with:
            is_harmless = value == field.default or value in declaration.inactive
            sentence = "" if is_harmless else declaration.unsupported
        elif declaration.unsupported_values and isinstance(value, str):
            sentence = declaration.unsupported_values.get(value, "")
        if sentence:
            raise PydanticCustomError("unsupported", "{sentence}", {"sentence": sentence})
        return value
