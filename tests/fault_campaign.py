"""What the campaigns of ``faults/`` have in common: disks that fail, runs to compare with, what must always hold."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from killed_runs import Trainers
from torch import Tensor
from training_runs import TINY_MODEL, same, write_water

from mace.errors import UserError
from mace.model.model_file import load_model

SEED = 20261128

FLAGS = [
    "--name=tiny", "--seed=7", "--train_file=../train.xyz", "--batch_size=4", "--max_num_epochs=4", "--plot=False",
    "--swa", "--start_swa=2", "--ema", "--checkpoint_minutes=0", *TINY_MODEL,
]  # fmt: skip
"""Both stages in about a second, with a state after every step."""

RESUME = "--restart_latest"
KILLED = -9

Models = Mapping[str, Mapping[str, Tensor]]


def faulty_disk(folder: Path) -> Path:
    """Compile ``faults/faulty_disk.c`` and return the library; skip the test where that is not possible."""
    source, library = Path(__file__).parent / "faults" / "faulty_disk.c", folder / "faulty_disk.so"
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc on this machine")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the layer below the program cannot be compiled on this machine")
    return library


MEMORY = Path("/dev/shm")
"""A file system in memory, where there is one."""


def in_memory() -> Path | None:
    """Return where folders need no disk; None for the usual place."""
    return MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None


@contextmanager
def one_call_fails(folder: Path, number: int, code: int) -> Iterator[None]:
    """Let one call below a folder fail, and write down beside it how many there were and which failed.

    To be used in a process with `faulty_disk`.
    """
    from mace.training import saving

    saving.FINAL_PAUSE = 0.01
    library = ctypes.CDLL(None)
    library.failed_call.restype = ctypes.c_char_p
    library.fail_call(number, code, str(folder).encode())
    try:
        yield
    finally:
        calls, failed = library.calls_made(), library.failed_call().decode()
        library.fail_call(0, 0, b"/nowhere")
        folder.with_suffix(".calls").write_text(f"{calls} {failed}", encoding="utf-8")


class Place:
    """A folder with data, and the models of the runs that nothing happens to.

    Args:
        folder: The folder.
        trainers: Who runs the command.
    """

    def __init__(self, folder: Path, trainers: Trainers) -> None:
        self.folder, self._trainers = folder, trainers
        self._straight: dict[tuple[str, ...], Models] = {}
        write_water(folder / "train.xyz")

    def straight(self, *flags: str) -> Models:
        """Return the models of an uninterrupted run."""
        if flags not in self._straight:
            folder = self.folder / f"straight-{len(self._straight)}"
            assert self._trainers.run(folder, [*FLAGS, *flags]) == 0, output_of(folder)
            self._straight[flags] = {path.name: weights_of(path) for path in folder.glob("*.model")}
        return self._straight[flags]


def weights_of(path: Path) -> dict[str, Tensor]:
    """Return the weights of a model file."""
    return dict(load_model(path).model.state_dict())


def models_below(folder: Path) -> list[dict[str, Tensor]]:
    """Return all models that can be opened, wherever they lie in a folder."""
    found = []
    for path in sorted(folder.rglob("*.model")):
        try:
            found.append(weights_of(path))
        except UserError:
            continue
    return found


def assert_kept(expected: Models, folder: Path, context: object) -> None:
    """Every expected model lies somewhere in the folder."""
    found = models_below(folder)
    for name, weights in expected.items():
        assert any(same(weights, other) for other in found), f"{name} is lost in {folder} after {context}"


def output_of(folder: Path) -> str:
    """Return what the programs of a folder have written to the terminal."""
    path = folder / "output"
    return path.read_text(encoding="utf-8") if path.exists() else ""


LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+: |[ +|-]|$")


def assert_in_words(status: int, text: str, context: object) -> str:
    """A run ends with 0, or with 2 and one sentence; return the sentence."""
    assert "Traceback" not in text, f"{context}\n{text}"
    assert status in (0, 2), f"status {status} after {context}\n{text[-3000:]}"
    lines = text.splitlines()
    if status == 0:
        return ""
    assert lines and lines[-1].endswith(".") and not re.match(r"\d{4}-", lines[-1]), f"{context}\n{text[-3000:]}"
    return lines[-1]
