"""Measure everything on a graphics processor, within a few minutes: ours beside mace-torch and its cuEquivariance.

python benchmarks/gpu.py --peer-python peer/bin/python --cueq-python cueq/bin/python --results gpu.jsonl
python benchmarks/gpu.py --show gpu.jsonl
python benchmarks/gpu.py --device cpu --quick

Each side runs in a process of its own, one after the other. What is measured is appended to the file of results line by
line, so that nothing is lost if time runs out; a case that fails or takes too long costs the others nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from comparison import DEFAULT_DATA, positive
from crystals import N_ELEMENTS, R_MAX, frequencies, make_crystal, write_crystals, write_data, write_molecules
from molecules import TRAINING_FILE, mean_neighbors, read_molecules, read_reference_energies, rms_force
from report import machine_facts
from training import RECIPE
from workers import environment_for

FOLDER = Path(__file__).resolve().parent
OURS, PEER = FOLDER / "gpu_ours.py", FOLDER / "gpu_peer.py"
START = 30.0
"""Seconds a process may take until it says which versions it has."""

INTERPRETED = "three atoms"
"""Name of the one case that is small enough for kernels that are interpreted."""

SIZES = (100, 1000, 5000, 20000)
"""Atoms of the crystals whose energies and forces are computed."""


@dataclass(frozen=True)
class Side:
    """One of those that are compared.

    Attributes:
        name: How tables call it.
        python: The interpreter.
        script: The worker.
        settings: What the worker is told besides its cases.
        environment: Variables for its process.
    """

    name: str
    python: str
    script: Path
    settings: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)


class Log:
    """Lines of JSON, written as they come.

    Args:
        file: Where to; lines are appended.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def sides(options: argparse.Namespace) -> list[Side]:
    """Return all sides in the order in which they run: those of the greatest interest first."""
    own = {"kernels": "triton", "graphs": False, "cuequivariance": False}
    ours = sys.executable
    found = []
    if options.peer_python:
        found.append(Side("mace-torch", options.peer_python, PEER, own))
    if options.device == "cpu":
        found.append(Side("C kernels", ours, OURS, own | {"kernels": "c"}))
        found.append(Side("Triton, interpreted", ours, OURS, own, {"TRITON_INTERPRET": "1"}))
    else:
        found.append(Side("Triton", ours, OURS, own))
        found.append(Side("Triton, captured", ours, OURS, own | {"graphs": True}))
        if options.cueq_python:
            found.append(
                Side("mace-torch with cuEquivariance", options.cueq_python, PEER, own | {"cuequivariance": True})
            )
    return [*found, Side("torch kernels", ours, OURS, own | {"kernels": "torch"})]


