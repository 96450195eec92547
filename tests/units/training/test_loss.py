"""Does a loss count what is labeled, with its weights, and nothing else?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.dataset import Targets
from mace.graphs.in_memory import InMemoryDataset
from mace.model.prediction import Prediction
from mace.structures.configuration import Configuration
from mace.training.loss import Loss, huber, make_loss

WEIGHTS = {"energy": 2.0, "forces": 10.0, "stress": 3.0, "virials": 5.0}
ALL_LOSSES = ("weighted", "ef", "forces_only", "stress", "virials", "huber", "universal", "l1l2energyforces")
CELL = np.diag([4.0, 5.0, 6.0])


def structure(n_atoms: int, seed: int = 0, **labels: Any) -> Configuration:
    """A structure with every label, except those set to None."""
    rng = np.random.default_rng([n_atoms, seed])
    full = {
        "energy": float(rng.normal()),
        "forces": rng.normal(size=(n_atoms, 3)),
        "stress": rng.normal(size=(3, 3)),
        "virials": rng.normal(size=(3, 3)),
    }
    return Configuration(
        atomic_numbers=np.ones(n_atoms, dtype=np.int64),
        positions=3.0 * rng.random((n_atoms, 3)),
        cell=CELL,
        pbc=(True, True, True),
        **{**full, **labels},
    )


def dataset_of(*structures: Configuration) -> InMemoryDataset:
    return InMemoryDataset(structures, ElementTable((1,)), 0.5)


def targets_of(*structures: Configuration) -> Targets:
    return dataset_of(*structures).batch(range(len(structures))).targets


def prediction_of(*structures: Configuration, dtype: torch.dtype = torch.float64) -> Prediction:
    """Numbers that differ from structure to structure and are the same whatever else is in the batch."""
    energies, forces, tensors = [], [], []
    for item in structures:
        rng = np.random.default_rng([item.n_atoms, 99])
        energies.append(rng.normal())
        forces.append(rng.normal(size=(item.n_atoms, 3)))
        tensors.append(rng.normal(size=(2, 3, 3)))
    stress, virials = torch.tensor(np.array(tensors), dtype=dtype).unbind(1)
    energy = torch.tensor(energies, dtype=torch.float64)
    return Prediction(energy, energy, torch.tensor(np.concatenate(forces), dtype=dtype), stress, virials, [])


def value(loss: Loss, *structures: Configuration) -> float:
    return float(loss(prediction_of(*structures), targets_of(*structures)))


def test_the_weighted_loss_by_hand() -> None:
    a, b = structure(2, energy=1.0), structure(3, energy=-1.0)
    prediction = prediction_of(a, b)
    prediction = replace(prediction, energy=torch.tensor([1.4, -1.9], dtype=torch.float64))
    assert a.forces is not None and b.forces is not None and prediction.forces is not None
    energy = ((0.4 / 2) ** 2 + (0.9 / 3) ** 2) / 2
    forces = np.square(prediction.forces.numpy() - np.concatenate([a.forces, b.forces])).mean()
    expected = 2.0 * energy + 10.0 * forces
    assert float(make_loss("weighted", WEIGHTS)(prediction, targets_of(a, b))) == pytest.approx(expected, rel=1e-14)


def test_stress_counts_nine_components_and_virials_are_divided_by_the_atoms() -> None:
    a = structure(2)
    prediction = prediction_of(a)
    assert prediction.stress is not None and prediction.virials is not None
    weights = {"energy": 0.0, "forces": 0.0, "stress": 3.0, "virials": 5.0}
    stress = 3.0 * np.square(prediction.stress[0].numpy() - a.stress).mean()
    virials = 5.0 * np.square((prediction.virials[0].numpy() - a.virials) / 2).mean()
    assert value(make_loss("stress", weights), a) == pytest.approx(stress, rel=1e-14)
    assert value(make_loss("virials", weights), a) == pytest.approx(virials, rel=1e-14)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_structure_without_labels_changes_nothing(name: str) -> None:
    loss = make_loss(name, WEIGHTS)
    bare = structure(4, energy=None, forces=None, stress=None, virials=None)
    assert value(loss, structure(2), bare, structure(3)) == value(loss, structure(2), structure(3))


@pytest.mark.parametrize("missing", ["energy", "forces", "stress", "virials"])
@pytest.mark.parametrize("name", ["stress", "virials", "universal", "huber"])
def test_a_missing_label_leaves_the_other_terms_alone(name: str, missing: str) -> None:
    loss = make_loss(name, WEIGHTS)
    complete, partial = (structure(2), structure(3)), (structure(2), structure(3, **{missing: None}))
    for term in loss.terms:
        only = Loss(name, (term,))
        if term.name == missing:
            assert value(only, *partial) == value(only, structure(2))
        else:
            assert value(only, *partial) == value(only, *complete)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_without_any_label_the_loss_is_zero_and_so_is_its_gradient(name: str) -> None:
    bare = structure(4, energy=None, forces=None, stress=None, virials=None)
    loss, slopes = make_loss(name, WEIGHTS).value_and_slopes(prediction_of(bare), targets_of(bare))
    assert float(loss) == 0.0
    assert slopes and not any(slope.any() for slope in slopes.values())


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_weight_zero_gives_exactly_zero(name: str) -> None:
    loss = make_loss(name, WEIGHTS)
    assert value(loss, structure(2), structure(3)) > 0.0
    by_structure = [structure(n, weight=0.0) for n in (2, 3)]
    by_property = [structure(n, property_weights=dict.fromkeys(WEIGHTS, 0.0)) for n in (2, 3)]
    assert value(loss, *by_structure) == 0.0
    assert value(loss, *by_property) == 0.0


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_term_without_weight_is_not_evaluated(name: str) -> None:
    loss = make_loss(name, {**WEIGHTS, "forces": 0.0, "stress": 0.0, "virials": 0.0})
    assert not loss.needs_forces and not loss.needs_stress
    if name != "forces_only":
        prediction = replace(prediction_of(structure(2)), forces=None, stress=None, virials=None)
        assert float(loss(prediction, targets_of(structure(2)))) > 0.0
    else:
        assert loss.terms == ()


@pytest.mark.parametrize("name", ALL_LOSSES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3), (4, 1), (5,)])
def test_batches_add_up_to_the_loss_of_the_whole(name: str, sizes: tuple[int, ...]) -> None:
    loss = make_loss(name, WEIGHTS)
    items = [structure(n, energy=None if n == 3 else 0.5, stress=None if n < 4 else CELL) for n in range(2, 7)]
    sums: dict[str, Any] = {}
    start = 0
    for size in sizes:
        part = items[start : start + size]
        start += size
        for key, (total, count) in loss.sums_and_counts(prediction_of(*part), targets_of(*part)).items():
            before = sums.get(key, (0.0, 0))
            sums[key] = (before[0] + total, before[1] + count)
    assert float(loss.combine(sums)) == pytest.approx(value(loss, *items), rel=1e-13)


@pytest.mark.parametrize("name", ALL_LOSSES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3), (5,)])
def test_parts_divided_by_the_counts_of_the_whole_add_up_to_its_loss(name: str, sizes: tuple[int, ...]) -> None:
    loss = make_loss(name, WEIGHTS)
    items = [structure(n, energy=None if n == 3 else 0.5, stress=None if n < 4 else CELL) for n in range(2, 7)]
    counts, total, start = loss.counts(dataset_of(*items), np.arange(len(items))), 0.0, 0
    for size in sizes:
        part = items[start : start + size]
        start += size
        total += float(loss(prediction_of(*part), targets_of(*part), counts))
    assert total == pytest.approx(value(loss, *items), rel=1e-13)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_the_weight_of_a_structure_multiplies_its_share(name: str) -> None:
    loss = make_loss(name, WEIGHTS)
    plain, heavy = structure(2), structure(2, weight=3.0)
    assert value(loss, heavy) == pytest.approx(3.0 * value(loss, plain), rel=1e-14)
    # the normalization is by the number of labels, not by the sum of weights
    other = structure(2, seed=1)
    share = value(loss, plain, other) - value(loss, structure(2, weight=0.0), other)
    gain = value(loss, heavy, other) - value(loss, plain, other)
    assert gain == pytest.approx(2.0 * share, rel=1e-12)


@pytest.mark.parametrize("name", ["weighted", "stress", "virials", "huber"])
@pytest.mark.parametrize("kind", ["energy", "forces", "stress", "virials"])
def test_the_weight_of_a_property_multiplies_its_term_alone(name: str, kind: str) -> None:
    loss = make_loss(name, WEIGHTS)
    for term in loss.terms:
        only = Loss(name, (term,))
        factor = 0.25 if term.name == kind else 1.0
        weighted = structure(2, property_weights={kind: 0.25})
        assert value(only, weighted) == pytest.approx(factor * value(only, structure(2)), rel=1e-14)


def test_huber_is_a_parabola_that_goes_on_as_a_line() -> None:
    errors = torch.tensor([0.0, 0.1, -0.1, 0.5, 2.0, -2.0], dtype=torch.float64)
    expected = [0.0, 0.005, 0.005, 0.125, 0.5 * (2.0 - 0.25), 0.5 * (2.0 - 0.25)]
    slope, c = huber(0.5)(errors, errors)
    np.testing.assert_allclose((slope * (errors - c * slope)).numpy(), expected, rtol=1e-14)


def test_the_huber_loss_by_hand() -> None:
    a = structure(2, energy=0.0, forces=np.zeros((2, 3)), stress=np.zeros((3, 3)))
    forces = torch.zeros(2, 3, dtype=torch.float64)
    forces[0, 0], forces[1, 2] = 0.2, -3.0
    stress = torch.zeros(1, 3, 3, dtype=torch.float64)
    stress[0, 1, 1] = 0.4
    prediction = replace(
        prediction_of(a), energy=torch.tensor([4.0], dtype=torch.float64), forces=forces, stress=stress
    )
    # energy: 2 eV per atom, beyond the threshold of 0.5; one force below and one above it; stress below it
    energy = 0.5 * (2.0 - 0.25)
    force = (0.5 * 0.2**2 + 0.5 * (3.0 - 0.25)) / 6
    expected = 2.0 * energy + 10.0 * force + 3.0 * (0.5 * 0.4**2) / 9
    assert float(make_loss("huber", WEIGHTS, 0.5)(prediction, targets_of(a))) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("reference", "threshold"), [(50.0, 0.5), (100.0, 0.35), (150.0, 0.35), (250.0, 0.2), (400.0, 0.05)]
)
def test_the_universal_loss_tightens_its_threshold_for_large_forces(reference: float, threshold: float) -> None:
    labels = np.array([[reference, 0.0, 0.0]])
    a = structure(1, energy=0.0, forces=labels, stress=None)
    prediction = replace(
        prediction_of(a),
        energy=torch.zeros(1, dtype=torch.float64),
        forces=torch.tensor(labels + [[0.0, 4.0, 0.0]], dtype=torch.float64),
    )
    expected = 10.0 * threshold * (4.0 - 0.5 * threshold) / 3
    loss = make_loss("universal", WEIGHTS, 0.5)
    assert float(loss(prediction, targets_of(a))) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("property_weight", "threshold"), [(0.1, 0.5), (0.5, 0.35), (0.9, 0.2), (1.0, 0.2), (1.5, 0.05)]
)
def test_in_the_universal_loss_a_property_weight_multiplies_large_forces_too(
    property_weight: float, threshold: float
) -> None:
    """The threshold goes by the size of the reference times the weight, here 25, 125, 225, 250 and 375."""
    labels = np.array([[0.0, 150.0, 200.0]])
    a = structure(1, energy=0.0, forces=labels, stress=None, property_weights={"forces": property_weight})
    prediction = replace(
        prediction_of(a),
        energy=torch.zeros(1, dtype=torch.float64),
        forces=torch.tensor(labels + [[40.0, 0.0, 0.0]], dtype=torch.float64),
    )
    expected = 10.0 * threshold * (40.0 * property_weight - 0.5 * threshold) / 3
    loss = make_loss("universal", WEIGHTS, 0.5)
    assert float(loss(prediction, targets_of(a))) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("name", ["huber", "universal"])
def test_the_threshold_has_a_default(name: str) -> None:
    assert value(make_loss(name, WEIGHTS), structure(2)) == value(make_loss(name, WEIGHTS, 0.01), structure(2))


def test_in_the_universal_loss_a_property_weight_multiplies_the_error() -> None:
    a = structure(2, energy=0.0, forces=None, stress=None, property_weights={"energy": 0.5})
    prediction = replace(prediction_of(a), energy=torch.tensor([8.0], dtype=torch.float64))
    # 4 eV per atom become 2, which lie beyond the threshold
    expected = 2.0 * 0.5 * (2.0 - 0.25)
    assert float(make_loss("universal", WEIGHTS, 0.5)(prediction, targets_of(a))) == pytest.approx(expected, rel=1e-14)


def test_absolute_energies_and_lengths_of_forces_by_hand() -> None:
    a, b = structure(2, energy=1.0), structure(3, energy=-1.0)
    prediction = replace(prediction_of(a, b), energy=torch.tensor([1.4, -1.9], dtype=torch.float64))
    assert a.forces is not None and b.forces is not None and prediction.forces is not None
    energy = (0.4 / 2 + 0.9 / 3) / 2
    forces = np.linalg.norm(prediction.forces.numpy() - np.concatenate([a.forces, b.forces]), axis=1).mean()
    loss = make_loss("l1l2energyforces", WEIGHTS)
    assert float(loss(prediction, targets_of(a, b))) == pytest.approx(2.0 * energy + 10.0 * forces, rel=1e-14)


def test_a_force_that_is_exact_has_a_gradient() -> None:
    """The length of a vector has a kink at zero; a perfect prediction must not become NaN."""
    a = structure(2)
    prediction = replace(prediction_of(a), forces=torch.tensor(a.forces))
    _, slopes = make_loss("l1l2energyforces", WEIGHTS).value_and_slopes(prediction, targets_of(a))
    assert torch.isfinite(slopes["forces"]).all()


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_the_weight_of_an_atom_multiplies_its_share_of_the_forces(name: str) -> None:
    loss = make_loss(name, WEIGHTS)
    only = Loss(name, tuple(term for term in loss.terms if term.name == "forces"))
    others = Loss(name, tuple(term for term in loss.terms if term.name != "forces"))
    first, second = (structure(2, atom_weights={"forces": np.array(w)}) for w in ([1.0, 0.0], [0.0, 1.0]))
    both = structure(2, atom_weights={"forces": np.array([2.0, 0.5])})
    expected = 2.0 * value(only, first) + 0.5 * value(only, second)
    assert value(only, first) > 0.0 and value(only, second) > 0.0
    assert value(only, both) == pytest.approx(expected, rel=1e-14)
    assert value(only, first) + value(only, second) == pytest.approx(value(only, structure(2)), rel=1e-14)
    if others.terms:
        assert value(others, both) == value(others, structure(2))


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_atoms_without_weight_give_exactly_zero(name: str) -> None:
    loss = make_loss(name, {**WEIGHTS, "energy": 0.0, "stress": 0.0, "virials": 0.0})
    assert value(loss, structure(2, atom_weights={"forces": np.zeros(2)})) == 0.0


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_single_precision_predictions_give_the_same_number(name: str) -> None:
    items = (structure(2), structure(3))
    loss = make_loss(name, WEIGHTS)
    single = loss(prediction_of(*items, dtype=torch.float32), targets_of(*items))
    assert float(single) == pytest.approx(value(loss, *items), rel=1e-5)


def test_no_gradient_of_an_unlabeled_entry_is_nan() -> None:
    """A structure without a volume predicts NaN for its stress; without the label that must not matter."""
    a = structure(2, stress=None)
    prediction = prediction_of(a)
    stress = torch.full((1, 3, 3), float("nan"), dtype=torch.float64)
    loss, slopes = make_loss("stress", WEIGHTS).value_and_slopes(replace(prediction, stress=stress), targets_of(a))
    assert torch.isfinite(loss) and not slopes["stress"].any()


def test_an_unknown_word_is_no_loss() -> None:
    with pytest.raises(KeyError):
        make_loss("wighted", WEIGHTS)


def dipole_terms(errors: list[float], *structures: Configuration, word: str = "dipole") -> float:
    """Return the loss where every component of every dipole is off by the error of its structure."""
    prediction = prediction_of(*structures)
    labels = np.array([np.zeros(3) if s.dipole is None else s.dipole for s in structures])
    dipole = torch.tensor(labels + np.array(errors)[:, None])
    weights = {"energy": 0.0, "forces": 0.0, "dipole": 7.0}
    return float(make_loss(word, weights)(replace(prediction, dipole=dipole), targets_of(*structures)))


@pytest.mark.parametrize("word", ["dipole", "energy_forces_dipole"])
def test_dipoles_by_hand(word: str) -> None:
    label = np.array([0.3, -0.1, 0.2])
    a, b = structure(2, dipole=label), structure(4, dipole=-label)
    per_atom = ((0.6 / 2) ** 2 + (0.8 / 4) ** 2) / 2
    assert dipole_terms([0.6, 0.8], a, b, word=word) == pytest.approx(7.0 * 100.0 * per_atom, rel=1e-14)
    weighted = replace(b, weight=3.0, property_weights={"dipole": 0.5, "energy": 9.0})
    per_atom = ((0.6 / 2) ** 2 + 1.5 * (0.8 / 4) ** 2) / 2
    assert dipole_terms([0.6, 0.8], a, weighted, word=word) == pytest.approx(7.0 * 100.0 * per_atom, rel=1e-14)
    nothing = replace(b, property_weights={"dipole": 0.0})
    assert dipole_terms([0.0, 0.8], a, nothing, word=word) == 0.0
    unlabeled = structure(4)
    alone = dipole_terms([0.6], a, word=word)
    assert dipole_terms([0.6, 0.8], a, unlabeled, word=word) == alone == pytest.approx(700.0 * 0.09)


def test_dipoles_need_no_forces() -> None:
    loss = make_loss("dipole", {"dipole": 1.0})
    assert not loss.needs_forces and not loss.needs_stress
    assert str(loss) == "dipole(dipole_weight=1.000)"
    assert make_loss("energy_forces_dipole", {"energy": 1.0, "forces": 1.0, "dipole": 1.0}).needs_forces


@pytest.mark.parametrize("name", ["stress", "virials", "huber", "universal", "l1l2energyforces"])
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    weights = {"energy": 0.5, "forces": 2.0, "stress": 0.3, "virials": 0.7}
    items = [structure(n, n, weight=2.0, property_weights=weights) for n in (2, 3)]
    items.append(structure(4, energy=None, forces=None, atom_weights={"forces": np.arange(4.0)}))
    prediction, targets = prediction_of(*items), targets_of(*items)
    names = ("energy", "forces", "stress", "virials")
    found = {each: getattr(prediction, each).requires_grad_(True) for each in names}
    for threshold in (0.01, 1.0):
        loss = make_loss(name, WEIGHTS, threshold)

        class Value(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *values: torch.Tensor, loss: Loss = loss) -> torch.Tensor:
                value, slopes = loss.value_and_slopes(
                    replace(prediction, **dict(zip(names, values, strict=True))), targets
                )
                ctx.save_for_backward(*(slopes.get(each) for each in names))
                return value

            @staticmethod
            def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
                return tuple(None if slope is None else gradient * slope for slope in ctx.saved_tensors)

        assert torch.autograd.gradcheck(Value.apply, tuple(found.values()), atol=1e-7)
