"""Does the run of random faults put in what it says, and leave out what no test is to notice?"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mutation.__main__ import Campaign, Verdict, sample, write_table
from mutation.areas import AREAS, files_with_tests, modules_of
from mutation.operators import Mutant, list_mutants, put_in

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a <= b", {"a <= b -> a < b", "a <= b -> a >= b"}),
        ("x = a == b", {"a == b -> a != b"}),
        ("x = a is None", {"a is None -> a is not None"}),
        ("x = a in b", {"a in b -> a not in b"}),
        ("x = a + b ** c", {"a + b ** c -> a - b ** c", "b ** c -> b * c"}),
        ("a *= b", {"a *= b -> a /= b", "a *= b -> pass"}),
        ("x = a and b", {"a and b -> a or b"}),
        ("x = not a", {"not a -> a"}),
        ("x = 3", {"3 -> 4", "3 -> 2"}),
        ("x = 0.0", {"0.0 -> 10.0", "0.0 -> 0.1"}),
        ("x = True", {"True -> False"}),
        ("x = max(a, b, key=f)", {"max(a, b, key=f) -> min(a, b, key=f)"}),
        ("x = a.argmin()", {"a.argmin() -> a.argmax()"}),
        ("x = sorted(a)", {"sorted(a) -> list(a)"}),
        ("x = abs(a)", {"abs(a) -> a"}),
        ("x = a[b:c]", {"b:c -> :c", "b:c -> b:"}),
        ("a.b = c", {"a.b = c -> pass"}),
        ("f(a)", {"f(a) -> pass"}),
        ("if a:\n    b", {"a -> not a"}),
        ("def f(a=5):\n    return a", {"5 -> 6", "5 -> 4", "return a -> return None"}),
        ("for a in b:\n    continue", {"continue -> pass"}),
    ],
)
def test_the_kinds_of_faults(source: str, changes: set[str]) -> None:
    mutants = list_mutants("a.py", source)
    assert {mutant.change for mutant in mutants} == changes
    for mutant in mutants:
        found = put_in(mutant, source)
        assert found != ast.unparse(ast.parse(source))
        ast.parse(found)


@pytest.mark.parametrize(
    "source",
    [
        '"""Words of 3 < 4."""',
        "_LOGGER.info('%d', 1 + 2)",
        "warnings.warn('a', stacklevel=2)",
        "x: Annotated[int, 3]",
        "def f(a: List[3]) -> List[4]:\n    'What it does.'",
        "if TYPE_CHECKING:\n    f(3)",
        "assert a < 3",
        "class A(Protocol):\n    def f(self):\n        return a < b",
        "def __repr__(self):\n    return a + b",
        "x = zip(a, strict=True)",
        "import a",
        "raise AssertionError(3)",
    ],
)
def test_what_nobody_is_to_notice(source: str) -> None:
    assert list_mutants("a.py", source) == []


def test_a_refusal_can_be_left_out_but_its_words_stay() -> None:
    (mutant,) = list_mutants("a.py", "raise UserError(f'{1e3 * a:.1f}')")
    assert put_in(mutant, "raise UserError(f'{1e3 * a:.1f}')") == "pass"


def test_lines_are_those_of_statements_in_functions() -> None:
    source = "a = 1\ndef f(b=2):\n    if (b\n        > c):\n        d = (\n            b + c)\n"
    lines = {mutant.change: mutant.lines for mutant in list_mutants("a.py", source)}
    assert lines["1 -> 2"] is None and lines["2 -> 3"] is None
    assert lines["b > c -> b >= c"] == (3, 4) and lines["b + c -> b - c"] == (5, 6)


def test_areas_exist_and_draws_are_fair_and_repeatable() -> None:
    for area in AREAS:
        assert all((ROOT / file).is_file() for file in modules_of(area, ROOT) + files_with_tests(area, ROOT)), area
    drawn = sample(["loss", "dynamics", "units"], 30, seed=1)
    assert [area for area, _ in drawn].count("loss") == 10
    assert drawn == sample(["loss", "dynamics", "units"], 30, seed=1) != sample(["loss", "dynamics", "units"], 30, 2)
    assert len({mutant.key for _, mutant in drawn}) == 30


def test_tests_that_reach_a_fault() -> None:
    """Of the file that takes the shortest time first; of what is run at import, the others too."""
    reached = {
        "a.py::one": {"seconds": 3.0, "lines": [["m.py", 5]]},
        "b.py::two": {"seconds": 1.0, "lines": [["m.py", 5], ["m.py", 7]]},
        "b.py::three": {"seconds": 0.5, "lines": [["m.py", 6]]},
        "c.py::four": {"seconds": 0.1, "lines": []},
    }
    campaign = Campaign.__new__(Campaign)
    campaign._reached, campaign._seconds = {"area": reached}, 60.0

    def found(lines: tuple[int, int] | None, module: str = "m.py") -> list[str]:
        return campaign.tests_that_reach("area", Mutant(module, 0, 5, lines, ""))

    assert found((5, 5)) == ["b.py::two", "a.py::one"]
    assert found((5, 6)) == ["b.py::three", "b.py::two", "a.py::one"]
    assert found((9, 9)) == []
    assert found(None) == ["b.py::three", "b.py::two", "a.py::one", "c.py::four"]
    campaign._seconds = 4.0
    assert found((5, 5)) == ["b.py::two"] and found((5, 6)) == ["b.py::three", "b.py::two"]
    campaign._seconds = 60.0
    assert found(None, "other.py") == ["c.py::four", "b.py::three", "b.py::two", "a.py::one"]


def test_the_table_lists_survivors() -> None:
    verdicts = [
        Verdict("loss", f"m.py:{n}", outcome, 1, 0.1) for n, outcome in enumerate(["failed", "passed", "too long"])
    ]
    assert write_table(verdicts).splitlines() == ["m.py:1", "loss: 2 of 3 noticed", "2 of 3 noticed, 66.7%"]
