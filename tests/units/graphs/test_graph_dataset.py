"""Batches of flat arrays against graphs built one at a time."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.assembly import build_graph
from mace.graphs.dataset import Subset
from mace.graphs.graph import Graph, pair_vectors
from mace.graphs.in_memory import InMemoryDataset
from mace.model.prediction import predict
from mace.structures.configuration import Configuration

R_MAX = 3.0
ELEMENTS = ElementTable((1, 6, 8))
FREE = (False, False, False)


def members() -> list[Configuration]:
    """Molecules, a crystal, an isolated atom and a pair out of reach, with some labels each."""
    rng = np.random.default_rng(0)
    chain = np.cumsum(rng.normal(size=(6, 3)) * 0.2 + [0.9, 0.3, 0.0], axis=0)
    none = np.zeros((3, 3))
    return [
        Configuration(np.array([6, 1, 8, 1, 6, 1]), chain, none, FREE, energy=-1.5, forces=rng.normal(size=(6, 3))),
        Configuration(np.array([8]), np.zeros((1, 3)), none, FREE, energy=0.5, weight=3.0),
        Configuration(
            np.array([6, 8]), rng.uniform(-9, 9, size=(2, 3)), np.diag([2.5, 2.8, 3.1]), (True, True, True),
            stress=rng.normal(size=(3, 3)), virials=rng.normal(size=(3, 3)), property_weights={"stress": 0.25},
        ),
        Configuration(np.array([1, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 8.0]]), none, FREE, dipole=np.ones(3)),
        Configuration(np.array([8, 1, 1]), np.eye(3) * 0.9, np.eye(3) * 7, (True, True, False)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> InMemoryDataset:
    """The members as a dataset."""
    return InMemoryDataset(members(), ELEMENTS, R_MAX)


def assert_slots_are_consistent(graph: Graph) -> None:
    """Check everything the docstring of `Graph` promises of slots."""
    n_pairs, k = len(graph.pair_sender) - 1, graph.max_neighbors
    slots = torch.arange(graph.n_atoms * k)
    for name in ("pair_of_slot", "sign_of_slot", "sender_of_slot", "reverse_of_slot"):
        assert getattr(graph, name).shape == slots.shape
    receiver = slots // k
    filled = graph.pair_of_slot < n_pairs
    assert (graph.pair_of_slot[~filled] == n_pairs).all()
    assert (graph.reverse_of_slot[~filled] == slots[~filled]).all()
    # empty slots at the end of each row
    rows = filled.view(graph.n_atoms, k).int()
    assert (rows.diff(dim=1) <= 0).all()
    # sender and receiver by the sign
    pair, sign = graph.pair_of_slot[filled], graph.sign_of_slot[filled]
    forward = sign > 0
    senders = torch.where(forward, graph.pair_sender[pair], graph.pair_receiver[pair])
    receivers = torch.where(forward, graph.pair_receiver[pair], graph.pair_sender[pair])
    atom = graph.atoms_by_element
    assert torch.equal(senders, atom[graph.sender_of_slot[filled]])
    assert torch.equal(receivers, atom[receiver[filled]])
    # the reverse is an involution that swaps sender and receiver and keeps the pair
    reverse = graph.reverse_of_slot
    assert torch.equal(reverse[reverse], slots)
    assert torch.equal(graph.pair_of_slot[reverse], graph.pair_of_slot)
    assert torch.equal(graph.sign_of_slot[reverse][filled], -sign)
    # the two slots of a pair
    assert torch.equal(graph.slots_of_pair[-1], torch.zeros(2, dtype=torch.int64))
    for column, direction in ((0, 1.0), (1, -1.0)):
        of_pair = graph.slots_of_pair[:-1, column]
        assert torch.equal(graph.pair_of_slot[of_pair], torch.arange(n_pairs))
        assert (graph.sign_of_slot[of_pair] == direction).all()
    # order by element
    assert torch.equal(graph.atoms_by_element[graph.row_of_atom], torch.arange(graph.n_atoms))
    assert (graph.element[graph.atoms_by_element].diff() >= 0).all()
    assert graph.element[graph.atoms_by_element].tolist() == [
        e for e, n in zip(graph.elements_present, graph.element_counts, strict=True) for _ in range(n)
    ]


def edges(graph: Graph) -> list[set[tuple[float, ...]]]:
    """Describe the surroundings of every atom by element and rounded vector of its neighbors."""
    vectors = pair_vectors(graph, R_MAX, torch.float64)[graph.pair_of_slot] * graph.sign_of_slot.unsqueeze(1)
    filled = graph.pair_of_slot < len(graph.pair_sender) - 1
    found: list[set[tuple[float, ...]]] = [set() for _ in range(graph.n_atoms)]
    for slot in torch.nonzero(filled).flatten().tolist():
        element = int(graph.element[graph.atoms_by_element[graph.sender_of_slot[slot]]])
        rounded = (np.round(vectors[slot].numpy(), 9) + 0.0).tolist()
        found[int(graph.atoms_by_element[slot // graph.max_neighbors])].add((element, *rounded))
    return found


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_any_batch_is_its_members_side_by_side(chosen: list[int]) -> None:
    configurations = members()
    dataset = InMemoryDataset(configurations, ELEMENTS, R_MAX)
    batch = dataset.batch(chosen)
    graph = batch.graph
    assert_slots_are_consistent(graph)
    alone = [build_graph(configurations[i], ELEMENTS, R_MAX) for i in chosen]
    assert graph.n_atoms == sum(g.n_atoms for g in alone) and graph.n_edges == sum(g.n_edges for g in alone)
    assert graph.n_structures == len(chosen) and batch.structures.tolist() == chosen
    assert graph.max_neighbors == max(g.max_neighbors for g in alone)
    assert torch.equal(graph.positions, torch.cat([g.positions for g in alone]))
    assert torch.equal(graph.element, torch.cat([g.element for g in alone]))
    assert graph.atoms_per_structure().tolist() == [g.n_atoms for g in alone]
    assert edges(graph) == [surroundings for g in alone for surroundings in edges(g)]
    torch.testing.assert_close(graph.volume, torch.cat([g.volume for g in alone]), equal_nan=True)


def test_predictions_do_not_depend_on_the_batch(load_case: Any) -> None:
    case = load_case("vector_l2_c2_t3")
    model, configurations = case.model(), members()
    elements = ElementTable(case.plan.atomic_numbers)
    dataset = InMemoryDataset(configurations, elements, case.plan.r_max)
    alone = [predict(model, build_graph(c, elements, case.plan.r_max)) for c in configurations]
    for chosen in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3], [2, 2, 1], [1, 3]):
        together = predict(model, dataset.batch(chosen).graph)
        torch.testing.assert_close(
            together.energy, torch.cat([alone[i].energy for i in chosen]), rtol=1e-13, atol=1e-12
        )
        torch.testing.assert_close(
            together.forces, torch.cat([alone[i].forces for i in chosen]), rtol=1e-11, atol=1e-12
        )


def test_the_last_batch_is_as_large_as_what_is_left(dataset: InMemoryDataset) -> None:
    assert [b.structures.tolist() for b in dataset.batches(2)] == [[0, 1], [2, 3], [4]]
    assert [b.structures.tolist() for b in dataset.batches(10)] == [[0, 1, 2, 3, 4]]
    order = np.array([3, 0, 4, 1, 2])
    assert [b.structures.tolist() for b in dataset.batches(3, order)] == [[3, 0, 4], [1, 2]]


def test_average_neighbors_counts_atoms_that_have_any(dataset: InMemoryDataset) -> None:
    counts = np.array([len(s) for c in members() for s in edges(build_graph(c, ELEMENTS, R_MAX))])
    assert (counts == 0).sum() == 3
    assert dataset.average_neighbors() == pytest.approx(counts[counts > 0].mean(), rel=1e-14)
    assert dataset.n_edges == counts.sum() and dataset.n_atoms == len(counts)


def test_atoms_are_counted_by_element_and_number_of_neighbors(
    dataset: InMemoryDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = np.zeros((len(ELEMENTS), 200), dtype=int)
    for configuration in members():
        for number, senders in zip(
            configuration.atomic_numbers.tolist(), edges(build_graph(configuration, ELEMENTS, R_MAX)), strict=True
        ):
            found[list(ELEMENTS.atomic_numbers).index(number), len(senders)] += 1
    assert dataset.element_counts().tolist() == found.sum(1).tolist()
    for at_once in (1, 2, 64):
        monkeypatch.setattr("mace.graphs.dataset._GATHERED", at_once)
        counted = dataset.neighbor_histogram(np.arange(len(dataset)))
        width = counted.shape[1]
        assert counted.tolist() == found[:, :width].tolist() and not found[:, width:].any()
    assert dataset.neighbor_histogram(np.array([1])).shape == (len(ELEMENTS), 1)


def test_average_neighbors_without_any(dataset: InMemoryDataset) -> None:
    lonely = InMemoryDataset([members()[1], members()[3]], ELEMENTS, R_MAX)
    assert lonely.average_neighbors() == 1.0


def test_labels_are_marked_and_stay_with_their_structures(dataset: InMemoryDataset) -> None:
    configurations, chosen = members(), [2, 0, 1]
    targets = dataset.batch(chosen).targets
    assert targets.labeled["energy"].tolist() == [False, True, True]
    assert targets.values["energy"].tolist() == [0.0, -1.5, 0.5]
    assert targets.labeled["forces"].tolist() == [False, True, False]
    assert targets.values["forces"].shape == (9, 3)
    assert not targets.values["forces"][:2].any() and not targets.values["forces"][8:].any()
    np.testing.assert_array_equal(targets.values["forces"][2:8], configurations[0].forces)
    assert targets.labeled["stress"].tolist() == targets.labeled["virials"].tolist() == [True, False, False]
    np.testing.assert_array_equal(targets.values["stress"][0], configurations[2].stress)
    np.testing.assert_array_equal(targets.values["virials"][0], configurations[2].virials)
    assert targets.labeled["dipole"].tolist() == [False, False, False]
    assert dataset.labeled("dipole").tolist() == [False, False, False, True, False]
    assert targets.weight.tolist() == [1.0, 1.0, 3.0]
    assert targets.property_weights["stress"].tolist() == [0.25, 1.0, 1.0]
    assert targets.property_weights["energy"].tolist() == [1.0, 1.0, 1.0]
    assert targets.atoms_per_structure.tolist() == [2, 6, 1]
    assert all(value.dtype == torch.float64 for value in targets.values.values())


def test_volume_is_missing_without_a_cell(dataset: InMemoryDataset) -> None:
    volume = dataset.batch([0, 2, 4]).graph.volume
    assert torch.isnan(volume[0])
    assert volume[1:].tolist() == pytest.approx([2.5 * 2.8 * 3.1, 343.0])


def test_an_unknown_element_is_named() -> None:
    gold = Configuration(np.array([79]), np.zeros((1, 3)), np.zeros((3, 3)), FREE)
    with pytest.raises(UserError, match="Au"):
        InMemoryDataset([members()[0], gold], ELEMENTS, R_MAX)


def test_pair_vectors_of_far_atoms_lose_no_digits() -> None:
    """In single precision differences of large coordinates are taken in double precision."""
    positions = np.array([[3e5, -3e5, 9e5], [3e5 + 1.0, -3e5 + 0.25, 9e5 - 0.5]])
    graph = build_graph(Configuration(np.array([1, 8]), positions, np.zeros((3, 3)), FREE), ELEMENTS, R_MAX)
    vector = pair_vectors(graph, R_MAX, torch.float32)[0]
    assert vector.abs().tolist() == [1.0, 0.25, 0.5]


def test_the_padding_pair_is_as_long_as_the_cutoff(dataset: InMemoryDataset) -> None:
    for dtype in (torch.float32, torch.float64):
        vectors = pair_vectors(dataset.batch([0, 1]).graph, R_MAX, dtype)
        assert vectors.dtype == dtype and vectors[-1].tolist() == [0.0, R_MAX, 0.0]


def test_moving_to_the_device_it_is_on_changes_nothing(dataset: InMemoryDataset) -> None:
    batch = dataset.batch([0, 2])
    moved = batch.graph.to("cpu")
    for field in fields(Graph):
        before, after = getattr(batch.graph, field.name), getattr(moved, field.name)
        assert (
            torch.equal(before.nan_to_num(), after.nan_to_num())
            if isinstance(before, torch.Tensor)
            else before == after
        )
    assert torch.equal(batch.targets.to("cpu").values["energy"], batch.targets.values["energy"])


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [4, 2], [3], [2, 2, 0]])
def test_some_structures_are_a_dataset_of_their_own(dataset: InMemoryDataset, chosen: list[int]) -> None:
    """Whatever is asked of it is that of a dataset made of these structures alone."""
    every = members()
    alone = InMemoryDataset([every[place] for place in chosen], ELEMENTS, R_MAX)
    part = Subset(dataset, chosen)
    assert len(part) == len(alone) and part.r_max == alone.r_max
    assert [one.energy for one in part] == [one.energy for one in alone]
    assert [one.energy for one in part[1:]] == [every[place].energy for place in chosen[1:]]
    assert part[-1].energy == every[chosen[-1]].energy
    assert part.n_atoms == alone.n_atoms and part.n_edges == alone.n_edges
    assert part.element_counts().tolist() == alone.element_counts().tolist()
    places = np.arange(len(chosen))
    assert part.neighbor_histogram(places).tolist() == alone.neighbor_histogram(places).tolist()
    assert part.shortest_distances() == alone.shortest_distances()
    assert part.average_neighbors() == alone.average_neighbors()
    for name in ("energy", "forces", "stress", "dipole"):
        assert part.labeled(name).tolist() == alone.labeled(name).tolist()
    order = np.arange(len(chosen))[::-1]
    assert part.atoms_of(order).tolist() == alone.atoms_of(order).tolist()
    assert part.edges_of(order).tolist() == alone.edges_of(order).tolist()
    for ours, theirs in zip(part.batches(2, order), alone.batches(2, order), strict=True):
        assert ours.structures.tolist() == theirs.structures.tolist()
        for one, other in ((ours.graph, theirs.graph), (ours.targets, theirs.targets)):
            for each in fields(one):
                assert_equal(getattr(one, each.name), getattr(other, each.name), each.name)


def assert_equal(one: Any, other: Any, name: str) -> None:
    """Compare tensors, tables of tensors, and anything else."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key], f"{name}/{key}")
    else:
        assert one == other, name
