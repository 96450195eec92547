"""Which structures each step of an epoch takes."""

from __future__ import annotations

import numpy as np
import pytest

from mace.graphs.batch_plan import BatchPlan, EqualNumbers, consecutive, one_head


def gone_through(plan: BatchPlan, epoch: int) -> list[int]:
    """All structures of an epoch, in order."""
    return [int(structure) for step in plan.steps(epoch) for structure in step.structures]


def test_an_epoch_takes_every_structure_once() -> None:
    steps = [step.structures for step in EqualNumbers(one_head(10), seed=3, structures_per_step=4).steps(epoch=2)]
    assert [len(step) for step in steps] == [4, 4, 2]
    assert np.sort(np.concatenate(steps)).tolist() == list(range(10))


def test_the_order_is_that_of_seed_and_epoch() -> None:
    """It is part of what makes runs reproducible, across versions too."""
    plan = EqualNumbers(one_head(10), seed=3, structures_per_step=4)
    for epoch in (0, 7):
        order = np.random.default_rng([3, epoch]).permutation(10)
        assert gone_through(plan, epoch) == order.tolist()
    orders = [gone_through(EqualNumbers(one_head(10), s, 4), e) for s, e in ((3, 0), (3, 1), (4, 0))]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("done", [0, 3, 4, 10])
def test_an_epoch_goes_on_where_it_was_left(done: int) -> None:
    plan = EqualNumbers(one_head(10), seed=3, structures_per_step=4)
    rest = [step.structures.tolist() for step in plan.steps(1, done)]
    everything = gone_through(plan, 1)
    assert sum(rest, []) == everything[done:] and all(len(step) == 4 for step in rest[:-1])


@pytest.mark.parametrize(("n_structures", "steps"), [(1, 1), (8, 2), (9, 3)])
def test_steps_are_counted(n_structures: int, steps: int) -> None:
    plan = EqualNumbers(one_head(n_structures), seed=0, structures_per_step=4)
    assert plan.steps_per_epoch == steps == len(list(plan.steps(0)))


def test_batches_keep_an_order() -> None:
    assert [part.tolist() for part in consecutive(np.array([5, 1, 4]), 2)] == [[5, 1], [4]]
    assert list(consecutive(np.zeros(0, dtype=int), 2)) == []
