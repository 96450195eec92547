"""Does a fine-tuned model start as its foundation model, and is nothing that was typed overridden?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch

from mace.elements import ElementTable
from mace.errors import UserError
from mace.finetuning.foundation import Foundation, foundation_plan, measured_shift, open_foundation, start_from
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.plan import ModelPlan
from mace.model.prediction import predict
from mace.settings import TrainingSettings
from mace.structures.configuration import Configuration


def settings(**given: Any) -> TrainingSettings:
    return TrainingSettings(name="tuned", train_file="train.xyz", **given)


@pytest.fixture
def foundation() -> Foundation:
    return Foundation("the foundation", files.model())


def dataset(numbers: tuple[int, ...], plan: ModelPlan, energy: float | None = None) -> InMemoryDataset:
    rng = np.random.default_rng(1)
    positions = 1.1 * np.arange(len(numbers))[:, None] * np.array([1.0, 0.4, 0.2]) + rng.normal(
        0, 0.1, (len(numbers), 3)
    )
    configuration = Configuration(np.array(numbers), positions, np.zeros((3, 3)), (False,) * 3, energy=energy)
    return InMemoryDataset([configuration], ElementTable(plan.atomic_numbers), plan.r_max)


def started(foundation: Foundation, elements: tuple[int, ...], keep_readouts: bool = True) -> MACE:
    """A model of other elements, with the weights of the foundation."""
    update = {"atomic_numbers": elements, "reference_energies": (0.0,) * len(elements)}
    model = MACE(foundation.plan.model_copy(update=update), torch.float64)
    model.initialize(torch.Generator().manual_seed(9))
    start_from(foundation, model, keep_readouts)
    return model


def interaction_energy(model: MACE, numbers: tuple[int, ...]) -> float:
    energy = float(predict(model, dataset(numbers, model.plan).batch([0]).graph, forces=False).energy[0])
    energies = dict(zip(model.plan.atomic_numbers, model.plan.reference_energies, strict=True))
    return energy - sum(energies[z] for z in numbers)


@pytest.mark.parametrize("elements", [(1, 6, 8), (1, 8), (6,), (1, 6, 7, 8, 9)])
def test_the_start_computes_what_the_foundation_computes(foundation: Foundation, elements: tuple[int, ...]) -> None:
    numbers = tuple(z for z in (8, 1, 1, 6, 1) if z in elements)
    expected = interaction_energy(foundation.model, numbers)
    assert interaction_energy(started(foundation, elements), numbers) == pytest.approx(expected, rel=1e-9)


def test_a_new_element_starts_as_the_nearest(foundation: Foundation) -> None:
    model = started(foundation, (1, 6, 8, 9))
    expected = interaction_energy(foundation.model, (8, 1, 8))
    assert interaction_energy(model, (9, 1, 9)) == pytest.approx(expected, rel=1e-9)


def test_readouts_can_be_given_up(foundation: Foundation) -> None:
    model = started(foundation, (1, 6, 8), keep_readouts=False)
    old, new = (dict(m.named_parameters()) for m in (foundation.model, model))
    for name, value in new.items():
        assert torch.equal(value, old[name]) != name.startswith("readouts."), name


def plan(foundation: Foundation, energy: float | None = None, **given: Any) -> ModelPlan:
    """The plan of a run that trains on one structure."""
    new = {"atomic_numbers": (1, 8), "reference_energies": (-1.0, -2.0)}
    typed = {"r_max": given.get("r_max", 5.0), "n_channels": given.get("num_channels", 128)}
    wanted = files.PLAN.model_copy(update=new | typed)
    data = dataset((8, 1, 1), files.PLAN.model_copy(update=new), energy)
    shifts = {"Default": given["mean"]} if "mean" in given else {}
    return foundation_plan(settings(**given), foundation, wanted, {"Default": data}, shifts)


def test_elements_and_energies_are_new_and_the_shift_fits(foundation: Foundation) -> None:
    found = plan(foundation, energy=-30.0)
    assert found.atomic_numbers == (1, 8) and found.reference_energies == (-1.0, -2.0)
    changed = {"atomic_numbers", "reference_energies", "shift"}
    assert found.model_dump(exclude=changed) == files.PLAN.model_dump(exclude=changed)
    model = MACE(found, torch.float64)
    start_from(foundation, model, keep_readouts=True)
    assert measured_shift(model, dataset((8, 1, 1), found, -30.0), 5) == pytest.approx(0.0, abs=1e-9)


def test_without_energies_the_shift_stays(foundation: Foundation) -> None:
    assert plan(foundation).shift == files.PLAN.shift


def test_a_typed_shift_is_obeyed(foundation: Foundation) -> None:
    assert plan(foundation, energy=-30.0, mean=-2.5).shift == -2.5


def test_isolated_atoms_keep_their_energies() -> None:
    original = files.PLAN.model_dump() | {"model": "MACE", "shift": 0.0}
    original["interactions"] = [{"residual": False}, {"residual": True}]
    foundation = Foundation("x", files.model(ModelPlan.model_validate(original)))
    assert plan(foundation, energy=-30.0).shift == 0.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"r_max": 6.0}, "--r_max=6.0 contradicts the foundation model the foundation, whose r_max is 4"),
        ({"num_channels": 64}, "--num_channels=64 contradicts .* whose n_channels is 2"),
    ],
)
def test_contradictions_are_errors(foundation: Foundation, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(foundation, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"r_max": 4.0, "num_channels": 2},
        {"model": "MACE"},
        {"hidden_irreps": "2x0e + 2x1o"},
        {"interaction_first": "RealAgnosticResidualInteractionBlock", "model": "MACE"},
    ],
)
def test_what_agrees_may_be_typed(foundation: Foundation, given: dict[str, Any]) -> None:
    """The kind of an energy model is no contradiction: the foundation model decides it, as in mace-torch."""
    found = plan(foundation, **{"num_channels": 2, **given})
    assert (found.r_max, found.model, found.interactions) == (4.0, "ScaleShiftMACE", files.PLAN.interactions)


@pytest.mark.parametrize(
    "given",
    [
        {"scaling": "rms_forces_scaling"},
        {"compute_avg_num_neighbors": True},
        {"std": None},
        {"foundation_model_elements": False, "foundation_model_readout": True},
    ],
)
def test_defaults_may_be_typed(given: dict[str, Any], tmp_path: Path) -> None:
    path = save_model(tmp_path / "own.model", files.model())
    assert open_foundation(settings(foundation_model=str(path), **given), torch.float64) is not None
    assert open_foundation(settings(**given), torch.float64) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"E0s": "foundation"}, "--E0s=foundation .* add --foundation_model"),
        ({"E0s": "estimated"}, "--E0s=estimated .* add --foundation_model"),
        ({"foundation_model": "none.model"}, "--foundation_model=none.model: there is no such file"),
        (
            {"foundation_model": "FILE", "foundation_head": "a", "foundation_model_kwargs": {"head": "b"}},
            "--foundation_head=a contradicts --foundation_model_kwargs",
        ),
        ({"foundation_model": "FILE", "heads": {"a": {"std": 2.0}}}, "--heads: std of the head a cannot be combined"),
        ({"foundation_model": "FILE", "scaling": "no_scaling"}, "--scaling cannot be combined with --foundation_model"),
        ({"foundation_model": "FILE", "foundation_head": "pt"}, "no head 'pt'"),
        (
            {"foundation_model": "HEADS"},
            r"HEADS.*\(low, high\), and training starts from one; choose it with --foundation_head, for example",
        ),
        ({"foundation_model": "HEADS", "foundation_head": "pt"}, "no head 'pt'; its heads are low, high"),
        ({"foundation_model": "FILE", "init_from": "other.model"}, "--init_from and --foundation_model both"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    paths = {
        "FILE": save_model(tmp_path / "own.model", files.model()),
        "HEADS": save_model(tmp_path / "HEADS.model", files.model(files.with_heads("low", "high"))),
    }
    named = {key: str(paths.get(value, value)) if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(UserError, match=said):
        open_foundation(settings(**named), torch.float64)


@pytest.mark.parametrize("head", ["low", "high"])
def test_one_head_of_several_is_started_from(head: str, tmp_path: Path) -> None:
    several = files.model(files.with_heads("low", "high"))
    path = save_model(tmp_path / "own.model", several)
    found = open_foundation(settings(foundation_model=str(path), foundation_head=head), torch.float64)
    assert found is not None and found.plan == several.plan.of_head(("low", "high").index(head))


def test_files_of_both_programs_are_opened(tmp_path: Path) -> None:
    own = save_model(tmp_path / "own.model", files.model())
    old = files.write_original(tmp_path / "old.model", files.tree_of(files.model()))
    for path in (own, old):
        found = open_foundation(settings(foundation_model=str(path), multiheads_finetuning=False), torch.float32)
        assert found is not None and found.model.dtype == torch.float32
    assert open_foundation(settings(), torch.float64) is None
