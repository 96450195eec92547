"""Batches filled by size: every structure once, about equal, in an order that seed and epoch decide."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace.graphs.batch_plan import EqualWork, HeadSampling, one_head, sampled
from mace.graphs.filling import pack, windows

SIZES = st.one_of(
    st.lists(st.integers(1, 2000), min_size=1, max_size=300),
    st.lists(st.sampled_from([1, 2, 30, 500, 501, 999, 1000, 1001, 5000]), min_size=1, max_size=300),
    st.lists(st.integers(400, 420), min_size=1, max_size=100),
)


def plan_of(sizes: list[int], capacity: int, processes: int = 1, seed: int = 3) -> EqualWork:
    return EqualWork(one_head(len(sizes)), seed, np.array(sizes), capacity, processes)


def as_lists(plan: EqualWork, epoch: int, done: int = 0) -> list[list[list[int]]]:
    """Structures by step and process."""
    return [[batch.tolist() for batch in step.batches or ()] for step in plan.steps(epoch, done)]


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 3000), st.integers(1, 5), st.integers(0, 3))
def test_every_plan(sizes: list[int], capacity: int, processes: int, epoch: int) -> None:
    plan = plan_of(sizes, capacity, processes)
    steps = as_lists(plan, epoch)
    assert sorted(s for step in steps for batch in step for s in batch) == list(range(len(sizes)))
    assert all(len(step) == processes and any(step) for step in steps)
    for step in steps:
        for batch in step:
            assert len(batch) <= 1 or sum(sizes[s] for s in batch) <= capacity
    for step, structures in zip(steps, plan.steps(epoch), strict=True):
        assert sum(step, []) == structures.structures.tolist()
    assert plan.n_steps(epoch) == len(steps)
    again = plan_of(sizes, capacity, processes)
    done = 0
    for number, step in enumerate(steps):
        assert again.steps_done(epoch, done) == number
        assert as_lists(again, epoch, done) == steps[number:]
        done += sum(map(len, step))
    assert as_lists(again, epoch, done) == [] and again.steps_done(epoch, done) == len(steps)


def mixed(count: int, seed: int = 0) -> np.ndarray:
    """Sizes of molecules and, one in thirty, cells of 200 atoms."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 1 / 30, rng.integers(9000, 11000, count), rng.integers(40, 400, count))


@pytest.mark.parametrize("processes", [1, 3])
def test_batches_of_a_mixed_set_are_nearly_full_and_alike(processes: int) -> None:
    sizes = mixed(6000)
    plan = plan_of(sizes.tolist(), 25_000, processes)
    for epoch in range(3):
        loads = np.array([[sizes[batch].sum() for batch in step.batches or ()] for step in plan.steps(epoch)])
        assert loads.max() <= 25_000 and loads.mean() > 0.93 * 25_000 and loads.min() > 0.9 * 25_000
        of_steps = loads.max(1) / loads.min(1)
        assert of_steps.max() < 1.02, "all processes have the same work in a step"


def test_large_structures_are_spread_over_the_batches_and_small_ones_differ_from_epoch_to_epoch() -> None:
    """Were batches alike inside, each step would pull in a direction of its own."""
    sizes = mixed(600)
    plan, met = plan_of(sizes.tolist(), 30_000), list[set[frozenset[int]]]()
    for epoch in range(2):
        batches = [step.structures for step in plan.steps(epoch)]
        large = np.array([(sizes[batch] > 5000).sum() for batch in batches])
        assert large.max() - large.min() <= 1
        met.append({frozenset((int(a), int(b))) for batch in batches for a in batch for b in batch if a < b})
    assert len(met[0] & met[1]) < 0.4 * len(met[0])


def test_a_structure_that_is_too_large_is_alone() -> None:
    steps = as_lists(plan_of([10, 5000, 10, 10, 7000], 100), 0)
    assert [[1]] in steps and [[4]] in steps and len(steps) == 3


