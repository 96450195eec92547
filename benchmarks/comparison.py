"""What both commands share: options, the settings of the workers, and the measurement itself."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from molecules import mean_neighbors, read_molecules, read_reference_energies, rms_force
from rich.console import Console
from workers import BenchmarkError, Settings, Worker

FOLDER = Path(__file__).resolve().parent
DEFAULT_DATA = FOLDER.parent.parent / "shared" / "data" / "acac"
PEER_VERSION = "mace-torch 0.3.16"
SYMMETRIX_VERSION = "symmetrix-xl 0.1.1"
TOLERANCE = {"float32": 1.0e-3, "float64": 1.0e-8}
"""Largest difference that counts as agreement: of forces in root mean square forces, of energies in eV/atom."""

SPLINE_TOLERANCE = 1.0e-3
"""The same for Symmetrix in any precision: its radial functions are splines of 256 points, which cost about 1e-4."""


@dataclass(frozen=True)
class Comparison:
    """The times of all sides at the same work.

    The sides are called ``peer`` (mace-torch), ``ours``, and ``symmetrix``, where they take part.

    Attributes:
        title: What was done.
        facts: Of each side's worker.
        seconds: Of every step of each side, ``[repeats][steps]``.
        disagreement: Of each side but the first, the largest difference between its force components and the first
            one's, in units of the root mean square force.
        phases: Of each side that measures them, the seconds of the phases of every step.
    """

    title: str
    facts: dict[str, dict[str, Any]]
    seconds: dict[str, list[list[float]]]
    disagreement: dict[str, float]
    phases: dict[str, list[dict[str, float]]]


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of both commands."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--peer-python", required=True, metavar="PATH", help=f"interpreter of an environment with {PEER_VERSION}"
    )
    parser.add_argument("--our-python", default=sys.executable, metavar="PATH", help="interpreter for this checkout")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help="acetylacetone data")
    parser.add_argument("--hidden-irreps", default="128x0e+128x1o", help="features passed between layers")
    parser.add_argument("--l-max", type=positive, default=3, help="highest degree of the harmonics")
    parser.add_argument("--correlation", type=positive, default=3, help="factors of the symmetric contraction")
    parser.add_argument("--layers", type=positive, default=2, help="number of interactions")
    parser.add_argument("--r-max", type=float, default=5.0, help="cutoff in Angstrom")
    parser.add_argument("--batch-size", type=positive, default=10, help="molecules in a batch")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="precision")
    parser.add_argument("--kernels", choices=["auto", "torch", "c"], default="auto", help="our kernels")
    parser.add_argument("--threads", type=positive, default=2, help="threads of each side")
    parser.add_argument("--repeats", type=positive, default=5, help="turns of each side")
    parser.add_argument("--steps", type=positive, default=5, help="steps in a turn")
    parser.add_argument("--warmup", type=positive, default=3, help="steps of each side before the first turn")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="also write every time and fact here")
    return parser


def positive(text: str) -> int:
    """Read a positive number from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def new_file(text: str) -> Path:
    """Refuse a file that cannot be written now rather than after the measurement."""
    file = Path(text)
    if file.is_dir() or not file.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written; name a file in a folder that exists")
    return file


def shared_settings(options: argparse.Namespace) -> Settings:
    """Turn options into what both workers are told; constants of the model come from the data.

    Raises:
        BenchmarkError: If the data are missing.
    """
    molecules = read_molecules(options.data)
    energies = read_reference_energies(options.data)
    model = {
        "hidden": options.hidden_irreps.replace(" ", ""),
        "l_max": options.l_max,
        "correlation": options.correlation,
        "layers": options.layers,
        "r_max": options.r_max,
        "elements": list(energies),
        "reference_energies": list(energies.values()),
        "avg_num_neighbors": mean_neighbors(molecules[:100], options.r_max),
        "scale": rms_force(molecules),
        "seed": options.seed,
    }
    return {
        "model": model,
        "data": str(options.data.resolve()),
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "kernels": options.kernels,
        "threads": options.threads,
    }


