"""Are farthest points those that a slow search over all pairs finds, also with ties and with different elements?"""

from __future__ import annotations

import numpy as np
import pytest

from mace.finetuning.farthest_points import ElementRows, farthest_points

FAR = 1.0e4
"""What stands for an element that a structure has not, in the slow search: far from all descriptors."""


def structures_of(
    rng: np.random.Generator, count: int, elements: int, of_integers: bool
) -> list[dict[int, np.ndarray]]:
    """Draw descriptors by element; with small whole numbers many distances are equal."""
    made = []
    for _ in range(count):
        has = [e for e in range(elements) if rng.random() < 0.6] or [0]
        values = {e: rng.integers(0, 3, 4) if of_integers else rng.normal(size=4) for e in has}
        made.append({e: value.astype(np.float32) for e, value in values.items()})
    return made


def as_rows(structures: list[dict[int, np.ndarray]]) -> dict[int, ElementRows]:
    rows = {}
    for element in {e for structure in structures for e in structure}:
        has = [k for k, structure in enumerate(structures) if element in structure]
        rows[element] = ElementRows(np.array(has), np.stack([structures[k][element] for k in has]))
    return rows


def slow_search(structures: list[dict[int, np.ndarray]], elements: int, n_samples: int, first: int) -> list[int]:
    """Select by all distances between vectors of all elements."""
    vectors = np.full((len(structures), elements, 4), FAR)
    for vector, structure in zip(vectors, structures, strict=True):
        for element, value in structure.items():
            vector[element] = value
    # absent elements count as such only, however large the descriptors they are compared with
    has = np.array([[e in structure for e in range(elements)] for structure in structures])
    selected = [first]
    while len(selected) < n_samples:
        best, best_distance = -1, -1.0
        for k in range(len(structures)):
            if k in selected:
                continue
            to_selected = []
            for s in selected:
                both = has[k] & has[s]
                squared = float(((vectors[k, both] - vectors[s, both]) ** 2).sum())
                to_selected.append(FAR**2 * (has[k] != has[s]).sum() + squared)
            if min(to_selected) > best_distance:
                best, best_distance = k, min(to_selected)
        selected.append(best)
    return selected


@pytest.mark.parametrize("elements", [1, 4])
@pytest.mark.parametrize("of_integers", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_a_slow_search(elements: int, of_integers: bool, seed: int) -> None:
    structures = structures_of(np.random.default_rng(seed), 60, elements, of_integers)
    found = farthest_points(as_rows(structures), 60, 25, 5 + seed)
    assert found.tolist() == slow_search(structures, elements, 25, 5 + seed)


def test_rows_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    structures = structures_of(np.random.default_rng(7), 50, 3, False)
    together = farthest_points(as_rows(structures), 50, 20, 0)
    monkeypatch.setattr("mace.finetuning.farthest_points._TOGETHER", 3)
    assert (farthest_points(as_rows(structures), 50, 20, 0) == together).all()


def test_all_structures_once_even_if_they_are_equal() -> None:
    rows = {6: ElementRows(np.arange(5), np.ones((5, 2), dtype=np.float32))}
    assert farthest_points(rows, 5, 5, 3).tolist() == [3, 0, 1, 2, 4], "the first of equal ones"


def test_other_elements_come_before_other_descriptors() -> None:
    """However far apart two molecules of the same elements are, one of another element is farther."""
    hydrogen = ElementRows(np.array([0, 1, 2]), np.array([[0.0], [1e6], [0.0]], dtype=np.float32))
    oxygen = ElementRows(np.array([2]), np.zeros((1, 1), dtype=np.float32))
    assert farthest_points({1: hydrogen, 8: oxygen}, 3, 2, 0).tolist() == [0, 2]


def test_the_selection_is_shown() -> None:
    seen: list[tuple[str, int]] = []

    def show(items, description, total):  # type: ignore[no-untyped-def]
        seen.append((description, total))
        return items

    farthest_points({6: ElementRows(np.arange(3), np.eye(3, dtype=np.float32))}, 3, 2, 0, show)
    assert seen == [("Choosing farthest points", 2)]
