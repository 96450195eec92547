"""Are paths counted without their coefficients as many as there are with them?"""

from __future__ import annotations

import pytest

from mace.equivariant.symmetric_basis import number_of_paths, symmetric_basis


@pytest.mark.parametrize("l_max", range(5))
def test_counted_paths_are_those_of_the_basis(l_max: int) -> None:
    orders = {0: 4, 1: 4, 2: 4, 3: 3, 4: 3}[l_max]
    for order in range(1, orders + 1):
        for degree in range(l_max + 1):
            expected = symmetric_basis(l_max, degree, order).n_paths
            assert number_of_paths(l_max, degree, order) == expected, (degree, order)


def test_large_ones_are_counted_at_once() -> None:
    """These five take minutes and gigabytes to compute."""
    assert [number_of_paths(4, degree, 4) for degree in range(5)] == [427, 796, 1066, 1208, 1226]
