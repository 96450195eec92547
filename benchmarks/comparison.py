"""What both commands share: options, the settings of the workers, and the measurement itself."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from molecules import mean_neighbors, read_molecules, read_reference_energies, rms_force
from rich.console import Console
from workers import BenchmarkError, Settings, Worker, alternate

FOLDER = Path(__file__).resolve().parent
DEFAULT_DATA = FOLDER.parent.parent / "shared" / "data" / "acac"
PEER_VERSION = "mace-torch 0.3.16"
TOLERANCE = {"float32": 1.0e-3, "float64": 1.0e-8}
"""Largest difference that counts as agreement: of forces in root mean square forces, of energies in eV/atom."""


@dataclass(frozen=True)
class Comparison:
    """The times of both sides at the same work.

    Attributes:
        title: What was done.
        facts: Of each worker, peer first.
        seconds: Of every step of each worker, peer first, ``[repeats][steps]``.
        disagreement: Largest difference between force components of both, in units of the root mean square force.
    """

    title: str
    facts: tuple[dict[str, Any], dict[str, Any]]
    seconds: tuple[list[list[float]], list[list[float]]]
    disagreement: float


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
    parser.add_argument("--l-max", type=_positive, default=3, help="highest degree of the harmonics")
    parser.add_argument("--correlation", type=_positive, default=3, help="factors of the symmetric contraction")
    parser.add_argument("--layers", type=_positive, default=2, help="number of interactions")
    parser.add_argument("--r-max", type=float, default=5.0, help="cutoff in Angstrom")
    parser.add_argument("--batch-size", type=_positive, default=10, help="molecules in a batch")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="precision")
    parser.add_argument("--kernels", choices=["auto", "torch", "c"], default="auto", help="our kernels")
    parser.add_argument("--threads", type=_positive, default=2, help="threads of each side")
    parser.add_argument("--repeats", type=_positive, default=5, help="turns of each side")
    parser.add_argument("--steps", type=_positive, default=5, help="steps in a turn")
    parser.add_argument("--warmup", type=_positive, default=3, help="steps of each side before the first turn")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    parser.add_argument("--json", type=_new_file, metavar="FILE", help="also write every time and fact here")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _new_file(text: str) -> Path:
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


def compare(title: str, options: argparse.Namespace, settings: Settings, console: Console) -> Comparison:
    """Run peer and ours alternately on the same work.

    Args:
        title: What the work is.
        options: Of the command line.
        settings: For both workers; the places of files they exchange are added.
        console: Shows what is going on.

    Returns:
        The times.

    Raises:
        BenchmarkError: If a worker fails, or both do not compute the same forces.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        console.status(f"{title}: preparing") as status,
        Worker("mace-torch", options.peer_python, FOLDER / "peer.py", options.threads) as peer,
        Worker("mace", options.our_python, FOLDER / "ours.py", options.threads, FOLDER.parent) as ours,
    ):
        results = [str(Path(folder) / f"{side}_results.npz") for side in ("peer", "ours")]
        settings = settings | {"weights": str(Path(folder) / "weights.npz")}
        # in this order: the peer writes the weights that ours reads
        peer_facts = peer.prepare(settings | {"results": results[0]})
        our_facts = ours.prepare(settings | {"results": results[1]})
        if peer_facts["package"] != PEER_VERSION:
            console.print(f"[yellow]The peer is {peer_facts['package']}, not {PEER_VERSION}.[/]")
        disagreement = _check_agreement(results[0], results[1], TOLERANCE[settings["dtype"]])
        seconds = alternate(
            peer,
            ours,
            options.repeats,
            options.steps,
            options.warmup,
            told=lambda text: status.update(f"{title}: {text}"),
        )
    return Comparison(title, (peer_facts, our_facts), seconds, disagreement)


def _check_agreement(peer_file: str, our_file: str, tolerance: float) -> float:
    """Compare the forces of both sides on the same structures with the same weights; a ratio needs equal work."""
    with np.load(peer_file) as peer, np.load(our_file) as ours:
        if peer["forces"].shape != ours["forces"].shape:
            raise BenchmarkError("Both sides evaluated different structures; there is nothing to compare.")
        scale = float(np.sqrt(np.mean(peer["forces"] ** 2)))
        disagreement = float(np.abs(peer["forces"] - ours["forces"]).max()) / scale
        energy_gap = abs(float(np.sum(peer["energies"]) - np.sum(ours["energies"]))) / len(ours["forces"])
    if not disagreement < tolerance or not energy_gap < tolerance:
        raise BenchmarkError(
            f"Both sides disagree with the same weights: forces by {disagreement:.1e} of their root mean square, "
            f"energies by {energy_gap:.1e} eV per atom; a ratio of their times would mean nothing."
        )
    return disagreement
