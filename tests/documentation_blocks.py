"""What the pages of the documentation show as code: blocks, commands, flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SHELLS = ("sh", "bash", "console", "shell")
_FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^|(?<=\n\n))((?:    .+\n)+)")
_FOREIGN = {"python", "pip", "torchrun", "srun", "mpirun", "make", "tensorboard", "wandb"}
_ENDS = {"|", "||", "&&", ";", ">", "2>", "&"}


class Block(NamedTuple):
    """A block of code: where it is, its language, the name of the file it is to be, and its text."""

    where: str
    language: str
    title: str
    text: str


class Command(NamedTuple):
    """A call of one of our commands: where it is, its name, its arguments."""

    where: str
    name: str
    arguments: list[str]


def blocks_of(page: str, name: str = "page") -> Iterator[Block]:
    """List the fenced blocks of a page, and the indented ones as those of a shell."""

    def where(position: int) -> str:
        return f"{name}:{page.count(chr(10), 0, position) + 1}"

    for match in _FENCE.finditer(page):
        yield Block(where(match.start()), match[1], match[2] or "", match[3])
    for match in _INDENTED.finditer(_FENCE.sub(lambda m: "\n" * m[0].count("\n"), page)):
        yield Block(where(match.start()), "sh", "", re.sub(r"^    ", "", match[1], flags=re.MULTILINE))


def all_blocks(*languages: str) -> list[Block]:
    """List the blocks of all pages in some languages."""
    found = []
    for file in PAGES:
        name = str(file.relative_to(ROOT))
        found += [b for b in blocks_of(file.read_text(encoding="utf-8"), name) if b.language in languages]
    return found


def shell_lines(text: str) -> list[str]:
    """Return the commands of a block of a shell, each on one line, without prompts."""
    joined = text.replace("\\\n", " ")
    return [line.removeprefix("$ ").strip() for line in joined.splitlines() if line.strip()]


def commands_in(block: Block) -> Iterator[Command]:
    """List the calls of our commands in a block, also behind a launcher such as torchrun."""
    for line in shell_lines(block.text):
        if not re.search(r"\bmace_\w+|\bmace[./]cli[./]\w+", line):
            continue
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            match = re.fullmatch(r"mace_\w+|.*\bmace[./]cli[./](\w+?)(?:\.py)?", word)
            if match is None or "=" in word:
                continue
            arguments = words[place + 1 :]
            end = next((k for k, w in enumerate(arguments) if w in _ENDS or w.endswith(";")), len(arguments))
            name = f"mace_{match[1]}" if match[1] else word
            yield Command(block.where, name, [w for w in arguments[:end] if w != "..."])
            break


def inline_flags(page: str) -> set[str]:
    """Name the flags that a page shows inside its sentences."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", _FENCE.sub("", page))
    ours = [span for span in spans if span.split()[:1] and span.split()[0] not in _FOREIGN]
    return {flag for span in ours for flag in re.findall(r"(?:^|\s)--([A-Za-z]\w*)(?![\w<-])", span)}
