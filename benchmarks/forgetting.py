"""What fine-tuning forgets: a foundation model adapted to new data in several ways, each with the same budget.

    python benchmarks/forgetting.py --folder runs/forgetting --seeds 1 2 3

For every seed, the command ``mace_run_train`` trains a foundation model on old structures and adapts it to new ones.
All ways take the same number of optimizer steps with the same number of structures in each, so that a way that replays
old structures sees the new ones less often; they share the loss and the rule of the learning rate, which falls
exponentially to a fiftieth. Several learning rates give a row each. Printed are root mean square errors on test sets of
old and new structures, the old ones through the head of the foundation model if there is one, and processor seconds.
Trainings that are done are not repeated.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from ase.io import read, write

from mace.calculators import MACECalculator
from mace.calculators.extrapolation import ExtrapolationWarning

ROOT = Path(__file__).resolve().parents[1]
OLD, NEW = ROOT.parent / "shared" / "data" / "acac", ROOT / "examples" / "methanol"
ARCHITECTURE = [
    "--model=ScaleShiftMACE", "--num_channels=32", "--max_L=1", "--max_ell=2", "--correlation=2", "--r_max=5.0",
]  # fmt: skip
COMMON = [
    "--default_dtype=float32", "--batch_size=5", "--loss=weighted", "--energy_weight=100",
    "--ema", "--ema_decay=0.99", "--scheduler=ExponentialLR", "--num_threads=1",
    "--plot=False", "--progress=off", "--quiet",
]  # fmt: skip
WAYS: dict[str, list[str]] = {
    "naive": [],
    "replay": ["--pt_train_file=replayed"],
    "replay, labels by the foundation": ["--pt_train_file=replayed", "--pseudolabel_replay=True"],
    "new structures with labels by the foundation": ["--pseudolabel_replay=True"],
    "frozen: embedding, interactions": ["--freeze=embedding,interactions"],
    "LoRA, rank 4": ["--lora=True", "--lora_rank=4"],
}
FINAL_RATE = 0.02
"""Learning rate at the end of a training as a fraction of the one it starts with."""


def make_options() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--old", nargs="+", default=[OLD / "train_300K.xyz", OLD / "isolated_atoms.xyz"], metavar="FILE"
    )
    parser.add_argument("--old_test", default=OLD / "test_MD_300K.xyz", metavar="FILE")
    parser.add_argument("--new", nargs="+", default=[NEW / "methanol_train.xyz"], metavar="FILE")
    parser.add_argument("--new_test", default=NEW / "methanol_test.xyz", metavar="FILE")
    parser.add_argument("--n_old", type=int, default=300, help="old structures to train the foundation model on")
    parser.add_argument("--n_replayed", type=int, default=100, help="old structures to replay, of these")
    parser.add_argument("--share", type=float, default=0.25, help="share of replayed structures in all gone through")
    parser.add_argument("--n_new", type=int, default=100, help="new structures")
    parser.add_argument(
        "--old_visits", type=int, default=12000, help="structures gone through for the foundation model"
    )
    parser.add_argument("--visits", type=int, default=10000, help="structures gone through to adapt it")
    parser.add_argument("--old_lr", type=float, default=0.01, help="learning rate of the foundation model")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.02], help="learning rates to adapt it with")
    parser.add_argument("--E0s", default="foundation", help="of the new data")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/forgetting"), help="folder for all runs")
    return parser


def draw(files: list[Path], counts: dict[Path, int], seed: int) -> None:
    """Write the first so many structures of a random order to each of some files, and all isolated atoms."""
    structures = [atoms for file in files for atoms in read(file, ":")]
    isolated = [atoms for atoms in structures if len(atoms) == 1]
    molecules = [atoms for atoms in structures if len(atoms) > 1]
    order = np.random.default_rng(seed).permutation(len(molecules))
    for target, count in counts.items():
        write(target, [*isolated, *(molecules[place] for place in order[:count])])


def train(name: str, folder: Path, epochs: int, flags: list[str]) -> float:
    """Train once, and return the processor seconds; of a training that is done already, those that it took."""
    done = folder / f"{name}.seconds"
    if not done.exists():
        flags = [*COMMON, *flags, f"--max_num_epochs={epochs}", f"--lr_scheduler_gamma={FINAL_RATE ** (1 / epochs)}"]
        command = [sys.executable, "-m", "mace.cli.run_train", f"--name={name}", f"--work_dir={folder}", *flags]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        done.write_text(f"{seconds}\n", encoding="utf-8")
    return float(done.read_text(encoding="utf-8"))


def errors(model: Path, file: Path, head: str | None = None) -> list[float]:
    """Return root mean square errors of a model: energies in meV/atom, forces in meV/Angstrom."""
    calculator = MACECalculator(model_paths=str(model), device="cpu", default_dtype="float64", head=head)
    structures = [atoms for atoms in read(file, ":") if len(atoms) > 1]
    energies, forces = list[float](), list[np.ndarray]()
    for atoms, found in zip(structures, calculator.evaluate(structures), strict=True):
        labels = atoms.calc.results if atoms.calc else {}
        energy = atoms.info["REF_energy"] if "REF_energy" in atoms.info else labels["energy"]
        energies.append((found["energy"] - energy) / len(atoms))
        labeled = atoms.arrays["REF_forces"] if "REF_forces" in atoms.arrays else labels["forces"]
        forces.append((found["forces"] - labeled).ravel())
    return [1e3 * float(np.sqrt(np.mean(np.square(each)))) for each in (energies, np.concatenate(forces))]


def measure(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, list[float]]:
    """Train a foundation model, and adapt it in all ways.

    Returns:
        By row of the table: errors of energy and forces on the old test set, on the new one, and processor seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old, replayed, new = (folder / f"{word}.xyz" for word in ("old", "replayed", "new"))
    draw(options.old, {old: options.n_old, replayed: options.n_replayed}, seed)
    draw(options.new, {new: options.n_new}, seed)

    def run(name: str, file: Path, epochs: int, flags: list[str]) -> list[float]:
        seconds = train(name, folder, epochs, [f"--train_file={file}", f"--seed={seed}", *flags])
        model = folder / f"{name}.model"
        head = "pt_head" if any("replay" in flag or "pt_train" in flag for flag in flags) else None
        adapted = "Default" if head else None
        return [*errors(model, options.old_test, head), *errors(model, options.new_test, adapted), seconds]

    rows = {}
    flags = [*ARCHITECTURE, f"--lr={options.old_lr}"]
    rows["before"] = run("foundation", old, round(options.old_visits / options.n_old), flags)
    for place, (way, own) in enumerate(WAYS.items()):
        if way not in options.ways:
            continue
        replays = {"--pt_train_file=replayed": options.n_replayed, "--pseudolabel_replay=True": options.n_new}
        beside = next((count for flag, count in replays.items() if flag in own), 0)
        for lr in options.lr:
            flags = [flag.replace("=replayed", f"={replayed}") for flag in own]
            if beside:
                ratio = options.share / (1 - options.share)
                flags += ["--head_sampling=weight", f"--weight_pt_head={ratio}"]
            flags += [f"--foundation_model={folder / 'foundation.model'}", f"--E0s={options.E0s}", f"--lr={lr}"]
            epochs = round(options.visits / (options.n_new + beside))
            rows[f"{way}, lr {lr:g}"] = run(f"way_{place}_lr_{lr:g}", new, epochs, flags)
            print(f"seed {seed}: {way}, lr {lr:g}", *(f"{x:.1f}" for x in rows[f"{way}, lr {lr:g}"]), file=sys.stderr)
    return rows


def main() -> None:
    """Measure with all seeds and print the table."""
    options = make_options().parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=ExtrapolationWarning)
    folder = options.folder.resolve()
    by_seed = [measure(options, seed, folder / f"seed_{seed}") for seed in options.seeds]
    headings = ["", "old: E, meV/atom", "old: F, meV/A", "new: E, meV/atom", "new: F, meV/A", "processor seconds"]
    print("| " + " | ".join(headings) + " |", "| --- " * len(headings) + "|", sep="\n")
    for row in by_seed[0]:
        values = np.array([rows[row] for rows in by_seed])
        cells = [f"{mean:.1f} ± {spread:.1f}" for mean, spread in zip(values.mean(0), values.std(0), strict=True)]
        print("| " + " | ".join([row, *cells]) + " |")


if __name__ == "__main__":
    main()
