"""Model files of mace-torch damaged at random: each must be refused with a `UserError` or open, and nothing else.

    PYTHONPATH=tests python tests/fuzzing.py COUNT [SEED]

prints how many were refused and opened, and the seeds of those that crashed or took long.
"""

from __future__ import annotations

import io
import random
import re
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import original_files

from mace.compat.importing import import_original
from mace.errors import UserError

SLOW = 5.0
"""Seconds of processor time that no file may take."""

_INSTRUCTIONS = (
    b"(0123FNIJKLMRQSTUVXabcdeghijlopqrstu})]\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x90\x92\x93\x94\x95\x98."
)


class Fuzzer:
    """Makes damaged files out of one sound model.

    Args:
        folder: Where they are written, one after the other, to one place.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fuzzed.model"
        root = original_files.tree_of(original_files.model())
        for layer in root._modules["interactions"]._modules.values():
            layer._modules["conv_tp"].__codegen__ = {}  # a large blob would draw most of the damage
        self.pickle, self.storages = original_files.pickled(root)
        self.whole = original_files.archive(self.pickle, self.storages)
        self.rest = _without_pickle(self.whole)

    def damage(self, seed: int) -> bytes:
        """Return the file of a seed."""
        rng = random.Random(seed)
        kind = rng.random()
        if kind < 0.15:  # the archive as it is
            return _mutated(self.whole, rng)
        if kind < 0.25:  # sound numbers elsewhere
            storages = list(self.storages)
            for _ in range(rng.randint(1, 3)):
                place = rng.randrange(len(storages))
                storages[place] = storages[rng.randrange(len(storages))]
            return original_files.archive(self.pickle, storages)
        # the pickle, in an archive whose checksums are right
        stream = io.BytesIO(self.rest)
        with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as made:
            made.writestr("archive/data.pkl", _mutated(self.pickle, rng))
        return stream.getvalue()

    def outcome(self, seed: int) -> str:
        """Write and open the file of a seed, and say what came of it."""
        self.path.write_bytes(self.damage(seed))
        try:
            import_original(self.path)
        except UserError:
            return "refused"
        return "opened"


def _without_pickle(whole: bytes) -> bytes:
    """Take the pickle out of an archive, for another to be put in."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as made:
        for entry in source.infolist():
            if not entry.filename.endswith("data.pkl"):
                made.writestr(entry.filename, source.read(entry))
    return stream.getvalue()


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _number(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data) - 4)
    struct.pack_into("<i", data, place, rng.choice([0, 1, -1, 255, 1 << 16, (1 << 31) - 1, -(1 << 31)]))


def _insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    data[place:place] = bytes(rng.choice(_INSTRUCTIONS) for _ in range(rng.randint(1, 4)))


def _remove(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.randint(1, 40)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    start, place = rng.randrange(len(data)), rng.randrange(len(data))
    data[place:place] = data[start : start + rng.randint(1, 200)]


def _swap_texts(data: bytearray, rng: random.Random) -> None:
    """Put another text of the file, with its length, in the place of one: names of weights and classes change."""
    starts = [found.start() for found in re.finditer(rb"X.\0\0\0", data, re.DOTALL)]
    if len(starts) < 2:
        return
    one, other = rng.sample(starts, 2)
    text = data[other : other + 5 + data[other + 1]]
    data[one : one + 5 + data[one + 1]] = text


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


_MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    _flip, _flip, _flip, _number, _insert, _remove, _repeat, _swap_texts, _swap_texts, _cut,
]  # fmt: skip


def _mutated(original: bytes, rng: random.Random) -> bytes:
    data = bytearray(original)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        if len(data) > 8:
            rng.choice(_MUTATIONS)(data, rng)
    return bytes(data)


def fuzz(seeds: range, folder: Path) -> tuple[Counter[str], list[str]]:
    """Open the files of all seeds.

    Returns:
        How many were refused and opened, and a description of every crash and every slow file.
    """
    fuzzer, counts, defects = Fuzzer(folder), Counter[str](), list[str]()
    for seed in seeds:
        start = time.process_time()
        try:
            outcome = fuzzer.outcome(seed)
        except Exception as error:  # noqa: BLE001  # anything but a UserError is a defect, and is reported
            outcome = "crashed"
            defects.append(f"seed {seed}: {type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}")
        counts[outcome] += 1
        if (seconds := time.process_time() - start) > SLOW:
            defects.append(f"seed {seed}: {seconds:.1f} s")
    return counts, defects


def main() -> None:
    """Fuzz as a command."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as name:
        counts, defects = fuzz(range(seed, seed + count), Path(name))
    print(dict(counts), *defects[:20], sep="\n")
    sys.exit(bool(defects))


if __name__ == "__main__":
    main()
