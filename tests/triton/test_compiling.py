"""Are kernels compiled with the arguments of their launches, several at the same time?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from mace.kernels.triton_source import launching  # noqa: E402
from mace.kernels.triton_source.launching import DeviceKernel, KernelSequence, compiling  # noqa: E402


class Function:
    """Notes how it is called."""

    def __init__(self, meet: Callable[[], object] = lambda: None) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._meet = meet

    def warmup(self, *arguments: Any, **options: Any) -> None:
        self.calls.append(("compiled", arguments, {**options, "grid": options["grid"]}))
        Mode.submitted.append(Mode.active.submit(self._meet))

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self.calls.append(("run", arguments, {**options, "grid": grid}))


class Mode:
    """What Triton has where it compiles ahead."""

    active: Executor
    submitted: list[Future[Any]] = []

    def __init__(self, executor: Executor) -> None:
        Mode.active = executor

    def __enter__(self) -> None:
        """Start."""

    def __exit__(self, *error: object) -> None:
        """Wait for all."""
        for future in Mode.submitted:
            future.result(timeout=20)


def test_what_is_compiled_is_what_is_run_and_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "AsyncCompileMode", Mode, raising=False)
    monkeypatch.setattr(launching.os, "cpu_count", lambda: 2)
    meeting = threading.Barrier(2, timeout=20)  # neither ends before the other has started
    functions = [Function(meeting.wait), Function(meeting.wait), Function()]
    sizes = ((3,), (4,), (0,))
    kernels = [
        DeviceKernel(function, lambda dimensions, size=size: size, warps=2, options={"T": 1}, n_pointers=number)
        for number, (function, size) in enumerate(zip(functions, sizes, strict=True), 1)
    ]
    both, arguments = KernelSequence(tuple(kernels)), ([torch.zeros(2), None, None], [5, 0.5])
    with compiling():
        both.compile(*arguments)
    both.run(*arguments)
    for function in functions[:2]:
        (first, *compiled), (second, *run) = function.calls
        assert (first, second) == ("compiled", "run") and compiled == run
    assert not functions[2].calls


def test_older_versions_compile_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(triton, "AsyncCompileMode", raising=False)
    with compiling():
        pass
