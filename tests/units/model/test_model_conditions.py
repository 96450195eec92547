"""Do conditions enter a model as described, and is a model without them what it was?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import original_files as files
import pytest
import torch
from ase.build import molecule
from pydantic import ValidationError

from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.model_file import load_model, save_model
from mace.model.plan import ModelPlan
from mace.model.prediction import hessian, predict
from mace.structures.condition_values import example_values
from mace.structures.configuration import Configuration

ALL = (files.CHARGE, files.SPIN, files.TEMPERATURE, files.SITE, files.MOMENTS)
METHANOL = molecule("CH3OH")


def plan_of(**changes: object) -> ModelPlan:
    return ModelPlan.model_validate(files.PLAN.model_dump() | changes)


def structure(seed: int | None = 1) -> Configuration:
    conditions = example_values(ALL, len(METHANOL), seed)
    return Configuration(METHANOL.numbers, METHANOL.positions, np.zeros((3, 3)), (False,) * 3, conditions=conditions)


def dataset_of(*structures: Configuration) -> InMemoryDataset:
    return InMemoryDataset(structures, ElementTable(files.PLAN.atomic_numbers), files.PLAN.r_max)


@pytest.fixture(scope="module")
def model() -> MACE:
    return files.model(plan_of(conditions=ALL, condition_readout=True)).requires_grad_(False)


def test_the_readout_is_neither_scaled_nor_shifted(model: MACE) -> None:
    graph = dataset_of(structure()).graph([0])
    before = predict(model, graph).atomic_energies
    again = files.model(model.plan)
    with torch.no_grad():
        again.condition_readout.weight.mul_(2.0)
    channels = again._channels(graph)
    expected = channels @ model.condition_readout.weight / model.plan.n_channels**0.5
    difference = predict(again, graph).atomic_energies - before
    torch.testing.assert_close(difference[graph.atoms_by_element], expected[:, 0], rtol=1e-9, atol=1e-9)


def test_channels_are_the_sum_of_element_and_conditions(model: MACE) -> None:
    """By hand: tables, networks with one hidden layer, one layer that mixes them."""
    one = structure()
    graph = dataset_of(one).graph([0])
    state = {name: value.numpy() for name, value in model.named_parameters()}

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1.0 + np.exp(-x))

    parts = []
    for place, condition in enumerate(ALL):
        values = np.broadcast_to(one.conditions[condition.name], (len(METHANOL), condition.n_values))
        prefix = f"conditions.parts.{place}."
        if condition.kind == "categorical":
            parts.append(state[prefix + "table"][values[:, 0].astype(int) + condition.offset])
            continue
        biases = [state.get(prefix + name, 0.0) for name in ("first_bias", "second_bias")]
        hidden = silu(values @ state[prefix + "first"] + biases[0])
        parts.append(hidden @ state[prefix + "second"] + biases[1])
    of_conditions = silu(np.concatenate(parts, axis=1) @ state["conditions.mixing"])
    of_elements = state["embedding"][graph.element.numpy()] / 3**0.5
    np.testing.assert_allclose(
        model._channels(graph).numpy(), (of_elements + of_conditions)[graph.atoms_by_element.numpy()], atol=1e-14
    )


def test_an_order_of_atoms_is_none(model: MACE) -> None:
    """Conditions of atoms stay with their atoms, whatever the order."""
    one, order = structure(), np.random.default_rng(3).permutation(len(METHANOL))
    turned = {name: v if v.ndim == 1 else v[order] for name, v in one.conditions.items()}
    other = replace(one, atomic_numbers=one.atomic_numbers[order], positions=one.positions[order], conditions=turned)
    dataset = dataset_of(one, other)
    energies = predict(model, dataset.graph([0, 1])).energy
    assert energies[0].item() == pytest.approx(energies[1].item(), rel=1e-12)
    assert predict(model, dataset_of(replace(other, conditions=one.conditions)).graph([0])).energy.item() != (
        pytest.approx(energies[0].item(), rel=1e-8)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_kernels_agree(dtype: torch.dtype) -> None:
    plan = plan_of(conditions=ALL, condition_readout=True)
    model = files.model(plan, dtype).requires_grad_(False)
    graph = dataset_of(structure(), structure(2)).graph([0, 1])
    plain = predict(model, graph)
    if choose_kernels(model) != "c":
        pytest.skip("there is no C compiler on this machine")
    compiled = predict(model, graph)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(compiled.forces, plain.forces, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(compiled.energy, plain.energy, rtol=1e-10 if dtype == torch.float64 else 1e-6, atol=1e-5)


def test_the_hessian_is_that_of_the_forces(model: MACE) -> None:
    one, step = structure(), 1e-5
    found = hessian(model, dataset_of(one).graph([0])).reshape(3 * len(METHANOL), -1).numpy()
    moved = []
    for sign in (step, -step):
        positions = one.positions.copy()
        positions[1, 2] += sign
        moved.append(predict(model, dataset_of(replace(one, positions=positions)).graph([0])).forces.numpy().ravel())
    np.testing.assert_allclose(found[5], -(moved[0] - moved[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_models_are_saved_with_their_conditions(model: MACE, tmp_path: object) -> None:
    loaded = load_model(save_model(f"{tmp_path}/some.model", model)).model
    assert loaded.plan == model.plan
    graph = dataset_of(structure()).graph([0])
    assert torch.equal(predict(loaded, graph).energy, predict(model, graph).energy)


def test_weights_begin_as_in_the_original() -> None:
    wide = (files.CHARGE.model_copy(update={"width": 400}), files.TEMPERATURE.model_copy(update={"width": 300}))
    weights = dict(files.model(plan_of(conditions=wide)).requires_grad_(False).named_parameters())
    table, second = weights["conditions.parts.0.table"], weights["conditions.parts.1.second"]
    assert 0.9 < float(table.std()) < 1.1
    for values, fan_in in ((second, 300), (weights["conditions.parts.1.second_bias"], 300)):
        assert 0.9 / fan_in**0.5 < float(values.abs().max()) <= 1.0 / fan_in**0.5
        assert float(values.min()) < 0.0
    assert float(weights["conditions.mixing"].abs().max()) <= 700**-0.5


def test_a_model_without_conditions_is_what_it_was() -> None:
    """No weights, no other random numbers, and structures that say more than it wants to know change nothing."""
    plain, knowing = files.model(), files.model(plan_of(conditions=ALL, condition_readout=True))
    assert plain.conditions is None and plain.condition_readout is None
    assert not any("condition" in name for name, _ in plain.named_parameters())
    others = dict(knowing.named_parameters())
    for name, value in plain.named_parameters():
        assert torch.equal(value, others[name]), name
    assert not any("condition" in name for name in plain.plan.model_dump(mode="json"))
    told, silent = structure(), replace(structure(), conditions={})
    energies = [predict(plain, dataset_of(one).graph([0])).energy for one in (told, silent)]
    assert torch.equal(*energies)
    assert dataset_of(silent).graph([0]).conditions == {}


def test_values_that_are_missing_are_named(model: MACE) -> None:
    with pytest.raises(ValueError, match="no values of total_charge, total_spin"):
        predict(model, dataset_of(replace(structure(), conditions={})).graph([0]))


def test_sets_have_the_same_conditions_throughout() -> None:
    with pytest.raises(ValueError, match="same conditions"):
        dataset_of(structure(), replace(structure(), conditions={}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": (files.CHARGE, files.CHARGE)}, "a name of its own"),
        ({"condition_readout": True}, "no conditions whose energy could be read"),
        ({"model": "EnergyDipolesMACE", "conditions": (files.CHARGE,)}, "models of dipoles have no conditions"),
    ],
)
def test_plans_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan_of(**changes)
