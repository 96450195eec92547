"""Which module of the package imports which: read from the source, without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mace"
OF_ORIGINAL = {"tools.py", "data.py", "modules.py"}
"""Files with the names of packages of mace-torch: they hand on what `mace.compat` has, or say what to use instead."""


@cache
def parsed(file: Path) -> ast.Module:
    """Read a file of Python once."""
    return ast.parse(file.read_text(encoding="utf-8"))


def source_files(root: Path = ROOT) -> list[Path]:
    """List the files of the package in a checkout, without `OF_ORIGINAL`."""
    package = root / PACKAGE
    return sorted(set(package.rglob("*.py")) - {package / name for name in OF_ORIGINAL})


def dotted(file: Path, root: Path = ROOT) -> str:
    """Name a file as an import does."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    """Name the folder or file below ``mace`` that a dotted name lies in.

    >>> part_of("mace.training.loss"), part_of("mace.errors"), part_of("mace")
    ('training', 'errors', '__init__')
    """
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def imported(file: Path, root: Path = ROOT, top_only: bool = False) -> Iterator[tuple[str, int]]:
    """List the modules of this project that a file imports.

    Args:
        file: A file of the package.
        root: The checkout it lies in.
        top_only: Look at the statements at its top only, not at those inside functions.

    Yields:
        The dotted name and the line.
    """
    package = [*file.relative_to(root).parts[:-1]]
    tree = parsed(file)
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            if module == PACKAGE:
                # a name taken from the package is either one of its modules or what its first file defines
                for alias in node.names:
                    place = ROOT / PACKAGE / alias.name
                    is_module = place.is_dir() or place.with_suffix(".py").exists()
                    yield f"{PACKAGE}.{alias.name}" if is_module else PACKAGE, node.lineno
            elif module.split(".")[0] == PACKAGE:
                yield module, node.lineno


def imports_between_parts(root: Path = ROOT) -> dict[str, set[str]]:
    """Collect, for each part of the package, the other parts that it imports anywhere."""
    found: dict[str, set[str]] = {}
    for file in source_files(root):
        part = part_of(dotted(file, root))
        found.setdefault(part, set()).update(part_of(module) for module, _ in imported(file, root))
    return {part: others - {part} for part, others in found.items()}
