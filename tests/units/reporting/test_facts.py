"""Are the neighbors that the page of a run shows those of all structures, or of a fair choice of very many?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.inspection.distributions import distribution
from mace.runs import facts
from mace.structures.configuration import Configuration


def chains(count: int) -> InMemoryDataset:
    """Chains of one hydrogen atom and up to 99 of oxygen, of which the inner ones have two neighbors."""
    structures = []
    for k in range(count):
        positions = np.zeros((2 + k % 99, 3))
        positions[:, 0] = np.arange(len(positions))
        numbers = np.array([1] + [8] * (len(positions) - 1))
        structures.append(Configuration(numbers, positions, np.zeros((3, 3)), (False,) * 3, index=k))
    return InMemoryDataset(structures, ElementTable((1, 6, 8)), 1.5)


PLAN: Any = SimpleNamespace(
    atomic_numbers=(1, 6, 8), n_elements=3, heads=(), every_head=[SimpleNamespace(reference_energies=None)]
)


def test_all_atoms_of_few_structures() -> None:
    counted = facts._counted(chains(3))
    assert counted.atoms.tolist() == [3, 0, 6] and counted.looked_at == 0
    assert counted.neighbors.tolist() == [[0, 3, 0], [0, 0, 0], [0, 3, 3]]
    found = {fact.symbol: fact for fact in facts._elements(PLAN, {"Default": counted})}
    assert (found["O"].atoms, found["O"].neighbors, found["O"].fewest, found["O"].most) == (6, 1.5, 1, 2)
    assert found["C"].neighbors is None and found["C"].atoms == 0


def test_so_many_structures_are_drawn_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_MOST_LOOKED_AT", 100)
    every = chains(990)
    counted, again = facts._counted(every), facts._counted(every)
    assert counted.looked_at == 100 and counted.neighbors.tolist() == again.neighbors.tolist()
    assert counted.atoms.tolist() == [990, 0, sum(1 + k % 99 for k in range(990))]  # of all
    assert counted.neighbors[0].sum() == 100
    mean = counted.neighbors[2].sum() / 100
    assert mean == pytest.approx(counted.atoms[2] / 990, rel=0.2) and mean != counted.atoms[2] / 990


@pytest.mark.parametrize("counts", [[0, 3, 5], [4], [0, 1, *[0] * 90, 2]])
def test_a_distribution_of_integers_is_that_of_all_of_them(counts: list[int]) -> None:
    numbers = np.repeat(np.arange(len(counts)), counts)
    found, expected = facts._integers(np.array(counts)), distribution(numbers.astype(float))
    assert found is not None and expected is not None
    assert (found.count, found.smallest, found.mean, found.rms, found.largest) == (
        *(expected.count, expected.smallest, expected.mean, expected.rms, expected.largest),
    )
    assert sum(found.counts) == len(numbers) and len(found.edges) == len(found.counts) + 1
    assert facts._integers(np.zeros(3, dtype=np.int64)) is None
