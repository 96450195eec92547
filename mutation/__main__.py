"""The command ``python -m mutation``; see `mutation`."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutation.areas import AREAS, files_with_tests, modules_guarded_by, modules_of
from mutation.operators import Mutant, list_mutants, put_in
from mutation.workers import Run, copy_checkout, import_libraries, run_tests, start, trace_tests

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "mutation"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        area: Name of its area.
        key: See `Mutant.key`.
        outcome: ``passed`` if no test noticed it.
        tests: How many tests reach the line.
        seconds: They took.
    """

    area: str
    key: str
    outcome: str
    tests: int
    seconds: float

    @property
    def survived(self) -> bool:
        """Whether no test noticed it."""
        return self.outcome == "passed"


def sample(areas: Sequence[str], count: int, seed: int) -> list[tuple[str, Mutant]]:
    """Draw mutants at random, from each area as many as from any other while it has some."""
    pools = {}
    for area in areas:
        pools[area] = [
            m for file in modules_of(area, ROOT) for m in list_mutants(file, (ROOT / file).read_text("utf-8"))
        ]
        random.Random(f"{area} {seed}").shuffle(pools[area])
    drawn: list[tuple[str, Mutant]] = []
    while len(drawn) < count and any(pools.values()):
        drawn += [(area, pool.pop()) for area, pool in pools.items() if pool]
    return drawn[:count]


class Campaign:
    """Put mutants in, one at a time in each copy of the checkout, and run the tests that reach them.

    Args:
        areas: Names of the areas.
        workers: How many copies.
        seconds: Of tests that a mutant may survive; those of small files come first.
    """

    def __init__(self, areas: Sequence[str], workers: int, seconds: float = 60.0) -> None:
        self._seconds = seconds
        import_libraries()
        places = [FOLDER / f"worker-{number}" for number in range(workers)]
        self._trees = [copy_checkout(ROOT, place / "tree") for place in places]
        self._reached = {area: self._trace(area) for area in areas}

    def _trace(self, area: str) -> dict[str, dict[str, Any]]:
        """Find out which tests of an area reach which lines, unless that is known from an earlier call."""
        found: dict[str, dict[str, Any]] = {}
        for file in files_with_tests(area, ROOT):
            modules = modules_guarded_by(file, ROOT)
            contents = [(ROOT / name).read_bytes() for name in [file, *modules, "mutation/tracing.py"]]
            digest = hashlib.sha256(b"".join(contents)).hexdigest()[:16]
            result = FOLDER / "traces" / f"{Path(file).stem}-{digest}.json"
            result.parent.mkdir(parents=True, exist_ok=True)
            if not result.exists():
                print(f"looking which lines {file} reaches", flush=True)
                run = start(self._trees[0], FOLDER / "trace.log", 1200.0, self._tracing(modules, file, result))
                while run.poll() is None:
                    time.sleep(0.1)
            if not result.exists():
                raise SystemExit(f"{file} could not be run; see {FOLDER / 'trace.log'}")
            found |= json.loads(result.read_text("utf-8"))
        return found

    def _tracing(self, modules: Sequence[str], file: str, result: Path) -> Any:
        return lambda: trace_tests(self._trees[0], modules, file, result)

    def tests_that_reach(self, area: str, mutant: Mutant) -> list[str]:
        """List the tests that may notice a mutant, those first that reach it in files that take the shortest time."""
        reached = self._reached[area]
        chosen = [test for test, facts in reached.items() if _touches(facts["lines"], mutant)]
        ordered = self._shortest_first(area, chosen)
        if mutant.lines is None:  # a table may be used by tests that run no function of its module
            ordered += self._shortest_first(area, reached.keys() - set(chosen))
        kept, seconds = list[str](), 0.0
        for test in ordered:
            seconds += reached[test]["seconds"]
            if seconds < self._seconds or not kept:
                kept.append(test)
        return kept

    def _shortest_first(self, area: str, tests: Iterable[str]) -> list[str]:
        """Sort tests by the time that those of their file take together, and within it by their own."""
        seconds = {test: float(self._reached[area][test]["seconds"]) for test in tests}
        of_files: dict[str, float] = {}
        for test, time_of_test in seconds.items():
            file = test.partition("::")[0]
            of_files[file] = of_files.get(file, 0.0) + time_of_test
        return sorted(
            seconds, key=lambda test: (of_files[test.partition("::")[0]], test.partition("::")[0], seconds[test])
        )

    def run(self, drawn: Iterable[tuple[str, Mutant]]) -> Iterable[Verdict]:
        """Yield the verdict on each mutant as it comes."""
        waiting, running = list(drawn)[::-1], dict[int, tuple[Run, str, Mutant, list[str], float]]()
        while waiting or running:
            for slot, tree in enumerate(self._trees):
                if slot in running or not waiting:
                    continue
                area, mutant = waiting.pop()
                if not (tests := self.tests_that_reach(area, mutant)):
                    yield Verdict(area, mutant.key, "passed", 0, 0.0)
                    continue
                source = (ROOT / mutant.module).read_text("utf-8")
                (tree / mutant.module).write_text(put_in(mutant, source), encoding="utf-8")
                for compiled in (tree / mutant.module).parent.glob(f"__pycache__/{Path(mutant.module).stem}.*.pyc"):
                    compiled.unlink()
                expected = sum(self._reached[area][test]["seconds"] for test in tests)
                run = start(tree, tree.parent / "tests.log", 60.0 + 5.0 * expected, _testing(tree, tests))
                running[slot] = run, area, mutant, tests, time.monotonic()
            time.sleep(0.02)
            for slot, (run, area, mutant, tests, began) in list(running.items()):
                if (outcome := run.poll()) is not None:
                    (self._trees[slot] / mutant.module).write_bytes((ROOT / mutant.module).read_bytes())
                    yield Verdict(area, mutant.key, outcome, len(tests), time.monotonic() - began)
                    del running[slot]


