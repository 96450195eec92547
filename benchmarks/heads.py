"""Several heads beside models of their own: NaCl in water at four levels of theory, for the same processor time.

    python benchmarks/heads.py --folder runs/heads --seeds 1 2 3

One model with four heads goes through all training structures ``--epochs`` times. Each of four models of the same size,
trained on one level alone, goes through a quarter of that number of structures, so that the four together take as long.
Printed are root mean square errors on the test sets of each level, and processor seconds. The compositions do not
determine E0s, so those of smallest norm that fit a level are given for it. Trainings that are done are not repeated.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from ase.io import read

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {"revPBE0": "revPBE0-D3", "r2SCAN": "r2SCAN", "optB88": "optB88-vdW", "MP2": "MP2"}
"""Names of the heads, and beginnings of the names of files."""

ELEMENTS = (1, 8, 11, 17)
FLAGS = [
    "--model=ScaleShiftMACE", "--num_channels=16", "--max_L=1", "--max_ell=2", "--correlation=2", "--r_max=4.5",
    "--batch_size=2", "--valid_batch_size=4", "--default_dtype=float32", "--lr=0.01", "--ema", "--ema_decay=0.995",
    "--swa", "--num_threads=1", "--quiet", "--plot=False", "--no_report",
]  # fmt: skip


def settings_of(level: str, data: Path) -> dict[str, object]:
    """Return files and E0s of a level of theory."""
    train_file, test_file = (str(data / f"{level}_{part}.extxyz") for part in ("train", "test"))
    structures = read(train_file, ":")
    counts = np.array([[(atoms.numbers == z).sum() for z in ELEMENTS] for atoms in structures], dtype=float)
    energies = np.array([atoms.info["REF_energy"] for atoms in structures])
    solution = np.linalg.lstsq(counts, energies, rcond=None)[0]
    E0s = {z: float(energy) for z, energy in zip(ELEMENTS, solution, strict=True)}
    return {"train_file": train_file, "test_file": test_file, "E0s": E0s}


def train(name: str, settings: dict[str, object], epochs: int, seed: int, folder: Path) -> tuple[str, float]:
    """Train once, and return the log and the processor seconds; of a training that is done, those that it took."""
    done, config = folder / f"{name}_{seed}.seconds", folder / f"{name}.yaml"
    if not done.exists():
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        run = [f"--name={name}", f"--seed={seed}", f"--config={config}", f"--work_dir={folder}"]
        run += [f"--max_num_epochs={epochs}", f"--start_swa={epochs * 3 // 4}"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "mace.cli.run_train", *run, *FLAGS]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        done.write_text(f"{seconds}\n", encoding="utf-8")
    log = (folder / "logs" / f"{name}_run-{seed}.log").read_text(encoding="utf-8")
    return log, float(done.read_text(encoding="utf-8"))


def errors(log: str, row: str) -> tuple[float, float]:
    """Return the errors of energy and forces in a row of the last table of test sets."""
    table = log.rsplit("Error-table on TEST", 1)[1]
    found = re.search(rf"^\| {re.escape(row)} +\| +([\d.]+) \| +([\d.]+) ", table, re.MULTILINE)
    assert found is not None, f"no row {row} in the table"
    return float(found[1]), float(found[2])


def main() -> None:
    """Train with all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "nacl_water", metavar="DIR")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of the model with four heads")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/heads"), help="folder for all runs")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    heads = {name: settings_of(level, options.data.resolve()) for name, level in LEVELS.items()}
    sizes = {name: len(read(str(settings["train_file"]), ":")) for name, settings in heads.items()}
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in heads}
    seconds = []
    for seed in options.seeds:
        together, spent = train("together", {"heads": heads}, options.epochs, seed, folder)
        spent_alone = 0.0
        for name, level in LEVELS.items():
            epochs = round(options.epochs * sum(sizes.values()) / len(sizes) / sizes[name])
            alone, more = train(f"alone_{name}", heads[name], epochs, seed, folder)
            spent_alone += more
            found[name].append((*errors(together, f"{level}_{name}"), *errors(alone, f"{level}_Default")))
        seconds.append((spent, spent_alone))
    print("| level | structures | heads: E, meV/atom | heads: F, meV/A | alone: E, meV/atom | alone: F, meV/A |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, values in found.items():
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(np.mean(values, 0), np.std(values, 0), strict=True)]
        print("| " + " | ".join([LEVELS[name], str(sizes[name]), *cells]) + " |")
    print("\nProcessor seconds, together and alone: " + "; ".join(f"{a:.0f}, {b:.0f}" for a, b in seconds))


if __name__ == "__main__":
    main()
