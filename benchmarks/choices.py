"""What each choice of the model costs and brings: short trainings on methanol, one setting changed at a time.

    python benchmarks/choices.py --folder runs/choices

Each row is a run of the command ``mace_run_train`` in one thread. Time is that of a step: of the fastest tenth, the
slowest, which other programs on the machine change little. Errors are those of the test set after the last stage.
Trainings that are done are not repeated, but every call times one epoch more and keeps the shorter time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.io import read, write

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "methanol"
BASE = {
    "train_file": str(DATA / "methanol_train.xyz"),
    "model": "ScaleShiftMACE",
    "num_channels": 32,
    "max_L": 1,
    "max_ell": 3,
    "correlation": 3,
    "num_interactions": 2,
    "r_max": 5.0,
    "batch_size": 5,
    "default_dtype": "float32",
    "max_num_epochs": 16,
    "start_swa": 12,
    "eval_interval": 4,
    "num_threads": 1,
    "plot": False,
    "seed": 1,
}
CHANGES: list[dict[str, object]] = [
    {},
    {"seed": 2},
    {"seed": 3},
    {"num_channels": 16},
    {"num_channels": 64},
    {"max_L": 0},
    {"max_L": 2},
    {"num_interactions": 1},
    {"num_interactions": 3},
    {"correlation": 1},
    {"correlation": 2},
    {"max_ell": 1},
    {"max_ell": 2},
    {"r_max": 3.0},
    {"r_max": 4.0},
    {"r_max": 6.0},
    {"batch_size": 2},
    {"batch_size": 20},
    {"default_dtype": "float64"},
    {"E0s": "average"},
    {"ema": False},
    {"swa": False},
]


def run(name: str, changes: dict[str, object], folder: Path) -> tuple[str, float]:
    """Train, and return what was printed and the milliseconds of a step."""
    settings = {"ema": True, "swa": True} | BASE | changes
    if not settings["swa"]:
        del settings["start_swa"]
    flags = [f"--{key}" for key, value in settings.items() if value is True]
    flags += [f"--{key}={value}" for key, value in settings.items() if value is not True and key not in ("ema", "swa")]
    places = [f"--name={name}", f"--work_dir={folder}", f"--test_file={folder / 'test.xyz'}"]
    command = [sys.executable, "-m", "mace.cli.run_train", *places, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return done.stdout, step_time(folder / "results" / f"{name}_run-{settings['seed']}_train.txt")


def train(changes: dict[str, object], folder: Path) -> dict[str, float]:
    """Train once, or read what an earlier call measured; then time one epoch more.

    Returns:
        Milliseconds of a step (the shortest so far), parameters, and the errors of the test set.
    """
    name = "-".join(f"{key}_{value}" for key, value in changes.items()) or "base"
    file = folder / f"{name}.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not result:
        output, result["milliseconds"] = run(name, changes, folder)
        (parameters,) = re.findall(r"Number of parameters: (\d+)", output)
        energy, forces = re.findall(r"\|\s*Default_Default\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)", output)[-1]
        result |= {"parameters": int(parameters), "energy": float(energy), "forces": float(forces)}
    _, again = run(f"{name}-again", changes | {"max_num_epochs": 1, "start_swa": 1}, folder)
    result["milliseconds"] = min(result.get("milliseconds", again), again)
    file.write_text(json.dumps(result), encoding="utf-8")
    return result


def step_time(records: Path) -> float:
    """Read how long steps took, in ms; a tenth of them took less than this."""
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    return 1e3 * float(np.quantile([line["time"] for line in lines if line["mode"] == "opt"], 0.1))


def main() -> None:
    """Train all variants and print the table."""
    parser = argparse.ArgumentParser(description="Cost and benefit of the choices of a model.")
    parser.add_argument("--folder", type=Path, default=Path("runs/choices"), help="folder for all runs")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    structures = read(DATA / "methanol_test.xyz", ":")
    for atoms in structures:
        del atoms.info["config_type"]  # one row for all in the table of errors
    write(folder / "test.xyz", structures)
    print("| changed | parameters | time of a step, ms | RMSE E, meV/atom | RMSE F, meV/A |")
    print("| --- | --- | --- | --- | --- |")
    for changes in CHANGES:
        found = train(changes, folder)
        words = ", ".join(f"`{key}={value}`" for key, value in changes.items()) or "nothing"
        row = [words, f"{found['parameters']:,}", f"{found['milliseconds']:.1f}", f"{found['energy']:.1f}"]
        print("| " + " | ".join([*row, f"{found['forces']:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