def cases(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return what is measured of each side, the most telling first; structures are written into the folder."""
    molecules = options.data
    if not (molecules / TRAINING_FILE).is_file():
        molecules = folder / "molecules"
        write_molecules(molecules, 4 if options.quick else 200)
        print(f"{options.data} has no {TRAINING_FILE}; molecules of the same size are made instead.", file=sys.stderr)
    crystals = folder / "crystals"
    write_crystals(crystals, 2 if options.quick else 64)
    small, large = _models(options)
    few, many = (2, 2) if options.quick else (10, 16)
    found = [_case("acetylacetone", molecules, large, 5.0, few), _case("crystals", crystals, large, R_MAX, many)]
    if not options.quick:
        found.append(_case("acetylacetone", molecules, large, 5.0, 64))
    found += list(_evaluations(options, folder, large))
    if options.quick:
        tiny = folder / "tiny"
        write_molecules(tiny, 1, n_atoms=3)
        found.append(_case(INTERPRETED, tiny, large | {"hidden": "4x0e", "layers": 1}, 3.0, 1))
    else:
        found += [_case("acetylacetone", molecules, small, 5.0, few), _case("crystals", crystals, small, R_MAX, many)]
        found.append(_case("acetylacetone", molecules, large, 5.0, few, dtype="float64"))
    for number, case in enumerate(found):
        # sides have the same weights, which mace-torch draws where it takes part
        case["weights"] = str(folder / f"weights-{number}.npz")
        case["file"] = f"results-{number}"
        case["name"] += f", {case['model']['hidden']}, {case['dtype']}"
    return found


def _models(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return models without and with vectors among the features."""
    shape: dict[str, Any] = {"l_max": 3, "correlation": 3, "layers": 2, "seed": 0}
    if options.quick:
        shape |= {"l_max": 1, "correlation": 2}
        return shape | {"hidden": "8x0e"}, shape | {"hidden": "8x0e+8x1o"}
    return shape | {"hidden": "128x0e"}, shape | {"hidden": "128x0e+128x1o"}


def _case(
    name: str,
    data: Path,
    shape: dict[str, Any],
    r_max: float,
    batch_size: int,
    task: str = "training",
    dtype: str = "float32",
) -> dict[str, Any]:
    structures, energies = read_molecules(data), read_reference_energies(data)
    model = shape | {
        "r_max": r_max,
        "elements": list(energies),
        "reference_energies": list(energies.values()),
        "avg_num_neighbors": mean_neighbors(structures[:20], r_max),
        "scale": rms_force(structures),
    }
    name = f"{name}, batch of {batch_size}" if batch_size > 1 else name
    own = {"name": f"{task}, {name}", "data": str(data.resolve()), "batch_size": batch_size, "task": task}
    return own | RECIPE | {"model": model, "dtype": dtype, "compare": task == "training"}


def _evaluations(options: argparse.Namespace, folder: Path, shape: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield energies and forces of crystals of several sizes, and one that moves, through the calculator."""
    for size in (20,) if options.quick else SIZES:
        generator = np.random.default_rng(size)
        data = folder / f"crystal-{size}"
        write_data(
            data, [make_crystal(size, generator, frequencies(N_ELEMENTS, generator))], list(range(1, N_ELEMENTS + 1))
        )
        yield _case(f"crystal of {size} atoms", data, shape, R_MAX, 1, "evaluation")
        if size in (20, 1000):
            yield _case(f"crystal of {size} atoms, through the calculator", data, shape, R_MAX, 1, "calculator")


def run_side(
    side: Side, todo: list[dict[str, Any]], options: argparse.Namespace, folder: Path, log: Log, end: float
) -> None:
    """Measure the cases of a side until a time is over; processes that hang are ended, and the others' cases go on."""
    waiting = list(todo)
    while waiting and time.monotonic() < end:
        done = _run_process(side, waiting, options, folder, log, end)
        waiting = waiting[max(done, 1) :] if done else []
    for case in waiting:
        log.write({"side": side.name, "case": case["name"], "skipped": "no time was left"})


def _run_process(
    side: Side, todo: list[dict[str, Any]], options: argparse.Namespace, folder: Path, log: Log, end: float
) -> int:
    """Run a process for some cases; return how many are done with, the one that failed included."""
    own = [case | {"results": str(folder / f"{case['file']}-{side.name}.npz")} for case in todo]
    request = {"device": options.device, "seconds": options.seconds, "side": side.name, "cases": own} | side.settings
    file = folder / "request.json"
    file.write_text(json.dumps(request), encoding="utf-8")
    environment = environment_for(options.threads, FOLDER.parent if side.script == OURS else None) | side.environment
    started, current = 0, {"name": "the start"}
    with (folder / "messages.txt").open("w+", encoding="utf-8") as messages:
        process = subprocess.Popen(
            [side.python, str(side.script), str(file)],
            stdout=subprocess.PIPE,
            stderr=messages,
            env=environment,
            encoding="utf-8",
            start_new_session=True,
        )
        lines = _lines(process)
        limit = START
        while True:
            try:
                line = lines.get(timeout=max(0.1, min(limit, end - time.monotonic())))
            except queue.Empty:
                log.write({"side": side.name, "case": current["name"], "error": "it took too long"})
                current = {"name": ""}
                break
            if line is None:
                break
            told = json.loads(line)
            if "starting" in told:
                current, limit = {"name": told["starting"]}, options.limit
                started += 1
                continue
            log.write({"side": side.name} | told)
            current = {"name": ""}
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        failed = process.wait()
        if failed and current["name"]:
            messages.seek(0)
            text = messages.read()[-1500:] or f"it ended with status {failed}"
            log.write({"side": side.name, "case": current["name"], "error": text})
    return started


def _lines(process: subprocess.Popen[str]) -> queue.Queue[str | None]:
    """Return a queue that gets the lines a process writes, and None at their end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def compare_results(todo: list[dict[str, Any]], names: list[str], folder: Path, log: Log) -> None:
    """Note how far the sides' energies and forces of the first batch are from those of the first side."""
    for case in todo:
        files = {name: folder / f"{case['file']}-{name}.npz" for name in names}
        found = {name: dict(np.load(file)) for name, file in files.items() if file.is_file()}
        if len(found) < 2:
            continue
        first, *others = found
        scale = float(np.sqrt(np.mean(found[first]["forces"] ** 2))) or 1.0
        for other in others:
            forces = float(np.abs(found[other]["forces"] - found[first]["forces"]).max()) / scale
            energies = float(np.abs(found[other]["energies"] - found[first]["energies"]).max()) / len(
                found[first]["forces"]
            )
            log.write({"agreement": case["name"], "between": [first, other], "forces": forces, "energies": energies})


def kernel_table(options: argparse.Namespace, folder: Path, log: Log, end: float) -> None:
    """Compile the kernels of the largest model for this device on all cores, which also fills Triton's cache."""
    command = [sys.executable, str(FOLDER / "kernel_resources.py"), "--targets", "here", "--dtype", "float32"]
    command += ["--jobs", str(options.threads), "--keep", "--json", str(folder / "kernels.json")]
    start = time.monotonic()
    try:
        done = subprocess.run(command, timeout=max(1.0, end - start), capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        log.write({"kernels": [], "error": "compiling took too long"})
        return
    if not (folder / "kernels.json").is_file():
        log.write({"kernels": [], "error": done.stderr[-1500:]})
        return
    found = json.loads((folder / "kernels.json").read_text(encoding="utf-8"))
    log.write({"kernels": found, "seconds": time.monotonic() - start})


def show(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the tables of what was measured, in markdown."""
    results = [line for line in lines if "case" in line and "median_s" in line]
    names = list(dict.fromkeys(line["side"] for line in lines if "side" in line))
    for line in lines:
        if "machine" in line:
            yield f"{line['machine']['date']}, {line['machine']['cpu']}, {line['machine']['system']}"
        if "facts" in line:
            yield f"{line['side']}: " + ", ".join(f"{key} {value}" for key, value in line["facts"].items())
    yield from _table_of_times(results, names)
    yield from _table_of_numbers(results)
    yield from _tables_of_kernels(results)
    for line in lines:
        if "agreement" in line:
            one, other = line["between"]
            yield (
                f"{line['agreement']}: {other} and {one} differ by {line['forces']:.1e} of the root mean square force, "
                f"{line['energies']:.1e} eV per atom"
            )
    for line in lines:
        if "error" in line or "skipped" in line:
            text = str(line.get("error", line.get("skipped"))).strip().splitlines() or [""]
            yield f"not measured: {line.get('side', '')}, {line.get('case', 'kernels')}: {text[-1]}"


def _table_of_times(results: list[dict[str, Any]], names: list[str]) -> Iterator[str]:
    """Yield the table of the times of all sides, and by how much each is slower than the fastest of ours."""
    of = {(line["side"], line["case"]): line for line in results}
    yield from (
        "",
        "Time in ms, median (tenth to ninetieth percentile), and its ratio to ours, the fastest of them",
        "",
    )
    yield "| | " + " | ".join(names) + " |"
    yield "| --- " * (len(names) + 1) + "|"
    for case in dict.fromkeys(line["case"] for line in results):
        ours = [
            of[name, case]["median_s"] for name in names if (name, case) in of and not name.startswith("mace-torch")
        ]
        cells = []
        for name in names:
            line = of.get((name, case))
            if line is None:
                cells.append("")
                continue
            low, median, high = (1e3 * line[key] for key in ("low_s", "median_s", "high_s"))
            ratio = f", {line['median_s'] / min(ours):.2f}" if ours else ""
            cells.append(f"{median:.2f} ({low:.2f} to {high:.2f}){ratio}")
        yield f"| {case} | " + " | ".join(cells) + " |"


def _table_of_numbers(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table of everything else that is one number."""
    headings = (
        "first step s",
        "submitting ms",
        "kernels ms",
        "kernels",
        "launches",
        "copies",
        "memory MB",
        "deviation",
    )
    yield from ("", "| case | side | " + " | ".join(headings) + " |", "| --- " * (len(headings) + 2) + "|")
    for line in results:
        numbers = [f"{line['first_s']:.2f}", f"{1e3 * line['submit_s']:.2f}"]
        numbers += [f"{line['kernels_us'] / 1e3:.2f}" if "kernels_us" in line else ""]
        numbers += [f"{line[key]:.0f}" if key in line else "" for key in ("kernels", "launches", "copies")]
        numbers += [f"{line['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in line else ""]
        deviation = line.get("deviation", {})
        numbers += [", ".join(f"{key} {value:.1e}" for key, value in deviation.items())]
        yield f"| {line['case']} | {line['side']} | " + " | ".join(numbers) + " |"


def _tables_of_kernels(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the largest kernels of each case and side."""
    for line in results:
        if not line.get("largest_us"):
            continue
        yield from (
            "",
            f"{line['case']}, {line['side']}",
            "",
            "| kernel | times a step | us a step |",
            "| --- | --- | --- |",
        )
        for name, (count, microseconds) in line["largest_us"].items():
            yield f"| `{name}` | {count:.0f} | {microseconds:.0f} |"


def make_parser() -> argparse.ArgumentParser:
    """Return the options of this command."""
    parser = argparse.ArgumentParser(
        description="Measure training, energies and forces on a graphics processor.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="cuda", help="the device; cpu only with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny models and data, to see whether everything starts")
    parser.add_argument("--peer-python", metavar="PATH", help="interpreter of an environment with mace-torch")
    parser.add_argument("--cueq-python", metavar="PATH", help="one with mace-torch and cuEquivariance")
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help="acetylacetone data, if there are"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("gpu.jsonl"), metavar="FILE", help="lines are appended to it"
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print the tables of results measured before")
    parser.add_argument("--budget", type=float, default=480.0, metavar="S", help="time for everything")
    parser.add_argument("--limit", type=float, default=90.0, metavar="S", help="time for a case, compilation included")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="time in which steps are timed")
    parser.add_argument(
        "--threads", type=positive, default=os.cpu_count() or 1, help="threads, and compiling processes"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.show is None:
        if options.device == "cpu" and not options.quick:
            parser.error("--device cpu: nothing is measured on a CPU; add --quick to see whether everything starts")
        _measure(options)
    lines = [json.loads(line) for line in (options.show or options.results).read_text(encoding="utf-8").splitlines()]
    print("\n".join(show(lines)))
    return int(not any("median_s" in line for line in lines))


def _measure(options: argparse.Namespace) -> None:
    """Measure all sides, each within its share of the time that is left."""
    end, log = time.monotonic() + options.budget, Log(options.results)
    log.write({"machine": machine_facts(), "budget_s": options.budget, "device": options.device})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        todo = cases(options, folder)
        if options.device == "cpu":
            for what in ("captured steps", "mace-torch with cuEquivariance", "times of kernels, launches and memory"):
                log.write({"case": what, "skipped": "it needs a graphics processor"})
        else:
            kernel_table(options, folder, log, time.monotonic() + options.budget / 4)
        taking_part = sides(options)
        for place, side in enumerate(taking_part):
            print(f"{end - time.monotonic():.0f} s left: {side.name}", file=sys.stderr, flush=True)
            share = (end - time.monotonic()) / (len(taking_part) - place)
            own = [case for case in todo if case["task"] != "calculator" or side.script == OURS]
            if "interpreted" in side.name:
                own = [case for case in own if INTERPRETED in case["name"]]
            run_side(side, own, options, folder, log, time.monotonic() + share)
        compare_results(todo, [side.name for side in taking_part], folder, log)


if __name__ == "__main__":
    sys.exit(main())