def test_where_few_fit_into_one_they_fit_as_well_as_they_can() -> None:
    """Dealt out evenly, structures of 0.2 to 0.6 would leave a fifth of the room empty."""
    sizes = np.random.default_rng(0).integers(200, 600, 5000)
    loads = np.array([sizes[step.structures].sum() for step in plan_of(sizes.tolist(), 1000).steps(0)])
    assert loads.mean() > 960


@pytest.mark.parametrize("of", [7, 100])
def test_equal_structures_fill_batches_to_the_number_that_fits(of: int) -> None:
    steps = list(plan_of([of] * 40, 10 * of + of // 2).steps(0))
    assert [len(step.structures) for step in steps] == [10, 10, 10, 10]


def test_seed_and_epoch_decide() -> None:
    sizes = mixed(300).tolist()
    orders = {(s, e): str(as_lists(plan_of(sizes, 20_000, seed=s), e)) for s in range(2) for e in range(3)}
    assert len(set(orders.values())) == 6
    assert orders[1, 2] == str(as_lists(plan_of(sizes, 20_000, seed=1), 2))


def test_the_fingerprint_tells_plans_apart() -> None:
    sizes = mixed(300).tolist()
    other = [*sizes[:-1], sizes[-1] + 1000]
    plans = [plan_of(sizes, 20_000), plan_of(sizes, 30_000), plan_of(sizes, 20_000, 2), plan_of(other, 20_000)]
    found = [plan.fingerprint(epoch) for plan in plans for epoch in range(2)]
    assert len(set(found)) == len(found) and 0 not in found
    assert plan_of(sizes, 20_000).fingerprint(1) == found[1]


@pytest.mark.parametrize(
    "sampling", [sampled({"a": 40, "b": 5}, {"a": 1.0, "b": 1.0}), HeadSampling({"a": 45}, {"a": 20})]
)
def test_heads_are_drawn_as_often_as_asked(sampling: HeadSampling) -> None:
    plan = EqualWork(sampling, 1, np.arange(1, 46), 100)
    for epoch in range(3):
        drawn = [s for step in plan.steps(epoch) for s in step.structures.tolist()]
        assert Counter(drawn) == Counter(sampling.draw(1, epoch).tolist())


def test_counts_expected_in_a_step() -> None:
    """A label in few steps counts in those that have it."""
    sizes = mixed(400)
    plan, counts = plan_of(sizes.tolist(), 12_000), np.arange(400)
    steps = [step.structures for step in plan.steps(2)]
    assert plan.expected_count(2, counts) == pytest.approx(counts.sum() / len(steps), rel=1e-14)
    rare = np.zeros(400, dtype=int)
    rare[[3, 200, 399]] = 5, 7, 1
    having = sum(bool(rare[step].any()) for step in steps)
    assert 1 < having < len(steps) and plan.expected_count(2, rare) == pytest.approx(13 / having)
    assert plan.expected_count(2, np.zeros(400, dtype=int)) == 0.0


def test_windows_are_consecutive_and_alike() -> None:
    sizes = mixed(100_000)
    parts = windows(sizes, 20_000)
    assert np.array_equal(np.concatenate(parts), np.arange(100_000)) and len(parts) > 20
    totals = np.array([sizes[part].sum() for part in parts])
    assert totals.max() - totals.min() < 30_000
    assert [part.tolist() for part in windows(np.array([3]), 10)] == [[0]]


def test_the_number_of_batches_is_a_multiple_of_the_processes() -> None:
    batch, number = pack(np.array([10, 10, 10]), 10, 4)
    assert number == 4 and len(set(batch.tolist())) == 3


def test_a_million_structures_are_planned_in_about_a_second() -> None:
    """Measured: 0.4 s of one core for batches of 16; here a sixteenth of them, on a machine that does other things."""
    rng = np.random.default_rng(0)
    sizes = np.clip(3 + rng.geometric(1 / 9.5, 62_500), 3, 60) * rng.integers(8, 40, 62_500)
    plan, start = EqualWork(one_head(len(sizes)), 0, sizes, 5000), time.process_time()
    plan.n_steps(0)
    assert time.process_time() - start < 0.25
