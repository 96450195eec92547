"""Does an interrupted evaluation go on where it stopped, and do several models give means and deviations?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from mace.calculators import MACECalculator
from mace.cli import eval_configs
from mace.errors import UserError
from mace.evaluation import evaluation
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.plan import InteractionPlan, ModelPlan

PLAN = ModelPlan(
    model="MACE",
    r_max=3.0,
    l_max=1,
    n_channels=2,
    hidden_l=(0,),
    interactions=(InteractionPlan(residual=False),),
    correlation=(2,),
    radial_mlp=(4,),
    avg_num_neighbors=3.0,
    atomic_numbers=(1, 6, 8),
    reference_energies=(-13.0, -1000.0, -2000.0),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three small models with random weights, the last with another cutoff and more elements."""
    folder = tmp_path_factory.mktemp("models")
    plans = [
        PLAN,
        PLAN,
        PLAN.model_copy(
            update=dict(r_max=3.5, atomic_numbers=(1, 6, 7, 8), reference_energies=(-13.0, -1000.0, -1500.0, -2000.0))
        ),
    ]
    made = [MACE(plan, torch.float64).initialize(torch.Generator().manual_seed(i)) for i, plan in enumerate(plans)]
    return [save_model(folder / f"m{i}.model", model) for i, model in enumerate(made)]


@pytest.fixture
def structures(tmp_path: Path) -> Path:
    """Seven structures with labels, an isolated atom and a crystal among them."""
    frames = [ase.build.molecule(name) for name in ("H2O", "CH3OH", "CO2", "CH4", "H2O")]
    crystal = Atoms(
        "COH", scaled_positions=np.random.default_rng(0).random((3, 3)), cell=np.diag([3.0, 3.5, 4.0]), pbc=True
    )
    frames = [*frames[:2], Atoms("O", info={"config_type": "IsolatedAtom"}), crystal, *frames[2:]]
    for place, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=place)
        atoms.info["REF_energy"] = -100.0 * place
        atoms.arrays["REF_forces"] = 0.1 * atoms.positions
    ase.io.write(tmp_path / "in.xyz", frames, format="extxyz")
    return tmp_path / "in.xyz"


def _run(structures: Path, output: str, *arguments: Any) -> Path:
    path = structures.with_name(output)
    eval_configs.run([f"--configs={structures}", f"--output={path}", "--batch_size=2", *map(str, arguments)])
    return path


