"""Numbers about the data skip what is not labeled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from mace.errors import UserError
from mace.structures.configuration import Configuration
from mace.structures.statistics import choose_scaling, summarize


def test_numbers_by_hand(configure: Callable[..., Configuration]) -> None:
    configurations = [
        configure([1, 1], energy=-4.0, forces=np.full((2, 3), 2.0), config_type="a"),
        configure([1, 8], energy=-15.0),
        configure([1], forces=np.zeros((1, 3))),
    ]
    summary = summarize(configurations, {1: -1.0, 8: -10.0})
    assert summary.mean_energy == pytest.approx((-1.0 - 2.0) / 2)
    assert summary.std_energy == pytest.approx(np.sqrt(0.5))
    assert summary.rms_forces == pytest.approx(np.sqrt(6 * 4.0 / 9))


def test_scaling_words(configure: Callable[..., Configuration]) -> None:
    configurations = [configure([1], energy=energy, forces=np.full((1, 3), 5.0)) for energy in (1.0, 2.0, 6.0)]
    summary = summarize(configurations, {1: 1.0})
    assert dataclasses.astuple(choose_scaling(summary, "no_scaling")) == (0.0, 1.0, ())
    by_forces = choose_scaling(summary, "rms_forces_scaling")
    assert (by_forces.shift, by_forces.scale, by_forces.warnings) == (2.0, pytest.approx(5.0), ())
    assert choose_scaling(summary, "std_scaling").scale == pytest.approx(np.sqrt(7.0))
    with pytest.raises(UserError, match="--scaling is 'rms'"):
        choose_scaling(summary, "rms")


def test_zero_and_undefined_scales_become_one_with_a_warning(configure: Callable[..., Configuration]) -> None:
    zero = choose_scaling(
        summarize([configure([1], energy=1.0, forces=np.zeros((1, 3)))], {1: 0.0}), "rms_forces_scaling"
    )
    assert (zero.shift, zero.scale) == (1.0, 1.0) and "is zero" in zero.warnings[0]
    single = choose_scaling(summarize([configure([1], energy=1.0)], {1: 0.0}), "std_scaling")
    assert single.scale == 1.0 and "is not defined" in single.warnings[0]
    bare = choose_scaling(summarize([configure([1])], {1: 0.0}), "rms_forces_scaling")
    assert (bare.shift, bare.scale) == (0.0, 1.0) and len(bare.warnings) == 2
