"""Is what is declared of parameters what their shapes and names show?"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from mace.model.mace import MACE


def group_by_name(name: str) -> str:
    """Tell the group by the part of the model that a name begins with, as checkpoints of before have them."""
    if name == "embedding":
        return "embedding"
    if name.startswith(("conditions.", "condition_readout.")):
        return "conditions"
    if name.startswith("interactions."):
        decays = ".linear." in name or name.endswith(".skip_linear")
        return "interactions_decay" if decays else "interactions_no_decay"
    return "products" if name.startswith("products.") else "readouts"


@pytest.fixture(params=["case", "dipole", "condition", "heads"])
def model(request: pytest.FixtureRequest, load_case: Any) -> MACE:
    names = {
        "case": "nonlinear_l2_c2_t2",
        "dipole": "dipoles/energy_tensor_l2_c2_t3",
        "condition": "conditions/temperature_sites_l2_c3_t2",
        "heads": "heads/biases_l1_c2_t2",
    }
    return load_case(names[request.param]).model()


def check(model: MACE) -> None:
    assert list(model.roles) == [name for name, _ in model.named_parameters()]
    for name, value in model.named_parameters():
        role = model.roles[name]
        assert role.group == group_by_name(name), name
        if role.element_axis is not None:
            assert value.shape[role.element_axis] == model.plan.n_elements, name
        place = name.split(".heads.")[1].split(".")[0] if ".heads." in name else None
        assert role.head == (None if place is None else int(place)), name


def test_roles_are_those_of_names_and_shapes(model: MACE) -> None:
    check(model)


def test_all_kinds_of_interactions(case: Any) -> None:
    check(case.model())


def test_copies_keep_them(model: MACE) -> None:
    copied = deepcopy(model).to(torch.float32)
    assert {name: role.group for name, role in copied.roles.items()} == {n: r.group for n, r in model.roles.items()}


def test_the_elements_have_an_axis_wherever_their_number_decides_a_shape(load_case: Any) -> None:
    """Against the shapes of a model with one more element."""
    plan = load_case("attention_l2_c2_t2").plan
    numbers = (*plan.atomic_numbers, 90)
    larger = plan.model_copy(update={"atomic_numbers": numbers, "reference_energies": (0.0,) * len(numbers)})
    small, large = MACE(plan), MACE(larger)
    for name, value in small.named_parameters():
        grown = [
            axis for axis, (a, b) in enumerate(zip(value.shape, large.get_parameter(name).shape, strict=True)) if a != b
        ]
        axis = small.roles[name].element_axis
        assert grown == ([] if axis is None else [axis]), name
