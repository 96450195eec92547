"""Measure what saving the state costs: the share of an epoch on acetylacetone that is spent in it.

python benchmarks/checkpoints.py --data ../shared/data/acac

The run is the one of the usual guide (128x0e + 128x1o, float32, moving average), with a state and, where the validation
loss fell, the best weights after each epoch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from molecules import TRAINING_FILE
from rich.console import Console

from mace.runs.run import run_training
from mace.settings import parse_training_settings
from mace.training.loop import Trainer
from mace.training.state import TrainingState

FLAGS = [
    "--name=acac", "--E0s={1:-13.568422178253735, 6:-1026.8538996116154, 8:-2037.796869412825}", "--model=MACE",
    "--hidden_irreps=128x0e + 128x1o", "--r_max=5.0", "--batch_size=10", "--ema", "--default_dtype=float32",
    "--energy_key=energy", "--forces_key=forces", "--valid_fraction=0.05", "--progress=off", "--plot=False",
]  # fmt: skip


class Stopwatch:
    """Add up the time spent in a method, call by call."""

    def __init__(self, owner: Any, name: str) -> None:
        self.times: list[float] = []
        work: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            result = work(*arguments, **keywords)
            self.times.append(time.perf_counter() - start)
            return result

        setattr(owner, name, timed)


def main() -> int:
    """Train a few epochs and print."""
    parser = argparse.ArgumentParser(description="Share of an epoch that is spent in saving the state.")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "acac")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", help="where files are written; a temporary folder by default")
    options = parser.parse_args()
    file = options.data / TRAINING_FILE
    if not file.is_file():
        print(f"{file} does not exist; name the folder of the data with --data.", file=sys.stderr)
        return 2
    training, validating, saving = (Stopwatch(Trainer, name) for name in ("_run_epoch", "_validate", "save"))
    copying = Stopwatch(TrainingState, "copy_of_validated_weights")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        flags = [f"--train_file={file}", f"--work_dir={folder}", f"--max_num_epochs={options.epochs}"]
        run_training(parse_training_settings([*FLAGS, *flags]), Console(quiet=True))
        size = (Path(folder) / "checkpoints" / "acac_run-123_last.pt").stat().st_size
    # the first evaluation and the first state are those before training
    parts = list(zip(training.times, validating.times[1:], saving.times[1:], strict=False))
    epochs = [sum(each) for each in parts]
    for number, (epoch, (*_, seconds)) in enumerate(zip(epochs, parts, strict=True)):
        print(f"epoch {number}: {epoch:.2f} s, of these writing {seconds:.3f} s, {100 * seconds / epoch:.2f} %")
    total = 100 * (sum(copying.times) + sum(seconds for *_, seconds in parts)) / sum(epochs)
    print(f"together {total:.2f} %; the state has {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
