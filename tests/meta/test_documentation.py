"""Is what the documentation shows true: commands, Python, settings, messages, links, the picture of the imports?"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documentation_blocks import PAGES, ROOT, SHELLS, Block, Command, all_blocks, blocks_of, commands_in, inline_flags

from mace.cli.completion import parsers
from mace.errors import UserError
from mace.settings import parse_training_settings
from mace.settings.other_commands import parse_check_settings, parse_quickstart_settings
from website.diagram import draw
from website.equations import dollars, draw_equations
from website.generated import commands, fill_in
from website.imports import imports_between_parts
from website.pages import main, outside_loads

COMMANDS = [command for block in all_blocks(*SHELLS) for command in commands_in(block)]
PYTHON = all_blocks("python")
YAML = all_blocks("yaml")
MESSAGES = all_blocks("message")
BENCHMARK_FLAGS = {"dtype", "threads", "data", "mutants", "again", "seconds"}
"""Flags in sentences about the programs in ``benchmarks/`` and ``mutation/``, which are not commands."""


def module_of(command: str) -> Any:
    return importlib.import_module(commands()[command])


def parse(command: Command) -> None:
    """Read arguments as the program does: names, values and choices."""
    if command.name == "mace_quickstart":
        parse_quickstart_settings(command.arguments)
    elif command.name in ("mace_run_train", "mace_check_data"):
        given = {word.partition("=")[0] for word in command.arguments}
        words = list(command.arguments)
        if "--config" in given:  # a file that the reader has
            place = next(k for k, word in enumerate(words) if word.partition("=")[0] == "--config")
            del words[place : place + (1 if "=" in words[place] else 2)]
        words += [] if "--train_file" in given else ["--train_file=train.xyz"]
        words += [] if "--name" in given else ["--name=name"]
        (parse_training_settings if command.name == "mace_run_train" else parse_check_settings)(words)
    elif "..." not in command.arguments:
        module = module_of(command.name)
        getattr(module, "parse_arguments", module.build_parser().parse_args)(command.arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.where} {command.name}")
def test_every_command_is_understood(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        parse(command)
    except UserError as error:
        pytest.fail(f"{command.where}: {error}")
    except SystemExit as left:
        assert left.code in (0, None), f"{command.where}: {' '.join(command.arguments)}"


def test_commands_are_found_wherever_they_stand() -> None:
    page = (
        "Text `mace_md`\n\n    mace_info one.model\n\n```sh\nmace_md --structure=a.xyz \\\n    --steps=3  # why\n"
        "torchrun --nproc_per_node 2 -m mace.cli.run_train --config run.yaml | tee log\n```\n"
    )
    found = [command for block in blocks_of(page) for command in commands_in(block)]
    assert [(command.where, command.name, command.arguments) for command in found] == [
        ("page:5", "mace_md", ["--structure=a.xyz", "--steps=3"]),
        ("page:5", "mace_run_train", ["--config", "run.yaml"]),
        ("page:3", "mace_info", ["one.model"]),
    ]
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("arguments", [["--r_maxx=5"], ["--loss=hubber"], ["--ema=3"]])
def test_a_wrong_command_is_found(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        parse(Command("page:1", "mace_run_train", arguments))


KNOWN_FLAGS = BENCHMARK_FLAGS.union(
    *({flag.lstrip("-") for action in parser._actions for flag in action.option_strings} for parser in parsers())
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_in_sentences_exist(page: Path) -> None:
    assert inline_flags(page.read_text(encoding="utf-8")) <= KNOWN_FLAGS


def imports_in(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def calls_of_ours(tree: ast.Module, names: dict[str, Any]) -> Iterator[tuple[Any, ast.Call]]:
    """List the calls of functions and classes that were imported from this package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = names.get(node.func.id)
            if callable(called) and getattr(called, "__module__", "").startswith("mace."):
                yield called, node


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.where)
def test_python_is_sound(block: Block) -> None:
    """It compiles, what it imports exists, and our functions take the arguments they get."""
    tree = ast.parse(block.text)
    names: dict[str, Any] = {}
    code = compile(ast.Module(list(imports_in(tree)), type_ignores=[]), block.where, "exec")
    exec(code, names)  # imports alone
    for called, node in calls_of_ours(tree, names):
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        bound = inspect.signature(called).bind(*[None] * len(node.args), **keywords)
        taken = bound.arguments.get("kwargs", {})
        assert not set(taken) - {"model_type", "charges_key"}, f"{block.where}: {sorted(taken)}"


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.where)
def test_yaml_is_a_file_of_settings(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(block.text, encoding="utf-8")
    missing = [
        f"--{name}=x" for name in ("name", "train_file") if not re.search(rf"^{name}:", block.text, re.MULTILINE)
    ]
    parse_training_settings([f"--config={file}", *missing])


def sentences() -> set[str]:
    """Collect the constant parts of all texts in the source, with places for values cut out."""
    found = set()
    for file in (ROOT / "mace").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(re.split(r"%(?:\.\d)?[sdfg]", " ".join(node.value.split())))
    return found


def missing_parts(message: str, known: set[str]) -> list[str]:
    """List the parts of a quoted message that no text of the program contains."""
    parts = [part.strip(" ,.;") for part in " ".join(message.split()).split("…")]
    return [part for part in parts if part and not any(part in text for text in known)]


def test_quoted_messages_are_said() -> None:
    known = sentences()
    assert len(MESSAGES) > 15
    assert {block.where: missing for block in MESSAGES if (missing := missing_parts(block.text, known))} == {}
    assert missing_parts("is not a setting; perhaps you meant …", known)


def slug(heading: str) -> str:
    """Name the anchor of a heading as the site does."""
    words = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_from_the_checkout_lead_somewhere(name: str) -> None:
    """Those inside ``docs/`` are checked when the site is built."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / (path or name)
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


def test_the_page_of_commands_shows_all() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^<!-- help of (\w+) -->$", page, flags=re.MULTILINE)) == set(commands())


def test_help_and_files_are_filled_in() -> None:
    page = fill_in("<!-- help of mace_info -->\n\n<!-- file CONTRIBUTING.md -->\n")
    assert "usage: mace_info" in page
    assert "](architecture.md)" in page and "](docs/" not in page


def test_the_picture_shows_the_imports_of_the_source() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert picture == draw(imports_between_parts()), "run: python -m website.diagram > docs/architecture.svg"


def test_another_import_is_another_picture() -> None:
    imports = imports_between_parts()
    assert draw(imports | {"equivariant": {"settings"}}) != draw(imports)


def test_equations_become_elements() -> None:
    page = draw_equations(r'<div class="arithmatex">\[E = \sum_i \mathcal R_i &lt; 1\]</div>')
    assert page.startswith("<math") and "ℛ" in page and "&lt; 1</annotation>" in page
    with pytest.raises(ValueError, match=r"\\nonsense"):
        draw_equations(r'<span class="arithmatex">\(\nonsense\)</span>')


def test_equations_of_docstrings_become_those_of_pages() -> None:
    assert dollars("Text.\n\n.. math:: a = b\n    + c\n\nwith :math:`a`.") == "Text.\n\n$$ a = b + c $$\n\nwith $a$."


def test_what_pages_load_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = '<a href="https://x.org">x</a><script src="https://x.org/a.js"></script><img src="a.png">'
    assert outside_loads(page) == ["https://x.org/a.js"]
    (tmp_path / "index.html").write_text("<p>", encoding="utf-8")
    assert main([str(tmp_path)]) == 0
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    assert main([str(tmp_path)]) == 1
    assert "a.js" in capsys.readouterr().out
