"""Batches of equal work beside batches of equally many structures, on clusters of some atoms and cells of 200.

    python benchmarks/batch_edges.py --folder runs/batch_edges --seeds 1 2 3

Gold and copper with the labels of ASE's effective-medium potential: nine clusters of 3 to 13 atoms for each crystal of
200. Both ways have about as many structures in a step on average, the same model, seeds and epochs. Printed are the
sizes of the batches, peak memory and processor time of each step of an epoch (a process of its own, which measures
before and after every step), and errors on test sets of both kinds. Trainings that are done are not repeated.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--model=ScaleShiftMACE", "--num_channels=16", "--max_L=1", "--max_ell=2", "--correlation=2", "--r_max=5.0",
    "--default_dtype=float32", "--lr=0.01", "--ema", "--ema_decay=0.99", "--swa", "--num_threads=1", "--quiet",
    "--plot=False", "--no_report", "--valid_fraction=0.1",
]  # fmt: skip
ELEMENTS, SPACING = ("Cu", "Au"), (3.7, 4.0)


def main() -> None:
    """Train both ways with all seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=40, help="crystals to train on; of clusters, nine times as many")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--edges", type=int, default=18_000, help="in a batch, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/batch_edges"), help="folder for data and runs")
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.xyz").exists():
        make_data(folder, options.cells)
    shared = [
        f"--train_file={folder / 'train.xyz'}",
        f"--test_file={folder / 'test.xyz'}",
        f"--work_dir={folder}",
        *FLAGS,
    ]
    by_edges = [f"--batch_edges={options.edges}"]
    second = measured(folder, "edges", [*shared, *by_edges])
    by_number = [f"--batch_size={round(np.mean([step['structures'] for step in second]))}"]
    first = measured(folder, "number", [*shared, *by_number])
    print("| batches | steps | structures | edges | peak memory, MB | processor s per step | per epoch |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (flag,), steps in ((by_number, first), (by_edges, second)):
        columns = [spread([step[name] for step in steps], digits) for name, digits in COLUMNS.items()]
        total = sum(step["seconds"] for step in steps)
        print(f"| `{flag}` | {len(steps)} | " + " | ".join(columns) + f" | {total:.2f} |")
    print("\n| batches | clusters: E, meV/atom | F, meV/A | cells: E, meV/atom | F, meV/A | processor s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, flags in (("number", by_number), ("edges", by_edges)):
        rows = [train(f"by_{name}", [*shared, *flags], options.epochs, seed, folder) for seed in options.seeds]
        cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(np.mean(rows, 0), np.std(rows, 0), strict=True)]
        print(f"| `{flags[0]}` | " + " | ".join(cells) + " |")


COLUMNS = {"structures": 0, "edges": 0, "peak": 0, "seconds": 3}
"""What is measured of a step, and the digits after the point."""


def spread(values: list[float], digits: int) -> str:
    """Write mean, smallest and largest number."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def make_data(folder: Path, n_cells: int) -> None:
    """Write the files."""
    rng = np.random.default_rng(0)

    def some(cells: int) -> list[Atoms]:
        return [crystal(rng) for _ in range(cells)] + [cluster(rng) for _ in range(9 * cells)]

    isolated = [labeled(Atoms(element), "IsolatedAtom") for element in ELEMENTS]
    write(folder / "train.xyz", isolated + some(n_cells), format="extxyz")
    write(folder / "test.xyz", some(max(4, n_cells // 5)), format="extxyz")


def crystal(rng: np.random.Generator) -> Atoms:
    """Return a distorted crystal of 200 atoms, both elements at random."""
    atoms = bulk("Cu", "fcc", a=rng.uniform(*SPACING), cubic=True) * (5, 5, 2)
    return labeled(shaken(atoms, rng), "cell")


def cluster(rng: np.random.Generator) -> Atoms:
    """Return 3 to 13 atoms that are neighbors in a crystal."""
    atoms = bulk("Cu", "fcc", a=rng.uniform(*SPACING), cubic=True) * (3, 3, 3)
    nearest = np.argsort(np.linalg.norm(atoms.positions - atoms.positions[len(atoms) // 2], axis=1), kind="stable")
    chosen = atoms[nearest[: rng.integers(3, 14)].tolist()]
    chosen.pbc, chosen.cell = False, None
    return labeled(shaken(chosen, rng), "cluster")


def shaken(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Choose elements at random and move all atoms."""
    atoms.symbols = rng.choice(ELEMENTS, len(atoms)).tolist()
    atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
    return atoms


def labeled(atoms: Atoms, config_type: str) -> Atoms:
    """Attach energy and forces."""
    atoms.calc = EMT()
    atoms.info |= {"REF_energy": atoms.get_potential_energy(), "config_type": config_type}
    atoms.arrays["REF_forces"] = atoms.get_forces()
    atoms.calc = None
    return atoms


def measured(folder: Path, name: str, flags: list[str]) -> list[dict[str, float]]:
    """Measure every step of an epoch in a process of its own."""
    command = [sys.executable, __file__, "--measure", f"--name=measured_{name}", "--max_num_epochs=1", *flags]
    command = [
        *command[:3],
        *(flag.replace("--", "++", 1) for flag in command[3:]),
    ]  # they are not those of this program
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    steps: list[dict[str, float]] = json.loads(found.stdout.splitlines()[-1])
    return steps


def measure(flags: list[str]) -> None:
    """Take the steps of two epochs, and print what those of the second one needed, as JSON."""
    from mace.runs.context import run_context
    from mace.runs.run import build_model, plan_model, read_data, settle_choices
    from mace.runs.trainer import open_trainer
    from mace.settings import parse_training_settings

    settings = parse_training_settings([flag.replace("++", "--", 1) for flag in flags])
    choices = settle_choices(settings)
    with run_context(choices, Console(file=io.StringIO())) as run:
        preparation = plan_model(run, read_data(run, choices.losses))
        with open_trainer(run, preparation, build_model(run, preparation)) as trainer:
            found: list[dict[str, float]] = []
            for epoch in range(2):
                found.clear()
                for step in trainer.batch_plan.steps(epoch):
                    gc.collect()
                    ctypes.CDLL(None).malloc_trim(
                        0
                    )  # what is free is given back, so that the next peak is one of its own
                    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
                    start = time.process_time()
                    trainer.batch_step.take(step, trainer.state.loss, (False, False)).read()
                    seconds = time.process_time() - start
                    status = Path("/proc/self/status").read_text()
                    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]
                    edges = int(trainer.train_set.edges_of(step.structures).sum())
                    n_structures = len(step.structures)
                    found.append({"structures": n_structures, "edges": edges, "peak": peak, "seconds": seconds})
    print(json.dumps(found))


def train(name: str, flags: list[str], epochs: int, seed: int, folder: Path) -> list[float]:
    """Train once; return the errors on the test set of clusters and cells, and the processor seconds."""
    done = folder / f"{name}_{seed}.seconds"
    if not done.exists():
        run = [f"--name={name}", f"--seed={seed}", f"--max_num_epochs={epochs}", f"--start_swa={epochs * 3 // 4}"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "mace.cli.run_train", *run, *flags]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        done.write_text(f"{after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}\n", encoding="utf-8")
    log = (folder / "logs" / f"{name}_run-{seed}.log").read_text(encoding="utf-8")
    table = log.rsplit("Error-table on TEST", 1)[1]
    found = []
    for kind in ("cluster", "cell"):
        row = re.search(rf"^\| {kind}_Default +\| +([\d.]+) \| +([\d.]+) ", table, re.MULTILINE)
        assert row is not None, f"no row {kind} in the table"
        found += [float(row[1]), float(row[2])]
    return [*found, float(done.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    main()
