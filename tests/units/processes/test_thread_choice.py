"""Is the number of threads the smallest good one, found in little time?"""

from __future__ import annotations

import pytest

from mace.processes.thread_choice import SECONDS, ThreadChoice, candidates, choose_threads


class Machine:
    """A machine on which work takes a known time with each number of threads."""

    def __init__(self, seconds: dict[int, float], slow_at_first: float = 0.0) -> None:
        self._seconds, self._extra = seconds, slow_at_first
        self.now, self.threads, self.calls, self.settled = 0.0, 0, 0, 0

    def work(self) -> None:
        self.now += self._seconds[self.threads] + self._extra
        self._extra = 0.0
        self.calls += 1

    def use(self, threads: int) -> None:
        self.threads = threads

    def settle(self) -> None:
        assert self.threads == max(self._seconds) and self.calls
        self.settled += 1

    def choose(self) -> ThreadChoice:
        most = max(self._seconds)
        choice = choose_threads(self.work, most, self.settle, self.use, clock=lambda: self.now)
        assert self.threads == choice.threads and self.settled == 1
        return choice


def test_what_is_tried() -> None:
    assert candidates(1) == [1]
    assert candidates(2) == [2, 1]
    assert candidates(64) == [64, 32, 16, 8, 4, 2, 1]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.027, 2: 0.022}, 2),
        ({1: 0.0225, 2: 0.022}, 1),
        ({1: 0.01, 2: 0.4}, 1),
        ({1: 0.08, 2: 0.04, 4: 0.021, 8: 0.0205, 16: 0.03}, 4),
        ({1: 0.64, 2: 0.32, 4: 0.16, 8: 0.08, 16: 0.04, 32: 0.02, 64: 0.01}, 64),
        ({1: 0.001, 2: 0.002, 4: 0.003, 8: 0.004}, 1),
    ],
)
def test_the_smallest_good_number_is_chosen(seconds: dict[int, float], best: int) -> None:
    machine = Machine(seconds, slow_at_first=0.3)
    choice = machine.choose()
    assert choice.threads == best
    assert {number: choice.seconds[number] for number in choice.seconds} == pytest.approx(
        {number: seconds[number] for number in choice.seconds}
    )
    assert machine.now < SECONDS + 0.5


@pytest.mark.parametrize("step", [0.5, 3.0, 60.0])
def test_long_work_is_done_a_few_times_only(step: float) -> None:
    machine = Machine({1: 2.0 * step, 2: step})
    assert machine.choose().threads == 2
    assert machine.now <= max(SECONDS + 2.0 * step, 2.0 * step)


def test_times_are_told() -> None:
    told = str(ThreadChoice(1, {2: 0.0269, 1: 0.0274}))
    assert told == "1; the gradient of a batch takes 27.4 ms with 1, 26.9 ms with 2"
