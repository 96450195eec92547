"""Parts of pages that are made while the site is built: the help of commands, files of the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_HELP = re.compile(r"^<!-- help of (\w+) -->$", flags=re.MULTILINE)
_FILE = re.compile(r"^<!-- file (\S+) -->$", flags=re.MULTILINE)
_LINK = re.compile(r"\]\(docs/")


def commands() -> dict[str, str]:
    """Name the modules of all console scripts."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(re.findall(r'^(mace_\w+) = "([\w.]+):main"', project, flags=re.MULTILINE))


def help_of(command: str) -> str:
    """Return what a command prints with ``--help``."""
    plain = os.environ | {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", commands()[command], "--help"]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=plain).stdout


def _from_checkout(name: str) -> str:
    """Return a file of the checkout with its links as they are inside ``docs/``."""
    return _LINK.sub("](", (ROOT / name).read_text(encoding="utf-8"))


def fill_in(page: str) -> str:
    """Replace the marks ``<!-- help of COMMAND -->`` and ``<!-- file NAME -->`` by what they stand for."""
    with_files = _FILE.sub(lambda match: _from_checkout(match[1]), page)
    return _HELP.sub(lambda match: f"```text\n{help_of(match[1]).rstrip()}\n```", with_files)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Hook of MkDocs, called with the Markdown of each page."""
    return fill_in(markdown)
