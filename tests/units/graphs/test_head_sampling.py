"""Does every epoch have the structures of each head that were asked for, and in the long run all of them alike?"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace.graphs.batch_plan import EqualNumbers, HeadSampling, sampled

SIZES = {"a": 5, "b": 12, "c": 3}
MANY = {
    "all": sampled(SIZES, None),
    "balanced": sampled(SIZES, dict.fromkeys(SIZES, 1.0)),
    "weight": sampled(SIZES, {"a": 6.0, "b": 1.0, "c": 2.5}),
}
HEAD_OF = np.repeat(np.arange(3), list(SIZES.values()))


def test_draws_are_in_proportion_to_the_weights() -> None:
    assert MANY["all"].draws == SIZES
    assert MANY["balanced"].draws == {"a": 7, "b": 7, "c": 6} or sorted(MANY["balanced"].draws.values()) == [6, 7, 7]
    wanted = 20 * np.array([6.0, 1.0, 2.5]) / 9.5
    assert (np.abs(np.array(list(MANY["weight"].draws.values())) - wanted) < 1).all()
    assert MANY["weight"].shares == {name: count / 20 for name, count in MANY["weight"].draws.items()}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.floats(1e-3, 1e3)), min_size=1, max_size=12))
def test_an_epoch_is_as_long_as_there_are_structures(heads: list[tuple[int, float]]) -> None:
    sizes = {str(place): size for place, (size, _) in enumerate(heads)}
    weights = {str(place): weight for place, (_, weight) in enumerate(heads)}
    found = sampled(sizes, weights)
    total, norm = sum(sizes.values()), sum(weights.values())
    wanted = {name: total * weight / norm for name, weight in weights.items()}
    assert all(count >= 1 for count in found.draws.values())
    if all(each >= 1 for each in wanted.values()):
        assert found.structures_per_epoch == total
        assert all(abs(found.draws[name] - each) < 1 for name, each in wanted.items())
    else:  # one structure of a head with hardly any weight comes on top
        assert total <= found.structures_per_epoch < total + len(heads)


@pytest.mark.parametrize("name", MANY)
def test_every_epoch_has_the_structures_of_each_head_that_were_asked_for(name: str) -> None:
    sampling = MANY[name]
    for epoch in range(7):
        drawn = sampling.draw(3, epoch)
        assert np.bincount(HEAD_OF[drawn], minlength=3).tolist() == list(sampling.draws.values())
        for head, (size, count) in enumerate(zip(SIZES.values(), sampling.draws.values(), strict=True)):
            times = Counter(drawn[head == HEAD_OF[drawn]].tolist())
            counts = [times[place] for place in np.flatnonzero(head == HEAD_OF)]
            # a pass may end within an epoch, and what came last in it come first in the next one
            assert count // size <= min(counts) and max(counts) <= -(-count // size) + (count % size > 1)


@pytest.mark.parametrize("name", MANY)
def test_in_the_long_run_all_structures_of_a_head_are_used_equally_often(name: str) -> None:
    sampling, used = MANY[name], np.zeros(20, dtype=int)
    for epoch in range(60):
        used += np.bincount(sampling.draw(1, epoch), minlength=20)
        for head in range(3):
            of_head = used[head == HEAD_OF]
            assert of_head.max() - of_head.min() <= 1, "a structure comes again before another one has come"
    assert (used[HEAD_OF == 0] == 60 * list(sampling.draws.values())[0] / 5).all()  # sixty epochs end a pass of five


@pytest.mark.parametrize("name", MANY)
def test_seed_and_epoch_alone_decide(name: str) -> None:
    sampling = MANY[name]
    drawn = {(seed, epoch): tuple(sampling.draw(seed, epoch).tolist()) for seed in range(4) for epoch in range(6)}
    assert len(set(drawn.values())) == len(drawn)
    again = HeadSampling(dict(sampling.sizes), dict(sampling.draws))
    assert all(tuple(again.draw(*place).tolist()) == order for place, order in reversed(drawn.items()))


@pytest.mark.parametrize("name", MANY)
def test_heads_are_mixed_within_batches(name: str) -> None:
    """Were the heads one after the other, most batches would be of one head."""
    plan = EqualNumbers(MANY[name], seed=0, structures_per_step=5)
    batches = [HEAD_OF[step.structures] for epoch in range(20) for step in plan.steps(epoch)]
    assert plan.steps_per_epoch == 4 and all(len(batch) == 5 for batch in batches)
    assert np.mean([len(set(batch.tolist())) > 1 for batch in batches]) > 0.8


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("done", [0, 5, 13, 20])
def test_an_epoch_goes_on_where_it_was_left(name: str, done: int) -> None:
    plan = EqualNumbers(MANY[name], seed=2, structures_per_step=5)
    everything = np.concatenate([step.structures for step in plan.steps(4)]).tolist()
    assert sum((step.structures.tolist() for step in plan.steps(4, done)), []) == everything[done:]
