"""The split is the same for the same seed, complete, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mace.elements import ElementTable
from mace.errors import UserError
from mace.structures.collection import ListedStructures
from mace.structures.configuration import Configuration
from mace.structures.splitting import check_elements, check_heads, split_validation, write_valid_indices


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 0.1, 1), (2, 0.99, 1), (20, 0.1, 2), (10, 0.55, 5)])
def test_parts_are_complete(
    configure: Callable[..., Configuration], count: int, fraction: float, expected: int
) -> None:
    configurations = [configure([1], index=index) for index in range(count)]
    split = split_validation(configurations, fraction, seed=3)
    train, valid, indices = split.train, split.valid, split.indices
    assert len(valid) == len(indices) == expected and len(train) == count - expected
    assert [configuration.index for configuration in valid] == indices
    assert sorted(configuration.index for configuration in [*train, *valid]) == list(range(count))


def test_seed_decides(configure: Callable[..., Configuration]) -> None:
    configurations = [configure([1]) for _ in range(100)]
    splits = [split_validation(configurations, 0.1, seed).indices for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]


def test_same_structures_as_mace_torch(configure: Callable[..., Configuration]) -> None:
    """Made with ``mace.data.utils.random_train_valid_split(range(100), 0.1, 123, ...)`` of mace-torch 0.3.16."""
    split = split_validation([configure([1]) for _ in range(100)], 0.1, seed=123)
    assert split.indices == [5, 22, 25, 35, 46, 49, 76, 77, 86, 91]


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


def elements(configurations: Iterable[Configuration]) -> set[int]:
    return {int(number) for configuration in configurations for number in configuration.atomic_numbers}


TAKEN = [5, 22, 25, 35, 46, 49, 76, 77, 86, 91]
"""Of 100 structures, those the seed 123 sets aside."""


@pytest.mark.parametrize(
    ("labels", "needed"),
    [
        ({22: {"numbers": [26]}}, {22}),
        ({22: {"numbers": [26]}, 91: {"numbers": [1, 47]}}, {22, 91}),
        ({place: {"head": "other"} for place in (22, 77)}, {77}),
        ({22: {"energy": -1.0}}, {22}),
        ({22: {"forces": np.ones((1, 3))}, 35: {"forces": np.ones((1, 3)), "weight": 0.0}}, {22}),
        ({place: {"config_type": "surface"} for place in (25, 86)}, {86}),
    ],
    ids=["an element", "two elements", "a head", "energy", "forces with weight", "a type"],
)
def test_what_only_validation_would_have_is_trained_on(
    configure: Callable[..., Configuration], labels: dict[int, dict[str, Any]], needed: set[int]
) -> None:
    """The one of them that comes first in the random order goes back, and as few others as possible change places."""
    items = [configure(**{"numbers": [1], "index": place, **labels.get(place, {})}) for place in range(100)]
    split = split_validation(items, 0.1, 123, ["energy", "forces"])
    assert len(split.valid) == 10 and split.notes == ()
    assert len(set(TAKEN) & set(split.indices)) == 10 - len(needed)
    assert elements(split.train) == elements(items)
    for subject in ("head", "config_type"):
        assert {getattr(c, subject) for c in split.train} == {getattr(c, subject) for c in items}
    for name in ("energy", "forces"):
        assert any(c.has_weight(name) for c in split.train) == any(c.has_weight(name) for c in items)
    assert split_validation(items, 0.1, 123, ["energy", "forces"]).indices == split.indices


@pytest.mark.parametrize(
    "change",
    [{}, {3: [26]}, {22: [26], 4: [26]}, {place: [place % 7 + 1] for place in range(100)}],
)
def test_a_split_that_is_complete_stays_as_it_is(
    configure: Callable[..., Configuration], change: dict[int, list[int]]
) -> None:
    items = [configure(change.get(place, [1]), energy=-1.0) for place in range(100)]
    assert split_validation(items, 0.1, 123, ["energy"]).indices == TAKEN


@pytest.mark.parametrize("seed", range(6))
def test_every_element_is_trained_on_whatever_the_seed(configure: Callable[..., Configuration], seed: int) -> None:
    """Each element is in two of 92 structures."""
    items = [configure([place % 92 + 1, (place + 31) % 92 + 1], energy=0.0) for place in range(92)]
    split = split_validation(items, 0.2, seed, ["energy"])
    assert elements(split.train) == set(range(1, 93))
    assert len(split.train) + len(split.valid) == 92 and len(split.valid) >= 15


def test_structures_that_cannot_be_spared_are_validated_with_all_the_same(
    configure: Callable[..., Configuration],
) -> None:
    items = [configure([place + 1]) for place in range(92)]
    split = split_validation(items, 0.1, 0)
    assert len(split.train) == 92 and len(split.valid) == 9
    (note,) = split.notes
    assert "so 9 are both trained on and validated with" in note
    split = split_validation([*items, *items[:3]], 0.1, 0)
    assert len(split.valid) == 3 and len(split.train) == 92
    assert "asks for 9 of 95 structures" in split.notes[0] and "3 are validated with and not" in split.notes[0]


def test_validation_has_labels(configure: Callable[..., Configuration]) -> None:
    items = [configure([1], energy=-1.0 if place in (2, 60, 61) else None) for place in range(100)]
    split = split_validation(items, 0.1, 123, ["energy"])
    assert sum(c.energy is not None for c in split.valid) == 1
    assert len(set(TAKEN) & set(split.indices)) == 9


def test_structures_are_for_heads_that_exist(configure: Callable[..., Configuration]) -> None:
    items = [configure([1], head="low"), configure([1], head="hgih", file="train.xyz", index=3)]
    check_heads(["any"], ListedStructures(items))
    check_heads(["low", "hgih"], ListedStructures(items))
    with pytest.raises(UserError, match="train.xyz: structure 3 is for the head 'hgih', .*; its heads are low, high"):
        check_heads(["low", "high"], ListedStructures(items))
