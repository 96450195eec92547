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
from training_runs import TINY_MODEL, isolated_atoms, labelled, rattled, train

from mace.calculators import MACECalculator
from mace.cli import check_data, eval_configs, info, md
from mace.deployment import torch_sim
from mace.deployment.torch_sim import MaceTorchSimModel
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
            frame = labelled(atoms, **{names["charge"]: charge, names["spin"]: spin})
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
    run = train(data.parent, data, *KNOWING, "--max_num_epochs=60", "--lr=0.02", "--swa=False")
    assert run.said(r"total_charge 20 of 20 \('charge'\), total_spin 20 of 20")
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
