"""Foundation models of a few parameters, and fine-tuning with replay that takes a second."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import original_files as files
from ase import Atoms
from ase.build import molecule
from ase.io import write
from rich.console import Console
from training_runs import QUICK, Run, isolated_atoms, labeled, rattled, water

from mace.model.model_file import save_model
from mace.runs.run import run_training
from mace.settings import TrainingSettings, parse_training_settings

EXACT = ("--default_dtype=float64", "--max_num_epochs=0", "--kernels=torch")
"""Nothing is trained: the numbers are those of the start."""


def molecules(count: int, seed: int = 3) -> list[Atoms]:
    """Small molecules of three elements, labeled."""
    rng = np.random.default_rng(seed)
    names = ("CH4", "CH3OH", "H2O", "CO2")
    return [labeled(rattled(molecule(names[i % len(names)]), 0.05, rng)) for i in range(count)]


def unlabeled(frames: list[Atoms]) -> list[Atoms]:
    """The structures alone."""
    return [Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc) for frame in frames]


def write_files(place: Path) -> Path:
    """Write foundation models, structures to train on and structures to replay."""
    save_model(place / "one.model", files.model())
    save_model(place / "heads.model", files.model(files.with_heads("pbe", "r2scan")))
    files.write_original(place / "torch.model", files.tree_of(files.model()))
    write(place / "water.xyz", [*isolated_atoms(), *water(12)])
    write(place / "replay.xyz", molecules(20))
    write(place / "bare.xyz", unlabeled(molecules(20)))
    return place


def settings_of(
    folder: Path, place: Path, *flags: str, foundation: str = "one.model", replay: str = "replay.xyz"
) -> TrainingSettings:
    """Settings of a fine-tuning, which has the architecture of the foundation model; later flags win."""
    given = [f"--train_file={place / 'water.xyz'}", f"--foundation_model={place / foundation}"]
    given += [f"--pt_train_file={place / replay}"] * bool(replay)
    return parse_training_settings([*QUICK, *EXACT, f"--work_dir={folder}", *given, *flags])


def tune(folder: Path, place: Path, *flags: str, **given: str) -> Run:
    """Fine-tune in this process."""
    settings, output = settings_of(folder, place, *flags, **given), io.StringIO()
    run_training(settings, Console(file=output, width=200))
    return Run(settings, folder, output.getvalue())
