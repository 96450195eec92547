"""What every head says of every structure, and training on batches of mixed heads, are those of mace-torch.

All but the weights that it ignores: the tests at the end are named after what is meant to differ, and its own values
stand beside ours there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.dataset import Batch
from mace.graphs.in_memory import InMemoryDataset
from mace.model.prediction import Prediction, predict
from mace.training.loss import Loss, make_loss
from mace.training.optimization import parameter_groups
from mace.training.step import loss_gradient, update_parameters
from mace.units import DEBYE_OF_MACE_TORCH

pytestmark = pytest.mark.usefixtures("kernels")

TOLERANCE = 1e-10
STEP_TOLERANCE = 1e-8
DELTA = 0.3
WEIGHTS = {"energy": 2.0, "forces": 50.0, "stress": 10.0, "virials": 10.0, "dipole": 3.0 / DEBYE_OF_MACE_TORCH**2}
WORDS = ("weighted", "forces_only", "virials", "stress", "huber", "universal", "l1l2energyforces")
UNLABELED = 2
"""The structure that has no label but its energy, where labels are missing."""

OBEYED = {
    "even": WORDS,
    "structures": ("weighted", "forces_only", "virials", "stress"),
    "properties": ("weighted", "forces_only", "virials", "stress", "universal"),
}
"""The losses in which mace-torch obeys weights of structures and properties."""

Loader = Callable[[str], Any]


def stored_of(case: Any) -> dict[str, np.ndarray]:
    """What mace-torch says of the batches of mixed heads."""
    found: dict[str, np.ndarray] = sys.modules["parity_cases"].mixed_heads(case.settings["name"])
    return found


def words_of(case: Any) -> tuple[str, ...]:
    return (*WORDS, *["energy_forces_dipole"] * ("dipole" in case.plan.outputs))


def loss_of(word: str) -> Loss:
    return make_loss(word, WEIGHTS, huber_delta=DELTA)


def mixed_batch(case: Any, kind: str = "even", heads: tuple[int, ...] = (0, 1, 2)) -> Batch:
    """Put the structures into one batch, each for another head.

    Args:
        case: The stored case.
        kind: ``even`` for weights of one; ``structures`` or ``properties`` for uneven weights of these; ``missing`` for
            a structure that has no label but its energy.
        heads: Number of the head of each, modulo the number of heads.
    """
    configurations = []
    for i, labeled in enumerate(case.configurations):
        properties = {name: value for name, value in labeled.property_weights.items() if name != "dipole"}
        changed = replace(
            labeled,
            head=case.plan.head_names[heads[i] % len(case.plan.heads)],
            stress=case.data["labels/stress"][i],
            weight=labeled.weight if kind == "structures" else 1.0,
            property_weights=properties if kind == "properties" else {},
            pbc=(True, True, True),  # the original has a stress of everything
        )
        if kind == "missing" and i == UNLABELED:
            changed = replace(changed, forces=None, stress=None, virials=None)
        configurations.append(changed)
    targets = InMemoryDataset(
        [replace(c, cell=20.0 * np.eye(3)) for c in configurations],
        ElementTable(case.plan.atomic_numbers),
        case.plan.r_max,
        heads=case.plan.head_names,
    ).targets([0, 1, 2])
    placed = [replace(c, stress=None, pbc=o.pbc) for c, o in zip(configurations, case.configurations, strict=True)]
    dataset = InMemoryDataset(
        placed, ElementTable(case.plan.atomic_numbers), case.plan.r_max, heads=case.plan.head_names
    )
    # the original divides the virials of what is not periodic everywhere by a volume of its own making
    graph = replace(dataset.graph([0, 1, 2]), volume=torch.tensor(case.data["output/volume"]))
    return Batch(graph, targets, np.arange(3))


def ours(case: Any, word: str, kind: str) -> float:
    """Return our loss of a batch."""
    batch = mixed_batch(case, kind)
    return float(loss_of(word)(predict(case.model(), batch.graph, stress=True), batch.targets))


def test_every_head_of_every_structure(heads_case: Any) -> None:
    stored = stored_of(heads_case)
    element = {number: i for i, number in enumerate(heads_case.plan.atomic_numbers)}
    for i, head in enumerate(heads_case.plan.heads):
        prediction = predict(heads_case.model(), mixed_batch(heads_case, heads=(i, i, i)).graph)
        theirs = stored[f"head/{head.name}/energy"]
        isolated = [
            sum(head.reference_energies[element[z]] for z in c.atomic_numbers.tolist())
            for c in heads_case.configurations
        ]
        deviation = np.abs(prediction.energy.numpy() - theirs).max()
        assert deviation < TOLERANCE * np.abs(theirs - isolated).max() + 4 * np.spacing(np.abs(theirs).max())
        forces = stored[f"head/{head.name}/forces"]
        assert np.abs(prediction.forces.numpy() - forces).max() < TOLERANCE * np.abs(forces).max()


@pytest.mark.parametrize("kind", OBEYED)
def test_losses(heads_case: Any, kind: str) -> None:
    stored = stored_of(heads_case)
    words = words_of(heads_case) if kind == "even" else OBEYED[kind]
    for word in words:
        assert ours(heads_case, word, kind) == pytest.approx(float(stored[f"{kind}/loss/{word}"]), rel=TOLERANCE), word


def test_gradients(heads_case: Any) -> None:
    cases, stored, batch = sys.modules["parity_cases"], stored_of(heads_case), mixed_batch(heads_case)
    for word in words_of(heads_case):
        model = heads_case.model()
        loss_gradient(model, batch, loss_of(word))
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
        cases.assert_close(gradients, cases.spread(heads_case, stored, f"gradients/{word}"), STEP_TOLERANCE)


def test_three_steps(heads_case: Any) -> None:
    cases, stored, batch = sys.modules["parity_cases"], stored_of(heads_case), mixed_batch(heads_case)
    for word in words_of(heads_case):
        model, loss = heads_case.model(), loss_of(word)
        groups = parameter_groups(model, lr=0.01, weight_decay=5e-3, factors={})
        optimizer = torch.optim.Adam(groups, lr=0.01, amsgrad=True, fused=True)
        for _ in range(3):
            loss_gradient(model, batch, loss)
            update_parameters(model, optimizer, clip_grad=10.0)
        # the original lets weights that reach no label decay; here they stay as they are
        used = {name: parameter for name, parameter in model.named_parameters() if parameter.grad is not None}
        theirs = cases.spread(heads_case, stored, f"stepped/{word}")
        cases.assert_close(used, {name: theirs[name] for name in used}, STEP_TOLERANCE)


def test_a_head_that_is_another_is_noticed(load_case: Loader) -> None:
    case = load_case("heads/hidden_l1_c2_t3")
    cases, model = sys.modules["parity_cases"], case.model()
    loss_gradient(model, mixed_batch(case, heads=(0, 2, 1)), loss_of("universal"))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    with pytest.raises(AssertionError, match="deviates"):
        cases.assert_close(gradients, cases.spread(case, stored_of(case), "gradients/universal"), STEP_TOLERANCE)


# what is meant to differ


@pytest.fixture
def three_heads(load_case: Loader) -> Any:
    """A model with three heads, each of which has one structure."""
    return load_case("heads/hidden_l1_c2_t3")


def by_structure(case: Any, word: str, kind: str = "even") -> tuple[np.ndarray, np.ndarray]:
    """Return, slowly, the sum of the penalties of every structure for every term, and the number of their entries.

    Returns:
        Weighted sums, ``[terms, structures]``, and counts of the same shape.
    """
    batch = mixed_batch(case, kind)
    prediction = predict(case.model(), batch.graph, stress=True)
    counts = batch.targets.atoms_per_structure.tolist()
    rows = []
    for name in ("energy", "forces", "stress") if word != "l1l2energyforces" else ("energy", "forces"):
        errors = _errors(prediction, batch, name, counts)
        if word == "l1l2energyforces":
            penalties = [np.abs(e) if name == "energy" else np.linalg.norm(e, axis=1) for e in errors]
        else:
            penalties = [np.where(np.abs(e) < DELTA, e**2 / 2, DELTA * (np.abs(e) - DELTA / 2)) for e in errors]
        rows.append([(WEIGHTS[name] * p.sum(), p.size) for p in penalties])
    table = np.array(rows)
    return table[..., 0], table[..., 1]


def _errors(prediction: Prediction, batch: Batch, name: str, counts: list[int]) -> list[np.ndarray]:
    """Return the errors of every structure; of no label there is none."""
    errors = getattr(prediction, name).numpy() - batch.targets.values[name].numpy()
    parts = np.split(errors, np.cumsum(counts)[:-1]) if name == "forces" else list(errors)
    if name == "energy":
        parts = [np.atleast_1d(part / n) for part, n in zip(parts, counts, strict=True)]
    labeled = batch.targets.labeled[name].tolist()
    return [part if has else part[:0] for part, has in zip(parts, labeled, strict=True)]


STRUCTURE_WEIGHTS = np.array([1.0, 1.5, 2.0])
PROPERTY_WEIGHTS = np.array([[1.0, 2.0, 3.0], [0.5, 1.5, 2.5], [2.0, 1.7, 1.4]])
"""Of energy, forces and stress."""


@pytest.mark.parametrize("word", ["huber", "universal"])
def test_huber_and_universal_obey_weights_of_structures_which_mace_torch_ignores(word: str, three_heads: Any) -> None:
    stored = stored_of(three_heads)
    assert float(stored[f"structures/loss/{word}"]) == float(stored[f"even/loss/{word}"]), "it ignores them"
    sums, counts = by_structure(three_heads, word)
    assert (sums.sum(1) / counts.sum(1)).sum() == pytest.approx(float(stored[f"even/loss/{word}"]), rel=TOLERANCE)
    weighted = ((sums * STRUCTURE_WEIGHTS).sum(1) / counts.sum(1)).sum()
    assert ours(three_heads, word, "structures") == pytest.approx(weighted, rel=TOLERANCE)


def test_huber_obeys_weights_of_properties_which_mace_torch_ignores(three_heads: Any) -> None:
    stored = stored_of(three_heads)
    assert float(stored["properties/loss/huber"]) == float(stored["even/loss/huber"]), "it ignores them"
    sums, counts = by_structure(three_heads, "huber")
    weighted = ((sums * PROPERTY_WEIGHTS).sum(1) / counts.sum(1)).sum()
    assert ours(three_heads, "huber", "properties") == pytest.approx(weighted, rel=TOLERANCE)


@pytest.mark.parametrize("kind", ["structures", "properties"])
def test_l1l2energyforces_obeys_weights_of_forces_which_mace_torch_ignores(kind: str, three_heads: Any) -> None:
    stored = stored_of(three_heads)
    sums, counts = by_structure(three_heads, "l1l2energyforces")
    weights = np.stack([STRUCTURE_WEIGHTS] * 2) if kind == "structures" else PROPERTY_WEIGHTS[:2]
    obeyed = (sums * weights).sum(1) / counts.sum(1)
    ignored = sums.sum(1) / counts.sum(1)
    assert float(stored[f"{kind}/loss/l1l2energyforces"]) == pytest.approx(obeyed[0] + ignored[1], rel=TOLERANCE)
    assert ours(three_heads, "l1l2energyforces", kind) == pytest.approx(obeyed.sum(), rel=TOLERANCE)


def test_dipoles_obey_weights_of_structures_which_mace_torch_ignores(load_case: Loader) -> None:
    case = load_case("heads/dipoles_l1_c2_t2")
    stored, batch = stored_of(case), mixed_batch(case)
    errors = predict(case.model(), batch.graph).dipole.numpy() - batch.targets.values["dipole"].numpy()
    errors /= batch.targets.atoms_per_structure.numpy()[:, None]
    of_structures = 100.0 * WEIGHTS["dipole"] * np.square(errors).mean(1) / len(errors)
    for kind in ("even", "structures"):
        of_energies_and_forces = float(stored[f"{kind}/loss/weighted"])
        theirs = of_energies_and_forces + of_structures.sum()
        assert float(stored[f"{kind}/loss/energy_forces_dipole"]) == pytest.approx(theirs, rel=TOLERANCE)
    weighted = of_energies_and_forces + (of_structures * STRUCTURE_WEIGHTS).sum()
    assert ours(case, "energy_forces_dipole", "structures") == pytest.approx(weighted, rel=TOLERANCE)


@pytest.mark.parametrize("word", ["weighted", "stress", "universal"])
def test_missing_labels_do_not_count_as_in_mace_torch(word: str, three_heads: Any) -> None:
    """It divides by the number of all structures: a head without stresses makes those of the others count less."""
    stored, batch = stored_of(three_heads), mixed_batch(three_heads, "missing")
    prediction = predict(three_heads.model(), batch.graph, stress=True)
    parts, theirs = loss_of(word).sums_and_counts(prediction, batch.targets), 0.0
    complete = loss_of(word).sums_and_counts(prediction, mixed_batch(three_heads).targets)
    for name, (total, count) in parts.items():
        of_all = int(complete[name][1])
        assert (int(count) < of_all) == (name != "energy")
        theirs += WEIGHTS[name] * float(total) / of_all
    assert float(stored[f"missing/loss/{word}"]) == pytest.approx(theirs, rel=TOLERANCE)
    assert ours(three_heads, word, "missing") > 1.001 * theirs


def test_missing_labels_are_no_zeros_in_huber_unlike_mace_torch(three_heads: Any) -> None:
    """Its loss, which ignores weights, draws predictions to zero where there is no label."""
    stored = stored_of(three_heads)
    sums, counts = by_structure(three_heads, "huber", "missing")
    assert not sums[1:, UNLABELED].any()
    assert ours(three_heads, "huber", "missing") == pytest.approx((sums.sum(1) / counts.sum(1)).sum(), rel=TOLERANCE)
    complete = by_structure(three_heads, "huber")[1].sum(1)
    assert float(stored["missing/loss/huber"]) > (sums.sum(1) / complete).sum() * (1 + 1e-6)
