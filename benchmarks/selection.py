"""Measure memory and time of selecting replay structures by farthest points.

python benchmarks/selection.py [--frames 50000] [--samples 2000] [--channels 128] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from report import machine_facts, write_json

from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.plan import InteractionPlan, ModelPlan

MOLECULES = Path(__file__).resolve().parents[1] / "examples" / "methanol" / "methanol_test.xyz"
DISPLACEMENT = 0.05
"""Standard deviation of what every coordinate is moved by, Angstrom."""


def make_options() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=50000, help="structures to select from (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=2000, help="structures to select (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=128, help="channels of the model (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser


def write_model(path: Path, channels: int) -> None:
    """Write a model of two layers without vectors, with random weights."""
    plan = ModelPlan(
        model="ScaleShiftMACE",
        r_max=5.0,
        n_channels=channels,
        hidden_l=(0,),
        interactions=(InteractionPlan(residual=True), InteractionPlan(residual=True)),
        correlation=(3, 3),
        avg_num_neighbors=20.0,
        atomic_numbers=(1, 6, 8, 14),
        reference_energies=(-13.0, -1030.0, -2040.0, -7880.0),
    )
    save_model(path, MACE(plan, torch.float64).initialize(torch.Generator().manual_seed(1)))


def write_structures(path: Path, count: int) -> None:
    """Write methanol molecules and cells of silicon in turn, each with its atoms moved a little, and labels."""
    molecules: list[Atoms] = [atoms for atoms in ase.io.read(MOLECULES, ":") if len(atoms) == 6]
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        for place in range(count):
            methanol = molecules[place % len(molecules)]
            atoms = methanol.copy() if place % 2 else bulk("Si", a=random.uniform(5.3, 5.6), cubic=True)
            atoms.positions += random.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
            atoms.info["REF_energy"], atoms.arrays["REF_forces"] = 0.0, np.zeros_like(atoms.positions)
            ase.io.write(stream, atoms, format="extxyz")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    options = make_options().parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "random.model", options.channels)
        write_structures(folder / "all.xyz", options.frames)
        words = ["--configs_pt=all.xyz", "--output=selected.xyz", "--model=random.model", "--subselect=fps"]
        words += [f"--num_samples={options.samples}", f"--default_dtype={options.dtype}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        began = time.perf_counter()
        command = [sys.executable, "-m", "mace.cli.fine_tuning_select", *words]
        status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        seconds = time.perf_counter() - began
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{options.samples} of {options.frames}: {seconds:.0f} s, largest resident memory {largest / 1e6:.0f} MB")
    if options.json:
        found = {"seconds": seconds, "largest_resident_bytes": largest}
        write_json(options.json, machine_facts(), vars(options), [found])
    return status


if __name__ == "__main__":
    sys.exit(main())
