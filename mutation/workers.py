"""Copies of the checkout, and processes that run tests in them.

A process that has imported the large libraries, but nothing of the project, is copied for every run: what takes
seconds is done once.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mutation.tracing import Chosen, LineTracer

_LARGE = (
    "numpy", "scipy.linalg", "scipy.optimize", "torch", "torch.distributed", "torch.fx.experimental.proxy_tensor",
    "ase", "ase.io", "ase.build", "ase.md", "ase.calculators.emt", "ase.calculators.calculator", "ase.db", "pydantic",
    "yaml", "rich.console", "rich.table", "rich.progress", "safetensors.torch", "matplotlib.pyplot", "hypothesis",
    "vesin", "shtab",
)  # fmt: skip
_MEMORY = 8 << 30
"""Bytes that a run may use; a fault in a size may ask for any amount."""


def import_libraries() -> None:
    """Import what takes long."""
    os.environ["MPLBACKEND"] = "Agg"
    for name in _LARGE:
        importlib.import_module(name)


def copy_checkout(root: Path, target: Path) -> Path:
    """Copy what belongs to the checkout, changed and new files too."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return target


@dataclass
class Run:
    """A process that runs tests.

    Attributes:
        process: Its number.
        ends_at: When it is stopped, on the clock of `time.monotonic`.
    """

    process: int
    ends_at: float

    def poll(self) -> str | None:
        """Return how it ended, ``passed``, ``failed`` or ``too long``, or None if it has not."""
        found, status = os.waitpid(self.process, os.WNOHANG)
        if found:
            self.stop()
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        if time.monotonic() < self.ends_at:
            return None
        self.stop()
        os.waitpid(self.process, 0)
        return "too long"

    def stop(self) -> None:
        """End it, and what it started."""
        try:
            os.killpg(self.process, signal.SIGKILL)
        except ProcessLookupError:
            pass


def start(tree: Path, log: Path, seconds: float, work: Callable[[], int]) -> Run:
    """Do something in a copied process, in a copy of the checkout.

    Args:
        tree: The copy.
        log: Where its output goes.
        seconds: How long it may take.
        work: Returns the exit status.
    """
    process = os.fork()
    if process == 0:
        status = 3
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
            with open(log, "w", encoding="utf-8") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            os.chdir(tree)
            sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", os.environ.get("PWD")))]
            os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
            status = work()
            sys.stdout.flush()
        finally:
            os._exit(status)
    return Run(process, time.monotonic() + seconds)


def _pytest(tree: Path, files: Collection[str], plugin: Any, *flags: str) -> int:
    quick = [
        "-o",
        "addopts=--import-mode=importlib --doctest-modules",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    return int(pytest.main(["-q", *quick, f"--basetemp={tree.parent / 'temporary'}", *flags, *files], plugins=[plugin]))


def trace_tests(tree: Path, modules: Collection[str], file: str, result: Path) -> int:
    """Run a file of tests and write which lines of the modules each reaches."""
    tracer = LineTracer(str(tree), modules)
    status = _pytest(tree, [file], tracer)
    result.write_text(json.dumps(tracer.results()), encoding="utf-8")
    return status


def run_tests(tree: Path, tests: Sequence[str]) -> int:
    """Run tests in the given order until one fails."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    return _pytest(tree, list(files), Chosen(tests), "-x", "--no-header")
