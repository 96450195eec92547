"""Every call of a run that changes a file fails once: does the run end in words, and is no model lost?"""

from __future__ import annotations

import errno
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fault_campaign import FLAGS, RESUME, Place, assert_in_words, assert_kept, faulty_disk, in_memory, output_of
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
def test_every_call_fails_once(start: str, trainers: Trainers) -> None:
    with TemporaryDirectory(dir=in_memory()) as folder:
        campaign = Campaign(start, Place(Path(folder), trainers), trainers)
        failures = [str(error) for error in campaign.run() if error is not None]
        print(f"{start}: {campaign.calls} calls failed, one at a time: {dict(campaign.outcomes)}")
    assert not failures, f"{len(failures)} of {campaign.calls}\n" + "\n\n".join(failures)


class Campaign:
    """One run again and again, each time with another call that fails.

    Args:
        start: From what it starts.
        place: Where.
        trainers: Who runs it.
    """

    def __init__(self, start: str, place: Place, trainers: Trainers) -> None:
        self._start, self._place, self._trainers = start, place, trainers
        self._straight, self._old = place.straight(*SHORTER), {}
        self.calls, self.outcomes = 1, Counter[str]()
        self._flags = [*FLAGS, *SHORTER]
        if start != "fresh":
            more = ["--max_num_epochs=2"] if start == "restart" else ["--lr=0.03"]
            assert trainers.run(place.folder / "stopped", [*self._flags, *more]) == 0
        if start == "over an earlier run":
            self._old = place.straight(*SHORTER, "--lr=0.03")
        self._flags += [RESUME] if start == "restart" else []

    def run(self) -> Iterator[AssertionError | None]:
        """Let each call fail; yield what did not hold."""
        for number in itertools.count():  # number 0 does not exist; with it they are counted
            if number > self.calls:
                return
            folder = self._place.folder / f"failing-{number}"
            if self._start != "fresh":
                shutil.copytree(self._place.folder / "stopped", folder, ignore=shutil.ignore_patterns("output"))
            try:
                self._fail(number, folder)
                yield None
            except AssertionError as error:
                yield error
            shutil.rmtree(folder)

    def _fail(self, number: int, folder: Path) -> None:
        code = CODES[number % len(CODES)]
        status = self._trainers.run(folder, self._flags, fault=[number, code])
        made, _, failed = folder.with_suffix(".calls").read_text(encoding="utf-8").partition(" ")
        self.calls = int(made) if number == 0 else self.calls
        context = f"{self._start}, call {number}: {failed}, {errno.errorcode[code]}"
        self.outcomes[f"ended with {status}"] += 1
        assert_in_words(status, output_of(folder), context)
        if status == 2:
            again = [] if self._start == "over an earlier run" else [RESUME]  # which could go on with the earlier one
            assert self._trainers.run(folder, [*self._flags, *again]) == 0, f"{context}\n{output_of(folder)}"
        assert_kept(self._straight, folder, context)
        assert_kept(self._old, folder, context)
        assert not list(folder.rglob("*.lock*")), context
