"""From an argument list and a YAML file to checked settings: defaults < YAML ``--config`` < command line."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from mace.errors import UserError
from mace.settings.declaration import (
    Declaration,
    alternatives,
    choices_of,
    declarations,
    expectation,
    nearest,
    shown,
)
from mace.settings.help import help_text

_LOGGER = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

_YAML_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Given:
    """One value somebody typed.

    Attributes:
        value: As typed: text, or nested lists and dictionaries of text from YAML, or a boolean from a bare flag.
        spelling: Where and how it was typed, as error messages name it: ``--lr`` or ``run.yaml: lr``.
    """

    value: Any
    spelling: str


class _Record(argparse.Action):
    """Keep the value together with the spelling the user chose."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        value = self.const if self.nargs == 0 else values
        setattr(namespace, self.dest, Given(value, option_string or self.dest))


class _RecordMore(_Record):
    """Keep the values of every use of a flag."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, None)
        super().__call__(parser, namespace, [*(before.value if before else []), *values], option_string)


class _ShowHelp(argparse.Action):
    """Print the help and leave with status 0."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        assert isinstance(parser, SettingsParser)
        print(parser.format_help(everything=bool(self.const)))
        parser.exit(0)


class SettingsParser(argparse.ArgumentParser):
    """An argument parser built from a class of settings; its errors are `UserError`s."""

    def __init__(self, model: type[BaseModel], program: str, description: str, bare: str | None = None) -> None:
        """Add one flag per declared setting.

        Args:
            model: The class of settings.
            program: Name of the command, for the help.
            description: One sentence about the command, for the help.
            bare: Setting whose values may also be given without a flag; None if every value needs one.
        """
        super().__init__(
            prog=program,
            description=description,
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
        )
        self.model, self.bare = model, bare
        self.declarations = declarations(model)
        self.add_argument("-h", "--help", action=_ShowHelp, nargs=0, const=False)
        self.add_argument("--help_all", action=_ShowHelp, nargs=0, const=True)
        for declaration in self.declarations.values():
            self._add_setting(declaration)

    def _add_setting(self, declaration: Declaration) -> None:
        flags = [f"--{name}" for name in declaration.names]
        if declaration.kind in ("switch", "switch_off"):
            on = declaration.kind == "switch"
            self.add_argument(*flags, action=_Record, nargs=0, const=on, dest=declaration.name)
            if declaration.negations:
                negated = [f"--{name}" for name in declaration.negations]
                self.add_argument(*negated, action=_Record, nargs=0, const=False, dest=declaration.name)
        else:
            nargs = "+" if declaration.kind in ("several", "repeated") else None
            action = _RecordMore if declaration.kind == "repeated" else _Record
            self.add_argument(*flags, action=action, nargs=nargs, dest=declaration.name)

    def format_help(self, everything: bool = False) -> str:
        """Return the text that ``--help`` prints, or ``--help-all``."""
        return help_text(self.model, self.prog, self.description or "", everything, self.bare)

    def error(self, message: str) -> NoReturn:
        """Turn an error of argparse into one sentence."""
        match = re.fullmatch(r"argument (\S+): (.*)", message)
        if match is None:
            raise UserError(f"{message}.")
        flag = match.group(1).split("/")[0]
        declaration = next(d for d in self.declarations.values() if flag[2:] in (*d.names, *d.negations))
        if declaration.kind in ("switch", "switch_off"):
            raise UserError(self.bare_flag_sentence(flag))
        wanted = expectation(self.model.model_fields[declaration.name], declaration)
        raise UserError(f"{flag} needs a value: {wanted}.")

    def bare_flag_sentence(self, flag: str) -> str:
        """Say that a switch takes no value."""
        negations = [n for d in self.declarations.values() if flag[2:] in d.names for n in d.negations]
        off = f"; --{negations[0]} turns it off" if negations else ""
        return f"{flag} is a bare flag: write it without a value{off}."

    def is_bare(self, flag: str) -> bool:
        """Tell whether a flag takes no value."""
        return any(
            flag[2:] in (*d.names, *d.negations)
            for d in self.declarations.values()
            if d.kind in ("switch", "switch_off")
        )

    def read(self, argv: Sequence[str]) -> dict[str, Given]:
        """Read an argument list without checking the values.

        Args:
            argv: The arguments after the name of the program.

        Returns:
            What was typed, by the name of the setting.

        Raises:
            UserError: If a flag is unknown, or lacks a value, or has one too many.
        """
        arguments = [self._completed(word) for word in _normalized(argv)]
        namespace, rest = self.parse_known_args(arguments)
        given: dict[str, Given] = vars(namespace)
        if rest and self.bare is not None and not any(word.startswith("-") for word in rest):
            if self.bare in given:
                raise UserError(f"{rest[0]!r} and {given[self.bare].spelling} say the same; give one of them.")
            given[self.bare], rest = Given(rest, self.bare), []
        if rest:
            raise UserError("\n".join(self._leftover_sentences(arguments, rest)))
        return {name: self._unpacked(name, item) for name, item in given.items()}

    def _completed(self, word: str) -> str:
        """Write out a flag that is cut short, as argparse allows; several spellings of one setting are no ambiguity.

        Raises:
            UserError: If it could mean several.
        """
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag == "--" or flag in self._option_string_actions:
            return word
        meant = {
            (action.dest, action.const): spelling
            for spelling, action in reversed(self._option_string_actions.items())
            if spelling.startswith(flag)
        }
        if len(meant) > 1:
            several = sorted(meant.values())
            more = f" and {len(several) - 5} more" if len(several) > 5 else ""
            raise UserError(f"{flag} is not a setting, but begins several: {', '.join(several[:5])}{more}.")
        return "".join([*meant.values(), equals, value]) if meant else word

    def _unpacked(self, name: str, item: Given) -> Given:
        """A flag that takes several values and got one means that value, where its type allows text."""
        takes_text = str in alternatives(self.model.model_fields[name].annotation)
        if isinstance(item.value, list) and len(item.value) == 1 and takes_text:
            return Given(item.value[0], item.spelling)
        return item

    def _leftover_sentences(self, arguments: Sequence[str], rest: Sequence[str]) -> list[str]:
        unknown = [word for word in rest if word.startswith("-")]
        if unknown:
            known = [name for d in self.declarations.values() for name in (*d.names, *d.negations)]
            return [f"{word.split('=')[0]} is not a setting; {_advice(word, known, '--')}" for word in unknown]
        before = arguments[max(arguments.index(rest[0]) - 1, 0)]
        if self.is_bare(before):
            return [self.bare_flag_sentence(before)]
        return [f"{rest[0]!r} belongs to no setting; every setting is written as --name=value, see --help."]


