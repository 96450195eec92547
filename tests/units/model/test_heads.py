"""Does each head of a model say what a model of that head alone says, and is the right one found?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch
from pydantic import ValidationError

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.model.heads import find_head, with_one_head
from mace.model.mace import MACE
from mace.model.model_file import load_model, save_model
from mace.model.plan import ModelPlan
from mace.model.prediction import hessian, predict
from mace.structures.configuration import Configuration

SEVERAL = files.with_heads("low", "Default", "high")
HEADS = SEVERAL.heads
VARIANTS: dict[str, dict[str, Any]] = {
    "hidden": {},
    "one_layer": {"interactions": files.PLAN.interactions[:1], "correlation": (2,)},
    "biases": {"readout_biases": True},
    "last_readout": {"last_readout_only": True, "pair_repulsion": True},
    "dipoles": {"model": "EnergyDipolesMACE", "readout_vectors": 2},
}


def plan(**changes: Any) -> ModelPlan:
    return ModelPlan.model_validate(SEVERAL.model_dump() | changes)


def graph(of: ModelPlan, heads: list[str]) -> Graph:
    """Water molecules in a box, one for each head, all different."""
    rng = np.random.default_rng(3)
    structures = [
        Configuration(np.array([8, 1, 1]), rng.uniform(0, 1.8, (3, 3)), np.eye(3) * 5, (True,) * 3, head=head)
        for head in heads
    ]
    return InMemoryDataset(structures, ElementTable(of.atomic_numbers), of.r_max, heads=of.head_names).graph(
        range(len(heads))
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_one_head_says_what_the_head_says(variant: str) -> None:
    model = files.model(plan(**VARIANTS[variant])).requires_grad_(False)
    names = ["high", "low", "Default", "low"]
    together = predict(model, graph(model.plan, names), stress=True)
    seen = set()
    for place, name in enumerate(names):
        alone = with_one_head(model, name)
        assert not alone.plan.heads and alone.dtype == model.dtype
        expected = predict(alone, graph(alone.plan, names), stress=True)
        assert together.energy is not None and expected.energy is not None
        assert float(together.energy[place]) == pytest.approx(float(expected.energy[place]), abs=1e-10)
        rows = slice(3 * place, 3 * place + 3)
        assert torch.allclose(together.forces[rows], expected.forces[rows], atol=1e-12)
        assert torch.allclose(together.stress[place], expected.stress[place], atol=1e-13)
        assert torch.allclose(hessian(model, graph(model.plan, [name])), hessian(alone, graph(alone.plan, [name])))
        seen.add(round(float(expected.energy[0]), 6))
    assert len(seen) == len(HEADS), "heads that say the same prove nothing"


def test_a_batch_for_one_head_is_computed_as_part_of_a_mixed_one() -> None:
    model = files.model(plan()).requires_grad_(False)
    mixed = predict(model, graph(model.plan, ["low", "high"]))
    alone = predict(model, graph(model.plan, ["low", "low"]))
    assert torch.allclose(mixed.energy[0], alone.energy[0], atol=1e-12) and mixed.energy[1] != alone.energy[1]


def test_structures_of_a_head_teach_that_head_only() -> None:
    model = files.model(plan())
    predict(model, graph(model.plan, ["low", "high"]), training=True).energy.sum().backward()
    touched = {
        int(name.split(".")[3]): bool(value.grad.any()) for name, value in model.named_parameters() if ".heads." in name
    }
    assert touched == {0: True, 1: False, 2: True}
    assert model.embedding.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_keep_all_heads(tmp_path: Path, dtype: torch.dtype) -> None:
    model = files.model(plan(readout_biases=True), dtype)
    loaded = load_model(save_model(tmp_path / "heads.model", model))
    assert loaded.heads == ("low", "Default", "high") and loaded.model.plan == model.plan
    assert loaded.model.heads == ["low", "Default", "high"] and files.model().heads == ["Default"]
    for name, value in loaded.model.named_parameters():
        assert torch.equal(value, model.get_parameter(name)), name
    double = load_model(tmp_path / "heads.model", dtype=torch.float64).model
    assert double.scales.tolist() == [head.scale for head in HEADS], "constants are exact in every precision"


def test_the_plan_of_one_head_is_written_as_ever() -> None:
    assert "heads" not in files.PLAN.model_dump() and "heads" not in files.PLAN.model_dump_json()
    assert ModelPlan.model_validate(plan().model_dump()) == plan()
    assert plan().of_head(0) == files.PLAN and plan().of_head(1) != files.PLAN
    assert files.PLAN.of_head(0) is files.PLAN and files.PLAN.head_names == ("Default",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": HEADS[:1]}, "one head is none of several"),
        ({"heads": (HEADS[0], HEADS[0])}, "different names"),
        ({"scale": 2.0}, "those of the heads"),
        ({"reference_energies": (1.0, 2.0, 3.0)}, "those of the heads"),
        ({"atomic_numbers": (1, 6)}, "one reference energy per element"),
        ({"model": "AtomicDipolesMACE", "readout_channels": 0, "readout_vectors": 2}, "one reference energy"),
    ],
)
def test_plans_that_make_no_sense(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        plan(**changes)


def test_which_head_is_meant() -> None:
    names = ("low", "DEFAULT", "high")
    assert find_head(names, None, "a.model") == "DEFAULT" and find_head(names, "low", "a.model") == "low"
    assert find_head(("any",), None, "a.model") == find_head(("any",), "default", "a.model") == "any"
    with pytest.raises(UserError, match=r"a\.model: the model has no head 'Low'; its heads are low, DEFAULT, high\."):
        find_head(names, "Low", "a.model")
    with pytest.raises(UserError, match=r"has 2 heads \(low, high\), and none is called default; .* --head high"):
        find_head(("low", "high"), None, "a.model")
    with pytest.raises(UserError, match="has one head, any, and no head 'low'"):
        find_head(("any",), "low", "a.model")


def test_a_structure_for_an_unknown_head_is_named() -> None:
    with pytest.raises(UserError, match=r"structure 0 is for the head 'medium', .* heads are low, Default, high"):
        graph(plan(), ["medium"])


def test_weights_are_drawn_alike(tmp_path: Path) -> None:
    """Readouts of all heads begin like those of one; nothing is left uninitialized."""
    model = MACE(plan(), torch.float64).initialize(torch.Generator().manual_seed(1))
    hidden = [model.get_parameter(f"readouts.1.heads.{i}.hidden") for i in range(3)]
    assert all(0.3 < float(values.detach().std()) < 3.0 for values in hidden) and not torch.equal(hidden[0], hidden[1])
