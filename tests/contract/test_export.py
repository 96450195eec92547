"""Is a model for mace-torch handed out only if it computes the same? A small program stands for its interpreter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch

from mace.cli import export
from mace.compat.exporting import check_structures, export_to_original, original_arguments
from mace.compat.weights import weights_from_original
from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.plan import InteractionPlan, ModelPlan
from mace.model.prediction import predict
from mace.units import DEBYE_OF_MACE_TORCH


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return save_model(tmp_path / "new.model", files.model())


def interpreter(folder: Path, answer: str) -> Path:
    """A program that writes a file, keeps what it was given, and answers."""
    script = folder / "python"
    script.write_text(
        f"#!/bin/sh\ncat > {folder}/script\ncp $2/plan.json $2/arrays.npz {folder}\necho written > $3\n"
        f"echo '{answer}'\n"
    )
    script.chmod(0o755)
    return script


def run(own: Path, python: Path | str, *more: str) -> Path:
    output = own.with_name("old.model")
    export.run([str(own), str(output), "--format=mace-torch", f"--python={python}", *more])
    return output


GOOD = json.dumps({"version": "0.3.16", "deviations": {"energy": 1e-12, "forces": 1e-11}})


def test_what_agrees_is_written(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run(own, interpreter(tmp_path, GOOD))
    assert output.read_text() == "written\n"
    assert "with mace-torch 0.3.16; it computes the same" in capsys.readouterr().out
    assert "kind(**arguments)" in (tmp_path / "script").read_text(), "the script arrives by standard input"
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (
        plan["kind"] == "ScaleShiftMACE"
        and plan["hidden_irreps"] == "2x0e+2x1o"
        and plan["dtype"] == "float64"
        and plan["options"]["radial_MLP"]
    )
    arrays = np.load(tmp_path / "arrays.npz")
    assert arrays["weight/node_embedding.linear.weight"].shape == (6,)
    assert arrays["structure/1/stress"].shape == (6,)
    with pytest.raises(UserError, match="the file exists; .* --overwrite"):
        run(own, interpreter(tmp_path, GOOD))
    run(own, interpreter(tmp_path, GOOD), "--overwrite")


@pytest.mark.parametrize("value", ["1e-6", "NaN"])
def test_what_differs_is_thrown_away(own: Path, tmp_path: Path, value: str) -> None:
    answer = f'{{"version": "0.3.16", "deviations": {{"energy": 0.0, "forces": {value}}}}}'
    with pytest.raises(UserError, match="computes something else .forces .*thrown away"):
        run(own, interpreter(tmp_path, answer))
    assert not own.with_name("old.model").exists()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"error": "mace-torch 0.3.4 is too old for distance_transform=Agnesi"}', "mace-torch 0.3.4 is too old"),
        ("no JSON", "could not write the model"),
        ("", "could not write the model"),
        ("[1]", "could not write the model"),
    ],
)
def test_an_interpreter_that_cannot(answer: str, said: str, own: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        run(own, interpreter(tmp_path, answer))


def test_no_interpreter(own: Path) -> None:
    with pytest.raises(UserError, match="--python: there is no program /nowhere/python"):
        run(own, "/nowhere/python")


def test_an_interpreter_without_the_original(own: Path) -> None:
    with pytest.raises(UserError, match="cannot import what is needed"):
        run(own, sys.executable)


@pytest.mark.parametrize("name", ["torchscript", "TorchScript", "torch.jit", "torch.export"])
def test_formats_for_other_programs_are_refused_with_a_reason(name: str, own: Path) -> None:
    said = f"--format={name} is not possible, because .* traced with; use --format=mace-torch"
    for flags in ([f"--format={name}"], ["--format", name, "--python", sys.executable]):
        with pytest.raises(UserError, match=said):
            export.run([str(own), str(own.with_name("out.pt")), *flags])
    assert not own.with_name("out.pt").exists()


def test_an_unknown_format(own: Path) -> None:
    with pytest.raises(UserError, match="invalid choice: 'onnx'"):
        export.run([str(own), str(own.with_name("out.pt")), "--format=onnx"])


def test_layers_that_the_original_cannot_mix() -> None:
    kinds = (InteractionPlan(residual=True), InteractionPlan(residual=True), InteractionPlan(residual=False))
    plan = files.PLAN.model_copy(update={"interactions": kinds, "correlation": (1, 1, 1)})
    with pytest.raises(UserError, match="one kind of interaction"):
        original_arguments(plan)


ENERGY = {"model": "EnergyDipolesMACE", "readout_vectors": 2, "scale": 1.0, "shift": 0.0}
ATOMIC = ENERGY | {"model": "AtomicDipolesMACE", "readout_channels": 0, "reference_energies": ()}


def dipole_model(changes: dict[str, Any]) -> MACE:
    return files.model(ModelPlan.model_validate(files.PLAN.model_dump() | changes)).requires_grad_(False)


def test_a_model_of_dipoles_is_rewritten_in_debye(tmp_path: Path) -> None:
    """Scale and shift, which mace-torch's does not have, become part of weights and reference energies."""
    model = dipole_model(ENERGY | {"scale": 0.5, "shift": 0.25})
    assert export_to_original(model, tmp_path / "old.model", interpreter(tmp_path, GOOD)).version == "0.3.16"
    told, arrays = json.loads((tmp_path / "plan.json").read_text()), np.load(tmp_path / "arrays.npz")
    assert told["kind"] == "EnergyDipolesMACE" and told["model_type"] == "EnergyDipoleMACE"
    assert told["MLP_irreps"] == "3x0e+2x1o" and told["hidden_irreps"] == "2x0e+2x1o"
    state = {name.removeprefix("weight/"): arrays[name] for name in arrays.files if name.startswith("weight/")}
    changes = {name: told[name] for name in ("reference_energies", "scale", "shift", "dipole_scale")}
    plan = ModelPlan.model_validate(model.plan.model_dump() | changes)
    assert (plan.scale, plan.shift, plan.dipole_scale) == (1.0, 0.0, DEBYE_OF_MACE_TORCH)
    again = MACE(plan, torch.float64)
    again.load_state_dict({name: torch.tensor(value) for name, value in weights_from_original(state, plan).items()})
    structure = check_structures(plan)[0]
    graph = InMemoryDataset([structure], ElementTable(plan.atomic_numbers), plan.r_max).batch([0]).graph
    ours, theirs = predict(model, graph), predict(again.requires_grad_(False), graph)
    for name in ("energy", "forces", "dipole"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-14), name
    np.testing.assert_allclose(arrays["structure/0/dipole"] * DEBYE_OF_MACE_TORCH, ours.dipole[0].numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (ATOMIC, "does not use its last layer of several, which this model does; .*--num_interactions=1"),
        (ENERGY | {"pair_repulsion": True}, "EnergyDipolesMACE does not have nuclear repulsion"),
        (ENERGY | {"distance_transform": "Agnesi"}, "does not have a distance transform"),
        (ENERGY | {"radial_type": "gaussian"}, "does not have the gaussian basis"),
        (ENERGY | {"correlation": (1, 2)}, "does not have different correlation orders"),
    ],
)
def test_dipoles_that_the_original_cannot_have(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        export_to_original(dipole_model(changes), tmp_path / "old.model", interpreter(tmp_path, GOOD))
    assert not (tmp_path / "old.model").exists()


@pytest.mark.parametrize(
    "changes",
    [
        ATOMIC | {"interactions": (InteractionPlan(residual=False),), "correlation": (2,)},
        ATOMIC | {"readout_vectors": 0},
    ],
)
def test_dipoles_whose_last_layer_is_no_loss(changes: dict[str, Any], tmp_path: Path) -> None:
    model = dipole_model(changes)
    export_to_original(model, tmp_path / "old.model", interpreter(tmp_path, GOOD))
    told, arrays = json.loads((tmp_path / "plan.json").read_text()), np.load(tmp_path / "arrays.npz")
    assert told["kind"] == "AtomicDipolesMACE" and told["reference_energies"] == []
    assert "energy" not in {name.split("/")[-1] for name in arrays.files}
    if model.plan.n_layers > 1:
        assert told["MLP_irreps"] == "1x1o" and not arrays["weight/readouts.1.linear_2.weight"].any()


def test_check_structures_hold_every_element() -> None:
    elements = tuple(range(1, 90))
    plan = files.PLAN.model_copy(update={"atomic_numbers": elements, "reference_energies": (0.0,) * 89})
    for structure in check_structures(plan):
        assert set(structure.atomic_numbers.tolist()) == set(elements)
        offsets = structure.positions[:, None] - structure.positions
        distances = np.linalg.norm(offsets, axis=-1)[~np.eye(89, dtype=bool)]
        assert distances.min() > 0.25 * plan.r_max


def test_single_precision_is_compared_more_mildly(own: Path, tmp_path: Path) -> None:
    answer = json.dumps({"version": "0.3.16", "deviations": {"forces": 1e-5}})
    model = files.model(dtype=torch.float32).requires_grad_(False)
    assert export_to_original(model, tmp_path / "a.model", interpreter(tmp_path, answer)).deviations["forces"] == 1e-5
