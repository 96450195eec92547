"""What batches side by side keep to: order, threads, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from mace.evaluation.side_by_side import LANES, choose_lanes, work_in_lanes


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_when_even(item: int) -> int:
        time.sleep(0.02 * (item % 2 == 0))
        return item * item

    assert list(work_in_lanes(slow_when_even, range(7), LANES)) == [item * item for item in range(7)]


def test_two_are_worked_on_at_the_same_time() -> None:
    meeting = threading.Barrier(LANES, timeout=10.0)
    assert len(list(work_in_lanes(lambda item: meeting.wait(), range(2 * LANES), LANES))) == 2 * LANES


def test_lanes_share_the_threads_and_give_them_back() -> None:
    assert set(work_in_lanes(lambda item: torch.get_num_threads(), range(4), LANES)) == {2}
    assert torch.get_num_threads() == 4
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4], "threads that start later have all of them again"


def test_an_error_comes_in_its_turn_and_what_follows_is_left() -> None:
    begun: list[int] = []

    def fail_at_two(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    results = work_in_lanes(fail_at_two, range(100), LANES)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert max(begun) < 6
    assert torch.get_num_threads() == 4


def test_an_end_before_time_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with closing(work_in_lanes(lambda item: item, range(100), LANES)) as results:
        assert next(results) == 0
    assert threading.active_count() == before
    assert torch.get_num_threads() == 4


def test_only_the_cpu_has_lanes_and_only_of_equal_size() -> None:
    assert choose_lanes(torch.device("cpu")) == LANES
    assert choose_lanes(torch.device("cuda")) == 1
    torch.set_num_threads(3)
    assert choose_lanes(torch.device("cpu")) == 1
    assert list(work_in_lanes(lambda item: torch.get_num_threads(), range(2), 1)) == [3, 3]
