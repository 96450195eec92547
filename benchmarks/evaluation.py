"""Compare the throughput of evaluating a file with that of the bare model on batches that are ready.

python benchmarks/evaluation.py [--model FILE] [--dtype float32] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import torch
from report import machine_facts, write_json
from rich.console import Console
from rich.table import Table

from mace.elements import ElementTable
from mace.evaluation.evaluation import Wanted, evaluate_files
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.model.prediction import predict
from mace.potential.potential import Potential, open_potential
from mace.structures.reading import read_configurations

STRUCTURES = Path(__file__).resolve().parents[1] / "examples" / "methanol" / "methanol_test.xyz"
DISPLACEMENT = 0.01
"""Standard deviation of what every coordinate of the copied molecules is moved by, Angstrom."""


@dataclass(frozen=True)
class Throughput:
    """Structures per second.

    Attributes:
        bare: Of the model, given batches of neighbors.
        evaluation: Of neighbors, batches, predictions, errors and writing.
        command: Of all that and reading.
    """

    bare: float
    evaluation: float
    command: float


def make_options() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model file; without it the usual size with random weights: 128x0e + 128x1o")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--frames", type=int, default=10000, help="molecules of methanol (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="how often; the median ratio counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser


def usual_model() -> MACE:
    """Make a model of the usual size with random weights."""
    plan = ModelPlan(
        model="ScaleShiftMACE",
        r_max=5.0,
        n_channels=128,
        hidden_l=(0, 1),
        interactions=(InteractionPlan(residual=True), InteractionPlan(residual=True)),
        correlation=(3, 3),
        avg_num_neighbors=5.0,
        atomic_numbers=(1, 6, 8),
        reference_energies=(-13.0, -1030.0, -2040.0),
    )
    return MACE(plan, torch.float64).initialize(torch.Generator().manual_seed(1))


def write_structures(path: Path, count: int) -> None:
    """Copy the molecules of the methanol set, each moved a little."""
    molecules = [atoms for atoms in ase.io.read(STRUCTURES, ":") if len(atoms) == 6]
    random, frames = np.random.default_rng(0), []
    for place in range(count):
        atoms = molecules[place % len(molecules)].copy()
        atoms.positions += random.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def measure(potential: Potential, path: Path, batch_size: int) -> Throughput:
    """Measure the three in turn."""
    model = potential.models[0]
    dataset = InMemoryDataset(
        read_configurations(path).configurations, ElementTable(model.plan.atomic_numbers), model.plan.r_max
    )
    graphs = [batch.graph for batch in dataset.batches(batch_size)]
    predict(model, graphs[0])
    began = time.perf_counter()
    for graph in graphs:
        predict(model, graph)
    bare = time.perf_counter() - began
    began = time.perf_counter()
    summary = evaluate_files(potential, path, path.with_suffix(".out.xyz"), Wanted(), batch_size)
    command = time.perf_counter() - began
    count = summary.n_structures
    return Throughput(count / bare, count / summary.seconds, count / command)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    options = make_options().parse_args(arguments)
    torch.set_num_threads(options.threads)
    potential = open_potential(options.model or usual_model(), precision=options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "methanol.xyz"
        write_structures(path, options.frames)
        rounds = [measure(potential, path, options.batch_size) for _ in range(options.rounds)]
    table = Table("round", "bare model /s", "evaluation /s", "ratio", "with reading /s", "ratio")
    for place, found in enumerate(rounds):
        numbers = (found.bare, found.evaluation, found.command)
        bare, evaluation, command = (f"{number:.0f}" for number in numbers)
        ratios = f"{found.evaluation / found.bare:.3f}", f"{found.command / found.bare:.3f}"
        table.add_row(str(place), bare, evaluation, ratios[0], command, ratios[1])
    Console().print(table)
    ratios = [float(np.median([r.evaluation / r.bare for r in rounds]))]
    ratios.append(float(np.median([r.command / r.bare for r in rounds])))
    print(f"Median ratio to the bare model: evaluation {ratios[0]:.3f}, with reading {ratios[1]:.3f}")
    if options.json:
        write_json(options.json, machine_facts(), vars(options), [vars(found) for found in rounds])
    return 0


if __name__ == "__main__":
    sys.exit(main())
