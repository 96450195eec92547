"""Are errors those of what is labeled and has weight, each structure once, whoever computes them?"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import original_files as files
import pytest

from mace.elements import ElementTable
from mace.graphs.dataset import Dataset
from mace.graphs.in_memory import InMemoryDataset
from mace.graphs.neighbors import Neighbors, find_all_neighbors
from mace.model.prediction import Prediction, predict
from mace.processes.team import Team
from mace.structures.configuration import Configuration
from mace.training.evaluation import Evaluation, evaluate
from mace.training.loss import make_loss
from mace.training.memory import EdgeLimit

MODEL = files.model()
LOSS = make_loss("stress", {"energy": 1.0, "forces": 10.0, "stress": 3.0})
TYPES = ("bulk", "slab", "bulk", "Default", "slab", "bulk", "bulk")


def structure(n_atoms: int, **changes: Any) -> Configuration:
    rng = np.random.default_rng(n_atoms)
    labels = {"energy": -100.0 * n_atoms, "forces": rng.normal(size=(n_atoms, 3)), "stress": 0.01 * np.eye(3)}
    return Configuration(
        atomic_numbers=np.resize([1, 6, 8], n_atoms),
        positions=rng.uniform(0.0, 6.0, (n_atoms, 3)),
        cell=6.0 * np.eye(3),
        pbc=(True, True, True),
        **{**labels, **changes},
    )


def dataset(structures: Sequence[Configuration]) -> InMemoryDataset:
    return InMemoryDataset(structures, ElementTable(MODEL.plan.atomic_numbers), MODEL.plan.r_max)


def prediction(structures: Sequence[Configuration]) -> Prediction:
    return predict(MODEL, dataset(structures).batch(range(len(structures))).graph, True, True)


def errors_of(structures: Sequence[Configuration], batch_size: int = 3) -> dict[str, float]:
    return evaluate(MODEL, dataset(structures), LOSS, batch_size, stress=True).metrics


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


SET = [structure(n_atoms + 2, config_type=kind) for n_atoms, kind in enumerate(TYPES)]


def test_errors_by_hand() -> None:
    found, expected = errors_of(SET), prediction(SET)
    assert expected.energy is not None and expected.forces is not None and expected.stress is not None
    energy = expected.energy.numpy() - np.array([item.energy for item in SET])
    forces = expected.forces.numpy() - np.concatenate([item.forces for item in SET])  # type: ignore[misc]
    stress = expected.stress.numpy() - np.stack([item.stress for item in SET])  # type: ignore[misc]
    assert found["rmse_e"] == pytest.approx(rms(energy))
    assert found["rmse_e_per_atom"] == pytest.approx(rms(energy / [item.n_atoms for item in SET]))
    assert found["rmse_f"] == pytest.approx(rms(forces)) and found["mae_f"] == pytest.approx(np.abs(forces).mean())
    assert found["rmse_stress"] == pytest.approx(rms(stress))


def test_atoms_without_weight_do_not_count() -> None:
    weights = np.array([1.0, 0.0, 0.0, 2.5])
    found = errors_of([SET[0], structure(4, atom_weights={"forces": weights})])
    expected = prediction([SET[0], structure(4)]).forces
    labels = [SET[0].forces, structure(4).forces]
    assert expected is not None
    counted = np.r_[0, 1, 2, 5]  # two atoms of the first structure, then the first and the last of the second
    assert found["rmse_f"] == pytest.approx(rms((expected.numpy() - np.concatenate(labels))[counted]))  # type: ignore[arg-type]
    assert found["rmse_e"] == pytest.approx(errors_of([SET[0], structure(4)])["rmse_e"])


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_what_has_no_weight_or_no_label_does_not_count(name: str) -> None:
    suffix = {"energy": "e", "forces": "f", "stress": "stress"}[name]
    alone = errors_of([SET[0]])
    for left_out in (structure(5, property_weights={name: 0.0}), structure(5, **{name: None})):
        found = errors_of([SET[0], left_out])
        assert found[f"rmse_{suffix}"] == pytest.approx(alone[f"rmse_{suffix}"], rel=1e-10)
        others = {"e", "f", "stress"} - {suffix}
        assert all(
            abs(found[f"rmse_{other}"] - alone[f"rmse_{other}"]) > 1e-4 * alone[f"rmse_{other}"] for other in others
        )
    light = errors_of([SET[0], structure(5, weight=0.0)])
    assert light == pytest.approx(alone, rel=1e-10)
    assert errors_of([structure(5, weight=0.0)]) == {}


@pytest.mark.parametrize(
    "small",
    [
        {"weight": 0.01},
        {"property_weights": dict.fromkeys(("energy", "forces", "stress"), 0.01)},
        {"atom_weights": {"forces": np.full(5, 0.01)}},
    ],
    ids=lambda small: next(iter(small)),
)
def test_a_small_weight_counts_as_much_as_any(small: dict[str, Any]) -> None:
    assert errors_of([SET[0], structure(5, **small)]) == pytest.approx(errors_of([SET[0], structure(5)]), rel=1e-10)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_neither_batches_nor_their_size_matter(batch_size: int) -> None:
    found = evaluate(MODEL, dataset(SET), LOSS, batch_size, stress=True, keep_details=True)
    whole = evaluate(MODEL, dataset(SET), LOSS, 4, stress=True, keep_details=True)
    assert_same(found, whole)


def test_details_by_config_type() -> None:
    found = evaluate(MODEL, dataset(SET), LOSS, 2, keep_details=True).by_type
    assert set(found) == set(TYPES)
    for kind in set(TYPES):
        own = errors_of([item for item in SET if item.config_type == kind])
        assert found[kind] == pytest.approx({k: v for k, v in own.items() if not k.startswith("q95")}, rel=1e-9)


def test_values_say_where_they_belong() -> None:
    items = [
        SET[0],
        replace(SET[1], forces=None),
        structure(4, atom_weights={"forces": np.array([0.0, 1, 1, 0])}),
        SET[2],
    ]
    details = evaluate(MODEL, dataset(items), LOSS, 2, keep_details=True).details
    assert details is not None
    energy, forces = (details.tallies[name].values for name in ("energy", "forces"))
    assert energy["structure"].tolist() == [0, 1, 2, 3]
    assert energy["whole"].tolist() == [-100.0] * 4
    assert forces["structure"].tolist() == [0] * 6 + [2] * 6 + [3] * 12
    assert forces["row"].tolist() == [*range(6), *range(3, 9), *range(12)]
    reference = [items[s].forces.ravel()[r] for s, r in zip(forces["structure"], forces["row"], strict=True)]  # type: ignore[union-attr]
    np.testing.assert_array_equal(forces["reference"], reference)
    own = MODEL.plan.energies_of_heads()[0]
    isolated = [sum(own[z] for z in item.atomic_numbers.tolist()) / item.n_atoms for item in items]
    np.testing.assert_allclose(energy["reference"], -100.0 - np.array(isolated), rtol=1e-12)
    assert [structure for _, structure in details.worst["forces"]] != [] and 1 not in dict(
        (s, e) for e, s in details.worst["forces"]
    )


class OnDemand(Dataset):
    """A data set that keeps no neighbors, as one on disk need not."""

    def __init__(self, kept: InMemoryDataset) -> None:
        super().__init__(kept.structures, kept.elements, kept.r_max)
        self.kept = kept

    def neighbors(self, structures: np.ndarray) -> Neighbors:
        return find_all_neighbors([self[int(place)] for place in structures], self.r_max)

    def edges_of(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.kept.edges_of(structures)

    def atoms_with_neighbors(self, structures: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.kept.atoms_with_neighbors(structures)


def test_any_data_set_can_be_evaluated() -> None:
    kept = dataset(SET)
    other = OnDemand(kept)
    assert_same(*(evaluate(MODEL, each, LOSS, 3, stress=True, keep_details=True) for each in (other, kept)))
    assert (other.n_atoms, other.n_edges) == (kept.n_atoms, kept.n_edges)
    assert other.average_neighbors() == kept.average_neighbors()
    steps = [EdgeLimit(int(each.edges_of([5, 6]).sum()), "a test").parts(each, np.arange(7)) for each in (other, kept)]
    assert [part.structures.tolist() for part in steps[0]] == [part.structures.tolist() for part in steps[1]]


def test_structures_are_named_by_file_and_place() -> None:
    named = dataset([replace(SET[0], file="a.xyz", index=17), replace(SET[1], file="a.xyz", index=3), SET[2]])
    assert named.describe([0, 1]) == "a.xyz: structures 3, 17"
    assert named.describe([2, 0]) == "given: structure 0; a.xyz: structure 17"


def test_without_details_none_are_kept() -> None:
    found = evaluate(MODEL, dataset(SET), LOSS, 2)
    assert found.by_type == {} and found.details is None


def test_only_what_is_wanted_and_labeled_is_predicted() -> None:
    of_energy = make_loss("weighted", {"energy": 1.0, "forces": 0.0})
    plain = evaluate(MODEL, dataset(SET), of_energy, 4).metrics
    assert "rmse_f" in plain and "rmse_stress" not in plain
    assert "rmse_f" not in evaluate(MODEL, dataset(SET), of_energy, 4, forces=False).metrics
    assert "rmse_stress" in evaluate(MODEL, dataset(SET), of_energy, 4, stress=True).metrics
    assert "rmse_stress" in evaluate(MODEL, dataset(SET), LOSS, 4).metrics
    assert "rmse_f" in evaluate(MODEL, dataset([SET[0], replace(SET[1], forces=None)]), of_energy, 4).metrics
    partly = [SET[0], replace(SET[1], stress=None)]
    assert "rmse_stress" in evaluate(MODEL, dataset(partly), of_energy, 4, stress=True).metrics
    virials = [replace(item, stress=None, virials=np.eye(3)) for item in SET]
    assert "rmse_virials" in evaluate(MODEL, dataset(virials), of_energy, 4, stress=True).metrics


class _Member(Team):
    """A process of a team whose processes are threads."""

    def __init__(self, rank: int, size: int, table: list[Any], meeting: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._meeting = rank, size, table, meeting

    def gather(self, item: Any) -> list[Any]:
        self._table[self.rank] = deepcopy(item)  # what arrives is a copy, as of another process
        self._meeting.wait(60.0)
        found = list(self._table)
        self._meeting.wait(60.0)
        return found


def together(size: int, items: Sequence[Configuration]) -> list[Evaluation]:
    """Evaluate with several processes; return what each has in the end."""
    table, meeting, found = [None] * size, threading.Barrier(size), dict[int, Evaluation]()

    def work(rank: int) -> None:
        team = _Member(rank, size, table, meeting)
        found[rank] = evaluate(MODEL, dataset(items), LOSS, 2, stress=True, keep_details=True, team=team)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


def assert_same(found: Evaluation, expected: Evaluation) -> None:
    """The same numbers; several processes have them in another order."""
    assert found.loss == pytest.approx(expected.loss, rel=1e-9)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-9)
    assert found.by_type.keys() == expected.by_type.keys()
    for kind, errors in expected.by_type.items():
        assert found.by_type[kind] == pytest.approx(errors, rel=1e-9), kind
    details, other = expected.details, found.details
    assert details is not None and other is not None and details.tallies.keys() == other.tallies.keys()
    for name, one in details.tallies.items():
        ours, theirs = (np.sort(t.values, order=["structure", "row"]) for t in (one, other.tallies[name]))
        for part in ("structure", "row", "type", "part", "lot"):
            np.testing.assert_array_equal(ours[part], theirs[part], err_msg=f"{name} {part}")
        for part in ("reference", "whole", "error"):
            np.testing.assert_allclose(ours[part], theirs[part], rtol=1e-9, atol=1e-9, err_msg=f"{name} {part}")
    for name, entries in details.worst.items():
        sizes, others = (np.array([size for size, _ in each]) for each in (entries, other.worst[name]))
        np.testing.assert_allclose(sizes, others, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_count_every_structure_once(size: int) -> None:
    alone = evaluate(MODEL, dataset(SET), LOSS, 2, stress=True, keep_details=True)
    for found in together(size, SET):
        assert_same(found, alone)


def test_processes_without_a_structure_have_the_errors_too() -> None:
    alone = evaluate(MODEL, dataset(SET[:1]), LOSS, 2, stress=True, keep_details=True)
    for found in together(2, SET[:1]):
        assert_same(found, alone)
