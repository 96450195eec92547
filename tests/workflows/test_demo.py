"""The demo, with a few steps of everything it does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from ase.io import read

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "methanol"


def test_the_demo_trains_compares_and_runs_dynamics(tmp_path: Path) -> None:
    arguments = ["--epochs", "2", "--steps", "20", "--work_dir", str(tmp_path)]
    finished = subprocess.run(
        [sys.executable, DEMO / "demo.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # the checkout, installed or not
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    output = finished.stdout
    assert "Error-table on TEST" in output

    forces = re.search(r"of the forces: ([\d.]+) meV/A", output)
    assert forces is not None and float(forces[1]) < 600.0, "two epochs bring the error well below the forces' size"
    drift = re.search(r"Drift of the total energy: (-?[\d.]+) meV/atom per ps", output)
    assert drift is not None

    assert len(read(tmp_path / "nve.xyz", ":")) == 3
    for name in ("methanol.model", "methanol_stagetwo.model", "results/methanol_run-1_learning_curves.png"):
        assert (tmp_path / name).is_file(), name
    for path in re.findall(r"^\w+: +(/\S+)$", output, flags=re.MULTILINE):
        assert Path(path).exists(), path
    records = (tmp_path / "results" / "methanol_run-1_train.txt").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["mode"] for line in records} == {"opt", "eval"}