def _testing(tree: Path, tests: list[str]) -> Any:
    return lambda: run_tests(tree, tests)


def _touches(lines: Sequence[Sequence[Any]], mutant: Mutant) -> bool:
    first, last = mutant.lines or (0, 1 << 30)
    return any(module == mutant.module and first <= line <= last for module, line in lines)


def write_table(verdicts: Sequence[Verdict]) -> str:
    """List the survivors, and how many there are in each area."""
    rows = [verdict.key for verdict in verdicts if verdict.survived]
    for area in dict.fromkeys(verdict.area for verdict in verdicts):
        own = [verdict.survived for verdict in verdicts if verdict.area == area]
        rows.append(f"{area}: {own.count(False)} of {len(own)} noticed")
    noticed = sum(not verdict.survived for verdict in verdicts)
    return "\n".join([*rows, f"{noticed} of {len(verdicts)} noticed, {noticed / max(len(verdicts), 1):.1%}"])


def main() -> None:
    """Draw, try, and tell; a call that was interrupted goes on."""
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("--mutants", type=int, default=150, help="how many (default: 150)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default: 1)")
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS), help="which code (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="how many at a time (default: 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests for each (default: 60)")
    parser.add_argument("--again", action="store_true", help="try the survivors of an earlier call again")
    options = parser.parse_args()
    drawn = sample(options.areas, options.mutants, options.seed)
    file = FOLDER / f"seed-{options.seed}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        verdict = Verdict(**json.loads(line))
        known[verdict.key] = verdict
    if options.again:
        known = {key: verdict for key, verdict in known.items() if not verdict.survived}
    left = [(area, mutant) for area, mutant in drawn if mutant.key not in known]
    if left:
        for verdict in Campaign(options.areas, options.workers, options.seconds).run(left):
            known[verdict.key] = verdict
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(vars(verdict)) + "\n")
            word = "SURVIVED" if verdict.survived else "noticed"
            print(f"{word:8} {verdict.seconds:5.1f} s  {verdict.tests:3d} tests  {verdict.key}", flush=True)
    print(write_table([known[mutant.key] for _, mutant in drawn]))


if __name__ == "__main__":
    main()
