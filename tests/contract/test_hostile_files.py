"""Are hostile and broken files refused quickly, for the right reason, and without running anything of them?"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_corpus
import hostile_files
import pytest
from hostile_corpus import CASES, MEGABYTES, SECONDS
from hostile_files import ATTACKS

from mace.compat.importing import open_model
from mace.errors import UserError
from mace.files.pickles import HostileError, Machine

Answers = dict[str, dict[str, Any]]


def _answers(folder: Path, *arguments: str) -> Answers:
    """Let a program open all files."""
    environment = os.environ | {"PYTHONPATH": str(Path(hostile_corpus.__file__).parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, hostile_corpus.__file__, str(folder), *arguments],
        capture_output=True, text=True, timeout=900, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert not (folder / "canary").exists(), "a file ran what it holds"
    return {answer["name"]: answer for answer in map(json.loads, result.stdout.splitlines())}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What is said of each file; all are opened by one process."""
    return _answers(tmp_path_factory.mktemp("hostile"))


def _check(name: str, answer: dict[str, Any]) -> None:
    said = answer["said"]
    assert answer["kind"] == "refused", said
    assert re.search(CASES[name].said, said), said
    assert name in said and said.endswith(".") and "\n" not in said and "\x1b" not in said and len(said) < 600


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 150
    counts = {kind: sum(case.kind == kind for case in CASES.values()) for kind in hostile_corpus.KINDS}
    assert min(counts.values()) >= 15, counts


@pytest.mark.xdist_group("hostile corpus")  # one process opens them all
@pytest.mark.parametrize("name", sorted(CASES))
def test_refused_in_one_sentence(name: str, answers: Answers) -> None:
    _check(name, answers[name])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds of memory are those of Linux")
def test_each_alone_within_bounds(tmp_path: Path) -> None:
    """The system itself gives no more memory, and what one file leaves behind cannot help the next."""
    answers = _answers(tmp_path, "--apart")
    assert answers.keys() == CASES.keys()
    for name, answer in answers.items():
        _check(name, answer)
        assert answer["seconds"] < SECONDS
        assert answer["megabytes"] < MEGABYTES


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


@pytest.mark.parametrize(
    "name",
    "os.system os.path.join posix.system nt.system subprocess.Popen sys.exit shutil.rmtree socket.socket "
    "runpy.run_path importlib.import_module importlib.util.find_spec ctypes.CDLL ctypes.util.find_library pty.spawn "
    "pdb.run bdb.Bdb code.interact codeop.compile_command webbrowser.open asyncio.run asyncio.subprocess.create "
    "multiprocessing.Process multiprocessing.pool.Pool pip.main pip._internal.main timeit.timeit cProfile.run "
    "builtins.eval builtins.exec builtins.compile builtins.open builtins.__import__ builtins.input "
    "builtins.breakpoint builtins.exit builtins.quit __builtin__.eval".split(),
)
def test_names_that_no_model_has_are_called_hostile(name: str) -> None:
    module, _, word = name.rpartition(".")
    with pytest.raises(HostileError, match=f"it asks to call {re.escape(name)}"):
        Machine(f"c{module}\n{word}\n.".encode()).read()