def compare(
    title: str,
    options: argparse.Namespace,
    settings: Settings,
    console: Console,
    symmetrix_python: str | None = None,
    peer_only_writes: bool = False,
) -> Comparison:
    """Run all sides in turns on the same work.

    Args:
        title: What the work is.
        options: Of the command line.
        settings: For all workers; the places of files they exchange are added.
        console: Shows what is going on.
        symmetrix_python: Interpreter of an environment with Symmetrix-XL, if it is to take part.
        peer_only_writes: Whether the peer only writes the weights, because the work is too much for it.

    Returns:
        The times.

    Raises:
        BenchmarkError: If a worker fails, or not all compute the same forces.
    """
    with ExitStack() as open_things:
        folder = Path(open_things.enter_context(tempfile.TemporaryDirectory()))
        status = open_things.enter_context(console.status(f"{title}: preparing"))
        # in this order: the peer writes the weights that the others read
        programs: dict[str, tuple[str, str, str, Path | None]] = {
            "peer": ("mace-torch", options.peer_python, "peer.py", None),
            "ours": ("mace", options.our_python, "ours.py", FOLDER.parent),
        }
        if symmetrix_python is not None:
            programs["symmetrix"] = ("symmetrix", symmetrix_python, "symmetrix_worker.py", None)
        workers = {
            side: open_things.enter_context(Worker(name, python, FOLDER / script, options.threads, import_from))
            for side, (name, python, script, import_from) in programs.items()
        }
        settings = settings | {"weights": str(folder / "weights.npz")}
        results = {side: str(folder / f"{side}_results.npz") for side in workers}
        facts = {}
        for side, worker in workers.items():
            status.update(f"{title}: preparing {worker.name}")
            task = {"task": "weights"} if side == "peer" and peer_only_writes else {}
            facts[side] = worker.prepare(settings | task | {"results": results[side]})
        _check_versions(facts, console)
        if peer_only_writes:
            del workers["peer"], facts["peer"]
        tolerances = {"ours": TOLERANCE[settings["dtype"]], "symmetrix": SPLINE_TOLERANCE}
        first, *others = workers
        disagreement = {
            side: _check_agreement(workers[side].name, results[first], results[side], tolerances[side])
            for side in others
        }
        seconds, phases = _take_turns(workers, options, told=lambda text: status.update(f"{title}: {text}"))
    return Comparison(title, facts, seconds, disagreement, phases)


def _check_versions(facts: Mapping[str, dict[str, Any]], console: Console) -> None:
    """Say so if another side is not of the release this benchmark was written for."""
    for side, wanted in (("peer", PEER_VERSION), ("symmetrix", SYMMETRIX_VERSION)):
        package = facts[side]["package"] if side in facts else wanted
        if not package.startswith(wanted):
            console.print(f"[yellow]The {side} is {package}, not {wanted}.[/]")


def _take_turns(
    workers: Mapping[str, Worker], options: argparse.Namespace, told: Callable[[str], None]
) -> tuple[dict[str, list[list[float]]], dict[str, list[dict[str, float]]]]:
    """Let the workers take turns; who begins changes with every repeat, so that a slow drift favors none.

    Args:
        workers: Prepared, by side.
        options: Of the command line: how many repeats, steps, and steps before anything is recorded.
        told: Receives a line of text on every turn.

    Returns:
        Seconds of every step of each side, ``[repeats][steps]``, and of the phases of each step, where they are known.

    Raises:
        BenchmarkError: If a worker fails.
    """
    for worker in workers.values():
        told(f"warm-up of {worker.name}")
        worker.run(options.warmup)
    seconds: dict[str, list[list[float]]] = {side: [] for side in workers}
    phases: dict[str, list[dict[str, float]]] = {side: [] for side in workers}
    sides = list(workers)
    for repeat in range(options.repeats):
        first = repeat % len(sides)
        for side in sides[first:] + sides[:first]:
            told(f"repeat {repeat + 1} of {options.repeats}: {workers[side].name}")
            seconds[side].append(workers[side].run(options.steps))
            phases[side] += workers[side].phases
    return seconds, {side: steps for side, steps in phases.items() if steps}


def _check_agreement(name: str, peer_file: str, other_file: str, tolerance: float) -> float:
    """Compare forces with those of the first side on the same structures with the same weights."""
    with np.load(peer_file) as peer, np.load(other_file) as other:
        if peer["forces"].shape != other["forces"].shape:
            raise BenchmarkError(f"{name} evaluated other structures than the peer; there is nothing to compare.")
        scale = float(np.sqrt(np.mean(peer["forces"] ** 2)))
        disagreement = float(np.abs(peer["forces"] - other["forces"]).max()) / scale
        energy_gap = abs(float(np.sum(peer["energies"]) - np.sum(other["energies"]))) / len(other["forces"])
    if not disagreement < tolerance or not energy_gap < tolerance:
        raise BenchmarkError(
            f"{name} and the peer disagree with the same weights: forces by {disagreement:.1e} of their root mean "
            f"square, energies by {energy_gap:.1e} eV per atom; a ratio of their times would mean nothing."
        )
    return disagreement
