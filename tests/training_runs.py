"""Small labeled structures and training runs that take about a second, for every folder that trains."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import write
from rich.console import Console
from torch import Tensor

from mace.model.model_file import load_model
from mace.preparation.preparation import Preparation
from mace.reporting.records import read_records
from mace.runs.context import run_context
from mace.runs.run import plan_model, read_data, run_training, settle_choices
from mace.settings import TrainingSettings, parse_training_settings
from mace.training.checkpoints import load_safely

TINY_MODEL = (
    "--hidden_irreps=4x0e + 4x1o",
    "--max_ell=1",
    "--correlation=2",
    "--r_max=3.0",
    "--num_radial_basis=4",
    "--radial_MLP=[8]",
    "--MLP_irreps=4x0e",
)
"""Flags of a model so small that an epoch takes a few hundredths of a second."""

QUICK = ("--name=tiny", "--seed=7", "--batch_size=4", "--max_num_epochs=2", "--plot=False")
"""Flags of a short run."""


def labeled(atoms: Atoms, stress: bool = False, **info: Any) -> Atoms:
    """Return a copy with labels of ASE's effective-medium potential, under the keys that need no flag."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    atoms.info["REF_energy"] = atoms.get_potential_energy()
    atoms.arrays["REF_forces"] = atoms.get_forces()
    if stress:
        atoms.info["REF_stress"] = atoms.get_stress(voigt=False).ravel()
    atoms.info.update(info)
    atoms.calc = None
    return atoms


def rattled(atoms: Atoms, size: float, rng: np.random.Generator) -> Atoms:
    """Return a copy with every coordinate moved by a normal random number of that size in Angstrom."""
    atoms = atoms.copy()
    atoms.positions += rng.normal(0.0, size, atoms.positions.shape)
    return atoms


def isolated_atoms(symbols: Iterable[str] = "HO") -> list[Atoms]:
    """Frames from which reference energies are read."""
    return [labeled(Atoms(symbol), config_type="IsolatedAtom") for symbol in symbols]


def water(count: int, seed: int = 0, **info: Any) -> list[Atoms]:
    """Distorted water molecules."""
    rng = np.random.default_rng(seed)
    return [labeled(rattled(molecule("H2O"), 0.05, rng), **info) for _ in range(count)]


def copper(count: int, seed: int = 0, **info: Any) -> list[Atoms]:
    """Distorted crystals of one cubic cell, labeled with stress too."""
    rng = np.random.default_rng(seed)
    return [labeled(rattled(bulk("Cu", cubic=True), 0.08, rng), stress=True, **info) for _ in range(count)]


def write_water(path: Path, count: int = 12, seed: int = 0) -> Path:
    """Write water molecules and the isolated atoms they need."""
    write(path, isolated_atoms() + water(count, seed), format="extxyz")
    return path


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the history without what a clock says."""
    return {key: value for key, value in record.items() if not key.startswith("time")}


def same(one: Any, other: Any) -> bool:
    """Compare states bit for bit, whatever they are nested in."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        settings: Its settings.
        folder: Its working folder.
        shown: What it wrote to the terminal.
    """

    settings: TrainingSettings
    folder: Path
    shown: str

    @property
    def tag(self) -> str:
        """How its files begin."""
        return f"{self.settings.name}_run-{self.settings.seed}"

    @property
    def log(self) -> str:
        """The log file."""
        return (self.folder / "logs" / f"{self.tag}.log").read_text(encoding="utf-8")

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of the history."""
        return list(read_records(self.folder / "results" / f"{self.tag}_train.txt"))

    @property
    def epochs_trained(self) -> list[int]:
        """Epochs with at least one step, in the order in which they were run."""
        return list(dict.fromkeys(record["epoch"] for record in self.records if record["mode"] == "opt"))

    @property
    def epochs_evaluated(self) -> list[int | None]:
        """Epochs that were validated."""
        return [record["epoch"] for record in self.records if record["mode"] == "eval"]

    def weights(self, ending: str = "") -> dict[str, Tensor]:
        """The weights of the final model; ``_stagetwo`` for those of stage two."""
        return dict(load_model(self.folder / f"{self.settings.name}{ending}.model").model.named_parameters())

    def last_state(self) -> dict[str, Any]:
        """The complete state at the end."""
        return load_safely(self.folder / "checkpoints" / f"{self.tag}_last.pt")

    def said(self, pattern: str) -> bool:
        """Tell whether the log has a line that matches."""
        return re.search(pattern, self.log) is not None


def settings_of(folder: Path, train_file: Path | str | None, *flags: str) -> TrainingSettings:
    """Read settings of a tiny run in a folder; later flags win."""
    files = () if train_file is None else (f"--train_file={train_file}",)
    by_size = any(flag.startswith(("--batch_edges", "--batch_atoms")) for flag in flags)
    quick = [flag for flag in QUICK if not (by_size and flag.startswith("--batch_size"))]
    return parse_training_settings([*TINY_MODEL, *quick, f"--work_dir={folder}", *files, *flags])


def train(folder: Path, train_file: Path | str | None, *flags: str) -> Run:
    """Train a tiny model in this process."""
    settings = settings_of(folder, train_file, *flags)
    output = io.StringIO()
    run_training(settings, Console(file=output, width=200))
    return Run(settings, folder, output.getvalue())


def prepared(folder: Path, *flags: str) -> Preparation:
    """Read the data of a run and plan its model, without training it."""
    choices = settle_choices(settings_of(folder, None, *flags))
    with run_context(choices, Console(file=io.StringIO())) as run:
        return plan_model(run, read_data(run, choices.losses))


def write_frames(path: Path, frames: Iterable[Atoms]) -> Path:
    """Write structures with whatever labels they carry."""
    write(path, list(frames), format="extxyz")
    return path


def at_level(frames: Iterable[Atoms], factor: float, shift: float, **info: Any) -> list[Atoms]:
    """Return copies with energies and forces of another level of theory.

    Args:
        frames: Structures with ``REF_energy`` and ``REF_forces``.
        factor: Multiplies both.
        shift: Is added to the energy of each atom, in eV.
        **info: Entries of the comment line.
    """
    changed = [atoms.copy() for atoms in frames]
    for atoms in changed:
        atoms.info["REF_energy"] = factor * atoms.info["REF_energy"] + shift * len(atoms)
        atoms.arrays["REF_forces"] *= factor
        atoms.info.update(info)
    return changed
