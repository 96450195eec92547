"""Do models of dipoles train, go on after a stop, and predict from Python and for files?"""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from training_runs import Run, isolated_atoms, labeled, rattled, settings_of, train

from mace.calculators import MACECalculator
from mace.cli import eval_configs
from mace.errors import UserError
from mace.model.model_file import load_model

ATOMIC = ("--model=AtomicDipolesMACE", "--MLP_irreps=4x1o")
ENERGY = ("--model=EnergyDipolesMACE", "--MLP_irreps=4x0e + 4x1o", "--dipole_weight=100")
CHARGE = {"H": 0.3, "O": -0.6}


def water(count: int, seed: int = 0) -> list[Atoms]:
    """Distorted and turned water molecules with the dipole of fixed charges."""
    frames, rng = [], np.random.default_rng(seed)
    for i in range(count):
        atoms = rattled(molecule("H2O"), 0.1, rng)
        atoms.rotate(*rng.normal(size=(2, 3)))
        charges = np.array([CHARGE[symbol] for symbol in atoms.symbols])
        frames.append(labeled(atoms, REF_dipole=charges @ atoms.positions, config_type=f"type{i % 2}"))
    return frames


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.xyz"
    ase.io.write(path, isolated_atoms() + water(24), format="extxyz")
    return path


@pytest.fixture(params=[ATOMIC, ENERGY], ids=["atomic", "energy"])
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return request.param


def errors(run: Run, metric: str = "rmse_mu") -> list[float]:
    return [record[metric] for record in run.records if record["mode"] == "eval"]


def model_path(run: Run, ending: str = "") -> Path:
    return run.folder / f"tiny{ending}.model"