def _table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def _interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    predict, calls = evaluation.predict_configurations, [0]

    def predict_or_fail(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > count:
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(evaluation, "predict_configurations", predict_or_fail)


@pytest.fixture
def interrupted(structures: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unfinished output with four structures of seven."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt_after(2, patch)
        _run(structures, "out.xyz", "--model", models[0], "--compute_stress")
    partial = structures.with_name("out.xyz.partial")
    assert len(ase.io.read(partial, ":", format="extxyz")) == 4
    return partial


@pytest.mark.parametrize("cut", [0, 1, 40, 500])
def test_the_result_is_that_of_one_go(
    interrupted: Path, structures: Path, models: list[Path], capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    """Wherever the unfinished file ends, in the middle of a structure too."""
    whole = _run(structures, "whole.xyz", "--model", models[0], "--compute_stress").read_text()
    table = _table(capsys.readouterr().out)
    text = interrupted.read_bytes()
    interrupted.write_bytes(text[: len(text) - cut])
    resumed = _run(structures, "out.xyz", "--model", models[0], "--compute_stress", "--resume").read_text()
    assert cut or resumed == whole  # the same batches: the same bits
    both = [ase.io.read(structures.with_name(name), ":") for name in ("out.xyz", "whole.xyz")]
    for one, other in zip(*both, strict=True):
        assert one == other and one.info.keys() == other.info.keys() and one.arrays.keys() == other.arrays.keys()
        np.testing.assert_allclose(one.info["MACE_energy"], other.info["MACE_energy"], atol=1e-8)
        np.testing.assert_allclose(one.arrays["MACE_forces"], other.arrays["MACE_forces"], atol=2e-8)
    told = capsys.readouterr().out
    assert "structures had been done before" in told
    assert table and _table(told) == table, "the errors are those of all structures"
    assert not interrupted.exists()


def test_nothing_to_go_on_from(structures: Path, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    output = _run(structures, "out.xyz", "--model", models[0], "--resume")
    assert len(ase.io.read(output, ":")) == 7
    assert "nothing to go on from" in capsys.readouterr().out


def test_an_unfinished_output_of_something_else_is_refused_and_kept(
    interrupted: Path, structures: Path, models: list[Path]
) -> None:
    before = interrupted.read_bytes()
    frames = ase.io.read(structures, ":")

    def refused(message: str, *arguments: Any, configs: Path = structures) -> None:
        with pytest.raises(UserError, match=message):
            _run(configs, "out.xyz", "--resume", *arguments)
        assert interrupted.read_bytes() == before

    refused("was written with another model: its last energy differs", "--model", models[1], "--compute_stress")
    refused("structure 0 has no 'ml_energy'", "--model", models[0], "--info_prefix=ml_")
    refused("structure 0 has no 'MACE_energy_std'", "--model", models[0], models[1])
    other, short = structures.with_name("other.xyz"), structures.with_name("short.xyz")
    ase.io.write(other, frames[1:], format="extxyz")
    refused("structure 0 is not that of .*other.xyz: structure 0", "--model", models[0], configs=other)
    ase.io.write(short, frames[:3], format="extxyz")
    refused("holds 4 structures, but the input only 3", "--model", models[0], configs=short)


def test_committee(structures: Path, models: list[Path]) -> None:
    flags = ["--compute_stress", "--return_node_energies"]
    pattern = models[0].with_name("m*.model")
    found = ase.io.read(_run(structures, "out.xyz", "--model", pattern, *flags), ":")
    alone = [ase.io.read(_run(structures, f"{i}.xyz", "--model", m, *flags), ":") for i, m in enumerate(models)]
    calculator = MACECalculator([str(model) for model in models])
    for place, atoms in enumerate(found):
        members = [frames[place] for frames in alone]
        for values, key in (("info", "MACE_energy"), ("arrays", "MACE_forces"), ("arrays", "MACE_node_energies")):
            of_members = np.array([getattr(member, values)[key] for member in members])
            np.testing.assert_allclose(getattr(atoms, values)[key], of_members.mean(0), atol=2e-8)
            np.testing.assert_allclose(getattr(atoms, values)[f"{key}_std"], of_members.std(0), atol=2e-8)
        calculator.calculate(atoms)
        np.testing.assert_allclose(atoms.info["MACE_energy_std"], calculator.results["energy_std"], atol=1e-8)
        np.testing.assert_allclose(atoms.arrays["MACE_forces_std"], calculator.results["forces_std"], atol=2e-8)
    assert found[3].info["MACE_stress_std"].shape == (3, 3) and "MACE_stress_std" not in found[0].info


def test_a_committee_resumes_too(structures: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    members = ["--model", *models]
    whole = _run(structures, "whole.xyz", *members).read_text()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt_after(2, patch)
        _run(structures, "out.xyz", *members)
    assert _run(structures, "out.xyz", *members, "--resume").read_text() == whole


def test_features_of_a_committee_are_refused(structures: Path, models: list[Path]) -> None:
    with pytest.raises(UserError, match="descriptors with one model at a time"):
        _run(structures, "out.xyz", "--model", *models[:2], "--return_descriptors")


def test_a_committee_of_different_kinds_is_refused(structures: Path, models: list[Path], tmp_path: Path) -> None:
    other = {"model": "AtomicDipolesMACE", "hidden_l": (0, 1), "reference_energies": ()}
    plan = PLAN.model_copy(update={**other, "readout_channels": 0, "readout_vectors": 2})
    dipoles = save_model(tmp_path / "mu.model", MACE(plan, torch.float64).initialize(torch.Generator().manual_seed(0)))
    with pytest.raises(UserError, match="a committee of AtomicDipolesMACE and MACE models cannot be formed"):
        _run(structures, "out.xyz", "--model", models[0], dipoles)
