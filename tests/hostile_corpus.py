"""Hostile files of every kind that commands read, and a program that opens each within bounds of time and memory.

    PYTHONPATH=tests python tests/hostile_corpus.py FOLDER [--apart]

writes and opens all of them in the folder, one after the other or each in a process of its own, which gets no more
memory than the bound, and prints what came of it as lines of JSON.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import original_files
from hostile_files import ATTACKS, BROKEN, SAID
from hostile_models import CHECKPOINTS, MODELS, checkpoint, model_file
from hostile_texts import SETTINGS, STRUCTURES

from mace.compat.importing import import_original
from mace.errors import UserError
from mace.finetuning.starting_weights import StartingWeights
from mace.model.model_file import load_model
from mace.settings import parse_training_settings
from mace.structures.reading import read_configurations

SECONDS, MEGABYTES = 2.0, 300.0
"""Of processor time, which other programs do not lengthen, and of memory beyond what the program takes anyway."""


class Kind(NamedTuple):
    """How files of a kind are opened.

    Attributes:
        open: Opens a file.
        ending: What names of such files end in.
        sound: A file that is opened, so that being refused means something.
    """

    open: Callable[[Path], Any]
    ending: str
    sound: Callable[[], bytes]


class Case(NamedTuple):
    """One file: its kind, what makes its bytes from the place of a file it would make if it were run, what is said."""

    kind: str
    build: Callable[[Path], bytes]
    said: str


def _settings(path: Path) -> Any:
    return parse_training_settings(["--name=a", "--train_file=a.xyz", f"--config={path}"])


KINDS = {
    "original": Kind(import_original, ".model", original_files.original_bytes),
    "model": Kind(load_model, ".model", model_file),
    "checkpoint": Kind(StartingWeights, ".pt", checkpoint),
    "settings": Kind(_settings, ".yaml", lambda: b"seed: 1\n"),
    "structures": Kind(
        lambda path: read_configurations(str(path)),
        ".xyz",
        lambda: b"1\nenergy=1.0 Properties=species:S:1:pos:R:3\nH 0 0 0\n",
    ),
}


def _cases() -> dict[str, Case]:
    """Collect all files by kind and name."""
    cases = {f"original-{name}": Case("original", build, SAID[name]) for name, build in (ATTACKS | BROKEN).items()}
    for kind, files in (("model", MODELS), ("checkpoint", CHECKPOINTS)):
        for name, (make, said) in files.items():
            cases[f"{kind}-{name}"] = Case(kind, lambda _, make=make: make(), said)  # type: ignore[misc]
    for kind, texts in (("settings", SETTINGS), ("structures", STRUCTURES)):
        for name, (text, said) in texts.items():
            content = text.encode() if isinstance(text, str) else text
            cases[f"{kind}-{name}"] = Case(kind, lambda _, content=content: content, said)  # type: ignore[misc]
    return cases


CASES = _cases()


def outcome(name: str, folder: Path) -> dict[str, Any]:
    """Write and open one file, and say what came of it."""
    case = CASES[name]
    path = folder / f"{name}{KINDS[case.kind].ending}"
    path.write_bytes(case.build(folder / "canary"))
    before, start = _memory("VmRSS"), time.process_time()
    try:
        KINDS[case.kind].open(path)
        kind, said = "opened", ""
    except UserError as error:
        kind, said = "refused", str(error)
    except BaseException as error:  # noqa: BLE001  # anything else is a defect, and is reported
        kind, said = "crashed", f"{type(error).__name__}: {error}"[:500]
    seconds, megabytes = time.process_time() - start, _memory("VmHWM") - before
    path.unlink()
    said = said.replace(f"{folder}/", "")
    return {"name": name, "kind": kind, "said": said, "seconds": seconds, "megabytes": megabytes}


def _memory(what: str) -> float:
    """Return megabytes of memory of this process: the present, or the peak since the present was asked for."""
    status = Path("/proc/self/status")
    if not status.exists():  # only Linux tells
        return 0.0
    found = re.search(rf"{what}:\s+(\d+)", status.read_text())
    assert found is not None
    if what == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    return int(found.group(1)) / 1e3


def apart(name: str, folder: Path) -> dict[str, Any]:
    """Do the same in a copy of this process, which cannot take more memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        building = 600e6  # what the file itself may take to be made, which is not what is measured
        limit = int(in_use + 1e6 * MEGABYTES + building)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
        os.write(writing, json.dumps(outcome(name, folder)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    ended = os.waitpid(child, 0)[1]
    return json.loads(told) if told else {"name": name, "kind": f"ended with {ended}", "said": ""}


def main(folder: Path, one_by_one: bool) -> None:
    """Open every file after one sound file of each kind, so that what is done once has been done."""
    for name, kind in KINDS.items():
        path = folder / f"sound-{name}{kind.ending}"
        path.write_bytes(kind.sound())
        kind.open(path)
    for name in CASES:
        print(json.dumps((apart if one_by_one else outcome)(name, folder)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--apart" in sys.argv)
