"""Small structure files and configurations for the tests beside this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mace.structures.configuration import Configuration


@pytest.fixture
def write_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write text into a file of the working directory and return its bare name, as a user would give it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "train.xyz") -> str:
        Path(name).write_text(text, encoding="utf-8")
        return name

    return write


@pytest.fixture
def configure() -> Callable[..., Configuration]:
    """Make a configuration from atomic numbers and whatever labels are wanted."""

    def make(numbers: list[int], **labels: Any) -> Configuration:
        defaults: dict[str, Any] = {
            "atomic_numbers": np.array(numbers, dtype=np.int64),
            "positions": np.arange(3.0 * len(numbers)).reshape(-1, 3),
            "cell": np.zeros((3, 3)),
            "pbc": (False, False, False),
        }
        return Configuration(**{**defaults, **labels})

    return make
