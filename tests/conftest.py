"""The stored cases of ``parity/``, for every folder that wants realistic models."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mace.kernels.compiler import find_compiler

if not torch.cuda.is_available():
    # Triton reads it where it is first imported: kernels are interpreted, on numbers in the memory of this machine
    os.environ.setdefault("TRITON_INTERPRET", "1")

# else each run would measure how many threads are best, and the last bits of two runs might differ
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _load_cases() -> ModuleType:
    """Import ``parity/cases.py`` by its path, because test folders are no packages."""
    name = "parity_cases"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "parity" / "cases.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``case`` and the like with every stored case of energies, dipoles, conditions, heads."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _load_cases().reference_names(), indirect=True)
    if "dipole_case" in metafunc.fixturenames:
        metafunc.parametrize("dipole_case", _load_cases().dipole_reference_names(), indirect=True)
    if "condition_case" in metafunc.fixturenames:
        metafunc.parametrize("condition_case", _load_cases().condition_reference_names(), indirect=True)
    if "heads_case" in metafunc.fixturenames:
        metafunc.parametrize("heads_case", _load_cases().head_reference_names(), indirect=True)


@pytest.fixture(params=["torch", "c"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the models of stored cases use the kernels in torch, then the compiled ones."""
    if request.param == "c" and find_compiler() is None:
        pytest.skip("there is no C compiler on this machine")
    monkeypatch.setattr(_load_cases(), "COMPILED", request.param == "c")
    return str(request.param)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Any:
    """Each stored case in turn, see ``parity/cases.py``."""
    return _load_cases().load_case(request.param)


@pytest.fixture
def dipole_case(request: pytest.FixtureRequest) -> Any:
    """Each stored case of a model with dipoles in turn."""
    return _load_cases().load_case(request.param)


@pytest.fixture
def condition_case(request: pytest.FixtureRequest) -> Any:
    """Each stored case of a model with conditions in turn."""
    return _load_cases().load_case(request.param)


@pytest.fixture
def heads_case(request: pytest.FixtureRequest) -> Any:
    """Each stored case of a model with several heads in turn."""
    return _load_cases().load_case(request.param)


@pytest.fixture
def load_case() -> Callable[[str], Any]:
    """The function that reads a stored case by name."""
    return _load_cases().load_case


@pytest.fixture
def reference_names() -> list[str]:
    """The names of the stored cases."""
    return _load_cases().reference_names()
