"""How much longer training takes while another run uses the same cores: runs of the command, alone and two at once.

    python benchmarks/sharing.py
    python benchmarks/sharing.py --models 32 --repeats 1 --seconds 4    # a quick trial

Each run is a ``mace_run_train`` on acetylacetone, batches of 10 molecules, float32. Steps are counted for some seconds
while all runs train; evaluation and saving are in the time. ``as before`` has as many threads as cores, which spin as
long as the runtime of GCC lets them by itself; ``now`` leaves both to the program. Cases take turns.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import ase.io
from molecules import read_molecules
from report import machine_facts

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "32": ["--num_channels=32", "--max_L=1", "--max_ell=2", "--correlation=2"],
    "default": ["--num_channels=128", "--max_L=1", "--max_ell=3", "--correlation=3"],
}
COMMON = (
    *("--E0s=average", "--valid_fraction=0.05", "--batch_size=10", "--default_dtype=float32", "--ema", "--amsgrad"),
    *("--energy_key=energy", "--forces_key=forces", "--max_num_epochs=100000", "--eval_interval=5", "--seed=1"),
    *("--no_report", "--quiet", "--progress=off", "--plot=False"),
)
WARM = 20
"""Steps of each run before any is counted."""

PATIENCE = 300.0
"""Seconds for a run to begin."""

CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "as before": ([f"--num_threads={os.cpu_count()}"], {"GOMP_SPINCOUNT": "300000"}),
    "now": ([], {}),
    "one thread": (["--num_threads=1"], {}),
    "passive": ([f"--num_threads={os.cpu_count()}"], {"OMP_WAIT_POLICY": "passive"}),
}
"""Flags and environment."""

_SET_HERE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


class Training:
    """A run that trains until it is ended.

    Args:
        folder: Where it writes.
        data: The structures.
        flags: Of the command.
        environment: Variables that are set; others that decide about threads are not.
    """

    def __init__(self, folder: Path, data: Path, flags: list[str], environment: Mapping[str, str]) -> None:
        self._folder = folder
        command = [sys.executable, "-m", "mace.cli.run_train", "--name=run", f"--work_dir={folder}"]
        kept = {key: value for key, value in os.environ.items() if key not in _SET_HERE}
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [*command, f"--train_file={data}", *COMMON, *flags],
            cwd=ROOT,
            env=kept | environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def steps(self) -> int:
        """Return how many steps have been taken."""
        file = self._folder / "results" / "run_run-1_train.txt"
        return file.read_bytes().count(b'"mode": "opt"') if file.exists() else 0

    def threads(self) -> str:
        """Return the number of threads it uses."""
        log = next(self._folder.glob("logs/*.log")).read_text(encoding="utf-8")
        found = re.findall(r"Threads: (\d+)|Using cpu, float32, (\d+) thread", log)[-1]
        return found[0] or found[1]

    def wait(self) -> None:
        """Wait until it trains."""
        end = time.monotonic() + PATIENCE
        while self.steps() < WARM:
            if self._process.poll() is not None or time.monotonic() > end:
                self._output.seek(0)
                raise SystemExit(f"a run does not train:\n{self._output.read()[-3000:]}")
            time.sleep(0.1)

    def end(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._output.close()
        shutil.rmtree(self._folder)


def measure(folder: Path, data: Path, model: str, case: str, runs: int, options: argparse.Namespace) -> list[float]:
    """Return the milliseconds of a step of each of some runs at once, and show what is measured."""
    flags, environment = CASES[case]
    trainings: list[Training] = []
    try:
        for number in range(runs):
            trainings.append(Training(folder / f"{number}", data, [*MODELS[model], *flags], environment))
            if options.apart:
                trainings[-1].wait()
        for training in trainings:
            training.wait()
        before, start = [training.steps() for training in trainings], time.perf_counter()
        time.sleep(options.seconds)
        after, elapsed = [training.steps() for training in trainings], time.perf_counter() - start
        threads = ", ".join(training.threads() for training in trainings)
    finally:
        for training in trainings:
            training.end()
    found = [1e3 * elapsed / max(late - early, 0.5) for early, late in zip(before, after, strict=True)]
    shown = ", ".join(f"{time_of:.1f}" for time_of in found)
    print(f"  {model}, {case}, {runs} at once: {shown} ms; threads: {threads}", flush=True)
    return found


def spread(values: list[float], digits: int) -> str:
    """Show the median and the range of some values."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "acac", help="acetylacetone")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which models")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["as before", "now"], help="which settings")
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is measured")
    parser.add_argument("--seconds", type=float, default=15.0, help="for which steps are counted")
    parser.add_argument("--apart", action="store_true", help="the second run starts once the first one trains")
    options = parser.parse_args()
    print(machine_facts())
    rows: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, data = Path(temporary), Path(temporary) / "data.xyz"
        ase.io.write(data, read_molecules(options.data)[:200], format="extxyz")
        for _ in range(options.repeats):
            for model in options.models:
                for case in options.cases:
                    alone, both = rows.setdefault((model, case), ([], []))
                    alone += measure(folder, data, model, case, 1, options)
                    both += measure(folder, data, model, case, 2, options)
    print("| model | settings | alone, ms for a step | two at once, each | ratio | ratio to as before, alone |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (model, case), (alone, both) in rows.items():
        first = statistics.median(rows[model, options.cases[0]][0])
        cells = [spread(alone, 1), spread(both, 1), spread([x / statistics.median(alone) for x in both], 2)]
        print("| " + " | ".join([model, case, *cells, f"{statistics.median(both) / first:.2f}"]) + " |")


if __name__ == "__main__":
    main()
