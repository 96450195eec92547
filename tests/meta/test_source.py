"""Is the house in order: direction of imports, names, docstrings, sizes?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from website.imports import ROOT, dotted, imported, parsed, part_of, source_files

PACKAGE = ROOT / "mace"
FILES = source_files()
OURS = [
    *FILES,
    *(file for folder in ("tests", "benchmarks", "mutation") for file in sorted((ROOT / folder).rglob("*.py"))),
]
MAX_LINES = 500
MAX_LINES_OF_A_FUNCTION = 60
FORBIDDEN_NAMES = {"utils", "util", "tools", "common", "helpers", "helper", "base", "misc"}

# what each part may import, besides itself; parts not named here are refused
VOCABULARY = {"errors", "units", "elements", "properties", "conditions", "elsewhere", "installation", "plain_text"}
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "elsewhere": set(),
    "installation": {"errors"},
    "plain_text": set(),
    "errors": {"plain_text"},
    "units": set(),
    "elements": {"errors"},
    "conditions": set(),
    "properties": set(),
    "settings": VOCABULARY,
    "files": {"errors"},
    "console": {"errors"},
    "processes": {"errors"},
    "equivariant": {"errors"},
    "kernels": {"errors", "equivariant", "graphs"},
    "program": {"errors", "kernels"},
}
ORDER = (
    *("files", "console", "processes", "settings", "formats", "structures", "graphs", "inspection", "reporting"),
    *(
        "pages",
        "equivariant",
        "kernels",
        "program",
        "model",
        "compat",
        "potential",
        "training",
        "planning",
        "finetuning",
    ),
    *("preparation", "packing", "runs", "quickstart", "evaluation", "calculators", "dynamics", "cli", "testing"),
)
"""The rooms; each may use those before it and the vocabulary, and those in the table above less."""

for _place, _room in enumerate(ORDER):
    ALLOWED.setdefault(_room, VOCABULARY | {"__init__", *ORDER[:_place]})


def outside_imports(file: Path) -> Iterator[tuple[str, int]]:
    """List the top names of what a file imports at any level from elsewhere."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0], node.lineno


def wrong_imports(file: Path, root: Path = ROOT) -> list[str]:
    """List the imports of a file that point the wrong way."""
    part = part_of(dotted(file, root))
    allowed = ALLOWED[part] | {part}
    return [
        f"{file.relative_to(root)}:{line} imports {module}"
        for module, line in imported(file, root)
        if part_of(module) not in allowed
    ]


def test_every_part_has_a_place_in_the_order() -> None:
    assert {part_of(dotted(file)) for file in FILES} <= set(ALLOWED)


def test_imports_point_one_way() -> None:
    assert [wrong for file in FILES for wrong in wrong_imports(file)] == []


def test_no_module_needs_itself() -> None:
    """Imports at the top of files form no circle, so that every module can be imported first."""
    names = {dotted(file) for file in FILES}
    needs = {}
    for file in FILES:
        targets = {module for module, _ in imported(file, top_only=True)}
        # a package is imported before what it holds, but does not wait for it
        needs[dotted(file)] = {m for m in targets & names if not dotted(file).startswith(m)}
    done: set[str] = set()
    while needs:
        free = {module for module, others in needs.items() if others <= done}
        assert free, f"a circle among {sorted(needs)}"
        done |= free
        needs = {module: others for module, others in needs.items() if module not in free}


def test_kernels_know_graphs_only_by_their_type() -> None:
    for file in (PACKAGE / "kernels").glob("*.py"):
        assert {module for module, _ in imported(file) if part_of(module) == "graphs"} <= {"mace.graphs.graph"}


def test_testing_is_imported_by_nothing() -> None:
    users = [
        dotted(f) for f in FILES if part_of(dotted(f)) != "testing" for m, _ in imported(f) if part_of(m) == "testing"
    ]
    assert not users


def test_a_wrong_direction_is_found(tmp_path: Path) -> None:
    texts = (
        "from mace.training.loss import x",
        "import mace.cli",
        "from mace import model",
        "def f():\n    import mace.model.mace",
    )
    for number, text in enumerate(texts):
        source = tmp_path / "mace" / "graphs" / f"wrong_{number}.py"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text, encoding="utf-8")
        assert len(wrong_imports(source, tmp_path)) == 1, text


def test_settings_import_neither_torch_nor_ase() -> None:
    heavy = [
        f"{dotted(file)}:{line} imports {name}"
        for file in (PACKAGE / "settings").rglob("*.py")
        for name, line in outside_imports(file)
        if name in {"torch", "ase", "vesin", "matplotlib"}
    ]
    assert not heavy


def test_only_compat_may_know_the_original() -> None:
    """Nothing imports what this project replaces, nor the library it stands on."""
    wrong = [
        f"{dotted(f)}:{line}"
        for f in FILES
        for name, line in outside_imports(f)
        if name in {"e3nn", "mace_torch", "cuequivariance"}
    ]
    assert not wrong


MOST_FILES = 16
"""In one folder: more are not taken in at a glance."""


def test_no_folder_is_crowded() -> None:
    folders = {file.parent for file in FILES}
    crowded = {str(f.relative_to(ROOT)): len(list(f.glob("*.py"))) for f in folders}
    assert {name: count for name, count in crowded.items() if count > MOST_FILES} == {}


def test_names_say_what_is_inside() -> None:
    assert [dotted(f) for f in FILES if FORBIDDEN_NAMES & set(f.relative_to(ROOT).with_suffix("").parts)] == []


def test_files_stay_short() -> None:
    lengths = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in OURS}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def long_functions(tree: ast.Module) -> list[str]:
    """List the functions whose statements do not fit on a screen; docstrings do not count."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            if (node.end_lineno or 0) - first.lineno + 1 > MAX_LINES_OF_A_FUNCTION:
                found.append(f"{node.name}, line {node.lineno}")
    return found


def test_functions_fit_on_a_screen() -> None:
    long = {str(f.relative_to(ROOT)): long_functions(parsed(f)) for f in OURS}
    assert {name: functions for name, functions in long.items() if functions} == {}


def test_a_long_function_is_found() -> None:
    body = "".join(f"    x = {k}\n" for k in range(MAX_LINES_OF_A_FUNCTION))
    text = "\n".join(str(k) for k in range(99))
    tree = ast.parse(f'def short():\n    """{text}"""\n{body}\ndef long():\n{body}    return x\n')
    assert [name.partition(",")[0] for name in long_functions(tree)] == ["long"]


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """List public functions and classes of a module and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                        yield f"{node.name}.{member.name}", member


def test_everything_public_has_a_docstring() -> None:
    missing = []
    for file in FILES:
        tree = parsed(file)
        named = [("the module", tree)] * bool(tree.body) + list(public_definitions(tree))
        missing += [f"{dotted(file)}: {name}" for name, node in named if not ast.get_docstring(node)]  # type: ignore[arg-type]
    assert not missing


def test_no_error_is_swallowed() -> None:
    """No bare ``except``, and none that passes over all but by the contract of ``logging``, trackers and reports."""
    blind = []
    for file, node in ((f, n) for f in FILES for n in ast.walk(parsed(f))):
        if isinstance(node, ast.ExceptHandler):
            names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"BaseException"}
            raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
            reports = any(
                isinstance(n, ast.Attribute) and n.attr in ("handleError", "_give_up", "set_exception")
                for n in ast.walk(node)
            )
            if names & {"Exception", "BaseException"} and not raises and not reports:
                blind.append(f"{dotted(file)}:{node.lineno}")
    assert not blind
