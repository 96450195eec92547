"""Prepare and train on structures by the million, and mace-torch on some thousands of them. Linux only.

    python benchmarks/large_data.py --folder runs/large --structures 10000 100000 1000000 --peer-python PATH

Structures are those of `make_structures.py`. ``mace_prepare_data`` makes them ready, ``mace_run_train`` takes some
steps from what it wrote and is ended. Time and memory are taken from outside: the first step has been taken when its
record is in the file of records. The tables are in markdown. Sets that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from make_structures import reference_energies, write_structures
from report import machine_facts, write_json
from workers import BenchmarkError

VALIDATION = 500
"""Structures for validation, whatever the number for training: both programs evaluate them before the first step."""

TRAINING = [
    "--name=large", "--model=MACE", "--r_max=5.0", "--batch_size=10", "--loss=stress", "--default_dtype=float32",
    "--device=cpu", "--seed=1", "--max_num_epochs=100", f"--E0s={reference_energies()}",
]  # fmt: skip
PREPARE = "mace.cli.preprocess_data"
"""The module has the same name in both programs."""

LOOK = 0.05
"""Seconds between two looks at a program."""


@dataclass(frozen=True)
class Preparing:
    """What preparing a set took.

    Attributes:
        side: ``ours`` or ``peer``.
        structures: How many.
        processes: ``--num_process``.
        seconds: From start to end.
        processor: Seconds of all processes together.
        megabytes: Size of all files written.
        peak: Largest resident memory of any process, in MB.
    """

    side: str
    structures: int
    processes: int
    seconds: float
    processor: float
    megabytes: float
    peak: float

    HEAD = "| program | structures | s | structures/s and process | processor ms per structure | MB written | peak MB |"

    def row(self) -> str:
        """Return the row of the table."""
        rate = self.structures / self.seconds / self.processes
        each = 1e3 * self.processor / self.structures
        cells = (NAMES[self.side], f"{self.structures:,}", f"{self.seconds:.0f}", f"{rate:,.0f}", f"{each:.2f}")
        return f"| {' | '.join(cells)} | {self.megabytes:.0f} | {self.peak:.0f} |"


@dataclass(frozen=True)
class Stepping:
    """What training from a prepared set took.

    Attributes:
        side: ``ours`` or ``peer``.
        structures: In the set.
        workers: ``--num_workers``.
        first_step: Seconds from the start of the program to the end of its first step.
        step: Mean seconds of a step from one record to the next.
        processor: Mean seconds of a step of all processes and threads together.
        waiting: Share of the steps that was spent waiting for data.
        peak: Largest resident memory of the process that trains, in MB.
    """

    side: str
    structures: int
    workers: int
    first_step: float
    step: float
    processor: float
    waiting: float
    peak: float

    HEAD = (
        "| program | structures | workers | first step, s | step, ms | processor ms | waiting for data, % | peak MB |"
    )

    def row(self) -> str:
        """Return the row of the table."""
        times = (f"{self.first_step:.1f}", f"{1e3 * self.step:.1f}", f"{1e3 * self.processor:.1f}")
        cells = (NAMES[self.side], f"{self.structures:,}", str(self.workers), *times)
        return f"| {' | '.join(cells)} | {100 * self.waiting:.1f} | {self.peak:.0f} |"


NAMES = {"ours": "mace", "peer": "mace-torch"}


class Program:
    """A command with all processes that it starts, in a session of its own.

    Args:
        command: The words.
        folder: Where it runs; its output goes to a file there.
        threads: Of each of its processes.
    """

    def __init__(self, command: list[str], folder: Path, threads: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["OMP_NUM_THREADS"] = str(threads)
        self._log = folder / "output.txt"
        self.began = time.perf_counter()
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def processor_seconds(self) -> float:
        """Return the processor time of all processes so far."""
        ticks = 0
        for file in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = file.read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self._process.pid:  # the session
                ticks += sum(int(field) for field in fields[11:15])  # its own, and of its children that ended
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak(self) -> float:
        """Return the largest resident memory of the first process so far, in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

    def finish(self) -> tuple[float, float, float]:
        """Wait for its end; return seconds, processor seconds, and the peak of any of its processes in MB.

        Raises:
            BenchmarkError: If it fails.
        """
        _, status, usage = os.wait4(self._process.pid, 0)
        seconds = time.perf_counter() - self.began
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise self.failure()
        return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6

    def end(self) -> None:
        """End it and all of its processes."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def failure(self) -> BenchmarkError:
        """Return an error with the end of its output."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return BenchmarkError("\n".join([f"{self._process.args} failed:", *lines[-15:]]))


