"""Does a stranger train on ions, resume, evaluate, simulate and fine-tune, with each told from the neutral molecule?"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from training_runs import QUICK, isolated_atoms, labeled, rattled, train

from mace.calculators import MACECalculator, torch_sim
from mace.calculators.torch_sim import MaceTorchSimModel
from mace.cli import check_data, eval_configs, info, md
from mace.cli.run_train import run as run_train
from mace.errors import UserError
from mace.model.mace import MACE
from mace.model.model_file import load_model, save_model
from mace.model.plan import ModelPlan

SPECS = {
    "total_charge": {"type": "categorical", "per": "graph", "num_classes": 5, "offset": 2, "emb_dim": 4},
    "total_spin": {"type": "categorical", "per": "graph", "num_classes": 4, "emb_dim": 3},
}
KNOWING = (f"--embedding_specs={SPECS}", "--use_embedding_readout=True", "--model=ScaleShiftMACE")
OFFSET = {0: 0.0, 1: 5.0, -1: -2.0}
"""What a charge adds to the energy in eV."""


def ions(count: int, seed: int = 0, **keys: str) -> list[Atoms]:
    """Distorted water molecules and their ions, the same three at every place."""
    rng, frames = np.random.default_rng(seed), []
    names = {"charge": "charge", "spin": "spin"} | keys
    for _ in range(count):
        atoms = rattled(molecule("H2O"), 0.05, rng)
        for charge, spin in ((0, 1), (1, 2), (-1, 2)):
            frame = labeled(atoms, **{names["charge"]: charge, names["spin"]: spin})
            frame.info["REF_energy"] += OFFSET[charge]
            frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ions") / "train.xyz"
    write(path, isolated_atoms() + ions(6), format="extxyz")
    return path


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """A model that was trained long enough to tell the ions apart."""
    run = train(data.parent, data, *KNOWING, "--max_num_epochs=60", "--lr=0.03", "--forces_weight=0.1")
    assert run.said(r"total_charge 18 of 18 \('charge'\), total_spin 18 of 18")
    return data.parent / "tiny.model"


def energy(calculator: MACECalculator, **info: Any) -> float:
    atoms = molecule("H2O")
    atoms.info.update(info)
    atoms.calc = calculator
    return float(atoms.get_potential_energy())


def test_ions_are_learned(trained: Path) -> None:
    calculator = MACECalculator(trained)
    neutral = energy(calculator)
    assert energy(calculator, charge=1, spin=2) - neutral == pytest.approx(OFFSET[1], abs=1.0)
    assert energy(calculator, charge=-1, spin=2) - neutral == pytest.approx(OFFSET[-1], abs=1.0)


def test_a_run_goes_on_as_if_it_had_not_stopped(data: Path, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", data, *KNOWING, "--max_num_epochs=4")
    train(tmp_path / "parts", data, *KNOWING)
    parts = train(tmp_path / "parts", data, *KNOWING, "--max_num_epochs=4", "--restart_latest")
    assert all(torch.equal(value, parts.weights()[name]) for name, value in whole.weights().items())
    other = str(SPECS).replace("'num_classes': 4", "'num_classes': 6")
    with pytest.raises(UserError, match="conditions"):
        train(tmp_path / "parts", data, *KNOWING, f"--embedding_specs={other}", "--restart_latest")


def test_a_yaml_file_describes_them(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"embedding_specs": SPECS}), encoding="utf-8")
    run = train(tmp_path, data, f"--config={config}")
    assert [c.name for c in load_model(run.folder / "tiny.model").model.plan.conditions] == list(SPECS)


def test_without_them_nothing_changes(data: Path, tmp_path: Path) -> None:
    """The same files without their charges and spins give the same weights, bit for bit."""
    plain = tmp_path / "plain.xyz"
    frames = read(data, ":")
    for frame in frames:
        frame.calc = None
        for key in ("charge", "spin"):
            frame.info.pop(key, None)
    write(plain, frames, format="extxyz")
    given = train(tmp_path / "given", data).weights()
    without = train(tmp_path / "without", plain).weights()
    assert given.keys() == without.keys()
    assert all(torch.equal(value, without[name]) for name, value in given.items())


def test_ions_are_no_duplicates(data: Path, tmp_path: Path) -> None:
    """Same atoms at the same places with other energies: contradictions without conditions, sound with them."""
    flags = [f"--train_file={data}", f"--work_dir={tmp_path}", f"--json={tmp_path / 'report.json'}"]
    found = []
    for more in ([], [f"--embedding_specs={SPECS}"]):
        check_data.run([*flags, *more])
        findings = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["findings"]
        found.append({finding["name"] for finding in findings})
    assert found == [{"duplicates", "contradicting-duplicates"}, set()]


def test_keys_of_their_own(tmp_path: Path) -> None:
    """A key for all files, one for a single file, and one in the description."""
    write(tmp_path / "a.xyz", isolated_atoms() + ions(3, charge="q"), format="extxyz")
    write(tmp_path / "b.xyz", ions(3, seed=1, charge="Q"), format="extxyz")
    table = str({"file": str(tmp_path / "b.xyz"), "total_charge_key": "Q"})
    files_of = ["--train_file", str(tmp_path / "a.xyz"), table]
    run = train(tmp_path / "run", None, *files_of, *KNOWING, "--total_charge_key=q")
    assert run.said(r"a\.xyz: .*total_charge 9 of 9 \('q'\)") and run.said(r"b\.xyz: .*total_charge 9 of 9 \('Q'\)")
    assert load_model(run.folder / "tiny.model").model.plan.conditions[0].keys == ("q", "total_charge", "charge")
    described = str(SPECS).replace("'offset': 2", "'offset': 2, 'key': 'q'")
    again = train(tmp_path / "again", tmp_path / "a.xyz", f"--embedding_specs={described}")
    assert again.said(r"total_charge 9 of 9 \('q'\)")
    with pytest.raises(UserError, match="--total_charge_key=z contradicts --embedding_specs, where the key is 'q'"):
        train(tmp_path / "no", tmp_path / "a.xyz", f"--embedding_specs={described}", "--total_charge_key=z")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--use_embedding_readout=True"],
            "--use_embedding_readout=True has no effect without --embedding_specs or --foundation_model",
        ),
        (["--total_charge_key=q"], "--total_charge_key=q has no effect: the model has no condition 'total_charge'"),
        (["--elec_temp_key=T"], "--elec_temp_key=T has no effect: the model has no condition 'elec_temp'"),
        (
            ["--embedding_specs=" + str(SPECS).replace("'emb_dim': 3", "'emb_dim': 3, 'in_dim': 2")],
            "--embedding_specs: in_dim of 'total_spin' has no effect",
        ),
    ],
)
def test_what_has_no_effect_is_told(data: Path, tmp_path: Path, flags: list[str], words: str) -> None:
    run = train(tmp_path, data, "--dry_run", *flags)
    assert words in run.shown and run.shown.count("has no effect") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([f"--embedding_specs={SPECS}", "--model=EnergyDipolesMACE"], "models of dipoles have no conditions"),
        (["--embedding_specs={'q': {'type': 'categorical'}}"], "--embedding_specs does not say the per and emb_dim"),
        (["--embedding_specs=5"], "--embedding_specs must be a dictionary such as"),
        (
            ["--embedding_specs={'T': {'type': 'continuous', 'per': 'graph', 'emb_dim': 3}}"],
            r"train\.xyz: structure 0 has no 'T', which the model needs",
        ),
        (
            ["--embedding_specs=" + str(SPECS).replace("'offset': 2", "'offset': 0")],
            r"train\.xyz: structure 4: total_charge \(key 'charge'\) is -1, but the model knows values from 0 to 4",
        ),
    ],
)
def test_mistakes_are_one_sentence(data: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, data, *flags)


def test_files_are_evaluated(trained: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", ions(2, seed=5), format="extxyz")
    eval_configs.run(["--configs", f"{tmp_path}/in.xyz", "--model", str(trained), "--output", f"{tmp_path}/out.xyz"])
    calculator = MACECalculator(trained)
    for frame in read(tmp_path / "out.xyz", ":"):
        atoms = frame.copy()
        atoms.calc = calculator
        assert frame.info["MACE_energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    write(tmp_path / "q.xyz", ions(2, seed=5, charge="q"), format="extxyz")
    flags = ["--configs", f"{tmp_path}/q.xyz", "--model", str(trained), "--output", f"{tmp_path}/again.xyz"]
    eval_configs.run([*flags, "--condition_keys", "{'total_charge': 'q'}"])
    found, again = ([f.info["MACE_energy"] for f in read(tmp_path / n, ":")] for n in ("out.xyz", "again.xyz"))
    assert found == again
    with pytest.raises(UserError, match="--condition_keys names 'charge', which is no such condition of the model"):
        eval_configs.run([*flags, "--condition_keys", "{'charge': 'q'}"])
    with pytest.raises(UserError, match="--condition_keys must be a dictionary such as .*, not '5'"):
        eval_configs.run([*flags, "--condition_keys", "5"])


def test_the_model_is_described(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.run([str(trained), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["conditions"][0].startswith("total_charge of the structure, from -2 to 2 (key 'total_charge' or")
    assert all(told["checks"].values())
    assert info.run([str(trained)]) == 0
    assert "an energy of element and conditions alone" in capsys.readouterr().out


def test_a_simulation_keeps_them(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (cation,) = ions(1)[1:2]
    write("start.xyz", cation, format="extxyz")
    flags = ["--structure=start.xyz", f"--model={trained}", "--ensemble=nve", "--temperature_K=100"]
    md.run([*flags, "--steps=4", "--trajectory_interval=2", "--quiet"])
    frames = read("md.xyz", ":")
    assert {(frame.info["charge"], frame.info["spin"]) for frame in frames} == {(1, 2)}
    assert "total_charge: 1" in Path("md.xyz.log").read_text(encoding="utf-8")
    again = frames[-1].copy()
    again.calc = MACECalculator(trained)
    assert again.get_potential_energy() == pytest.approx(frames[-1].get_potential_energy(), abs=1e-6)
    cation.info["charge"] = 0
    write("start.xyz", cation, format="extxyz")
    with pytest.raises(UserError, match="the simulation began with another total_charge"):
        md.run([*flags, "--steps=8", "--trajectory_interval=2", "--quiet", "--restart"])


def test_torch_sim_gives_them(trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch_sim, "_MISSING", None)
    atoms = ions(1)
    state = SimpleNamespace(
        positions=torch.tensor(np.concatenate([a.positions for a in atoms])),
        cell=torch.zeros(3, 3, 3, dtype=torch.float64),
        pbc=False,
        atomic_numbers=torch.tensor(np.concatenate([a.numbers for a in atoms])),
        system_idx=torch.tensor(np.repeat(np.arange(3), 3)),
        charge=torch.tensor([0.0, 1.0, -1.0]),
        spin=torch.tensor([1.0, 2.0, 2.0]),
    )
    model, calculator = MaceTorchSimModel(trained, "cpu"), MACECalculator(trained, default_dtype="float64")
    for found, one in zip(model(state)["energy"].tolist(), atoms, strict=True):
        one.calc = calculator
        assert found == pytest.approx(one.get_potential_energy(), abs=1e-9)
    state.spin = torch.zeros(3)
    model(state)
    assert "The spin of all systems is 0" in caplog.text
    state.charge = torch.zeros(2)
    with pytest.raises(UserError, match=r"'charge' has the shape \[2\] where a row for each of 3 systems"):
        model(state)


@pytest.fixture
def foundation(tmp_path: Path) -> Path:
    """A model of mace-torch that knows of charge and spin."""
    changes = {"conditions": (files.CHARGE, files.SPIN), "condition_readout": True}
    model = files.model(ModelPlan.model_validate(files.PLAN.model_dump() | changes))
    return files.write_original(tmp_path / "old.model", files.tree_of(model))


def fine_tune(folder: Path, data: Path, foundation: Path, *flags: str) -> MACE:
    files_and_model = (f"--work_dir={folder}", f"--train_file={data}", f"--foundation_model={foundation}")
    run_train([*QUICK, *files_and_model, "--multiheads_finetuning=False", *flags])
    return load_model(folder / "tiny.model").model


def test_a_model_that_knows_them_is_fine_tuned(foundation: Path, data: Path, tmp_path: Path) -> None:
    model = fine_tune(tmp_path / "a", data, foundation, "--lr=1e-9", "--max_num_epochs=1")
    assert model.plan.conditions == (files.CHARGE, files.SPIN) and model.plan.condition_readout
    before = MACECalculator(foundation).models[0]
    for name, value in model.named_parameters():
        if name.startswith("condition"):
            torch.testing.assert_close(value, before.get_parameter(name), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="--embedding_specs contradicts the foundation model .*from -3 to 3"):
        fine_tune(tmp_path / "b", data, foundation, f"--embedding_specs={SPECS}")
    with pytest.raises(UserError, match="--use_embedding_readout=False contradicts the foundation model"):
        fine_tune(tmp_path / "c", data, foundation, "--use_embedding_readout=False")


def test_a_model_that_does_not_know_them_cannot_learn_them_later(data: Path, tmp_path: Path) -> None:
    foundation = save_model(tmp_path / "plain.model", files.model())
    with pytest.raises(UserError, match="--embedding_specs contradicts the foundation model .* conditions are: none"):
        fine_tune(tmp_path / "a", data, foundation, f"--embedding_specs={SPECS}")


def test_reference_energies_are_estimated_under_conditions(foundation: Path, data: Path, tmp_path: Path) -> None:
    model = fine_tune(tmp_path, data, foundation, "--E0s=estimated", "--max_num_epochs=1")
    assert np.isfinite(model.plan.reference_energies).all() and model.plan.conditions