def _normalized(argv: Sequence[str]) -> list[str]:
    """Write flags with underscores, and join negative numbers to their flags.

    The latter because argparse takes ``-1e-3`` for a flag.
    """
    arguments: list[str] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word.partition("=")
            arguments.append("--" + flag[2:].replace("-", "_") + equals + value)
        elif arguments and _is_negative_number(word) and re.fullmatch(r"--\w+", arguments[-1]):
            arguments[-1] += f"={word}"
        else:
            arguments.append(word)
    return arguments


def _is_negative_number(word: str) -> bool:
    return re.fullmatch(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word) is not None


def _advice(word: str, known: Sequence[str], prefix: str) -> str:
    name = word.split("=")[0].lstrip("-")
    match = nearest(name, known)
    return f"did you mean {prefix}{match}?" if match else "--help lists all settings."


def read_yaml_settings(path: str, model: type[BaseModel]) -> dict[str, Given]:
    """Read a YAML file of settings without checking the values.

    Keys may be any spelling of a setting, with dashes or underscores. Scalars are kept as the text in the file, so that
    a value means the same here and on the command line (YAML alone would take ``1e-3`` for text and ``010`` for 8).

    Args:
        path: The file.
        model: The class of settings.

    Returns:
        What was typed, by the name of the setting.

    Raises:
        UserError: If the file cannot be read, is not a table of settings, or has unknown or repeated keys.
    """
    known = declarations(model)
    spellings = {spelling: d for d in known.values() for spelling in (*d.names, *d.negations)}
    given: dict[str, Given] = {}
    for key, value in _yaml_table(path).items():
        name = key.lstrip("-").replace("-", "_")
        if name not in spellings:
            raise UserError(f"{path}: {shown(key)} is not a setting; {_advice(name[:60], list(spellings), '')}")
        declaration = spellings[name]
        if declaration.name == "config":
            raise UserError(f"{path}: {key!r} cannot be given inside a configuration file.")
        spelling = f"{path}: {key}"
        if name in declaration.negations:
            value = not _boolean(value, spelling)
        if _is_null(value):
            value = "" if declaration.may_be_empty else None
        item = Given(value, spelling)
        if (before := given.setdefault(declaration.name, item)).value != item.value:
            raise UserError(f"{path}: {declaration.name} is given twice; the second time as {key!r}.")
        if before is not item:
            _LOGGER.warning("%s: %s is given twice, with the same value", path, declaration.name)
    return given


