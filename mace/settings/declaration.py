"""How one setting is declared: one typed field with its metadata, from which everything else is derived.

A group of settings is a class derived from `Settings`; every field is made with `setting`. The flag, its aliases, the
key in YAML files, the check of its value, its line of help, its row in the documentation, what a shell completes, and
its JSON schema are read from that one declaration. A class with a `program` is all that a command can be told.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import os
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Kind = Literal["value", "several", "repeated", "switch", "switch_off"]
"""How a flag is written: with one value, with one or more values, the same but collecting the values of every use, bare
for True, or bare for False."""

NOT_SUPPORTED = "Not supported yet"
"""The group of the settings that are only recognized, so that they can be refused by name."""

WITHOUT_EFFECT = "Accepted without effect"
"""The group of the settings of mace-torch that change nothing here: command lines with them work as they are."""

_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclasses.dataclass(frozen=True)
class Declaration:
    """Everything known about one setting.

    Attributes:
        name: The field, the flag without dashes, and the key in YAML files. An underscore at the end, which keeps a
            field apart from a method of the class, is not part of the flag.
        field: Its type, default and bounds.
        group: The heading under which help and documentation show it; by itself for unsupported and inert settings.
        aliases: Other spellings of the name.
        short: A letter that stands for the flag after a single dash, or empty.
        negations: Spellings that set a switch to False; where a file of settings may have switched it on, ``no_<name>``
            for each of its names is among them by itself.
        unit: Physical unit of the value, or empty.
        kind: How the flag is written on the command line.
        placeholder: Word that stands for the value in help; derived from the type when empty.
        expects: What a valid value is, in words; derived from the type when empty.
        default_words: What the default means where the value alone does not say it.
        unsupported: Why any value other than an inactive one is refused, a sentence that goes on after ``--flag:``.
        unsupported_values: Single values that are refused, each with such a sentence.
        inactive: Values besides the default at which an unsupported setting changes nothing.
        inert: What is done instead, for a setting that is accepted and changes nothing; a sentence without its end.
        only_with: The settings without which it changes nothing, joined by ``and`` and ``or``; given without them it is
            accepted, even where it is not supported. They are declared before it.
        may_be_empty: Whether an empty text may be given, as which None counts too; it is not the same as nothing given.
        reads_text: Whether its own check reads text, which is otherwise a Python or JSON literal where the type is a
            list or a dictionary.
    """

    name: str
    field: FieldInfo
    group: str = ""
    aliases: tuple[str, ...] = ()
    short: str = ""
    negations: tuple[str, ...] = ()
    unit: str = ""
    kind: Kind = "value"
    placeholder: str = ""
    expects: str = ""
    default_words: str = ""
    unsupported: str = ""
    unsupported_values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    inactive: tuple[Any, ...] = ()
    inert: str = ""
    only_with: str = ""
    may_be_empty: bool = False
    reads_text: bool = False

    @property
    def help(self) -> str:
        """One line that says what the setting does."""
        return self.field.description or ""

    @property
    def names(self) -> tuple[str, ...]:
        """The name followed by its aliases, without dashes."""
        return (self.name.rstrip("_"), *self.aliases)

    @property
    def spellings(self) -> tuple[str, ...]:
        """All ways to write it, without dashes, those that switch it off included."""
        return (*self.names, *self.negations)

    @property
    def flag(self) -> str:
        """The flag."""
        return f"--{self.names[0]}"

    @property
    def other_flags(self) -> list[str]:
        """Other ways to write the flag, the short one last; without those that switch it off."""
        return [*(f"--{alias}" for alias in self.aliases), *([f"-{self.short}"] if self.short else [])]

    @property
    def is_bare(self) -> bool:
        """Whether the flag is written without a value."""
        return self.kind in ("switch", "switch_off")

    @property
    def takes_several(self) -> bool:
        """Whether several values may follow the flag."""
        return self.kind in ("several", "repeated")

    @property
    def types(self) -> list[Any]:
        """The types a value may have, without None."""
        return [part for part in alternatives(self.field.annotation) if part is not type(None)]

    @property
    def is_optional(self) -> bool:
        """Whether None is a valid value."""
        return type(None) in alternatives(self.field.annotation)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it may be set to; empty when it is not a choice."""
        words = [get_args(part) for part in self.types if get_origin(part) is Literal]
        return tuple(word for word in words[0] if word not in self.unsupported_values) if words else ()

    @property
    def default(self) -> str:
        """What happens when the setting is not given, in words."""
        return self.default_words or ("required" if self.field.is_required() else str(self.field.default))

    @property
    def value_words(self) -> str:
        """The word, or the choices, that stand for the value in help; empty for bare flags."""
        if self.is_bare:
            return ""
        words: dict[Any, str] = {bool: "{True,False}", int: "N", float: "X", str: "TEXT"}
        derived = "{" + ",".join(self.choices) + "}" if self.choices else words.get(self.types[0], "LITERAL")
        return self.placeholder or derived

    @property
    def expectation(self) -> str:
        """What a valid value is, as in ``must be <expectation>``."""
        words = self.expects
        if not words and self.choices:
            words = f"one of {', '.join(self.choices)}"
        elif not words:
            kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "a list"}
            words = " or ".join(kinds.get(get_origin(part) or part, "a dictionary") for part in self.types)
            info = self.field.metadata
            bounds = {key: getattr(entry, key) for entry in info for key in _BOUNDS if hasattr(entry, key)}
            if "ge" in bounds and "le" in bounds:
                words += f" from {bounds['ge']:g} to {bounds['le']:g}"
            elif set(bounds) == {"ge"}:
                words += f" of at least {bounds['ge']:g}"
            elif bounds:
                words += " " + " and ".join(f"{_BOUNDS[key]} {value:g}" for key, value in bounds.items())
        unit = f" ({self.unit})" if self.unit else ""
        return words + unit + (" or None" if self.is_optional and "None" not in self.choices else "")

    def effect(
        self, value: Any, others: Mapping[str, Any]
    ) -> tuple[Literal["obeyed", "without effect", "refused"], str]:
        """Tell what becomes of a value that somebody gave.

        Args:
            value: The checked value.
            others: The values of the settings declared before it.

        Returns:
            What becomes of it and, unless it is obeyed, why.
        """
        if value == self.field.default or value in self.inactive:
            return "obeyed", ""
        needed = [part.split(" and ") for part in self.only_with.split(" or ")]
        if self.only_with and not any(all(others.get(n) not in (None, False) for n in part) for part in needed):
            words = (word if word in ("and", "or") else f"--{word}" for word in self.only_with.split())
            return "without effect", f"has no effect without {' '.join(words)}"
        if self.inert:
            return "without effect", f"changes nothing: {self.inert}"
        refusal = self.unsupported or (self.unsupported_values.get(value, "") if isinstance(value, str) else "")
        return ("refused", refusal) if refusal else ("obeyed", "")


