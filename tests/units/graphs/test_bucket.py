"""Do padded graphs and targets keep what was there, and do their shapes follow from the bucket alone?"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.graphs.bucket import Bucket, capacity
from mace.graphs.dataset import Batch
from mace.graphs.graph import Graph, carry
from mace.graphs.in_memory import InMemoryDataset
from mace.structures.configuration import Configuration

ELEMENTS = ElementTable((1, 6, 8, 14))


def dataset(seed: int = 0, count: int = 9) -> InMemoryDataset:
    """Crystals and molecules of two heads, some without forces or stress, with conditions and weights of atoms."""
    rng = np.random.default_rng(seed)
    made = []
    for place in range(count):
        n = 1 + place % 4
        positions, cell = rng.uniform(0, 3.0, (n, 3)), np.eye(3) * (3.0 + 0.1 * place)
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(n, 3)), "stress": np.eye(3)}
        if place % 3 == 0:
            labels.pop("forces")
        periodic = place % 2 == 0
        if not periodic:
            labels.pop("stress")
        conditions = {"spin": rng.normal(size=(n, 1))}
        made.append(
            Configuration(
                rng.choice([1, 8, 14], n),
                positions,
                cell,
                (periodic,) * 3,
                head="ab"[place % 2],
                charges=rng.normal(size=n),
                conditions=conditions,
                weight=1.0 + place,
                **labels,
            )  # fmt: skip
        )
    return InMemoryDataset(made, ELEMENTS, 2.5, heads=("a", "b"))


def shapes(held: object) -> dict[str, object]:
    """Shapes and types of all tensors, and of what is computed from them before they are moved."""
    found: dict[str, object] = {}
    for name, value in vars(held).items():
        if isinstance(value, Tensor):
            found[name] = value.shape, value.dtype, value.stride()
        elif isinstance(value, dict):
            for key, each in value.items():
                found[f"{name} {key}"] = (each.shape, each.dtype) if isinstance(each, Tensor) else shapes(each)
        elif name == "groups":
            found[name] = shapes(value)
    return found


def common(batches: list[Batch]) -> Bucket:
    """A bucket that holds all."""
    every = [Bucket.of(batch.graph, len(ELEMENTS), 2) for batch in batches]
    return Bucket(*(max(getattr(b, f.name) for b in every) for f in fields(Bucket)))


def test_capacities_are_a_fixed_series() -> None:
    reached = [capacity(n) for n in range(1, 20_000)]
    series = sorted(set(reached))
    assert all(c >= n for n, c in enumerate(reached, start=1)) and reached == sorted(reached)
    assert series[:16] == [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32] and series[-3:] == [14336, 16384, 20480]
    assert all(b <= 1.25 * a for a, b in zip(series, series[1:], strict=False) if a >= 4)
    assert all(capacity(c) == c for c in series) and len(series) == 53
    assert 1.08 < np.mean([c / n for n, c in enumerate(reached, start=1)][1023:8191]) < 1.1


def test_the_bucket_of_a_graph() -> None:
    graph = dataset(count=40).batch(range(36)).graph
    sizes, bucket = graph.sizes, Bucket.of(graph, n_elements=4, n_heads=2)
    assert sizes.atoms == 90 and sizes.structures == 36 and sizes.elements == 3
    assert bucket.atoms == 96 and bucket.structures == 40 and bucket.elements == 4 and bucket.heads == 2
    assert bucket.pairs == capacity(sizes.pairs) and bucket.neighbors == capacity(sizes.neighbors)
    assert Bucket.of(graph, n_elements=3, n_heads=2).elements == 3
    assert bucket.holds(bucket) and bucket.holds(replace(bucket, atoms=90))
    assert not bucket.holds(replace(bucket, atoms=97)) and not bucket.holds(replace(bucket, heads=1))


def test_shapes_follow_from_the_bucket() -> None:
    batches = [dataset(seed).batch(range(first, first + 4)) for seed, first in ((0, 0), (1, 3), (2, 5))]
    bucket = common(batches)
    padded = [batch.padded(bucket) for batch in batches]
    assert len({tuple(map(str, shapes(each.graph).items())) for each in padded}) == 1
    assert len({tuple(map(str, shapes(each.targets).items())) for each in padded}) == 1
    for each in padded:
        assert each.graph.sizes == bucket and each.graph.heads_present == (0, 1)
        assert isinstance(each.graph.head_of_atoms(), Tensor)
    only_one_head = dataset().batch([0, 2]).graph
    assert isinstance(only_one_head.head_of_atoms(), int)
    assert isinstance(only_one_head.padded(bucket).head_of_atoms(), Tensor)


def edges(graph: Graph) -> set[tuple[int, ...]]:
    """All directed edges with what is known of each, read slot by slot."""
    found, k = set(), graph.max_neighbors
    for row in range(graph.n_atoms):
        for slot in range(row * k, (row + 1) * k):
            if slot - row * k >= int(graph.neighbor_count[row]):
                assert int(graph.pair_of_slot[slot]) == len(graph.pair_sender) - 1
                assert int(graph.reverse_of_slot[slot]) == slot
                assert 0 <= int(graph.sender_of_slot[slot]) < graph.n_atoms
                continue
            pair, back = int(graph.pair_of_slot[slot]), int(graph.reverse_of_slot[slot])
            sign = int(graph.sign_of_slot[slot])
            assert int(graph.slots_of_pair[pair, 0 if sign > 0 else 1]) == slot
            assert int(graph.slots_of_pair[pair, 1 if sign > 0 else 0]) == back
            assert int(graph.sender_of_slot[slot]) == back // k and int(graph.reverse_of_slot[back]) == slot
            atoms = [int(graph.atoms_by_element[r]) for r in (row, back // k)]
            ends = [int(x[pair]) for x in (graph.pair_sender, graph.pair_receiver)]
            assert atoms == (ends[::-1] if sign > 0 else ends)
            found.add((row, slot - row * k, pair, sign, *atoms, *graph.pair_shift[pair].tolist()))
    return found


@pytest.mark.parametrize("structures", [[0], [1, 2, 3], [8, 7, 6, 5]])
@pytest.mark.parametrize("more", [(0, 0, 0, 0, 0), (1, 0, 4, 0, 2), (7, 3, 11, 1, 0)])
def test_what_was_there_stays(structures: list[int], more: tuple[int, ...]) -> None:
    graph = dataset().batch(structures).graph
    bucket = Bucket(*(a + b for a, b in zip(_tight(graph), more, strict=True)), heads=2)
    padded = graph.padded(bucket)
    n, n_structures, n_pairs = graph.n_atoms, graph.n_structures, len(graph.pair_sender) - 1
    assert edges(padded) == edges(graph) and padded.n_edges == graph.n_edges
    assert padded.real is not None and padded.real.atoms == n
    for name in ("element", "positions", "charges", "structure_of_atom", "row_of_atom", "atoms_by_element"):
        assert torch.equal(getattr(padded, name)[:n], getattr(graph, name)), name
    for name in ("cell", "head"):
        assert torch.equal(getattr(padded, name)[:n_structures], getattr(graph, name))
    assert torch.equal(padded.conditions["spin"][:n], graph.conditions["spin"])
    assert padded.is_padding.tolist() == [False] * n_pairs + [True] * (bucket.pairs - n_pairs)
    assert (padded.structure_of_atom[n:] == bucket.structures - 1).all() and not padded.neighbor_count[n:].any()
    assert padded.volume[n_structures:].isnan().all() and not padded.conditions["spin"][n:].any()
    by_row = padded.element[padded.atoms_by_element]
    assert torch.equal(by_row.sort().values, by_row)
    groups = padded.groups
    assert len(set(groups.index.tolist())) == bucket.elements and int(groups.starts[-1]) == bucket.atoms
    assert torch.equal(groups.index[groups.place], by_row) and int(groups.index.max()) < len(ELEMENTS)
    for group, (first, last) in enumerate(zip(groups.starts[:-1], groups.starts[1:], strict=True)):
        assert (groups.place[first:last] == group).all()


def _tight(graph: Graph) -> tuple[int, ...]:
    sizes = graph.sizes
    return sizes.atoms, sizes.neighbors, sizes.pairs, min(sizes.elements, 3), sizes.structures + 1


def test_targets_keep_labels_and_counts() -> None:
    batch = dataset().batch([0, 1, 2, 3])
    padded = batch.padded(replace(Bucket.of(batch.graph, 4, 2), atoms=40, structures=9))
    for name, rows in batch.targets.rows.items():
        found, n = padded.targets.rows[name], len(rows.missing)
        assert torch.equal(found.count, rows.count) and found.missing[n:].all()
        for weights in ("property_weight", "other_weight", "weight"):
            assert torch.equal(getattr(found, weights)[:n], getattr(rows, weights))
            assert not getattr(found, weights)[n:].any()
        values = padded.targets.values[name]
        assert torch.equal(values[:n], batch.targets.values[name]) and not values[n:].any()
        assert int(padded.targets.labeled[name].sum()) == int(batch.targets.labeled[name].sum())
    assert (padded.targets.atoms_per_structure[4:] == 1).all()
    assert padded.targets.values["forces"].shape == (40, 3) and padded.targets.values["energy"].shape == (9,)


def test_moved_with_all_that_is_known() -> None:
    graph = dataset().batch([0, 1]).graph
    padded = graph.padded(Bucket.of(graph, 4, 2))
    moved = carry(padded, "meta")
    assert moved.groups.starts.is_meta and moved.sizes == padded.sizes and moved.real == padded.real
    assert moved.element_counts == padded.element_counts and moved.n_edges == graph.n_edges
    assert padded.moved(padded.positions + 1.0).groups is padded.groups


@pytest.mark.parametrize("name", ["atoms", "neighbors", "pairs", "elements", "structures"])
def test_what_does_not_fit(name: str) -> None:
    graph = dataset().batch([1, 2, 3]).graph
    sizes = dict(zip(("atoms", "neighbors", "pairs", "elements", "structures"), _tight(graph), strict=True))
    graph.padded(Bucket(**sizes, heads=2))
    with pytest.raises(ValueError, match="does not fit"):
        graph.padded(Bucket(**sizes | {name: sizes[name] - 1}, heads=2))
    with pytest.raises(ValueError, match="padded already"):
        graph.padded(Bucket(**sizes, heads=2)).padded(Bucket(**sizes, heads=2))
