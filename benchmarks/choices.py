"""What each choice of the model costs and brings: short trainings on methanol, one setting changed at a time.

    python benchmarks/choices.py --folder runs/choices

Each row is a run of the command ``mace_run_train`` in one thread. Time is that of the processor for the whole run;
errors are those of the test set after the last stage. Runs that are done are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

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


def train(changes: dict[str, object], folder: Path) -> dict[str, float]:
    """Train once, or read what an earlier call measured.

    Returns:
        Processor time in seconds, parameters, and the errors of the test set.
    """
    name = "-".join(f"{key}_{value}" for key, value in changes.items()) or "base"
    file = folder / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    settings = {"ema": True, "swa": True} | BASE | changes
    if not settings["swa"]:
        del settings["start_swa"]
    flags = [f"--{key}" for key, value in settings.items() if value is True]
    flags += [f"--{key}={value}" for key, value in settings.items() if value is not True and key not in ("ema", "swa")]
    places = [f"--name={name}", f"--work_dir={folder}", f"--test_file={folder / 'test.xyz'}"]
    command = [sys.executable, "-m", "mace.cli.run_train", *places, *flags]
    before = os.times()
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ).stdout
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    (parameters,) = re.findall(r"Number of parameters: (\d+)", output)
    energy, forces = re.findall(r"\|\s*Default_Default\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)", output)[-1]
    result = {"seconds": seconds, "parameters": int(parameters)}
    result |= {"energy": float(energy), "forces": float(forces)}
    file.write_text(json.dumps(result), encoding="utf-8")
    return result


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
    print("| changed | parameters | processor time, s | RMSE E, meV/atom | RMSE F, meV/A |")
    print("| --- | --- | --- | --- | --- |")
    for changes in CHANGES:
        found = train(changes, folder)
        words = ", ".join(f"`{key}={value}`" for key, value in changes.items()) or "nothing"
        row = [words, f"{found['parameters']:,}", f"{found['seconds']:.0f}", f"{found['energy']:.1f}"]
        print("| " + " | ".join([*row, f"{found['forces']:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