def setting(default: Any, help: str, **about: Any) -> Any:
    """Declare a setting as a field of a `Settings` class.

    Args:
        default: Value when nobody gives one; ``...`` makes the setting required.
        help: One line that says what the setting does.
        **about: What else is to be said about it, see `Declaration`, and bounds of a number: ``gt``, ``ge``, ``lt``,
            ``le``.

    Returns:
        A pydantic field.
    """
    bounds = {key: about.pop(key) for key in _BOUNDS if key in about}
    if "unsupported" in about or "inert" in about:
        about["group"] = NOT_SUPPORTED if "unsupported" in about else WITHOUT_EFFECT
    extra = {key: list(value) if isinstance(value, tuple) else value for key, value in about.items()}
    make: Any = Field
    return make(default, description=help, json_schema_extra=extra, **bounds)


DeviceName = Annotated[str, Field(pattern="^(cpu|cuda|mps|xpu)(:[0-9]+)?$")]
"""The type of a setting that names a device."""


def device_setting(help: str, group: str) -> Any:
    """Declare the setting of every command that computes: where it does."""
    return setting(
        "cpu",
        help,
        group=group,
        placeholder="{cpu,cuda,mps,xpu}",
        expects="cpu, cuda, mps or xpu, with a number where there are several (cuda:0)",
    )


