"""Do the benchmarks of devices start where there is none, and do all kernels compile for one that is not there?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def run(*words: str | Path, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    """Run a benchmark in a process in which Triton compiles."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


@pytest.mark.slow
def test_everything_on_a_device_is_measured_in_small(tmp_path: Path) -> None:
    file = tmp_path / "gpu.jsonl"
    flags = ["--device", "cpu", "--quick", "--seconds", "0.05", "--threads", "1", "--data", tmp_path]
    done = run(ROOT / "benchmarks" / "gpu.py", *flags, "--results", file)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if "error" in line]
    measured = {line["side"] for line in lines if "median_s" in line}
    assert measured == {"C kernels", "Triton, interpreted", "torch kernels"}, done.stdout
    deviations = [line["deviation"] for line in lines if "deviation" in line]
    assert deviations and all(max(each.values()) < 1e-4 for each in deviations)
    agreements = [line["forces"] for line in lines if "agreement" in line]
    assert agreements and max(agreements) < 1e-4
    assert "captured steps: it needs a graphics processor" in done.stdout
    shown = run(ROOT / "benchmarks" / "gpu.py", "--show", file)
    assert shown.stdout == done.stdout


def test_time_of_a_step_is_predicted(tmp_path: Path) -> None:
    flags = ["--hidden-irreps", "32x0e", "--l-max", "1", "--correlation", "2", "--crystals", "2", "--sizes", "50"]
    file = tmp_path / "predicted.json"
    done = run(ROOT / "benchmarks" / "predicted.py", *flags, "--molecules", "2", "40", "--json", file)
    assert done.returncode == 0, done.stderr
    few, many, *others = json.loads(file.read_text(encoding="utf-8"))["predictions"]
    assert few["atoms"] == 30 and many["atoms"] == 600 and len(others) == 2
    for what in ("gigabytes", "gigaflops", "without_latency"):
        assert 0.0 < few[what] < many[what], what
    assert 0 <= many["launches"] - few["launches"] < 5 and few["milliseconds"] > 2e-3 * few["launches"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_kernels_of_each_family_compile(tmp_path: Path, target: str) -> None:
    families = ["conv_forward", "contraction_forward", "geometry_value", "products", "packing", "zeros"]
    flags = ["--hidden-irreps", "32x0e+32x1o", "--l-max", "1", "--correlation", "2", "--radial-mlp", "32"]
    flags += ["--targets", target, "--dtype", "float32", "--one-of-each", "--json", str(tmp_path / "table.json")]
    done = run(ROOT / "benchmarks" / "kernel_resources.py", *flags, "--kernels", *families)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert {one["kernel"].split("_")[0].split(" ")[0] for one in found} >= {
        "conv",
        "contraction",
        "geometry",
        "products",
    }
    assert all(one["registers"] > 0 and one["instructions"] > 0 and not one["spill_stores"] for one in found)
