"""Every call of a run that changes a file fails once: does the run end in words, and is no model lost?"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest
from fault_campaign import FLAGS, RESUME, Place, assert_in_words, assert_kept, faulty_disk, output_of
from killed_runs import Trainers

pytestmark = pytest.mark.slow

CODES = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.EINVAL)
"""In turns, so that each kind of call meets most of them."""

SHORTER = ["--max_num_epochs=3", "--checkpoint_minutes=10", "--valid_fraction=0.3"]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainers]:
    library = faulty_disk(tmp_path_factory.mktemp("library"))
    with Trainers({"LD_PRELOAD": str(library)}) as program:
        yield program


@pytest.mark.parametrize("start", ["fresh", "over an earlier run", "restart"])
def test_every_call_fails_once(start: str, trainers: Trainers, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = Place(tmp_path_factory.mktemp("calls"), trainers)
    straight, outcomes = place.straight(*SHORTER), Counter[str]()
    flags = [*FLAGS, *SHORTER]
    stopped, old = place.folder / "stopped", {}
    if start != "fresh":
        more = ["--max_num_epochs=2"] if start == "restart" else ["--lr=0.03"]
        assert trainers.run(stopped, [*flags, *more]) == 0
        old = place.straight(*SHORTER, "--lr=0.03") if start != "restart" else {}
    flags += [RESUME] if start == "restart" else []
    number, calls = 0, 1
    while number <= calls:
        folder = place.folder / f"failing-{number}"
        if start != "fresh":
            shutil.copytree(stopped, folder, ignore=shutil.ignore_patterns("output"))
        status = trainers.run(folder, flags, fault=[number, CODES[number % len(CODES)]])
        made, _, failed = folder.with_suffix(".calls").read_text(encoding="utf-8").partition(" ")
        calls = int(made) if number == 0 else calls
        code = errno.errorcode[CODES[number % len(CODES)]]
        context = f"{start}, call {number} of {calls}: {failed}, {code} ({folder})"
        assert_in_words(status, output_of(folder), context)
        outcomes["ended with 0" if status == 0 else "ended with a sentence"] += 1
        if status == 2:
            again = [] if start == "over an earlier run" else [RESUME]  # which could go on with the earlier one
            assert trainers.run(folder, [*flags, *again]) == 0, f"{context}\n{output_of(folder)}"
        assert_kept(straight, folder, context)
        assert_kept(old, folder, context)
        assert not list(folder.rglob("*.lock*")), context
        shutil.rmtree(folder)
        number += 1
    print(f"{start}: {calls} calls failed, one at a time: {dict(outcomes)}")