def test_training(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    """Dipoles of water are learned, told per epoch and in tables, and drawn."""
    test_file = tmp_path / "test.xyz"
    ase.io.write(test_file, water(6, seed=1), format="extxyz")
    stages = ("--swa", "--start_swa=12", "--swa_dipole_weight=200", "--max_num_epochs=15", "--lr=0.03")
    run = train(tmp_path, data, *flags, *stages, f"--test_file={test_file}", "--plot=True")
    assert min(errors(run)) < 0.3 * errors(run)[0]
    record = run.records[-1] if run.records[-1]["mode"] == "eval" else run.records[-2]
    assert {"mae_mu", "mae_mu_per_atom", "rel_mae_mu", "rmse_mu", "rmse_mu_per_atom", "rel_rmse_mu"} <= record.keys()
    assert ("rmse_f" in record) == (flags is ENERGY)
    assert run.said(r"Epoch 3: head: Default, loss=\S+, .*RMSE_M[Uu]_per_atom= +\d+\.\d\d mDebye")
    assert run.said("type0_Default") and run.said(r"RMSE MU / mDebye / atom") and run.said(r"MAE MU / mDebye / atom")
    assert run.said("dipole_weight=200.000") and run.said("no charges, so the whole dipole is learned")
    assert run.said("Isolated Atomic Energies") == (flags is ENERGY)
    assert (tmp_path / "results" / f"{run.tag}_parity_stage_two.png").stat().st_size > 10_000
    loaded = load_model(model_path(run, "_stagetwo"))
    assert loaded.metadata.metrics["type0_Default"]["rmse_mu"] < 0.3 * errors(run)[0]


def test_a_resumed_run_equals_a_straight_one(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    straight = train(tmp_path / "a", data, *flags, "--max_num_epochs=4", "--ema")
    train(tmp_path / "b", data, *flags, "--max_num_epochs=2", "--ema")
    resumed = train(tmp_path / "b", data, *flags, "--max_num_epochs=4", "--ema", "--restart_latest")
    assert errors(straight) == errors(resumed)
    one, other = straight.weights(), resumed.weights()
    assert all(bool((one[name] == other[name]).all()) for name in one)
    with pytest.raises(UserError, match="readout_vectors 4 -> 5"):
        wider = "--MLP_irreps=5x1o" if flags is ATOMIC else "--MLP_irreps=4x0e + 5x1o"
        train(tmp_path / "b", data, *flags, wider, "--max_num_epochs=6", "--restart_latest")


def test_one_layer(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    run = train(tmp_path, data, *flags, "--num_interactions=1", "--max_num_epochs=8", "--lr=0.03")
    assert min(errors(run)) < 0.6 * errors(run)[0]


def test_dry_run(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    run = train(tmp_path, data, *flags, "--dry_run")
    assert ("dipole_weight=1.000" if flags is ATOMIC else "dipole_weight=100.000") in run.shown
    assert ("none: the model predicts no energy" in run.shown) == (flags is ATOMIC)
    assert not model_path(run).exists()


def test_settings_of_the_model_file(tmp_path: Path, data: Path) -> None:
    """What was chosen for the user is written down, and told; dipoles alone are enough to train on."""
    frames = water(8)
    for atoms in frames:
        del atoms.info["REF_energy"], atoms.arrays["REF_forces"]
    ase.io.write(data, frames, format="extxyz")
    run = train(tmp_path, data, *ATOMIC)
    settings = load_model(model_path(run)).metadata.settings
    assert (settings["loss"], settings["error_table"]) == ("dipole", "DipoleRMSE")
    assert run.said("--model=AtomicDipolesMACE is trained with --loss=dipole")


def test_dipoles_alone_need_no_reference_energies(tmp_path: Path, data: Path) -> None:
    """Neither frames of isolated atoms nor --E0s, though there are energies."""
    ase.io.write(data, water(8), format="extxyz")
    assert train(tmp_path, data, *ATOMIC).said("Done")
    with pytest.raises(UserError, match="E0s"):
        train(tmp_path, data, *ENERGY)


def test_a_missing_dipole_is_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserError, match="no structure has a label 'dipole' under the key 'mu'.*--dipole_key"):
        train(tmp_path, data, *ATOMIC, "--dipole_key=mu")


def test_only_labeled_dipoles_with_weight_count(tmp_path: Path) -> None:
    """Half of the structures have no dipole, or a wrong one of weight zero."""
    frames, runs, valid = water(16), [], tmp_path / "valid.xyz"
    ase.io.write(valid, water(4, seed=1), format="extxyz")
    for name in ("absent", "weightless"):
        for atoms in frames[8:]:
            atoms.info.pop("REF_dipole", None)
            if name == "weightless":
                atoms.info |= {"REF_dipole": np.array([99.0, 0.0, 0.0]), "config_dipole_weight": 0.0}
        path = tmp_path / f"{name}.xyz"
        ase.io.write(path, isolated_atoms() + frames, format="extxyz")
        only = ("--energy_weight=0", "--forces_weight=0", "--max_num_epochs=4", f"--valid_file={valid}")
        runs.append(train(tmp_path / name, path, *ENERGY, *only, "--batch_size=16"))
    counted = [[record["loss"] for record in run.records if record["mode"] == "opt"] for run in runs]
    # a label of weight zero counts with a zero: half of the entries, half of the loss
    assert counted[1][0] == pytest.approx(0.5 * counted[0][0], rel=1e-12)
    assert min(errors(runs[1])) < errors(runs[1])[0] < 5.0


def test_charges_enter_the_dipole(tmp_path: Path) -> None:
    """With the true charges nothing is left to learn; the calculator needs them, and follows their change."""
    frames = water(12)
    for atoms in frames:
        atoms.arrays["REF_charges"] = np.array([CHARGE[symbol] for symbol in atoms.symbols])
    path = tmp_path / "train.xyz"
    ase.io.write(path, isolated_atoms() + frames[:-2], format="extxyz")
    run = train(tmp_path, path, *ATOMIC, "--lr=1e-9", "--max_num_epochs=1")
    assert run.said("Charges of 10 structures enter their dipoles")
    atoms = frames[-1]
    learned = MACECalculator(model_path(run)).get_property("dipole", atoms)
    atoms.calc = MACECalculator(model_path(run), charges_key="REF_charges")
    of_charges = atoms.arrays["REF_charges"] @ atoms.positions
    np.testing.assert_allclose(atoms.get_dipole_moment(), learned + of_charges, atol=1e-12)
    atoms.arrays["REF_charges"] = 2.0 * atoms.arrays["REF_charges"]
    np.testing.assert_allclose(atoms.get_dipole_moment(), learned + 2.0 * of_charges, atol=1e-12)
    ase.io.write(path, isolated_atoms() + frames[:4] + water(4, seed=3), format="extxyz")
    assert train(tmp_path, path, *ATOMIC).said("4 of 8 structures have no charges and count as uncharged")


def test_the_calculator_knows_what_the_model_is(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    path = model_path(train(tmp_path, data, *flags))
    own, other = ("DipoleMACE", "EnergyDipoleMACE") if flags is ATOMIC else ("EnergyDipoleMACE", "DipoleMACE")
    atoms = water(1, seed=5)[0]
    atoms.calc = MACECalculator(path, model_type=own)
    dipole = atoms.get_dipole_moment()
    assert dipole.shape == (3,) and np.isfinite(dipole).all()
    assert set(atoms.calc.implemented_properties) >= set(atoms.calc.results)
    for word in (other, "MACE"):
        with pytest.raises(UserError, match=f"model_type='{word}' contradicts the model"):
            MACECalculator(path, model_type=word)
    if flags is ATOMIC:
        assert atoms.calc.implemented_properties == ["dipole"]
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_potential_energy()
        with pytest.raises(UserError, match="AtomicDipolesMACE model predicts no energy"):
            atoms.calc.get_hessian(atoms)
    else:
        assert np.isfinite(atoms.get_potential_energy()) and atoms.get_forces().shape == (3, 3)


def test_single_precision(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    """In float32 the calculator reads radial functions from tables; dipoles hardly change."""
    path = model_path(train(tmp_path, data, *flags))
    atoms = water(1, seed=5)[0]
    exact = MACECalculator(path).get_property("dipole", atoms)
    single = MACECalculator(path, default_dtype="float32")
    assert np.abs(single.get_property("dipole", atoms) - exact).max() < 1e-4
    assert single.get_descriptors(atoms).shape == (3, 8)


def test_committees(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    paths = [model_path(train(tmp_path / str(seed), data, *flags, f"--seed={seed}")) for seed in (1, 2)]
    atoms = water(1, seed=5)[0]
    single = np.stack([MACECalculator(path).get_property("dipole", atoms) for path in paths])
    calculator = MACECalculator(paths)
    np.testing.assert_allclose(calculator.get_property("dipole", atoms), single.mean(0), atol=1e-12)
    np.testing.assert_allclose(calculator.results["dipole_comm"], single, atol=1e-12)
    np.testing.assert_allclose(calculator.results["dipole_var"], single.var(0), atol=1e-12)
    assert ("energy_var" in calculator.results) == (flags is ENERGY)
    if flags is ENERGY:
        mixed = model_path(train(tmp_path / "mixed", data, *ATOMIC))
        with pytest.raises(UserError, match="AtomicDipolesMACE and EnergyDipolesMACE"):
            MACECalculator([*paths, mixed])


def test_evaluation_of_files(
    tmp_path: Path, data: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = model_path(train(tmp_path, data, *flags, "--max_num_epochs=1")), tmp_path / "out.xyz"
    arguments = [f"--configs={data}", f"--model={path}", f"--output={output}"]
    eval_configs.run(arguments)
    shown = capsys.readouterr().out
    frames = ase.io.read(output, ":")
    for atoms in frames:
        np.testing.assert_allclose(
            atoms.info["MACE_dipole"], MACECalculator(path).get_property("dipole", atoms), atol=1e-7
        )
        assert ("MACE_energy" in atoms.info) == ("MACE_forces" in atoms.arrays) == (flags is ENERGY)
    rows = [line for line in shown.splitlines() if line.startswith("| all")]
    error = np.concatenate([a.info["MACE_dipole"] - a.info["REF_dipole"] for a in frames if len(a) > 1])
    per_atom = 1e3 * np.sqrt(np.mean((error / 3) ** 2)) / 0.2081943
    cell = rows[0].split("|")[2 if flags is ATOMIC else 5]
    assert float(cell) == pytest.approx(per_atom, abs=0.06)
    if flags is ATOMIC:
        for flag, words in (("--compute_stress", "stress"), ("--return_node_energies", "energies of atoms")):
            with pytest.raises(UserError, match=f"predicts dipoles only; do not ask for {words}"):
                eval_configs.run([*arguments, flag])
    with pytest.raises(UserError, match="would take the place of the label 'REF_"):
        eval_configs.run([*arguments, "--info_prefix=REF_"])


def test_settings_can_be_given_again(tmp_path: Path, data: Path) -> None:
    """The settings that a model was trained with are complete: they choose the same again."""
    run = train(tmp_path, data, *ENERGY)
    again = load_model(model_path(run)).metadata.settings
    assert json.dumps(again["MLP_irreps"]) == '"4x0e + 4x1o"'
    assert settings_of(tmp_path, data, *ENERGY).model == again["model"]
