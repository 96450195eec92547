"""Two long-lived programs, one per interpreter, that take turns: never are both at work.

Parent and worker exchange one JSON object per line. The parent sends ``{"command": "prepare", "settings": {...}}``
once, then ``{"command": "run", "steps": k}`` as often as it likes; the worker answers with facts about itself, or with
the wall time of every step and of its phases, where it measures these. A failed worker answers ``{"error":
traceback}``. Only the standard library is used here, so that any interpreter can import this module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

Settings = dict[str, Any]


class BenchmarkError(Exception):
    """A problem whoever runs a benchmark can solve; printed without a traceback."""


@dataclass
class Task:
    """What a worker has prepared.

    Attributes:
        step: Does the work once; its wall time is what is measured.
        facts: What the parent should know: versions, threads, numbers of atoms and edges per step. JSON types only.
        phases: Seconds of the phases of every step so far, in their order, where the step measures them.
    """

    step: Callable[[], None]
    facts: dict[str, Any] = field(default_factory=dict)
    phases: list[dict[str, float]] = field(default_factory=list)


def describe_calculator(results: Mapping[str, Any]) -> str:
    """Say what was measured, by what is among the results of a calculator."""
    return f"its MACECalculator, stress {'computed too' if 'stress' in results else 'not computed'}"


def serve(prepare: Callable[[Settings], Task]) -> None:
    """Answer the parent until it closes the pipe.

    Libraries that print go to standard error from here on: standard output belongs to the protocol.

    Args:
        prepare: Builds data, model and whatever else a step needs.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task: Task | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["command"] == "prepare":
                task = prepare(request["settings"])
                answer = task.facts
            else:
                assert task is not None, "the parent prepares before it runs"
                task.phases.clear()
                answer = {"seconds": [_timed(task.step) for _ in range(request["steps"])], "phases": task.phases}
        except Exception:  # noqa: BLE001 - whatever went wrong, the parent must hear of it
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def environment_for(threads: int, import_from: Path | None) -> dict[str, str]:
    """Return the environment of a program that uses so many threads and imports from a folder, or only its own."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if import_from is not None:
        environment["PYTHONPATH"] = str(import_from)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[variable] = str(threads)
    return environment


class Worker:
    """The parent's end of a worker; use as a context manager, which ends the process.

    Args:
        name: How tables and messages call it.
        python: The interpreter.
        script: A script that calls `serve`.
        threads: Number of threads every library is told to use.
        import_from: Folder put first in the search for packages; without it the interpreter sees only its own.

    Attributes:
        phases: Seconds of the phases of the steps that were run last, where the worker measures them.

    Raises:
        BenchmarkError: If there is no such interpreter.
    """

    def __init__(self, name: str, python: str, script: Path, threads: int, import_from: Path | None = None) -> None:
        self.name, self.phases = name, list[dict[str, float]]()
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        try:
            self._process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment_for(threads, import_from),
                encoding="utf-8",
            )
        except OSError as error:
            raise BenchmarkError(f"{python}: cannot be run ({error.strerror}); name a Python interpreter.") from error

    def __enter__(self) -> Worker:
        """Return the worker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def prepare(self, settings: Settings) -> dict[str, Any]:
        """Let the worker build what it needs; return its facts.

        Raises:
            BenchmarkError: If the worker fails.
        """
        return self._ask({"command": "prepare", "settings": settings})

    def run(self, steps: int) -> list[float]:
        """Let the worker do some steps; return the wall time of each in seconds.

        Raises:
            BenchmarkError: If the worker fails.
        """
        answer = self._ask({"command": "run", "steps": steps})
        self.phases = answer["phases"]
        seconds: list[float] = answer["seconds"]
        return seconds

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchmarkError(f"The worker of {self.name} died.\n{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"The worker of {self.name} failed.\n{answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        return "".join(self._log.readlines()[-20:])