def _is_null(value: Any) -> bool:
    return isinstance(value, str) and value in _YAML_NULLS


def _boolean(value: Any, spelling: str) -> bool:
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{spelling} must be True or False, not {shown(value)}.") from error


def _yaml_table(path: str) -> dict[str, Any]:
    import yaml  # needed by few runs, so not at the top: help stays quick

    from mace.settings.bounded_yaml import BoundedLoader, read_bounded

    class Loader(BoundedLoader):
        """Keeps scalars as text and refuses a key that comes twice with different values."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            table: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key, value = self.construct_object(key_node), self.construct_object(value_node, deep=True)
                if not isinstance(key, str):
                    raise yaml.constructor.ConstructorError(problem="a list or a table cannot be a key")
                if key in table and table[key] != value:
                    raise yaml.constructor.ConstructorError(problem=f"the key {key!r} comes twice")
                if key in table:
                    _LOGGER.warning("%s: the key %r comes twice, with the same value", path, key)
                table[key] = value
            return table

    try:
        text = read_bounded(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"--config {path}: the file cannot be read: {reason}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: this is no configuration file: {error}.") from error
    try:
        table = yaml.load(text, Loader=Loader)  # noqa: S506 -- a BaseLoader builds nothing but text, lists and tables
    except yaml.YAMLError as error:
        raise UserError(f"{path}: this is not valid YAML: {' '.join(str(error).split())[:300]}.") from error
    if table is None:
        return {}
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise UserError(f"{path}: a configuration file is a table of 'setting: value' lines, not {_kind_words(table)}.")
    return table


def _kind_words(value: Any) -> str:
    if isinstance(value, dict):
        return "a table with nested keys"
    return "a list" if isinstance(value, list) else "a single text"


def parse_settings(
    model: type[Model], argv: Sequence[str], program: str, description: str, bare: str | None = None
) -> Model:
    """Read, layer and check settings: defaults < YAML ``--config`` < command line.

    Args:
        model: The class of settings; its field ``config`` names the YAML file.
        argv: The arguments after the name of the program.
        program: Name of the command, for the help.
        description: One sentence about the command, for the help.
        bare: Setting whose values may also be given without a flag.

    Returns:
        The checked settings; ``model_fields_set`` tells which ones somebody gave.

    Raises:
        UserError: With one sentence per mistake, one per line.
        SystemExit: With status 0 after ``--help`` or ``--help-all``.
    """
    return build_settings(model, layered(SettingsParser(model, program, description, bare), argv))


def layered(parser: SettingsParser, argv: Sequence[str]) -> dict[str, Given]:
    """Read a command line and the YAML file it names, without checking the values; the command line wins.

    Raises:
        UserError: If either cannot be understood.
    """
    typed = parser.read(argv)
    if "config" not in typed:
        return typed
    return {**read_yaml_settings(os.path.expanduser(str(typed["config"].value)), parser.model), **typed}


def build_settings(model: type[Model], given: dict[str, Given]) -> Model:
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
            name = str(problem["loc"][0]) if problem["loc"] else ""
            sentences.setdefault(name, _sentence(model, given, name, dict(problem)))
        raise UserError("\n".join(sentences.values())) from error


def _sentence(model: type[BaseModel], given: dict[str, Given], name: str, problem: dict[str, Any]) -> str:
    """Say what is wrong with one setting and what would be right."""
    cause = str(problem.get("ctx", {}).get("error", ""))
    if not name:
        return cause
    field = model.model_fields[name]
    declaration = declarations(model)[name]
    if name not in given:
        return f"--{name} is required: {declaration.help}."
    spelling, value = given[name].spelling, given[name].value
    if declaration.unsupported:
        return f"{spelling}: {declaration.unsupported}"
    if problem["type"] == "unsupported":
        return f"{spelling} {value}: {problem['msg']}"
    if problem["type"] == "value_error" and cause.endswith((".", "?")):
        return f"{spelling} {cause}"
    match = nearest(str(value), choices_of(field))
    hint = f"; did you mean {match}?" if match else "."
    return f"{spelling} must be {expectation(field, declaration)}, not {shown(value)}{hint}"
