"""The text ``--help`` prints: one entry per setting, grouped by task, with unit and default."""

from __future__ import annotations

import shutil
import textwrap

from pydantic import BaseModel

from mace.settings.declaration import NOT_SUPPORTED, WITHOUT_EFFECT, Declaration, Settings, declarations

_INDENT = 28
_HOW_TO_GIVE = (
    "Every setting can also be a line 'setting: value' of a YAML file given with --config; the command line wins over "
    "the file, and of a flag given twice the last one counts. Bare flags (shown without a value) are switched off "
    "again by --no_<flag>."
)


def groups_of(model: type[BaseModel]) -> dict[str, list[Declaration]]:
    """Sort the settings by group, in the order of declaration; those without effect or support come last."""
    last = (WITHOUT_EFFECT, NOT_SUPPORTED)
    groups: dict[str, list[Declaration]] = {}
    for declaration in sorted(
        declarations(model).values(), key=lambda d: last.index(d.group) if d.group in last else -1
    ):
        groups.setdefault(declaration.group, []).append(declaration)
    return groups


def help_text(model: type[Settings], everything: bool = False) -> str:
    """Write the help of a command.

    Args:
        model: Its class of settings; if it has ``help_groups``, only these are shown unless everything is wanted.
        everything: Whether unsupported settings, where a command has many, get entries of their own instead of one
            compact list.

    Returns:
        The text, without a newline at its end.
    """
    width = min(shutil.get_terminal_size().columns, 120)
    known, groups = declarations(model), groups_of(model)
    has_more = "config" in known
    required = [d.name for d in known.values() if d.field.is_required() and d.name not in model.positionals]
    words = [f"--{name}=..." for name in required] + [known[name].value_words for name in model.positionals]
    lines = [f"usage: {model.program} {' '.join([*words, '[--setting=value ...]'])}", ""]
    lines += textwrap.wrap(model.description, width)
    lines += textwrap.wrap(_HOW_TO_GIVE, width) if has_more else []
    for group in groups if everything or not model.help_groups else model.help_groups:
        lines += ["", f"{group}:"]
        if group in (WITHOUT_EFFECT, NOT_SUPPORTED) and has_more and not everything:
            names = ", ".join(d.flag for d in groups[group])
            lines += textwrap.wrap(names, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
            continue
        for d in groups[group]:
            left = f"  {d.flag} {d.value_words}".rstrip()
            unit = f" [{d.unit}]" if d.unit else ""
            also = "".join(f", {flag}" for flag in d.other_flags).replace(",", "; also", 1)
            right = f"{d.help}{unit} ({'required' if d.field.is_required() else f'default: {d.default}'}{also})"
            if reason := d.inert or d.unsupported:
                left, right = f"  {d.flag}", f"{d.help}. {reason}"
            first, *more = textwrap.wrap(right, max(width - _INDENT, 40), break_on_hyphens=False)
            lines += [f"{left:<{_INDENT}}{first}"] if len(left) < _INDENT - 1 else [left, " " * _INDENT + first]
            lines += [" " * _INDENT + line for line in more]
    lines += ["", "Help:", f"  {'--help':<{_INDENT - 2}}show this text and leave"]
    if has_more:
        why = "say for every setting that is not supported or has no effect why, and leave"
        lines += [
            f"  {'--help-all':<{_INDENT - 2}}{'show all settings' if model.help_groups and not everything else why}"
        ]
    return "\n".join(lines)
