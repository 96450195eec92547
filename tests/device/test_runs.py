"""Do whole runs, evaluations and calculators work on a device, and does a stopped run go on as if it had not been?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from training_runs import Run, copper, same, train, untimed, write_frames

from mace.calculators import MACECalculator
from mace.cli import eval_configs

ON_DEVICE = ("--ema", "--swa", "--start_swa=3", "--E0s=average", "--loss=stress", "--compute_stress=True")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("data") / "train.xyz", copper(12))


def run(folder: Path, data: Path, device: str, *flags: str) -> Run:
    return train(folder, data, f"--device={device}", *ON_DEVICE, *flags)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return run(tmp_path_factory.mktemp("run"), data, device, "--max_num_epochs=4", "--default_dtype=float64")


def test_training_lowers_the_loss_and_is_that_of_a_cpu(tmp_path: Path, data: Path, finished: Run) -> None:
    losses = [record["loss"] for record in finished.records if record["mode"] == "opt"]
    assert np.isfinite(losses).all()
    on_cpu = run(tmp_path, data, "cpu", "--max_num_epochs=4", "--default_dtype=float64")
    expected = [record["loss"] for record in on_cpu.records if record["mode"] == "opt"]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, data: Path, device: torch.device, dtype: str
) -> None:
    flags = (f"--default_dtype={dtype}",)
    straight = run(tmp_path / "a", data, str(device), "--max_num_epochs=2", *flags)
    run(tmp_path / "b", data, str(device), "--max_num_epochs=1", *flags)
    resumed = run(tmp_path / "b", data, str(device), "--max_num_epochs=2", "--restart_latest", *flags)
    assert list(map(untimed, straight.records)) == list(map(untimed, resumed.records))
    assert same(straight.last_state()["weights"], resumed.last_state()["weights"])


def test_evaluation_and_calculator(tmp_path: Path, data: Path, device: torch.device, finished: Run) -> None:
    model, output = finished.folder / "tiny.model", tmp_path / "out.xyz"
    name = "cuda:0" if device.type == "cuda" else "cpu"
    words = [f"--configs={data}", f"--model={model}", f"--output={output}", f"--device={name}", "--compute_stress"]
    eval_configs.run(words)
    frames = read(output, ":")
    expected, found = (MACECalculator(str(model), device=where, default_dtype="float64") for where in ("cpu", name))
    for atoms in frames[:3]:
        assert isinstance(atoms, Atoms)
        plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        one, other = (calculator.get_forces(plain.copy()) for calculator in (found, expected))
        np.testing.assert_allclose(one, other, atol=1e-8)
        np.testing.assert_allclose(atoms.arrays["MACE_forces"], other, atol=1e-5)


@pytest.mark.usefixtures("only_on_device")
def test_memory_that_runs_out_makes_smaller_parts(tmp_path: Path, data: Path, device: torch.device) -> None:
    """What torch may take is cut down to what half a batch needs."""
    whole = run(tmp_path / "whole", data, str(device), "--max_num_epochs=1", "--batch_size=12")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    total, taken = torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((taken + (24 << 20)) / total, device)
    try:
        parts = run(tmp_path / "parts", data, str(device), "--max_num_epochs=1", "--batch_size=12")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    one, other = (next(r["loss"] for r in each.records if r["mode"] == "opt") for each in (whole, parts))
    assert one == pytest.approx(other, rel=1e-4)
