"""Settings on a command line: the parser that a class of settings gives, and the arguments that give such settings."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel

from mace.errors import UserError
from mace.settings.declaration import Settings, as_list, declarations, nearest
from mace.settings.help import help_text


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
        assert isinstance(parser, SettingsParser)
        value = self.const if self.nargs == 0 else values
        before = getattr(namespace, self.dest, None)
        if before is not None and parser.declarations[self.dest].kind == "repeated":
            value = [*before.value, *value]
        setattr(namespace, self.dest, Given(value, option_string or self.dest))


class SettingsParser(argparse.ArgumentParser):
    """An argument parser built from a class of settings; its errors are `UserError`s."""

    def __init__(self, model: type[Settings]) -> None:
        """Add one flag per declared setting."""
        super().__init__(
            prog=model.program,
            description=model.description,
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
        )
        self.model, self.declarations = model, declarations(model)
        self.by_flag = {f"--{word}": d for d in self.declarations.values() for word in d.spellings}
        self.by_flag |= {flag: d for d in self.declarations.values() for flag in d.other_flags}
        self.add_argument("-h", "--help", action="store_const", const=False)
        if "config" in self.declarations:
            self.add_argument("--help_all", dest="help", action="store_const", const=True)
        for d in self.declarations.values():
            flags = [d.flag, *d.other_flags]
            if d.is_bare:
                self.add_argument(*flags, action=_Record, nargs=0, const=d.kind == "switch", dest=d.name)
            else:
                self.add_argument(*flags, action=_Record, nargs="+" if d.takes_several else None, dest=d.name)
            if d.negations:
                negated = [f"--{name}" for name in d.negations]
                self.add_argument(*negated, action=_Record, nargs=0, const=False, dest=d.name)

    def format_help(self, everything: bool = False) -> str:
        """Return the text that ``--help`` prints, or ``--help-all``."""
        return help_text(self.model, everything)

    def error(self, message: str) -> NoReturn:
        """Turn an error of argparse into one sentence."""
        match = re.fullmatch(r"argument (\S+): (.*)", message)
        if match is None:
            raise UserError(f"{message}.")
        flag = match.group(1).split("/")[0]
        if self.by_flag[flag].is_bare:
            raise UserError(self._bare_flag_sentence(flag))
        raise UserError(f"{flag} needs a value: {self.by_flag[flag].expectation}.")

    def _bare_flag_sentence(self, flag: str) -> str:
        """Say that a switch takes no value."""
        declaration = self.by_flag[flag]
        turns_off = declaration.negations and flag[2:] in declaration.names
        off = f"; --{declaration.negations[0]} turns it off" if turns_off else ""
        return f"{flag} is a bare flag: write it without a value{off}."

    def read(self, argv: Sequence[str]) -> dict[str, Given]:
        """Read an argument list without checking the values.

        Args:
            argv: The arguments after the name of the program.

        Returns:
            What was typed, by the name of the setting.

        Raises:
            UserError: If a flag is unknown, or lacks a value, or has one too many.
            SystemExit: With status 0 after ``--help`` or ``--help-all``.
        """
        end = argv.index("--") if "--" in argv else len(argv)
        arguments: list[str] = []
        for word in argv[:end]:
            # argparse would take -1e-3 for a flag
            is_negative = re.fullmatch(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word)
            if is_negative and arguments and re.fullmatch(r"--\w+", arguments[-1]):
                arguments[-1] += f"={word}"
            else:
                arguments.append(self._completed(word))
        namespace, rest = self.parse_known_args(arguments)
        given: dict[str, Any] = vars(namespace)
        if "help" in given:
            sys.stdout.write(f"{self.format_help(given['help'])}\n")
            self.exit(0)
        unknown = [word.split("=")[0] for word in rest if word.startswith("-")]
        if unknown:
            known = [flag[2:] for flag in self.by_flag]
            raise UserError("\n".join(f"{word} is not a setting; {advice(word, known, '--')}" for word in unknown))
        rest += argv[end + 1 :]
        flagged = [name for name in self.model.positionals if name in given]
        for name in self.model.positionals:
            if rest and self.declarations[name].kind == "repeated":
                given[name], rest = Given([*rest, *(given[name].value if name in given else [])], name), []
            elif rest and name not in given:
                taken = len(rest) if self.declarations[name].takes_several else 1
                given[name], rest = Given(rest[:taken] if taken > 1 else rest[0], name), rest[taken:]
        if rest and flagged:
            raise UserError(f"{rest[0]!r} and {given[flagged[0]].spelling} say the same; give one of them.")
        if rest:
            before = arguments[max(arguments.index(rest[0]) - 1, 0)] if rest[0] in arguments else ""
            if before in self.by_flag and self.by_flag[before].is_bare:
                raise UserError(self._bare_flag_sentence(before))
            raise UserError(f"{rest[0]!r} belongs to no setting; every setting is written as --name=value, see --help.")
        # a flag that takes several values and got one means that value, where its type allows text
        for name, item in given.items():
            if isinstance(item.value, list) and len(item.value) == 1 and str in self.declarations[name].types:
                given[name] = Given(item.value[0], item.spelling)
        return given

    def _completed(self, word: str) -> str:
        """Write a flag with underscores, and in full where it is cut short.

        argparse could do the latter, but takes several spellings of one setting for an ambiguity.

        Raises:
            UserError: If it could mean several.
        """
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            return word
        flag = "--" + flag[2:].replace("-", "_")
        if flag in self._option_string_actions:
            return flag + equals + value
        meant = {
            (action.dest, action.const): spelling
            for spelling, action in reversed(self._option_string_actions.items())
            if spelling.startswith(flag)
        }
        if len(meant) > 1:
            several = sorted(meant.values())
            more = f" and {len(several) - 5} more" if len(several) > 5 else ""
            raise UserError(f"{flag} is not a setting, but begins several: {', '.join(several[:5])}{more}.")
        return "".join([*(meant.values() or [flag]), equals, value])


_SAID_ELSEWHERE = {
    "weight_ft": "the weight of your own structures is that of their head, in heads; weight_pt_head is that of the "
    "structures that are replayed.",
}
"""What to use instead of settings that users of mace-torch look for, where the nearest word is another thing."""


def advice(word: str, known: Sequence[str], prefix: str) -> str:
    """Name the setting that a word which is none is closest to."""
    if said := _SAID_ELSEWHERE.get(word.lstrip("-").replace("-", "_")):
        return said
    match = nearest(word.lstrip("-"), known)
    return f"did you mean {prefix}{match}?" if match else "--help lists all settings."


def as_flags(settings: BaseModel) -> list[str]:
    """Write the settings that somebody gave, in a YAML file or on the command line, as arguments of one command.

    Args:
        settings: The settings.

    Returns:
        One argument per setting and, where it takes several, per value; to be quoted for a shell. Read again, they give
        the same settings.
    """
    arguments: list[str] = []
    for name, declaration in declarations(type(settings)).items():
        value = getattr(settings, name)
        several = as_list(value)
        # tables without what nobody gave
        words = [str(plain_value(v)) for v in several]
        if name not in settings.model_fields_set or name == "config":
            continue
        if declaration.kind == "switch":
            arguments.append(declaration.flag if value else f"--{declaration.negations[0]}")
        elif declaration.kind == "switch_off":
            arguments += [] if value else [declaration.flag]
        elif declaration.takes_several:
            arguments += [declaration.flag, *words] if words else []
        else:
            arguments.append(f"{declaration.flag}={plain_value(value)}")
    return arguments


def plain_value(value: Any) -> Any:
    """Turn tables into dictionaries of what was given."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return {key: plain_value(item) for key, item in value.items()} if isinstance(value, dict) else value
