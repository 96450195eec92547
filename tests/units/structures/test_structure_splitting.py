"""The split is the same for the same seed, complete, and written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mace.elements import ElementTable
from mace.errors import UserError
from mace.structures.configuration import Configuration
from mace.structures.splitting import check_elements, check_heads, split_validation, write_valid_indices


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 0.1, 1), (2, 0.99, 1), (20, 0.1, 2), (10, 0.55, 5)])
def test_parts_are_complete(
    configure: Callable[..., Configuration], count: int, fraction: float, expected: int
) -> None:
    configurations = [configure([1], index=index) for index in range(count)]
    train, valid, indices = split_validation(configurations, fraction, seed=3)
    assert len(valid) == len(indices) == expected and len(train) == count - expected
    assert [configuration.index for configuration in valid] == indices
    assert sorted(configuration.index for configuration in train + valid) == list(range(count))


def test_seed_decides(configure: Callable[..., Configuration]) -> None:
    configurations = [configure([1]) for _ in range(100)]
    splits = [split_validation(configurations, 0.1, seed)[2] for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]


def test_same_structures_as_mace_torch(configure: Callable[..., Configuration]) -> None:
    """Made with ``mace.data.utils.random_train_valid_split(range(100), 0.1, 123, ...)`` of mace-torch 0.3.16."""
    _, _, indices = split_validation([configure([1]) for _ in range(100)], 0.1, seed=123)
    assert indices == [5, 22, 25, 35, 46, 49, 76, 77, 86, 91]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_bad_fraction(configure: Callable[..., Configuration], fraction: float) -> None:
    with pytest.raises(UserError, match="--valid_fraction"):
        split_validation([configure([1])] * 5, fraction, 0)


def test_one_structure_cannot_be_split(configure: Callable[..., Configuration]) -> None:
    with pytest.raises(UserError, match="train.xyz: 1 structures cannot be divided"):
        split_validation([configure([1], file="train.xyz")], 0.5, 0)


def test_indices_are_those_of_the_file(configure: Callable[..., Configuration], tmp_path: Path) -> None:
    valid = [configure([1], file="a b.xyz", index=7), configure([1], file="c.xyz", index=0)]
    path = write_valid_indices(tmp_path, "run", 5, valid)
    assert path.name == "run_valid_indices_5.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert [line.split(maxsplit=1) for line in lines] == [["7", "a b.xyz"], ["0", "c.xyz"]]


def test_unknown_element_is_named(configure: Callable[..., Configuration]) -> None:
    others = [configure([1, 8]), configure([1, 26], file="test.xyz", index=4)]
    with pytest.raises(UserError, match="test.xyz: structure 4 contains Fe"):
        check_elements(ElementTable((1, 8)), others)
    check_elements([1, 8, 26], others)


def test_structures_are_for_heads_that_exist(configure: Callable[..., Configuration]) -> None:
    items = [configure([1], head="low"), configure([1], head="hgih", file="train.xyz", index=3)]
    check_heads(["any"], items)
    check_heads(["low", "hgih"], items)
    with pytest.raises(UserError, match="train.xyz: structure 3 is for the head 'hgih', .*; its heads are low, high"):
        check_heads(["low", "high"], items)
