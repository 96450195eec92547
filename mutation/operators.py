"""The small faults that can be put into a module: each is what a tired programmer might have typed.

Left out is what no test is to notice: words of log lines and messages, annotations, docstrings, arguments that only
make things faster or check what cannot happen.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_OPPOSITES = {"min": "max", "any": "all", "argmin": "argmax", "amin": "amax", "sorted": "list", "floor": "ceil"}
_OPPOSITES |= {other: name for name, other in _OPPOSITES.items() if name != "sorted"}
_DROPPED = ("abs", "sqrt", "square")
"""Functions of one argument that are put aside."""

_WORDS_ONLY = ("_LOGGER", "warnings")
"""What speaks to users alone."""

_WITHOUT_EFFECT = {"strict", "stacklevel", "copy", "non_blocking", "pin_memory", "pinned", "requires_grad"}
"""Arguments that change speed, or check what the code around them ensures."""


@dataclass(frozen=True)
class Mutant:
    """A fault that can be put into a module.

    Attributes:
        module: Path of the file in the checkout.
        number: Which of the faults of the file it is.
        line: Where it is, counted from one.
        lines: First and last line of the statement, or of the head of a block; None if it is run when the module is
            imported.
        change: What it is, ``before -> after``.
    """

    module: str
    number: int
    line: int
    lines: tuple[int, int] | None
    change: str

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.module}:{self.line}: {self.change} ({self.number})"


Place = tuple[ast.AST, str, int | None]
"""A node's parent, the parent's field, and the index there if it is a list."""


@dataclass(frozen=True)
class _Fault:
    node: ast.AST
    place: Place
    after: ast.AST
    lines: tuple[int, int] | None


def list_mutants(module: str, source: str) -> list[Mutant]:
    """List all faults that can be put into a module.

    >>> [mutant.change for mutant in list_mutants("a.py", "limit = 0.5 * (a < b)")]
    ['0.5 * (a < b) -> 0.5 / (a < b)', '0.5 -> 5.0', '0.5 -> 0.05', 'a < b -> a <= b', 'a < b -> a > b']
    """
    return [
        Mutant(module, number, fault.node.lineno, fault.lines, _describe(fault))  # type: ignore[attr-defined]
        for number, fault in enumerate(_faults(ast.parse(source)))
    ]


def put_in(mutant: Mutant, source: str) -> str:
    """Return the source of a module with a fault; comments and layout are lost."""
    tree = ast.parse(source)
    fault = list(_faults(tree))[mutant.number]
    parent, field, index = fault.place
    if index is None:
        setattr(parent, field, fault.after)
    else:
        getattr(parent, field)[index] = fault.after
    return ast.unparse(ast.fix_missing_locations(tree))


def _describe(fault: _Fault) -> str:
    pair = [fault.node, fault.after]
    if isinstance(fault.node, (ast.If, ast.IfExp, ast.While)):
        pair = [node.test for node in pair if isinstance(node, (ast.If, ast.IfExp, ast.While))]
    before, after = (textwrap.shorten(ast.unparse(node), 90, placeholder="...") for node in pair)
    return f"{before} -> {after}"


def _faults(tree: ast.Module) -> list[_Fault]:
    found = [
        _Fault(node, place, after, lines)
        for node, place, lines in _walk(tree, None)
        for kind in _KINDS
        for after in kind(node)
    ]
    return sorted(found, key=lambda fault: fault.node.lineno)  # type: ignore[attr-defined]


def _walk(parent: ast.AST, lines: tuple[int, int] | None) -> Iterator[tuple[ast.AST, Place, tuple[int, int] | None]]:
    """Go through all nodes that matter to a test, with the lines of the statement each belongs to."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "bases", "type", "ops", "op", "format_spec"):
            continue
        items = value if isinstance(value, list) else [value]
        for index, node in enumerate(items):
            if not isinstance(node, ast.AST) or _is_immaterial(node):
                continue
            inside = lines
            if isinstance(node, ast.stmt) and (lines is not None or isinstance(parent, ast.FunctionDef)):
                inside = _extent(node)
            yield node, (parent, field, index if isinstance(value, list) else None), inside
            if not isinstance(node, ast.Raise):  # what it says are words
                yield from _walk(node, inside)


def _extent(statement: ast.stmt) -> tuple[int, int]:
    body: list[ast.stmt] = getattr(statement, "body", [])
    last = body[0].lineno - 1 if body else statement.end_lineno or 0
    return statement.lineno, max(last, statement.lineno)


def _is_immaterial(node: ast.AST) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert)):
        return True
    if isinstance(node, ast.Expr):
        words = isinstance(node.value, ast.Constant)
        speaks = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).split(".")[0] in _WORDS_ONLY
        return words or speaks
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    if isinstance(node, ast.ClassDef):
        return any(ast.unparse(base) == "Protocol" for base in node.bases)
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__repr__", "__dir__")
    if isinstance(node, ast.Raise):
        return "AssertionError" in ast.unparse(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):  # of types
        return any(ast.unparse(side) in ("None", "str", "float", "int") for side in (node.left, node.right))
    if isinstance(node, ast.keyword):
        return node.arg in _WITHOUT_EFFECT
    return False


def _comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in _COMPARISONS[type(node.ops[0])]:
            yield ast.Compare(node.left, [other()], node.comparators)


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp) and (other := _ARITHMETIC.get(type(node.op))) is not None:
        yield ast.BinOp(node.left, other(), node.right)
    if isinstance(node, ast.AugAssign) and (other := _ARITHMETIC.get(type(node.op))) is not None:
        yield ast.AugAssign(node.target, other(), node.value)


def _logic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    if isinstance(node, (ast.If, ast.IfExp, ast.While)) and not _has_own_opposite(node.test):
        condition = ast.UnaryOp(ast.Not(), node.test)
        yield (
            ast.IfExp(condition, node.body, node.orelse)
            if isinstance(node, ast.IfExp)
            else type(node)(condition, node.body, node.orelse)
        )


def _has_own_opposite(test: ast.expr) -> bool:
    """Tell whether another kind of fault turns a condition into its opposite."""
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn))
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _constant(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield from (ast.Constant(value + 1), ast.Constant(value - 1))
    elif isinstance(value, float):
        factors = (10.0, 0.1)
        yield from (ast.Constant(float(f"{value * factor:.12g}") if value else factor) for factor in factors)


def _call(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Call):
        return
    function = node.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name in _OPPOSITES and not node.keywords or name in ("min", "max", "any", "all"):
        other = _OPPOSITES[name]
        swapped = ast.Attribute(function.value, other) if isinstance(function, ast.Attribute) else ast.Name(other)
        yield ast.Call(swapped, node.args, node.keywords)
    if name in _DROPPED and len(node.args) == 1:
        yield node.args[0]
    if name == "abs" and isinstance(function, ast.Attribute) and not node.args:
        yield function.value


def _slice(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Slice):
        if node.lower is not None:
            yield ast.Slice(None, node.upper, node.step)
        if node.upper is not None:
            yield ast.Slice(node.lower, None, node.step)


def _statement(node: ast.AST) -> Iterator[ast.AST]:
    """Leave a statement out, or return nothing."""
    if isinstance(node, (ast.AugAssign, ast.Delete, ast.Raise, ast.Continue, ast.Break)):
        yield ast.Pass()
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript)):
        yield ast.Pass()
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield ast.Return(ast.Constant(None))


_KINDS: tuple[Callable[[ast.AST], Iterator[ast.AST]], ...] = (
    _comparison,
    _arithmetic,
    _logic,
    _constant,
    _call,
    _slice,
    _statement,
)
