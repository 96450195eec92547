"""Are hostile and broken model files refused quickly, in one sentence, and without running anything of them?"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_files
import pytest
from hostile_files import ATTACKS, BROKEN

from mace.compat.importing import open_model
from mace.errors import UserError

NAMES = sorted([*ATTACKS, *BROKEN])
SECONDS, MEGABYTES = 5.0, 500.0
"""Of processor time, which other programs do not lengthen, and of memory beyond that of a sound file."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the program says of each file; all are opened by one process, whose peak of memory is watched."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, build in (ATTACKS | BROKEN).items():
        (folder / f"{name}.model").write_bytes(build(folder / "canary"))
    environment = os.environ | {"PYTHONPATH": str(Path(hostile_files.__file__).parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, hostile_files.__file__, str(folder)],
        capture_output=True, text=True, timeout=300, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert not (folder / "canary").exists(), "a file ran what it holds"
    return {answer["name"]: answer for answer in map(json.loads, result.stdout.splitlines())}


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_refused_in_one_sentence(name: str, answers: dict[str, dict[str, Any]]) -> None:
    answer = answers[name]
    assert answer["kind"] == "refused", answer["said"]
    assert answer["seconds"] < SECONDS
    assert answer["megabytes"] < MEGABYTES
    said = answer["said"]
    assert f"{name}.model" in said and said.endswith(".") and "\n" not in said and len(said) < 600


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """Python's own reader runs what the same file holds, so that the canary means something."""
    canary = tmp_path / "canary"
    pickle.loads(hostile_files._call("os.system", f"touch {canary}"))
    assert canary.exists()


def test_the_calculator_refuses_too(tmp_path: Path) -> None:
    path = tmp_path / "hostile.model"
    path.write_bytes(ATTACKS["inside_a_model"](tmp_path / "canary"))
    with pytest.raises(UserError, match="hostile .it asks to call os.system"):
        open_model(path)
    assert not (tmp_path / "canary").exists()
