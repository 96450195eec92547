"""A proposal as a table and as a commented YAML file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from rich import box
from rich.table import Table
from rich.text import Text

import mace
from mace.quickstart.proposal import Proposal

_WIDTH = 100


def proposal_table(proposal: Proposal) -> Table:
    """Show settings, values and reasons."""
    table = Table(box=box.ASCII, title="Proposed settings", title_justify="left")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("reason", overflow="fold")
    section = ""
    for choice in proposal.in_sections():
        if choice.section != section and section:
            table.add_section()
        section = choice.section
        # as Text: brackets in values and reasons are no markup
        table.add_row(choice.name, Text("-" if choice.value is None else scalar(choice.value)), Text(choice.reason))
    return table


def yaml_document(proposal: Proposal, introduction: Sequence[str], command: str) -> str:
    """Write the proposal as a file for ``mace_run_train --config``.

    Args:
        proposal: The settings.
        introduction: Lines about data, machine and time, as comments at the beginning.
        command: How to train with the file.

    Returns:
        The text, ending in a newline.
    """
    lines = [f"# Proposed by mace_quickstart (mace {mace.__version__}). Change what you know better, then:", "#"]
    lines += [f"#   {command}", "#"]
    for line in introduction:
        lines += _comment(line)
    lines += _comment(
        "All settings are explained by mace_run_train --help. Flags on the command line win over this file."
    )
    section = ""
    for choice in proposal.in_sections():
        if choice.section != section:
            section = choice.section
            lines += ["", f"# {section} {'-' * (_WIDTH - 3 - len(section))}"]
        # what stays open is shown as well, so that everything that was thought of is in the file
        line = f"# {choice.name}:" if choice.value is None else f"{choice.name}: {scalar(choice.value)}"
        lines += ["", *_comment(choice.reason), line]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def scalar(value: Any) -> str:
    """Write a value on one line of YAML.

    >>> scalar(0.001), scalar(True), scalar("a: b"), scalar({"file": "a.xyz"})
    ('0.001', 'true', "'a: b'", '{file: a.xyz}')
    """
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()


def _plain(value: Any) -> Any:
    """Turn tables of files into dictionaries."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