def prepare(side: str, python: str, data: Path, options: argparse.Namespace) -> Preparing:
    """Run the command that prepares the set in a folder; what it writes lies in ``prepared`` beside the set."""
    structures = int(data.name)
    folder = data.parent / f"{side}-{structures}"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    (folder / "prepared").mkdir(parents=True)
    # the original takes one file
    files = data / "*.xyz" if side == "ours" else next(data.glob("*.xyz"))
    words = [f"--train_file={files}", f"--valid_fraction={VALIDATION / structures}", "--r_max=5.0", "--seed=1"]
    words += [f"--num_process={options.processes}", "--h5_prefix=prepared/", f"--E0s={reference_energies()}"]
    words += ["--compute_statistics"]
    seconds, processor, peak = Program([python, "-m", PREPARE, *words], folder, 1).finish()
    size = sum(file.stat().st_size for file in (folder / "prepared").rglob("*") if file.is_file())
    return Preparing(side, structures, options.processes, seconds, processor, size / 1e6, peak)


def train(side: str, python: str, data: Path, workers: int, options: argparse.Namespace) -> Stepping:
    """Take some steps from a prepared set.

    Raises:
        BenchmarkError: If training ends before.
    """
    folder = data.parent / f"{side}-{data.name}"
    work = folder / f"run-{workers}"
    subprocess.run(["rm", "-rf", str(work)], check=True)
    words = [*TRAINING, "--train_file=prepared/train", "--valid_file=prepared/val", f"--work_dir={work}"]
    words += [f"--num_workers={workers}"]
    if side == "peer":
        words += ["--statistics_file=prepared/statistics.json", f"--atomic_numbers={sorted(reference_energies())}"]
    program = Program([python, "-m", "mace.cli.run_train", *words], folder, options.threads)
    try:
        first, *_ = _until(program, work, 1)
        began, processor, before = _until(program, work, options.warmup)
        ended, processor_after, records = _until(program, work, options.warmup + options.steps)
        peak = program.peak()
    finally:
        program.end()
    steps = records[len(before) :]
    seconds = (ended - began) / len(steps)
    computing = sum(step["time"] - step.get("time_data", 0.0) for step in steps) / len(steps)
    waiting = 1.0 - computing / (sum(step["time"] for step in steps) / len(steps) if side == "ours" else seconds)
    each = (processor_after - processor) / len(steps)
    return Stepping(side, int(data.name), workers, first - program.began, seconds, each, waiting, peak)


def _until(program: Program, work: Path, steps: int) -> tuple[float, float, list[dict[str, float]]]:
    """Wait for a number of steps; return the time, the processor seconds so far and the records of all steps."""
    while True:
        running = program.running
        for file in work.glob("results/*_train.txt"):
            lines = file.read_text(encoding="utf-8").split("\n")[:-1]
            records = [record for record in map(json.loads, lines) if record.get("mode") == "opt"]
            if len(records) >= steps:
                return time.perf_counter(), program.processor_seconds(), records
        if not running:
            raise program.failure()
        time.sleep(LOOK)


def measure(side: str, python: str, structures: int, options: argparse.Namespace) -> tuple[Preparing, list[Stepping]]:
    """Make a set if it is not there, prepare it and train from it."""
    data = options.folder.resolve() / str(structures)
    if not data.is_dir():
        partial = data.with_name(f"{data.name}.partial")
        files = max(1, structures // 50_000) if side == "ours" else 1
        write_structures(partial, structures, files, processes=options.processes)
        partial.rename(data)
    prepared = prepare(side, python, data, options)
    print(prepared.row(), file=sys.stderr, flush=True)
    return prepared, [train(side, python, data, workers, options) for workers in options.workers]


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/large"), help="for everything that is written")
    parser.add_argument("--structures", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--peer-python", help="interpreter of an environment with mace-torch 0.3.16; none: without it")
    parser.add_argument("--peer-structures", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2, help="that prepare")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 4], help="values of --num_workers to train with")
    parser.add_argument("--threads", type=int, default=1, help="of the process that trains")
    parser.add_argument("--warmup", type=int, default=20, help="steps before those that count")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    options = parser.parse_args()
    facts = machine_facts()
    sides = [("ours", sys.executable, structures) for structures in options.structures]
    sides += [("peer", options.peer_python, options.peer_structures)] if options.peer_python else []
    try:
        found = [measure(*side, options) for side in sides]
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    for title, rows in (
        ("Preparing", [row for row, _ in found]),
        ("Training", [row for _, all in found for row in all]),
    ):
        head = rows[0].HEAD
        print(f"\n{title}\n\n{head}\n|{' --- |' * (head.count('|') - 1)}")
        print("\n".join(row.row() for row in rows))
    ours = [rows[0] for prepared, rows in found if rows and prepared.side == "ours"]
    if len(ours) > 1:
        small, large = min(ours, key=lambda row: row.structures), max(ours, key=lambda row: row.structures)
        growth = 1e6 * (large.peak - small.peak) / (large.structures - small.structures)
        print(f"\nMemory of training grows by {growth:.0f} bytes per structure.")
    if options.json:
        write_json(
            options.json, facts, vars(options), [vars(row) for prepared, rows in found for row in (prepared, *rows)]
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
