"""Is a run from prepared sets the run from the files that they were made of, to the last bit, whatever it does?"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import original_files
import pytest
from ase import Atoms
from killed_runs import Trainers
from training_runs import (
    TINY_MODEL,
    Run,
    at_level,
    copper,
    isolated_atoms,
    labeled,
    same,
    settings_of,
    train,
    untimed,
    water,
    write_frames,
)

from mace.cli import check_data, eval_configs, preprocess_data
from mace.errors import UserError
from mace.packing import folder as packing_folder
from mace.structures.prepared import MANIFEST
from mace.training.checkpoints import load_safely


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sets of a dozen structures have several shards."""
    monkeypatch.setattr(packing_folder, "STRUCTURES_IN_A_PART", 5)


def molecules(count: int = 14, seed: int = 0) -> list[Atoms]:
    """Water molecules of two types, some with weights, and the isolated atoms."""
    frames = isolated_atoms() + water(count, seed)
    for number, atoms in enumerate(frames[2:]):
        atoms.info["config_type"] = ("gas", "cluster")[number % 3 == 0]
        if number % 4 == 1:
            atoms.info["config_weight"] = 0.3
        if number % 5 == 2:
            atoms.info["config_forces_weight"] = 2.0
    return frames


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "train.xyz", molecules())


def prepare(folder: Path, *flags: str, r_max: float = 3.0) -> Path:
    """Write prepared sets, as the command does, and return their folder."""
    given = [f"--h5_prefix={folder}/", f"--r_max={r_max}", "--num_process=1", "--log_level=WARNING", *flags]
    preprocess_data.run(given)
    return folder


def assert_same_runs(one: Run, other: Run, but: tuple[str, ...] = ()) -> None:
    """Compare records, error tables, states and weights, bit for bit."""
    assert [untimed(record) for record in one.records] == [untimed(record) for record in other.records]
    assert same(one.weights(), other.weights())
    states = [run.last_state() for run in (one, other)]
    for part in ("weights", "optimizer", "average", "best", "progression"):
        assert part in but or same(states[0][part], states[1][part]), part
    rows = [[line for line in run.log.splitlines() if line.startswith("|")] for run in (one, other)]
    assert len(rows[0]) > 4 and rows[0] == rows[1]


STAGES = ("--swa", "--start_swa=1", "--ema", "--lbfgs", "--lbfgs_steps=2")


@pytest.mark.parametrize("workers", [0, 4])
def test_a_set_in_place_of_its_file(tmp_path: Path, file: Path, workers: int) -> None:
    """Split in the run, with weights of types, isolated atoms to train on, all stages, and a test set."""
    test = write_frames(tmp_path / "test.xyz", molecules(5, seed=4)[2:])
    sets = prepare(tmp_path / "sets", f"--train_file={file}", f"--valid_file={test}", f"--test_file={test}")
    flags = (
        "--valid_fraction=0.3", '--config_type_weights={"cluster": 3.0, "IsolatedAtom": 0.7}', "--E0s=average",
        "--keep_isolated_atoms=True", *STAGES,
    )  # fmt: skip
    in_memory = train(tmp_path / "memory", file, *flags, f"--test_file={test}")
    on_disk = train(
        tmp_path / "disk", sets / "train", *flags, f"--num_workers={workers}", f"--test_dir={sets / 'test'}"
    )
    assert_same_runs(in_memory, on_disk)
    assert on_disk.said("Split Training set") and not on_disk.said("Neighbors of")
