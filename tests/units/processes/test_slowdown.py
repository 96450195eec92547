"""Is a run told when others slow it down, and only then?"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mace.processes.slowdown import CoreWatch, Window, is_slow, notice

FREE = Window(pace=1e-3, waiting=0.0, used=1.9, usable=2, load=2.0)
SHARED = replace(FREE, pace=3e-3, waiting=0.9, used=1.0, load=4.1)


@pytest.mark.parametrize(
    ("window", "slow"),
    [
        (FREE, False),
        (SHARED, True),
        (replace(SHARED, pace=1.9e-3), False),
        (replace(FREE, pace=3e-3), False),  # larger structures, or a processor that has grown hot
        (replace(SHARED, used=1.8), False),  # threads of its own that wait for each other
        (replace(SHARED, waiting=0.05, used=0.5), False),  # a slow disk
        (replace(SHARED, waiting=None), True),
        (replace(SHARED, waiting=None, load=2.1), False),
        (replace(SHARED, waiting=None, load=None), False),
    ],
)
def test_reasons_are_true(window: Window, slow: bool) -> None:
    assert is_slow(window, 1e-3, was_slow=False) == slow


def test_it_is_over_once_steps_are_nearly_as_fast_as_before() -> None:
    assert is_slow(replace(FREE, pace=1.4e-3), 1e-3, was_slow=True)
    assert not is_slow(replace(FREE, pace=1.2e-3), 1e-3, was_slow=True)
    assert is_slow(replace(FREE, pace=5e-3), 1e-3, was_slow=True), "slow for whatever reason"


def test_the_notice_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    said = notice(SHARED, 1e-3)
    for words in ("3.0 times", "load average 4.1", "0.9 threads", "--num_threads=1", "--restart_latest"):
        assert words in said
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert "--num_threads" not in notice(SHARED, 1e-3)


class Simulated:
    """A run on a machine whose clock, load and waiting are made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.now, self.waiting, self.used, self._caplog = 0.0, 0.0, 1.9, caplog
        self._rng = np.random.default_rng(0)
        self._busy = 0.0
        caplog.set_level(logging.INFO, "mace")
        monkeypatch.setattr("mace.processes.cores.WaitMeter.read", lambda meter: self.waiting)
        monkeypatch.setattr("time.process_time", lambda: self._busy)
        monkeypatch.setattr("os.getloadavg", lambda: (4.2, 3.0, 2.0), raising=False)
        monkeypatch.setattr("torch.get_num_threads", lambda: 2)
        monkeypatch.setattr("mace.processes.slowdown.usable_cores", lambda: 2)
        monkeypatch.setattr("mace.processes.cores.Resting.set", lambda *_: None)
        self.watch = CoreWatch(clock=lambda: self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._busy += self.used * seconds

    def train(self, minutes: float, pace: float = 1e-3, atoms: float = 150.0, other: float = 0.0) -> list[str]:
        """Take steps for some minutes, and return what was said."""
        self._caplog.clear()
        end = self.now + 60.0 * minutes
        while self.now < end:
            size = max(1, int(self._rng.normal(atoms, 0.1 * atoms)))
            seconds = pace * size * float(self._rng.uniform(0.9, 1.2)) * (20.0 if self._rng.random() < 0.02 else 1.0)
            self.pass_time(seconds + other)
            self.watch.step(seconds, size)
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    return Simulated(monkeypatch, caplog)


def test_others_come_and_go(simulated: Simulated) -> None:
    assert simulated.train(10.0) == []
    simulated.waiting, simulated.used = 0.9, 1.0
    (said,) = simulated.train(30.0, pace=4e-3)
    assert "other programs use the same cores" in said and "load average 4.2" in said
    simulated.waiting, simulated.used = 0.0, 1.9
    (said,) = simulated.train(30.0)
    assert "as fast again" in said


def test_what_changes_every_few_minutes_is_not_said_each_time(simulated: Simulated) -> None:
    simulated.train(5.0)
    said = []
    for _ in range(20):
        simulated.waiting, simulated.used = 0.9, 1.0
        said += simulated.train(1.5, pace=4e-3)
        simulated.waiting, simulated.used = 0.0, 1.9
        said += simulated.train(1.5)
    assert 1 <= len(said) <= 60 / 5


def test_no_false_alarm(simulated: Simulated) -> None:
    assert simulated.train(5.0) == []
    assert simulated.train(5.0, atoms=3000.0) == [], "larger structures"
    assert simulated.train(5.0, pace=3e-3) == [], "a processor that has grown hot"
    assert simulated.train(5.0, other=0.5) == [], "evaluation, saving, waiting for data"
    simulated.now += 36000.0  # the machine has slept
    assert simulated.train(5.0) == []
    simulated.waiting, simulated.used = 0.5, 1.0
    assert simulated.train(5.0, pace=1.5e-3) == [], "not much slower"


def test_a_run_that_never_was_faster_is_not_told(simulated: Simulated) -> None:
    simulated.waiting, simulated.used = 0.9, 1.0
    assert simulated.train(10.0, pace=4e-3) == []


def test_cores_are_looked_at_once_a_second(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """And threads are told to rest where they wait for a core, between the batches of a validation too."""
    told: list[tuple[bool, int]] = []
    monkeypatch.setattr("mace.processes.cores.Resting.set", lambda _, rests, threads: told.append((rests, threads)))
    monkeypatch.setattr("mace.processes.cores.Resting.is_possible", True)
    for _ in range(50):
        simulated.pass_time(0.1)
        simulated.watch.heed()
    assert 4 <= len(told) <= 6 and set(told) == {(False, 2)}
    simulated.waiting = 0.9
    simulated.train(0.05)
    assert told[-1] == (True, 2)
    simulated.watch.close()
    assert told[-1][0] is False


def test_steps_without_atoms_do_no_harm(simulated: Simulated) -> None:
    simulated.watch.step(0.1, 0)