@functools.cache
def declarations(model: type[BaseModel]) -> dict[str, Declaration]:
    """Collect the declarations of all settings of a class, by name."""
    found = {}
    for name, info in model.model_fields.items():
        extra: dict[str, Any] = dict(info.json_schema_extra) if isinstance(info.json_schema_extra, dict) else {}
        about: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in extra.items()}
        if about.get("kind") == "switch" and "config" in model.model_fields:
            opposites = [f"no_{spelling}" for spelling in (name, *about.get("aliases", ()))]
            about["negations"] = (*opposites, *about.get("negations", ()))
        found[name] = Declaration(name, info, **about)
    return found


def alternatives(annotation: Any) -> list[Any]:
    """List the types a value may have, without annotations; ``int | list[int] | None`` gives all three."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in alternatives(member)]
    return [annotation]


class _WordsOfJSON(ast.NodeTransformer):
    """Puts the constants of Python in place of those of JSON."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace a word."""
        words = {"true": True, "false": False, "null": None}
        return ast.copy_location(ast.Constant(words[node.id]), node) if node.id in words else node


def read_literal(text: str) -> Any:
    """Read a number, list or dictionary written as a Python or JSON literal.

    Raises:
        ValueError: If the text is neither, or a dictionary has a key twice.
    """
    try:
        tree = _WordsOfJSON().visit(ast.parse(text.strip(), mode="eval"))
        value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{shown(text)} is not a Python literal") from error
    for node in ast.walk(tree):
        keys = [ast.dump(key) for key in node.keys if key is not None] if isinstance(node, ast.Dict) else []
        if len(set(keys)) < len(keys):
            raise ValueError(f"{shown(text)} has a key twice, of which the last alone would count")
    return value


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


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and anything else as the only item of one."""
    return value if isinstance(value, list) else [value]


class Settings(BaseModel):
    """Base of all groups of settings: frozen, closed, and reading text the way it is typed in a shell.

    Attributes:
        program: Name of the command that has these settings; empty for a group of them.
        description: One sentence, or a few, about the command.
        positionals: Settings whose values may also be given without a flag, in this order.
        help_groups: Groups that ``--help`` shows; all if there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    program: ClassVar[str] = ""
    description: ClassVar[str] = ""
    positionals: ClassVar[tuple[str, ...]] = ()
    help_groups: ClassVar[tuple[str, ...]] = ()

    @field_validator("*", mode="wrap")
    @classmethod
    def _check(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Check a value as it is typed in a shell or a YAML file, and refuse what is declared but not available."""
        declaration = declarations(cls)[info.field_name or ""]
        if re.search("FILE|DIR", declaration.placeholder):  # where ~ is the home folder
            paths = [os.path.expanduser(v) if isinstance(v, str) and v != "~" else v for v in as_list(value)]
            value = paths if isinstance(value, list) else paths[0]
        can_be_none = declaration.is_optional and "None" not in declaration.choices
        can_be_empty = declaration.may_be_empty or declaration.field.default == ""
        holds_several = any((get_origin(part) or part) in (list, dict) for part in declaration.types)
        if value is None and "None" in declaration.choices:
            value = "None"
        elif isinstance(value, str) and can_be_none and value.lower() in ("none", "null"):
            value = "" if declaration.may_be_empty else None
        elif value == "" and str in declaration.types and not can_be_empty:
            raise ValueError("is empty; give a value or remove it.")
        elif isinstance(value, str) and holds_several and str not in declaration.types and not declaration.reads_text:
            value = read_literal(value)
        value = check(value)
        effect, why = declaration.effect(value, info.data)
        if effect == "refused":
            raise PydanticCustomError("unsupported", "{sentence}", {"sentence": why})
        return value


def inert_notes(settings: BaseModel) -> list[str]:
    """Say of every setting that somebody gave and that changes nothing what is done instead, or why.

    Args:
        settings: The settings.

    Returns:
        One sentence for each, without its end.
    """
    notes = []
    for name, declaration in declarations(type(settings)).items():
        value = getattr(settings, name)
        if name in settings.model_fields_set:
            effect, why = declaration.effect(value, dict(settings))
            if effect == "without effect":
                notes.append(f"{declaration.flag}{'' if value is True and declaration.is_bare else f'={value}'} {why}")
    return notes
