"""Which tests reach which lines: a plugin of pytest that notes it, and one that runs chosen tests alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

import pytest

Lines = set[tuple[str, int]]
"""Files and line numbers."""


class LineTracer:
    """Note which lines of some files each test runs, and how long it takes.

    What a fixture runs for several tests counts for all tests of the file.

    Args:
        root: The checkout.
        modules: The files that matter, relative to it.

    Attributes:
        reached: Lines by test.
        seconds: Time by test.
        failed: Tests that failed or were skipped.
    """

    def __init__(self, root: str, modules: Collection[str]) -> None:
        self._names = {f"{root}/{module}": module for module in modules}
        self.reached: dict[str, Lines] = {}
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self._shared: Lines = set()
        self._now: Lines = set()

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._step if frame.f_code.co_filename in self._names else None

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._now.add((self._names[frame.f_code.co_filename], frame.f_lineno))
        return self._step

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Trace a test."""
        self._now = self.reached.setdefault(item.nodeid, set())
        threading.settrace(self._enter)  # of threads begun from now on
        sys.settrace(self._enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """Note apart what is done for several tests."""
        before = self._now
        if fixturedef.scope != "function":
            self._now = self._shared
        try:
            return (yield)
        finally:
            self._now = before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down time and success."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def results(self) -> dict[str, dict[str, Any]]:
        """Return lines and time of every test that passed."""
        return {
            test: {"seconds": self.seconds.get(test, 0.0), "lines": sorted(lines | self._shared)}
            for test, lines in self.reached.items()
            if test not in self.failed
        }


class Chosen:
    """Run some tests alone, in a given order.

    Args:
        tests: Their names.
    """

    def __init__(self, tests: Collection[str]) -> None:
        self._place = {test: place for place, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put aside what was not chosen."""
        items[:] = sorted((i for i in items if i.nodeid in self._place), key=lambda item: self._place[item.nodeid])
