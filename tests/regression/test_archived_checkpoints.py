"""Do checkpoints of every version ever released still load, and can their runs go on?"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from training_runs import train, write_water

from mace.training.checkpoints import FORMAT, UPGRADES, load_safely

SAMPLES = Path(__file__).parent / "samples"
SMALLEST = (
    "--hidden_irreps=1x0e + 1x1o", "--r_max=2.0", "--num_radial_basis=2", "--radial_MLP=[2]", "--MLP_irreps=2x0e",
    "--swa", "--start_swa=2", "--ema",
)  # fmt: skip
"""The run of the samples: three epochs, one of them in stage two; see `make_samples.py`."""

VERSIONS = range(1, FORMAT + 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_state_of_each_version_is_archived_and_loads(version: int) -> None:
    state = load_safely(SAMPLES / f"checkpoint-{version}_last.pt")
    assert state["format"] == FORMAT
    assert state["progression"]["epoch"] == 3 and state["progression"]["best_epochs"] == {"one": 1, "two": 2}
    assert all(torch.isfinite(weight).all() for weight in state["weights"].values())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_each_version_goes_on(tmp_path: Path, version: int) -> None:
    (tmp_path / "checkpoints").mkdir()
    for sample in SAMPLES.glob(f"checkpoint-{version}_*.pt"):
        name = sample.name.replace(f"checkpoint-{version}", "tiny_run-7")
        shutil.copy(sample, tmp_path / "checkpoints" / name)
    data = write_water(tmp_path / "train.xyz")
    run = train(tmp_path, data, *SMALLEST, "--max_num_epochs=5", "--restart_latest")
    assert run.epochs_trained == [3, 4]
    assert run.last_state()["format"] == FORMAT
    assert all(torch.isfinite(weight).all() for weight in run.weights("_stagetwo").values())


def test_every_older_version_has_an_upgrade() -> None:
    assert sorted(UPGRADES) == list(range(1, FORMAT))
