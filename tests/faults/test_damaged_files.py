"""Files of a stopped run are damaged or exchanged: does it go on to the same models, or end in a true sentence?"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from fault_campaign import FLAGS, RESUME, SEED, Place, assert_in_words, assert_kept, in_memory, output_of
from killed_runs import Trainers

pytestmark = pytest.mark.slow

DAMAGES = 200
KINDS = ["bits", "bits", "cut", "empty", "gone", "folder", "junk", "exchange", "exchange", "replace"]


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    with Trainers() as program:
        yield program


@pytest.fixture(scope="module")
def place(trainers: Trainers) -> Iterator[Place]:
    """Stopped and finished runs, and one of another id."""
    with TemporaryDirectory(dir=in_memory()) as folder:
        place = Place(Path(folder), trainers)
        for name, epochs in (("early", 2), ("late", 3), ("done", 4), ("other", 3)):
            assert trainers.run(place.folder / name, [*FLAGS, f"--max_num_epochs={epochs}", "--start_swa=2"]) == 0
        yield place


def harm(path: Path, others: list[Path], rng: np.random.Generator) -> tuple[str, set[str]]:
    """Do something to a file; return what, and the names of all files that are not what they should be now."""
    content = bytearray(path.read_bytes())
    kind = str(rng.choice(KINDS))
    other = others[rng.integers(len(others))]
    if kind == "bits":
        for _ in range(int(rng.integers(1, 4))):
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: rng.integers(1, len(content))])
    elif kind in ("empty", "junk"):
        path.write_bytes(b"" if kind == "empty" else rng.bytes(int(rng.integers(1, 20000))))
    elif kind in ("gone", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    elif kind == "replace":
        path.write_bytes(other.read_bytes())
        return f"{path.name} replaced by {other}", {path.name}
    else:
        path.write_bytes(other.read_bytes())
        if other.parent == path.parent:
            other.write_bytes(content)
        return f"{path.name} exchanged with {other}", {path.name, other.name}
    return f"{path.name}: {kind}", {path.name}


def test_two_hundred_damages(place: Place, trainers: Trainers) -> None:
    rng = np.random.default_rng(SEED)
    straight, outcomes = place.straight(), Counter[str]()
    foreign = sorted((place.folder / "other" / "checkpoints").glob("*.pt"))
    for number in range(DAMAGES):
        source = str(rng.choice(["early", "late", "done"]))
        folder = place.folder / f"damaged-{number}"
        shutil.copytree(place.folder / source, folder, ignore=shutil.ignore_patterns("output"))
        before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".pt", ".model")}
        done, wrong = [], set[str]()
        for _ in range(int(rng.integers(1, 4))):
            files = sorted(
                path for path in folder.glob("checkpoints/*.pt") if path.is_file() and path.stat().st_size > 1
            )
            if not files:
                break
            target = sorted(files)[rng.integers(len(files))]
            inside = [path for path in sorted(files) if path != target]
            what, names = harm(target, inside if inside and rng.random() < 0.7 else foreign, rng)
            done.append(what)
            wrong |= names
        context = f"number {number}, {source}: {'; '.join(done)} ({folder})"
        status = trainers.run(folder, [*FLAGS, RESUME])
        text = output_of(folder)
        sentence = assert_in_words(status, text, context)
        assert_words_are_true(text, sentence, wrong, set(before), context)
        if status == 0:
            assert_kept(straight, folder, context)
            outcomes["begun anew" if "starting from the beginning" in text else "gone on"] += 1
        else:  # nothing that was good is gone
            left = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
            for name, content in before.items():
                assert name in wrong or content in left, context
            outcomes["refused"] += 1
        shutil.rmtree(folder)
    print(f"{DAMAGES} damages: {dict(outcomes)}")


def assert_words_are_true(text: str, sentence: str, wrong: set[str], before: set[str], context: str) -> None:
    """What is said of a file is said of one that was harmed."""
    for line in text.splitlines():
        if "WARNING" in line or line == sentence:
            for name in re.findall(r"(tiny_run-7_\S+?\.pt): (?:the checkpoint|this is|these are)", line):
                # a file that was left alone is of another run, or not there, beside one that was exchanged
                excused = "this is of another run" in line or ("No such file" in line and name not in before)
                assert name in wrong or excused, f"{context}\n{line}"
    if sentence:
        assert any(name in sentence for name in wrong), f"{context}\n{sentence}"
